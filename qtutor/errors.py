"""The one family of errors that qtutor raises for bad input: one paragraph that says what was found and what to do."""

import reprlib
from collections.abc import Iterator
from contextlib import contextmanager


class QtutorError(ValueError):
    """Bad input: the message names the tensor or file, what was found, what was expected, and what to do."""


@contextmanager
def naming(subject: str) -> Iterator[None]:
    """A :class:`QtutorError` that is raised inside says at its beginning what it is about: the layer, the file.

    >>> with naming("model.layers.0.mlp.up_proj"):
    ...     raise QtutorError("3 weights are NaN.")
    Traceback (most recent call last):
    qtutor.errors.QtutorError: model.layers.0.mlp.up_proj: 3 weights are NaN.
    """
    try:
        yield
    except QtutorError as error:
        text = str(error)
        if not text.startswith(f"{subject}: "):
            error.args = (f"{subject}: {text}",)
        raise


def shown(value, longest: int = 80) -> str:
    """A name or a value that stands in a file, for a message: as Python writes it, cut to ``longest`` characters.

    Files hold what others wrote: texts of 65 kB, characters that make a terminal do things. None of it comes out.

    >>> shown("\x1b[31mred"), shown("x" * 70_000, 10)
    ("'\\\\x1b[31mred'", "'xx...xxx'")
    """
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = longest
    return one_line(short.repr(value), longest)


def said(error: BaseException, longest: int = 200) -> str:
    """What another library said of a failure, as part of a sentence: its first line, cut; its name if it said none."""
    text = str(error).strip()[: 10 * longest]
    return one_line((text.splitlines() or [""])[0].strip(" .:"), longest) or type(error).__name__


def one_line(text: str, longest: int) -> str:
    """``text`` with an escape for every character that is not printed as one, cut to ``longest``."""
    text = escaped(text[: longest + 1])
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def is_failure(error: BaseException) -> bool:
    """Whether something went wrong, and nobody asked to stop.

    Where Rust code gives up (tokenizers, safetensors), Python sees a PanicException, which is no ``Exception``.
    """
    return not isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit)


def escaped(text: str) -> str:
    """``text`` with an escape for every character that is not printed as one: nothing in it steers a terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)

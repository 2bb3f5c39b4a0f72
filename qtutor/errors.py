"""The one family of errors that qtutor raises for bad input: one paragraph that says what was found and what to do."""

import reprlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager


class QtutorError(ValueError):
    """Bad input: the message names the tensor or file, what was found, what was expected, and what to do."""


def check_choice(what: str, value, choices: Collection) -> None:
    """Raise :class:`QtutorError` unless ``value`` is one of ``choices``; ``what`` is the argument's name."""
    if value not in choices:
        raise QtutorError(f"{what} = {value!r}: choose one of {', '.join(map(repr, choices))}.")


@contextmanager
def naming(subject: str) -> Iterator[None]:
    """Put ``subject`` (a layer's name, a file's) in front of the message of every :class:`QtutorError` raised inside.

    So what computes need not know what its input is called. The error stays the same object, of the same type; a
    message that begins with this subject already is left as it is.

    >>> with naming("layers.0.q_proj"):
    ...     raise QtutorError("1 of 64 weights are NaN.")
    Traceback (most recent call last):
    qtutor.errors.QtutorError: layers.0.q_proj: 1 of 64 weights are NaN.
    """
    try:
        yield
    except QtutorError as error:
        if not str(error).startswith(f"{subject}: "):
            error.args = (f"{subject}: {error}",)
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

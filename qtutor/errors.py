"""The error that qtutor raises for bad input: one paragraph that says what was found and what to do; and warnings."""

import reprlib
import sys
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager


class QtutorError(ValueError):
    """Bad input. The message names the tensor or file, and says what was found, what was expected and what to do."""


def check_choice(what: str, value, choices: Collection) -> None:
    """Raise :class:`QtutorError` unless ``value`` is one of ``choices``; ``what`` is the name of the argument."""
    if value not in choices:
        raise QtutorError(f"{what} = {value!r}: choose one of {', '.join(map(repr, choices))}.")


@contextmanager
def naming(subject: str) -> Iterator[None]:
    """Put ``subject`` (the name of a layer or file) in front of the message of a :class:`QtutorError` raised inside.

    Numeric code therefore does not have to know the name of its input. The error stays the same object, of the same
    type. A message that already begins with this subject does not change.

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


def warn(text: str) -> None:
    """Warn, and show the line of the user's own code that called this package, however deep the warning arises."""
    frame = outside = sys._getframe(1)
    inside = (__package__, "torch")  # torch.no_grad() wraps some of our functions
    while frame is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] in inside:
            outside = frame.f_back or frame
        frame = frame.f_back
    place = outside.f_globals.get("__name__", "?"), outside.f_globals.setdefault("__warningregistry__", {})
    warnings.warn_explicit(text, UserWarning, outside.f_code.co_filename, outside.f_lineno, *place)


def shown(value, longest: int = 80) -> str:
    """A name or value from a file, for a message: as Python writes it, cut to ``longest`` characters.

    Files may hold texts of 65 kB, and characters that control a terminal. This function lets neither through.

    >>> shown("\x1b[31mred"), shown("x" * 70_000, 10)
    ("'\\\\x1b[31mred'", "'xx...xxx'")
    """
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = longest
    return one_line(short.repr(value), longest)


def said(error: BaseException, longest: int = 200) -> str:
    """The first line of another library's error, cut to fit into a sentence; the error's class if it has no text."""
    text = str(error).strip()[: 10 * longest]
    return one_line((text.splitlines() or [""])[0].strip(" .:"), longest) or type(error).__name__


def one_line(text: str, longest: int) -> str:
    """``text`` on one line: unprintable characters become escapes, and it is cut to ``longest`` characters."""
    text = escaped(text[: longest + 1])
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def is_failure(error: BaseException) -> bool:
    """Whether ``error`` is a failure, and not a request to stop.

    When Rust code panics (tokenizers, safetensors), Python sees a PanicException, which is not an ``Exception``.
    """
    return not isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit)


def escaped(text: str) -> str:
    """``text`` with an escape for every unprintable character, so that nothing in it controls a terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)

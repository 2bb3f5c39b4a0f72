"""The one family of errors that qtutor raises for bad input: one paragraph that says what was found and what to do."""

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

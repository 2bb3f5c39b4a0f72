"""The one family of errors that qtutor raises for bad input: one paragraph that says what was found and what to do."""

from collections.abc import Collection, Iterator
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


def check_choice(what: str, value, choices: Collection) -> None:
    """Raise :class:`QtutorError` unless ``value`` is one of ``choices``; ``what`` is the argument's name."""
    if value not in choices:
        raise QtutorError(f"{what} = {value!r}: choose one of {', '.join(map(repr, choices))}.")

"""The one family of errors that qtutor raises for bad input: one paragraph that says what was found and what to do."""

from collections.abc import Collection


class QtutorError(ValueError):
    """Bad input: the message names the tensor or file, what was found, what was expected, and what to do."""


def check_choice(what: str, value, choices: Collection) -> None:
    """Raise :class:`QtutorError` unless ``value`` is one of ``choices``; ``what`` is the argument's name."""
    if value not in choices:
        raise QtutorError(f"{what} = {value!r}: choose one of {', '.join(map(repr, choices))}.")

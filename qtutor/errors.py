"""The one family of errors that qtutor raises for bad input: one paragraph that says what was found and what to do."""


class QtutorError(ValueError):
    """Bad input: the message names the tensor or file, what was found, what was expected, and what to do."""

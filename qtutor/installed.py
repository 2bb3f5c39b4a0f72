"""Whether a package is installed that only a part of this one needs."""

import importlib.util

from qtutor.errors import warn


def is_installed(package: str) -> bool:
    """Whether ``package`` is installed; it is not imported."""
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # a module that is forbidden has no specification
        return False


def installed(package: str, otherwise: str) -> bool:
    """:func:`is_installed`, with a warning if it is not; otherwise: the warning's text."""
    found = is_installed(package)
    if not found:
        warn(otherwise)
    return found

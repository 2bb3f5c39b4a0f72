"""Whether a package is there that a kernel needs."""

import importlib.util
import warnings


def installed(package: str, otherwise: str) -> bool:
    """Whether ``package`` is installed; it is not imported. Warns with the sentences ``otherwise`` if it is not."""
    try:
        found = importlib.util.find_spec(package) is not None
    except ValueError:  # a module that is forbidden has no specification
        found = False
    if not found:
        warnings.warn(otherwise, stacklevel=3)
    return found

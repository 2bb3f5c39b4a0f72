"""Layers that store packed bytes and compute with them.

The two functions here are looked up when they are first used, so that :mod:`.packed` does not wait for the kernels.
"""

import importlib

__all__ = ["explain", "use"]


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"qtutor.runtime has no name {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module("qtutor.runtime.kernels.choosing"), name)


def __dir__() -> list[str]:
    return __all__

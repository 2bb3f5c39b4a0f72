"""The widgets of the course, a module a topic; each is :func:`.explorer.explore` over pure functions of the package.

The names are looked up when they are first used. So that a slider answers at once on a layer of any size, about 2^18
weights are rounded a picture: whole rows, as :mod:`.sampling` says. The table says which rows were measured; bytes are
always those of the whole layer. The embedded decoder's layers are small enough to be taken whole.
"""

import importlib

_WHERE = {
    "PROMPTS": "start",
    "activation_outliers": "distributions",
    "block_view": "gguf",
    "column_stepper": "gptq",
    "explore": "explorer",
    "levels_over_bell": "bnb",
    "microscope": "numbers",
    "outlier_threshold": "bnb",
    "same_prompt": "start",
    "scale_search": "awq",
    "weight_histogram": "rtn",
    "weights_as_picture": "rtn",
}

__all__ = sorted(_WHERE)


def __getattr__(name: str):
    if name not in _WHERE:
        raise AttributeError(f"qtutor.course.widgets has no name {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"qtutor.course.widgets.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return __all__

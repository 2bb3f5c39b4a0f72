"""The widgets of the course, one module for each topic. Each calls :func:`.explorer.explore` with pure functions.

The names are imported when they are first used. A picture rounds about 2^18 weights, in whole rows (:mod:`.sampling`),
so a slider answers at once on a layer of any size. The table says which rows were measured; bytes are always those of
the whole layer. The layers of the embedded decoder are so small that all rows are used.
"""

import importlib

_WHERE = {
    "PROMPTS": "start",
    "activation_outliers": "distributions",
    "blast_radius": "blast",
    "block_view": "gguf",
    "budget": "choose",
    "duel": "gptq",
    "explore": "explorer",
    "four_formats": "checkpoints",
    "levels_over_bell": "bnb",
    "levels_over_block": "block_levels",
    "microscope": "numbers",
    "outlier_threshold": "bnb",
    "page_table": "serving",
    "roofline_ladder": "kernels",
    "same_prompt": "start",
    "scale_search": "awq",
    "speed_limits": "start",
    "users_that_fit": "serving",
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

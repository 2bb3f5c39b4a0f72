"""The machinery of the course: exercises and their checks, the workspace with the learner's answers and predictions,
and the widgets.

A chapter needs ``from qtutor.course import check, mine``. The names are imported when they are first used, so that the
command line need not wait for torch.
"""

import importlib

_WHERE = {
    "Exercise": "exercises.exercise",
    "check": "checking",
    "learner_version": "workspace.stubs",
    "mine": "workspace.replacing",
    "predict": "widgets.prediction",
    "progress_table": "workspace.progress",
    "revealed": "widgets.prediction",
}

__all__ = sorted(_WHERE)


def __getattr__(name: str):
    if name not in _WHERE:
        raise AttributeError(f"qtutor.course has no public name {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(f"qtutor.course.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__

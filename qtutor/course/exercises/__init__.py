"""The exercises: one module for each topic, with a tuple EXERCISES. A new topic needs a new row in CHAPTERS."""

import difflib
import importlib

from qtutor.course.exercises.exercise import CHAPTERS, Exercise
from qtutor.errors import QtutorError


def of_topic(topic: str) -> tuple[Exercise, ...]:
    """The exercises of one topic, in the order of its chapter."""
    return importlib.import_module(f"qtutor.course.exercises.{topic}").EXERCISES


def every() -> list[Exercise]:
    """All exercises, in the order of the course."""
    return [exercise for topic in CHAPTERS for exercise in of_topic(topic)]


def find(name: str) -> Exercise:
    """The exercise called ``name`` (``"rtn.encode"``). Raises :class:`QtutorError`, which lists similar names."""
    known = {exercise.name: exercise for exercise in every()}
    if name in known:
        return known[name]
    near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.4) or list(known)
    raise QtutorError(f"there is no exercise {name!r}. Did you mean {' or '.join(near)}?")

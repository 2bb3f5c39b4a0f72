"""Running a learner's function: on copies of the inputs, with whatever it raises or returns turned into an Outcome."""

import copy
import inspect
import re
import sysconfig
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qtutor.course.checking import comparing
from qtutor.course.exercises.exercise import TURN

# Lines in these files are not the learner's.
LIBRARIES = (
    *{sysconfig.get_path(kind) for kind in ("stdlib", "purelib", "platlib")},
    str(Path(__file__).resolve().parents[2]),
    "<frozen",
    "<__array_function__",
)


@dataclass(frozen=True)
class Outcome:
    """What a function made of one input: an array for each output; or, with ``arrays`` None, what was in the way.

    kind: ``"values"``, ``"todo"`` (a stub), ``"returned"`` (something that is no answer), or the exception's name.
    problem: that in words. changed: the name of an argument that the function wrote into, or ``""``.
    """

    kind: str
    arrays: tuple[np.ndarray, ...] | None = None
    problem: str = ""
    changed: str = ""


def run(
    function: Callable, names: list[str], arguments: tuple, outputs: tuple[str, ...], form: Callable | None = None
) -> Outcome:
    """Call ``function`` with copies of ``arguments`` (called ``names`` in messages); ``form`` is the exercise's."""
    given = copy.deepcopy(arguments)
    try:
        returned = function(*given)
    except NotImplementedError as error:
        if error.args in ((), (TURN,)):
            return Outcome("todo")
        return Outcome("NotImplementedError", problem=_raised(error))
    except Exception as error:  # whatever a learner's code may raise has to be told, not to end the check
        return Outcome(type(error).__name__, problem=_raised(error))
    parts, problem = _split(returned, outputs)
    problem = problem or (form(returned) if form else "")
    if problem:
        return Outcome("returned", problem=problem)
    # Copied, since a result may share its memory with an input.
    arrays = tuple(np.array(part) for part in parts)
    return Outcome("values", arrays, changed=_changed(names, arguments, given))


def _split(returned, outputs: tuple[str, ...]) -> tuple[list[np.ndarray], str]:
    """(an array for each output, "") or ([], what is wrong)."""
    several = f"{len(outputs)} values were expected: return {', '.join(outputs)}"
    if returned is None:
        return [], "Your function returned None. Is a return missing at its end?"
    if len(outputs) > 1:
        if not isinstance(returned, list | tuple):
            return [], f"Your function returned one {type(returned).__name__}, but {several}."
        if len(returned) != len(outputs):
            return [], f"Your function returned {len(returned)} value{'s'[: len(returned) != 1]}, but {several}."
    arrays = []
    for name, part in zip(outputs, returned if len(outputs) > 1 else [returned]):
        try:
            arrays.append(comparing.to_array(part))
        except comparing.NotNumbers as error:
            return [], f"{name} is {error}. A number, lists of numbers, a numpy array or a torch tensor was expected."
    return arrays, ""


def _changed(names: list[str], before: tuple, after: tuple) -> str:
    """The name of the first argument that is not what it was."""
    for name, old, new in zip(names, before, after):
        try:
            old, new = comparing.to_array(old), comparing.to_array(new)
        except comparing.NotNumbers:
            continue  # a grid, a function: nothing that is written into
        difference = comparing.differs(new, old, 0.0)
        if difference is None or difference.any():
            return name
    return ""


def _raised(error: Exception) -> str:
    """``Your function raised IndexError: ... (line 7: total += row[i])``; the line of the learner's own code."""
    text = re.sub(r" at 0x[0-9a-fA-F]+", "", " ".join(str(error).split()))
    said = f"Your function raised {type(error).__name__}" + (f": {text[:300]}" if text else "")
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(LIBRARIES)]
    if not own:
        return f"{said}."
    return f"{said}\n  in {own[-1].name}, line {own[-1].lineno} of its cell: {own[-1].line}"


def wrong_call(function, names: list[str], arguments: tuple) -> str:
    """Why ``function`` cannot be called with the arguments at all, or ``""``."""
    if not callable(function):
        return f"check needs the function itself, without parentheses behind it; it got a {type(function).__name__}."
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return ""  # some built-in functions have none to look at
    try:
        signature.bind(*arguments)
    except TypeError:
        own = getattr(function, "__name__", "your function")
        return f"check calls {own}({', '.join(names)}), but yours is {own}{signature}."
    return ""

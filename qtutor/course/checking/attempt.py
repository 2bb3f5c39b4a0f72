"""Run a learner's function on copies of the inputs, and turn whatever it raises or returns into an Outcome."""

import copy
import inspect
import re
import sysconfig
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from qtutor.course.checking import comparing
from qtutor.course.checking.limits import TimeUp
from qtutor.course.exercises.exercise import TURN

LARGEST = 10**5  # numbers in a result; right results have at most a few thousand

# Lines in these files are not the learner's. torch and numpy may be outside of this environment: in the user's own
# packages, or in those of the Python that it was made with.
LIBRARIES = (
    *{sysconfig.get_path(kind) for kind in ("stdlib", "purelib", "platlib")},
    *{str(Path(module.__file__).parents[1]) for module in (np, torch)},
    str(Path(__file__).resolve().parents[2]),
    "<frozen",
    "<__array_function__",
)


@dataclass(frozen=True)
class Outcome:
    """What a function did with one input. arrays: one for each output, or ``None`` if there was a problem.

    kind: ``"values"``, ``"todo"`` (a stub), ``"returned"`` (something that cannot be an answer), or the name of the
    exception. problem: the problem in words. changed: the name of an argument that the function changed, or ``""``.
    """

    kind: str
    arrays: tuple[np.ndarray, ...] | None = None
    problem: str = ""
    changed: str = ""


def run(
    function: Callable,
    names: list[str],
    arguments: tuple,
    outputs: tuple[str, ...],
    form: Callable | None = None,
    seen: Callable | None = None,
) -> Outcome:
    """Call ``function`` with copies of ``arguments`` (called ``names`` in messages); ``form``, ``seen``: see
    :class:`Exercise`.

    The outcome contains what the function raised. KeyboardInterrupt and :class:`TimeUp` are raised again: they end the
    check.
    """
    try:
        given = copy.deepcopy(arguments)
        returned = function(*given)
        returned = seen(returned, given) if seen else returned
    except (KeyboardInterrupt, TimeUp):
        raise
    except SystemExit:
        return Outcome("SystemExit", problem="Your function ended the program (exit, quit or sys.exit). Use return.")
    except BaseException as error:  # no exception of a learner's code may end the check
        return Outcome("todo") if _is_stub(error) else Outcome(type(error).__name__, problem=_raised(error))
    parts, problem = _split(returned, outputs)
    problem = problem or (form(returned) if form else "")
    if problem:
        return Outcome("returned", problem=problem)
    # Copied, since a result may share its memory with an input.
    arrays = tuple(np.array(part) for part in parts)
    return Outcome("values", arrays, changed=_changed(names, arguments, given))


def _is_stub(error: BaseException) -> bool:
    if not isinstance(error, NotImplementedError):
        return False
    return error.args == () or (len(error.args) == 1 and isinstance(error.args[0], str) and error.args[0] == TURN)


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
            arrays.append(comparing.to_array(part, LARGEST))
        except comparing.NotNumbers as error:
            return [], f"{name} is {error}. A number, lists of numbers, a numpy array or a torch tensor was expected."
        except Exception as error:  # an object of the learner's own class, or a kind of tensor that torch cannot read
            return (
                [],
                f"{name} is a {type(part).__name__}, and reading it raised {type(error).__name__}: {_text(error)}",
            )
    return arrays, ""


def _changed(names: list[str], before: tuple, after: tuple) -> str:
    """The name of the first argument that has changed, or ``""``."""
    for name, old, new in zip(names, before, after):
        try:
            old = comparing.to_array(old)
        except comparing.NotNumbers:
            continue  # a grid or a function, which nobody writes into
        try:
            difference = comparing.differs(comparing.to_array(new, LARGEST), old, 0.0)
        except comparing.NotNumbers:
            return name  # its memory was freed, or it became something else
        if difference is None or difference.any():
            return name
    return ""


def _raised(error: BaseException) -> str:
    """``Your function raised IndexError: ...``, with the line of the learner's own code."""
    text = re.sub(r" at 0x[0-9a-fA-F]+", "", _text(error))
    said = f"Your function raised {type(error).__name__}" + (f": {text}" if text else "")
    if isinstance(error, MemoryError):
        said += ": it asked for more memory than a check allows"
    return said + (where(error) or ".")


def _text(error: BaseException) -> str:
    """The text of an exception in one line of at most 300 printable characters."""
    try:
        text = " ".join(str(error)[:2000].split())[:300]
    except Exception:
        return "(its text cannot be shown: calling str() on it raises an exception itself)"
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def where(error: BaseException) -> str:
    """A line that shows where in the learner's own code ``error`` was raised; ``""`` if it was elsewhere."""
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(LIBRARIES)]
    return f"\n  in {own[-1].name}, line {own[-1].lineno} of its cell: {own[-1].line}" if own else ""


def wrong_call(function, names: list[str], arguments: tuple) -> str:
    """Why ``function`` cannot even be called with these arguments, or ``""``."""
    if not callable(function):
        return (
            f"check needs the function itself, without parentheses after its name; it got a {type(function).__name__}."
        )
    try:
        signature = inspect.signature(function)
    except Exception:
        return ""  # some built-in functions have no signature; an object of the learner's may raise anything
    try:
        signature.bind(*arguments)
    except TypeError:
        own = getattr(function, "__name__", "your function")
        return f"check calls {own}({', '.join(names)}), but yours is {own}{signature}."
    return ""

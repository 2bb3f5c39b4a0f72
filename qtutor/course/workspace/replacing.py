"""``with mine(): ...`` computes with the learner's answers: they replace the functions of the package.

>>> with mine():
...     qtutor.quantize(model, recipe)  # on the learner's own quantizer

A function is replaced in every module of the package that holds it, also where it was imported by name. A name that the
notebook itself imported (``from qtutor.core.packing import pack``) stays the package's: write ``packing.pack``. For
grids and methods that the exercise does not cover, such as lists of levels (NF4) or a loop of its own (GPTQ), the
package's function is still used.
"""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from qtutor.course import exercises, workspace
from qtutor.course.exercises.exercise import Exercise
from qtutor.course.workspace import answers
from qtutor.errors import QtutorError


@contextmanager
def mine(*names: str) -> Iterator[list[str]]:
    """Replace the package's functions by the learner's kept ones until the ``with`` block ends or raises.

    names: topics (``"rtn"``) or exercises (``"rtn.pack"``) to replace; by default all. Prints which parts are the
    learner's, and from which workspace; yields their names. If a kept file no longer runs, its name is printed, and the
    package's function stays. Outside of a workspace, and in another user's workspace, all functions stay. Raises
    :class:`QtutorError` for an unknown name.
    """
    folder = workspace.find()
    strange = workspace.of_another(folder, folder / workspace.RECORD) if folder else ""
    if strange:
        print(strange)
        folder = None
    own: dict[str, Callable] = {}
    parts = _parts(names)
    for exercise in parts:
        try:
            function = answers.load(exercise, folder) if folder else None
        except QtutorError as error:
            print(error)
            continue
        if function is not None:
            own[exercise.name] = function
    print(_said([exercise.name for exercise in parts], own, folder))
    with ExitStack() as stack:
        for exercise in parts:
            if exercise.name in own:
                stack.enter_context(replaced(exercise, own[exercise.name]))
        yield list(own)


def _parts(names: tuple[str, ...]) -> list[Exercise]:
    """The exercises chosen by ``names`` whose answers can replace a function of the package."""
    known = [exercise for exercise in exercises.every() if exercise.replaces]
    for name in names:
        if name not in exercises.CHAPTERS and not exercises.find(name).replaces:
            raise QtutorError(f"{name}: the package has no function that your answer to this exercise can replace.")
    return [e for e in known if not names or e.name in names or e.name.partition(".")[0] in names]


def _said(parts: list[str], own: dict[str, Callable], folder: Path | None) -> str:
    others = [name for name in parts if name not in own]
    if not own:
        return f"Nothing of yours yet. The package's: {', '.join(others)}."
    rest = f" The package's: {', '.join(others)}." if others else ""
    return f"Yours: {', '.join(own)}.{rest} From {folder}."


@contextmanager
def replaced(exercise: Exercise, function: Callable) -> Iterator[None]:
    """Replace the function that ``exercise.replaces`` names by ``function``, adapted to its arguments."""
    module, _, name = exercise.replaces.rpartition(".")
    original = getattr(importlib.import_module(module), name)
    replacement = exercise.adapt(function) if exercise.adapt else function
    _exchange(original, replacement)
    try:
        yield
    finally:
        # Go through all modules again: those imported in the meantime hold the replacement, too.
        _exchange(replacement, original)


def _exchange(old: Callable, new: Callable) -> None:
    """Put ``new`` in the place of ``old`` in every module of the package, except those of the course."""
    for name, module in list(sys.modules.items()):
        if (name == "qtutor" or name.startswith("qtutor.")) and not name.startswith("qtutor.course"):
            for key, value in list(vars(module).items()):
                if value is old:
                    setattr(module, key, new)

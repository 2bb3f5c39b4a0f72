"""``with mine(): ...`` computes with what the learner wrote: the package's functions give way to the kept ones.

>>> with mine():
...     qtutor.quantize(model, recipe)  # on the learner's own quantizer

A function is replaced wherever a module of the package holds it, so also where it was imported by name. Names that a
notebook itself imported (``from qtutor.core.packing import pack``) keep the package's: write ``packing.pack``. Grids
that are lists of levels (NF4), and methods with a loop of their own (GPTQ), keep what an exercise was not made for.
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
    """Put the learner's kept functions in place of the package's until the block ends, however it ends.

    names: topics (``"rtn"``) or exercises (``"rtn.pack"``) to choose from; without any, all.
    Prints which parts are the learner's, and from which workspace; yields their names. A kept file that does not run
    any more is named, and the package's function stays. Outside of a workspace, and in another user's, all stay. Raises
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
    """The exercises that ``names`` choose whose answers can replace something."""
    known = [exercise for exercise in exercises.every() if exercise.replaces]
    for name in names:
        if name not in exercises.TOPICS and not exercises.find(name).replaces:
            raise QtutorError(f"what you write for {name} stands by itself: nothing in the package gives way to it.")
    return [e for e in known if not names or e.name in names or e.name.partition(".")[0] in names]


def _said(parts: list[str], own: dict[str, Callable], folder: Path | None) -> str:
    others = [name for name in parts if name not in own]
    if not own:
        return f"Nothing of yours yet. The package's: {', '.join(others)}."
    rest = f" The package's: {', '.join(others)}." if others else ""
    return f"Yours: {', '.join(own)}.{rest} From {folder}."


@contextmanager
def replaced(exercise: Exercise, function: Callable) -> Iterator[None]:
    """``function``, adapted, in place of what ``exercise.replaces`` names."""
    module, _, name = exercise.replaces.rpartition(".")
    original = getattr(importlib.import_module(module), name)
    replacement = exercise.adapt(function) if exercise.adapt else function
    _exchange(original, replacement)
    try:
        yield
    finally:
        # Once more everywhere: modules that were imported meanwhile hold the replacement.
        _exchange(replacement, original)


def _exchange(old: Callable, new: Callable) -> None:
    """Put ``new`` wherever a module of the package, the course's own excepted, holds ``old``."""
    for name, module in list(sys.modules.items()):
        if (name == "qtutor" or name.startswith("qtutor.")) and not name.startswith("qtutor.course"):
            for key, value in list(vars(module).items()):
                if value is old:
                    setattr(module, key, new)

"""Keep the learner's answers that passed in the workspace, as plain Python: WORKSPACE/mine/topic_function.py.

Loading such a file executes it. Only files inside the learner's own workspace are ever loaded. The course itself wrote
them there, from code that the learner had already run. Nothing is unpickled.
"""

import types
from collections.abc import Callable
from pathlib import Path

from qtutor.course import workspace
from qtutor.course.exercises.exercise import Exercise
from qtutor.course.workspace.standalone import CannotKeep, is_library_code, standalone
from qtutor.errors import QtutorError
from qtutor.files import as_qtutor_error

FOLDER = "mine"


def path_of(exercise: Exercise, folder: Path) -> Path:
    """The file for the answer to ``exercise`` in the workspace ``folder``."""
    return folder / FOLDER / f"{exercise.name.replace('.', '_')}.py"


def keep(exercise: Exercise, function: Callable, right: Callable[[Callable], bool]) -> str:
    """Keep a function that has passed. Returns a line for the learner, or ``""`` beside the course's own chapters.

    right: checks a function. The text of the file is executed and checked before it replaces an earlier answer.
    """
    folder = workspace.find()
    if folder is None:
        return _without_workspace(Path.cwd())
    if is_library_code(function):
        return "Not kept: this is a function of the package, not one of yours."
    try:
        text = standalone(function, f"{exercise.name}: what you wrote. qtutor.course.mine() computes with it.")
    except CannotKeep as why:
        return f"Not kept, and so not counted as done: {why}."
    path = path_of(exercise, folder)
    strange = workspace.of_another(
        folder, folder / workspace.RECORD, *(part for part in (path.parent, path) if part.exists())
    )
    if strange:
        return f"Not kept: {strange}"
    try:
        works = right(_execute(text, path))
    except Exception as error:  # the learner's own lines may raise anything
        return f"Not kept, and so not counted as done: in a file of its own it raises {type(error).__name__}: {error}"
    if not works:
        return (
            "Not kept, and so not counted as done: in a file of its own it gives other results. Does it change "
            "something outside of the function?"
        )
    try:
        with as_qtutor_error(path):
            path.parent.mkdir(exist_ok=True)
        workspace.write_beside(path, text.encode())
    except QtutorError as error:  # a full disk does not make a right answer wrong
        return f"Not kept, and so not counted as done: {error}"
    return f"Kept in {FOLDER}/{path.name}."


def _without_workspace(here: Path) -> str:
    """Where answers are kept, for a learner who works somewhere else; ``""`` beside the course's own chapters.

    Those have stored outputs, which must not depend on where the course is run.
    """
    if here.resolve() == workspace.chapters_folder().resolve():
        return ""
    return (
        f"Not kept: {here} is not in a workspace. 'qtutor learn --no-start' makes one, {workspace.DEFAULT_FOLDER}; "
        f"answers that pass the check in a notebook there are kept in its folder {FOLDER}."
    )


def load(exercise: Exercise, folder: Path) -> Callable | None:
    """The learner's answer to ``exercise``, or ``None`` if none is kept in the workspace ``folder``.

    Raises :class:`QtutorError` for a file that leads out of the workspace, belongs to another user, or no longer runs.
    """
    path = path_of(exercise, folder)
    if not path.is_file():
        return None
    if not path.resolve().is_relative_to(folder.resolve()):
        raise QtutorError(f"{path} leads out of your workspace, so it is not loaded. Pass {exercise.name} again.")
    strange = workspace.of_another(folder, folder / workspace.RECORD, path.parent, path)
    if strange:
        raise QtutorError(strange)
    try:
        return _execute(path.read_text(encoding="utf-8"), path)
    except Exception as error:  # someone may have edited the file
        raise QtutorError(
            f"{FOLDER}/{path.name} does not run any more ({type(error).__name__}: {error}). Repair it, or delete it "
            f"and pass {exercise.name} again."
        ) from error


def _execute(text: str, path: Path) -> Callable:
    """Run the text of a kept file as a module of its own, and return its answer. No compiled copy is written."""
    module = types.ModuleType(path.stem)
    module.__file__ = str(path)
    exec(compile(text, str(path), "exec"), module.__dict__)
    return module.answer

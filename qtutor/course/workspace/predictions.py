"""Keep the learner's predictions in the workspace, as numbers in WORKSPACE/mine/predictions.json.

A prediction is typed into a field (:func:`qtutor.course.predict`) and shown again beside the measured number
(:func:`qtutor.course.revealed`), also after the kernel was restarted. Outside of a workspace it is remembered until the
kernel stops.
"""

import json
import math
import re
from pathlib import Path

from qtutor.course import workspace
from qtutor.course.workspace import answers
from qtutor.errors import QtutorError
from qtutor.files import as_qtutor_error

FILE = "predictions.json"
NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
THOUSANDS = re.compile(r"[-+]?\d{1,3}(,\d{3})+(\.\d+)?")

_remembered: dict[str, float] = {}  # in this kernel, if there is no workspace


def number_in(text: str, unit: str = "") -> float:
    """The number that a learner typed: ``4.7``, ``4,7``, ``1,152``, ``1/8`` or ``30 %``, with or without its unit.

    Raises :class:`QtutorError` with a sentence for the learner if the text is no number.
    """
    bare = text.strip().removesuffix(unit).strip() if unit else text.strip()
    plain = bare.replace(",", "") if THOUSANDS.fullmatch(bare) else bare.replace(",", ".")
    try:
        above, _, below = plain.partition("/")
        number = float(above) / (float(below) if below else 1.0)
    except (ValueError, ZeroDivisionError):
        number = math.nan
    if not math.isfinite(number):
        raise QtutorError(f"{text.strip()[:40]!r} is not a number. Type one, such as 3 or 4.5, and press Enter.")
    return number


def keep(name: str, number: float | None) -> str:
    """Keep a prediction; ``None`` forgets it. Returns a sentence for the learner that says where it is kept."""
    folder = workspace.find()
    if folder is None:
        _remembered.pop(name, None)
        if number is not None:
            _remembered[name] = number
        return "It is remembered until this kernel stops: the notebook is not in a workspace."
    path = path_in(folder)
    _refuse_strangers(folder, path)
    kept = _read(path)
    kept.pop(name, None)
    if number is not None:
        kept[name] = number
    with as_qtutor_error(path):
        path.parent.mkdir(exist_ok=True)
    workspace.write_beside(path, (json.dumps(kept, indent=1, sort_keys=True) + "\n").encode())
    return f"It is kept in {answers.FOLDER}/{FILE}."


def load(name: str) -> float | None:
    """The prediction ``name``, or ``None`` if there is none. Raises :class:`QtutorError` for a file that is damaged."""
    folder = workspace.find()
    if folder is None:
        return _remembered.get(name)
    path = path_in(folder)
    _refuse_strangers(folder, path)
    return _read(path).get(name)


def path_in(folder: Path) -> Path:
    """The file with all predictions of the workspace ``folder``."""
    return folder / answers.FOLDER / FILE


def _refuse_strangers(folder: Path, path: Path) -> None:
    """Raise :class:`QtutorError` if the workspace belongs to another user, or the file leads out of the workspace."""
    there = [part for part in (path.parent, path) if part.exists()]
    strange = workspace.of_another(folder, folder / workspace.RECORD, *there)
    if not strange and not path.resolve().is_relative_to(folder.resolve()):
        strange = f"{path} leads out of your workspace, so predictions are not kept there. Delete that link."
    if strange:
        raise QtutorError(strange)


def _read(path: Path) -> dict[str, float]:
    """The predictions in ``path``, name -> number; ``{}`` if the file does not exist yet."""
    if not path.exists():
        return {}
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        sound = all(NAME.fullmatch(name) and math.isfinite(number) for name, number in kept.items())
    except (OSError, ValueError, AttributeError, TypeError):
        sound = False
    if not sound:
        raise QtutorError(
            f"{path} should hold predictions, each with a name and a number, but it does not. Repair it, or delete it: "
            "then predictions are kept again."
        )
    return kept

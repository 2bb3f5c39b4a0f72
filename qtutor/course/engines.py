"""Which engine accepts which recipe, as a table computed from the rules in :mod:`qtutor.formats.ways`; and an engine
that loads a folder here, if one is installed.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from torch import nn

import qtutor
from qtutor.course.exercises.checkpoints.readers import has_engine
from qtutor.course.scores import table
from qtutor.errors import QtutorError
from qtutor.formats.targets import Shape, pick
from qtutor.formats.transformers_files import as_transformers_loads
from qtutor.formats.ways import RAN, TARGETS
from qtutor.recipe import Recipe

NOBODY = "-"


def takers(recipes: Mapping[str, Recipe], shapes: Mapping[str, Shape]) -> dict[str, dict[str, str]]:
    """recipe -> engine -> the format in which the engine accepts the recipe, or :data:`NOBODY`.

    "*" after a format: known from the engine's source, not run here. "rounds anew": the file holds the engine's own
    rounding of the float weights, not that of the recipe.
    """
    return {label: {target: _format(target, shapes, recipe) for target in TARGETS} for label, recipe in recipes.items()}


def _format(target: str, shapes: Mapping[str, Shape], recipe: Recipe) -> str:
    try:
        choice = pick(target, shapes, recipe)
    except QtutorError:
        return NOBODY
    return choice.format + ("" if choice.known == RAN else "*") + ("" if choice.recipe else ", rounds anew")


def takers_table(recipes: Mapping[str, Recipe], shapes: Mapping[str, Shape]) -> None:
    """Show :func:`takers` as a table, a row for each recipe."""
    found = takers(recipes, shapes)
    table(["recipe", *TARGETS], *([label, *row.values()] for label, row in found.items()))


def why_not(target: str, recipe: Recipe, shapes: Mapping[str, Shape]) -> str:
    """The reason from :func:`qtutor.formats.targets.pick` why ``target`` does not accept the recipe, or ``""``."""
    try:
        pick(target, shapes, recipe)
    except QtutorError as error:
        return str(error)
    return ""


def settings_of(folder: str | Path) -> dict:
    """The quantization_config in a folder's config.json."""
    return json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))["quantization_config"]


def loaded_by_an_engine(folder: str | Path) -> tuple[str, nn.Module]:
    """(who loaded it, the model): transformers if the package compressed-tensors is installed, else qtutor's reader."""
    if has_engine():
        return "transformers with compressed-tensors", as_transformers_loads(folder)
    return "qtutor's reader, since the package compressed-tensors is not installed", qtutor.load_quantized(
        folder, "cpu"
    )

"""Exceptions for some layers: a recipe in which one pattern's options are changed."""

from collections.abc import Mapping
from dataclasses import replace

from qtutor.core.grid import Grid
from qtutor.errors import QtutorError
from qtutor.recipe.methods import LEVELS, METHODS, OWN_SIZES

KEEP = "float"
OF_A_LAYER = (
    *("method", "bits", "group_size", "symmetric", "clip", "levels"),
    *("act_order", "static_groups", "damping", "double"),
)


def changed(whole, pattern: str, change: Mapping | str, recipe=None):
    """A layer's ``recipe`` with an exception applied; ``None`` if the layer stays in float.

    whole: the :class:`~qtutor.recipe.Recipe` of the model, to which the exception belongs; also the default for
    ``recipe``. change: the options that differ, or ``"float"``. Raises :class:`QtutorError` for options that fit no
    layer, or do not fit the recipe of the other layers.
    """
    if change == KEEP:
        return None
    if not isinstance(change, Mapping) or not set(change) <= set(OF_A_LAYER):
        raise QtutorError(
            f"layers: {pattern!r} is given {change!r}. Give 'float' to leave a layer alone, or a dict of what "
            f"differs: {', '.join(OF_A_LAYER)}."
        )
    recipe = recipe or replace(whole, layers={})
    codebook = recipe.codebook
    if codebook and _leaves_levels(recipe, change):  # its method or levels fixed these options, not the user
        group_size = None if codebook in OWN_SIZES else recipe.group_size
        method = "rtn" if METHODS[recipe.method].codebook else recipe.method
        usual = {"levels": "integers", "bits": None, "symmetric": False, "group_size": group_size}
        recipe = replace(recipe, method=method, **usual)
    named = _named_grid(change, recipe)
    if named and named != recipe.codebook and {"method", "levels"} & set(change):
        # The options of the other layers were not meant for these levels.
        change = {"bits": None, **({"group_size": None} if named in OWN_SIZES else {}), **change}
    try:
        made = replace(recipe, **change)
    except QtutorError as error:
        raise QtutorError(f"layers: {pattern!r}: {error}") from None
    if made.symmetric != change.get("symmetric", made.symmetric):
        raise QtutorError(
            f"layers: {pattern!r} is given symmetric = {change['symmetric']!r}, and method {made.method!r} has "
            f"{made.symmetric!r}. Leave it out, or choose another method."
        )
    if made.transforms != whole.transforms:
        raise QtutorError(
            f"layers: {pattern!r} has method {made.method!r}, and the other layers {whole.method!r}. AWQ scales whole "
            "decoder blocks: choose it for all layers or for none."
        )
    return made


def _named_grid(change: Mapping, recipe) -> Grid | None:
    """The grid that an exception of ``recipe`` names by a method or by levels, or ``None``."""
    method, levels = (str(change.get(name, "")) for name in ("method", "levels"))
    named = METHODS.get(method or recipe.method)
    return LEVELS.get(levels) or (named and named.codebook)


def _leaves_levels(recipe, change: Mapping) -> bool:
    """Whether an exception has other levels than ``recipe``, whose levels are not integers."""
    if "levels" in change or METHODS[recipe.method].codebook:
        return "levels" in change or "method" in change
    other = METHODS.get(change.get("method"))
    return other is not None and other.codebook is not None

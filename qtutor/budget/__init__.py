"""Choose the bits of each layer: the smallest loss that a given number of bits or bytes allows.

A layer that matters little can be stored in 2 or 3 bits, and the bytes that it saves give another layer 5 or 6 bits.
For that, two numbers are needed for every layer and every choice of bits: its size, and its cost in loss
(:mod:`.sensitivity`). Then :mod:`.allocation` chooses. :mod:`.block_types` does the same for the block types of a GGUF
file.
"""

from dataclasses import replace
from fnmatch import fnmatchcase

import torch
from torch import nn

from qtutor.budget.allocation import Table, allocate
from qtutor.budget.sensitivity import CHOICES, losses
from qtutor.calibration.mapped import Weights
from qtutor.core.grid import IntGrid
from qtutor.core.quantized import nbytes_of
from qtutor.errors import QtutorError
from qtutor.pipeline.planning import plan_of, recipes_of
from qtutor.recipe import Recipe

__all__ = ["CHOICES", "Table", "allocate", "choose", "free_layers", "losses", "packed_bytes"]

MARGIN = 200  # bytes per layer: the written recipe names the bits of every layer


def choose(weights: Weights, recipe: Recipe, token_ids: torch.Tensor, tokenizer=None) -> Recipe:
    """``recipe`` with bits of its own for every layer: the smallest loss within the recipe's budget.

    The budget is ``recipe.target_size``, bytes of the folder that will be written (with the files of ``tokenizer``), or
    a fraction in ``recipe.bits``, the mean bits of the codes. Layers for which ``recipe.layers`` names bits, a method
    or "float" keep that choice, and do not count in the mean. token_ids: int64 ``[samples, length]``.
    Raises :class:`QtutorError` for a budget that is too small, naming the smallest possible one.
    """
    plain = replace(recipe, bits=None, target_size=None)
    free = free_layers(weights.model, plain)
    if not free:
        raise QtutorError(
            "the recipe leaves no layer whose bits could be chosen: keep fewer in float, or name bits for fewer."
        )
    layers = {name: weights.model.get_submodule(name) for name in free}
    table = losses(weights, token_ids, free)
    if recipe.target_size is None:
        sizes = {name: {b: b * layer.weight.numel() for b in CHOICES} for name, layer in layers.items()}
        budget, unit, rest = recipe.bits * sum(layer.weight.numel() for layer in layers.values()), "bits", 0
    else:
        sizes = {name: {b: packed_bytes(layers[name], own, b) for b in CHOICES} for name, own in free.items()}
        rest = _bytes_of_the_rest(weights, plain, sizes, token_ids, tokenizer)
        budget, unit = recipe.target_size - rest, "bytes"
    chosen = allocate(sizes, table, budget, unit, rest)
    return replace(plain, layers={**recipe.layers, **{name: {"bits": bits} for name, bits in chosen.items()}})


def _bytes_of_the_rest(weights: Weights, plain: Recipe, sizes: Table, token_ids, tokenizer) -> int:
    """The bytes of the folder without the layers of ``sizes``, and some more for names that become longer."""
    layers = sum(row[plain.bits] for row in sizes.values())
    return plan_of(weights, plain, token_ids, tokenizer).nbytes - layers + MARGIN * len(sizes)


def free_layers(model: nn.Module, recipe: Recipe) -> dict[str, Recipe]:
    """The layers whose bits the recipe does not fix, by name, each with its own recipe."""

    def fixed(name: str) -> bool:
        changes = [change for pattern, change in recipe.layers.items() if fnmatchcase(name, pattern)]
        return any("bits" in change or "method" in change for change in changes)

    return {name: own for name, own in recipes_of(model, recipe).items() if not fixed(name)}


def packed_bytes(layer: nn.Module, recipe: Recipe, bits: int) -> int:
    """The bytes of the codes, scales and zero points of ``layer`` at this number of ``bits``."""
    return nbytes_of(*layer.weight.shape, IntGrid(bits, recipe.symmetric), recipe.group_size)

"""Four-bit floats, taken apart for chapter 04: the cost of their levels, and the cost of the kind of scale.

MXFP4 and NVFP4 have the same eight sizes of levels. They differ in the length of a block and in the values that a scale
may have. So :func:`errors_by_scale` rounds the same weights to these levels with every kind of scale, in blocks of the
same length.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

import qtutor
from qtutor.core.float_grid import MXFP4, NVFP4, FloatGrid
from qtutor.core.grid import Grid
from qtutor.core.numbers import E2M1
from qtutor.measure.against import compare
from qtutor.methods import rtn
from qtutor.recipe import Recipe

SIX_ONLY = replace(NVFP4, wider=())  # the largest weight of a block always becomes 6
SCALES: dict[str, Grid] = {
    "any number": FloatGrid("e2m1", E2M1),  # float32
    "E4M3": SIX_ONLY,
    "E4M3, four over six": NVFP4,
    "a power of two": MXFP4,
}
RECIPES = {
    "int4, blocks of 32": Recipe(bits=4, group_size=32),
    "NF4, blocks of 32": Recipe("nf4", group_size=32),
    "MXFP4, blocks of 32": Recipe("mxfp4"),
    "NF4, blocks of 16": Recipe("nf4", group_size=16),
    "NVFP4, blocks of 16": Recipe("nvfp4"),
}


@dataclass(frozen=True)
class Cost:
    """What a recipe costs a decoder: true bits a weight, error of the weights, KL divergence to the float decoder."""

    bits: float
    error: float
    kl: float


def errors_by_scale(layers: Mapping[str, torch.Tensor], blocks: tuple[int, ...]) -> dict[str, list[float]]:
    """For each kind of scale, the relative errors of ``layers`` (matrices ``[out, in]``), one for each block length."""
    return {name: [mean_error(layers, grid, block) for block in blocks] for name, grid in SCALES.items()}


def mean_error(layers: Mapping[str, torch.Tensor], grid: Grid, block: int) -> float:
    """``|W - Q| / |W|``, the root of the mean of squares over all layers; every layer counts equally."""
    squares = []
    for weight in layers.values():
        back = rtn.quantize(weight, grid, block).dequantize()
        squares.append(((back - weight).norm() / weight.norm()).square())
    return torch.stack(squares).mean().sqrt().item()


def fours(layers: Mapping[str, torch.Tensor]) -> float:
    """The share of NVFP4's blocks in which the largest weight becomes 4, and not 6."""
    chosen = []
    for weight in layers.values():
        scales = [rtn.quantize(weight, grid, NVFP4.block).scales for grid in (NVFP4, SIX_ONLY)]
        chosen.append((scales[0] > scales[1]).float().flatten())
    return torch.cat(chosen).mean().item()


def costs(model, text: torch.Tensor, recipes: Mapping[str, Recipe] = RECIPES) -> dict[str, Cost]:
    """What each of ``recipes`` costs ``model``. text: token ids, int64 ``[tokens]``, for the KL."""
    found = {}
    for label, recipe in recipes.items():
        rounded = copy.deepcopy(model)
        report = qtutor.quantize(rounded, recipe, progress=False)
        weights = sum(row.shape[0] * row.shape[1] for row in report.rows)
        squares = torch.tensor([row.error for row in report.rows]).square()
        bits = 8 * report.bytes_after / weights
        found[label] = Cost(bits, squares.mean().sqrt().item(), compare(rounded, model, text).kl)
    return found

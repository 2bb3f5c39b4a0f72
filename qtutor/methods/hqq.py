"""HQQ: find scale and zero point of every group without any text, with an error measure that tolerates outliers.

Badri & Shaji 2023 ("Half-Quadratic Quantization of Large Machine Learning Models", Mobius Labs; peer:
hqq/core/optimize.py of mobiusml/hqq). With squared errors, a few outliers decide where the grid is. HQQ uses
``|error|^p`` with p = 0.7, for which there is no formula for the minimum. So it gives every weight its own slack, a
part of the error that is not counted, and alternates between two steps:

    1. the slack: the part of each error that makes the total cost least. It is 0 for small errors, and nearly all of a
       large one (:func:`shrink`, from one number to one number)
    2. scale and zero point: least squares for the weights minus their slack, with fixed codes

Beta grows from turn to turn, and slack gets cheaper. Every group keeps the best result of all turns, and of the whole
range.

Two things differ from the peer:

* Its zero points are floats, 16 bits per group. Here zero points are codes, as in all formats that this package writes.
  So the scale changes as well; in the peer it is fixed.
* It measures errors in the unit of the weights, and shrinks with beta = 10: errors below 0.17 get no slack. So weights
  of usual sizes (0.02) have none, and its turns only move the zero point until the mean error is 0. Here errors are
  measured in steps of the group's grid, and are at most half a step inside the range. So groups of all sizes are
  treated alike.

Left out: other p, and learning scales by gradients.
"""

import torch

from qtutor.core.grid import IntGrid, encode_groups, fit_groups, storable
from qtutor.core.quantized import PER_TENSOR, QuantizedTensor, check_weight, resolve_group_size
from qtutor.errors import QtutorError
from qtutor.methods import rtn
from qtutor.methods.clip import TINY, cheaper, rounding_errors

P = 0.7
BETA = 10.0
GROWTH = 1.01  # the factor of beta in every turn
TURNS = 20


@rtn.nearest_if_empty
def quantize(weight: torch.Tensor, grid: IntGrid, group_size: int) -> QuantizedTensor:
    """Quantize ``weight [out, in]`` (any float dtype); the arguments and errors are those of
    :func:`qtutor.rtn.quantize`.

    With one scale for the tensor, or for a matrix without weights, the result is the same as there. Also raises
    :class:`QtutorError` for a grid without evenly spaced levels.
    """
    if not isinstance(grid, IntGrid):
        raise QtutorError(f"HQQ moves scales and zero points of integers, but {grid.name} has other levels: use rtn.")
    check_weight(weight)
    if group_size == PER_TENSOR:
        return rtn.quantize(weight, grid, group_size)
    rows, columns = weight.shape
    grouped = weight.float().reshape(rows, -1, resolve_group_size(group_size, columns))  # [out, groups, group_size]
    scale, zero = search(grouped, grid)
    codes = encode_groups(grouped, scale, zero, grid).reshape(rows, columns)
    return QuantizedTensor(codes, scale, None if grid.symmetric else zero, grid, group_size)


def search(grouped: torch.Tensor, grid: IntGrid) -> tuple[torch.Tensor, torch.Tensor]:
    """The scale and zero ``[out, groups]`` with the least ``|error|^p`` of all turns, for every group of
    ``grouped [out, groups, group_size]``.
    """
    scale, zero = fit_groups(grouped, grid)
    best = norm(grouped, scale, zero, grid), scale, zero
    for turn in range(TURNS):
        scale, zero = improved(grouped, scale, zero, grid, BETA * GROWTH**turn)
        best = cheaper(best, (norm(grouped, scale, zero, grid), scale, zero))
    return best[1], best[2]


def norm(grouped: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, grid: IntGrid) -> torch.Tensor:
    """The mean ``|error|^p`` of every group, ``[out, groups]``."""
    return rounding_errors(grouped, scale, zero, grid).abs_().pow_(P).mean(dim=-1)


def improved(
    grouped: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, grid: IntGrid, beta: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """One turn: scale and zero ``[out, groups]`` that fit the given codes to the weights minus their slack."""
    step, middle = scale.float().unsqueeze(-1), zero.float().unsqueeze(-1)
    code = grid.encode(grouped, step, middle).float()
    weight = grouped / step  # in steps, like everything below
    fitted = weight - shrink(weight - (code - middle), beta)
    if not grid.symmetric:
        middle = (code - fitted).mean(dim=-1, keepdim=True).round().clamp(0, grid.largest_code)
    level = code - middle
    factor = (fitted * level).sum(dim=-1) / level.square().sum(dim=-1).clamp(min=1)  # 1: all levels are 0
    return storable(scale.float() * factor.clamp(0.5, 2), grid, TINY), middle.squeeze(-1).to(torch.uint8)


def shrink(error: torch.Tensor, beta: float) -> torch.Tensor:
    """The slack of each error: ``sign(e) * max(|e| - |e|^(p-1) / beta, 0)``, the generalized soft threshold."""
    size = error.abs()
    return error.sign() * (size - size.clamp(min=1e-30).pow(P - 1) / beta).clamp(min=0)

"""Round to nearest: every weight goes to the closest level of its group's grid; nothing else has an influence.

This is the baseline of every paper. A group of weights gets a scale from its smallest and largest weight
(:meth:`IntGrid.fit`). Optionally, the range is first shrunk if this lowers the squared error: the steps become finer,
and the outliers are cut off (this is the search of GPTQ's ``quant.py``: steps of a hundredth of the range, down to a
fifth of it).
"""

import functools
import inspect
from collections.abc import Callable

import torch

from qtutor.core.float_scales import as_stored
from qtutor.core.grid import Grid, encode_groups, fit_groups, for_tensor, wider_ranges
from qtutor.core.quantized import PER_TENSOR, QuantizedTensor, check_weight, resolve_group_size
from qtutor.errors import check_choice
from qtutor.methods.clip import search_squares

CLIPS = ("none", "mse")
CLIP_STEPS = 80
CLIP_SHRINK = 0.8  # the smallest range tried is 1 - 0.8 of the full one


def quantize(weight: torch.Tensor, grid: Grid, group_size: int, clip: str = "none") -> QuantizedTensor:
    """Quantize ``weight [out, in]`` (any float dtype) by rounding to nearest.

    group_size: the number of weights of a row that share a scale; -1: one scale per row (per channel), 0: one for the
    tensor.
    clip: ``"none"`` uses the range from the smallest to the largest weight; ``"mse"`` searches the range with the least
    squared error for each group.
    Raises :class:`QtutorError` for NaN, Inf, a group size that does not divide the row, or an unknown clip.
    """
    check_choice("clip", clip, CLIPS)
    check_weight(weight)
    rows, columns = weight.shape
    length = resolve_group_size(group_size, columns)
    if not weight.numel():
        return _without_weights(weight, grid, group_size)
    if group_size == PER_TENSOR:
        grouped = weight.float().reshape(1, 1, rows * columns)
    else:
        grouped = weight.float().reshape(rows, columns // length, length)  # [out, groups, group_size]
    fitted = for_tensor(grid, weight)
    scale, zero = fit_clipped(grouped, fitted, clip)
    codes = encode_groups(grouped, scale, zero, fitted).reshape(rows, columns)
    return QuantizedTensor(codes, as_stored(scale, fitted), None if grid.symmetric else zero, grid, group_size)


def fit_clipped(grouped: torch.Tensor, grid: Grid, clip: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero ``[out, groups]`` of the whole range of every group, or of the range with the least squared error.

    If ranges have equal errors, the widest is used.
    """
    if clip == "none" and not wider_ranges(grid):
        return fit_groups(grouped, grid)
    steps = CLIP_STEPS if clip == "mse" else 0  # a grid may offer ranges of its own
    return search_squares(grouped, grid, steps=steps, shrink=CLIP_SHRINK)


def nearest_if_empty(method: Callable[..., QuantizedTensor]) -> Callable[..., QuantizedTensor]:
    """``method``, but a matrix without rows or columns is rounded to nearest: it has nothing that could be searched.

    method: a function with arguments named ``weight``, ``grid`` and ``group_size``, and any others.
    """
    signature = inspect.signature(method)

    @functools.wraps(method)
    def checked(*arguments, **options) -> QuantizedTensor:
        given = signature.bind(*arguments, **options).arguments
        if given["weight"].numel():
            return method(*arguments, **options)
        return quantize(given["weight"], given["grid"], given["group_size"])

    return checked


def _without_weights(weight: torch.Tensor, grid: Grid, group_size: int) -> QuantizedTensor:
    """The result of every method for a matrix without rows or columns: there are no codes, and all scales are 1."""
    rows, columns = weight.shape
    groups = columns // max(resolve_group_size(group_size, columns), 1)
    scales = weight.new_ones((1, 1) if group_size == PER_TENSOR else (rows, groups), dtype=grid.scale_dtype)
    zeros = None if grid.symmetric else torch.full_like(scales, grid.middle, dtype=torch.uint8)
    return QuantizedTensor(weight.to(torch.uint8), as_stored(scales, grid), zeros, grid, group_size)

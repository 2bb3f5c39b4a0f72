"""Round to nearest: every weight goes to the closest level of its group's grid, and nothing else is looked at.

The baseline of every paper. A group of weights gets a scale from its smallest and largest weight (:meth:`IntGrid.fit`);
optionally the range is first shrunk where that lowers the squared error, which trades the outliers for finer steps (the
search of GPTQ's ``quant.py``: a grid of 100, down to a fifth of the range).
"""

import torch

from qtutor.core.grid import Grid
from qtutor.core.quantized import PER_TENSOR, QuantizedTensor, check_weight, resolve_group_size
from qtutor.errors import QtutorError

CLIP_STEPS = 100
CLIP_SHRINK = 0.8  # the smallest range tried is 1 - 0.8 of the full one


def quantize(
    weight: torch.Tensor, grid: Grid, group_size: int, clip: str | None = None, name: str = "weight"
) -> QuantizedTensor:
    """Quantize ``weight [out, in]`` (any float dtype) by rounding to nearest.

    group_size: weights of a row that share a scale; -1 one scale a row (per channel), 0 one for the tensor.
    clip: ``"mse"`` searches each group's range for the least squared error; ``None`` takes smallest to largest.
    name: what errors call the tensor. Raises :class:`QtutorError` for NaN, Inf, a group size that does not divide the
    row, or an unknown clip.
    """
    check_weight(weight, name)
    rows, columns = weight.shape
    length = resolve_group_size(group_size, columns, name)
    groups = columns // max(length, 1)
    if group_size == PER_TENSOR:
        grouped = weight.float().reshape(1, 1, rows * columns)
    else:
        grouped = weight.float().reshape(rows, groups, length)  # [out, groups, group_size]
    scale, zero = fit_clipped(grouped, grid, clip)
    codes = encode_groups(grouped, scale, zero, grid).reshape(rows, columns)
    return QuantizedTensor(codes, scale, None if grid.symmetric else zero, grid, group_size)


def fit_groups(grouped: torch.Tensor, grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero ``[out, groups]`` from the smallest and largest of ``grouped [out, groups, group_size]``."""
    return grid.fit(grouped.amin(dim=-1), grouped.amax(dim=-1))


def encode_groups(grouped: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Codes (uint8) shaped like ``grouped``, each with the scale and zero ``[out, groups]`` of its group."""
    return grid.encode(grouped, scale.unsqueeze(-1), zero.unsqueeze(-1))


def fit_clipped(grouped: torch.Tensor, grid: Grid, clip: str | None) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`fit_groups`, or for ``clip="mse"`` the narrower ranges with the least squared error."""
    clip = None if clip == "none" else clip  # SHIM
    if clip not in (None, "mse"):
        raise QtutorError(f"clip = {clip!r}: choose 'mse' or None.")
    if not grouped.numel():
        scale = torch.ones(grouped.shape[:2], dtype=grid.scale_dtype)
        return scale, torch.full(scale.shape, grid.middle, dtype=torch.uint8)
    scale, zero = fit_groups(grouped, grid)
    if clip is None:
        return scale, zero
    # All that a fit looks at: a group of two, its smallest and its largest weight.
    ends = torch.stack([grouped.amin(dim=-1), grouped.amax(dim=-1)], dim=-1)
    least = squared_error(grouped, grid, scale, zero)
    for step in range(1, int(CLIP_STEPS * CLIP_SHRINK) + 1):
        shrunk = 1 - step / CLIP_STEPS
        tried_scale, tried_zero = fit_groups(ends * shrunk, grid)
        error = squared_error(grouped, grid, tried_scale, tried_zero)
        better = error < least
        least = torch.where(better, error, least)
        scale = torch.where(better, tried_scale, scale)
        zero = torch.where(better, tried_zero, zero)
    return scale, zero


def squared_error(grouped: torch.Tensor, grid: Grid, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
    """Sum of squared rounding errors of every group, ``[out, groups]``."""
    back = grid.nearest(grouped, scale.unsqueeze(-1), zero.unsqueeze(-1))
    return (back - grouped).square().sum(dim=-1)

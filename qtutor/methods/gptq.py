"""GPTQ: round one column of weights at a time, and let the columns to its right compensate for the error.

Frantar et al. 2022 (arXiv 2210.17323, algorithm 1). An error D of a layer's weights costs
``|X D^T|^2 = trace(D H D^T)``, so the inputs X ``[tokens, in]`` enter only as H = X^T X. Say that rounding changes
weight q of a row by e. The weights that are still to be rounded compensate best for this error if they move by
``-e [H^-1]_q: / [H^-1]_qq`` (optimal brain surgeon, eq. 2). This formula needs an inverse for every set of columns
still to be rounded. All the rows of these inverses that it uses come from one triangular matrix U with
``H^-1 = U^T U``, so a layer needs only one factorisation.

:func:`round_block` is the method. :func:`round_columns` around it gives groups their grids, and replaces many small
updates by few large products. The order of columns and U come from :mod:`.hessian`. The clearest version is in the
tests, ``tests/reference/gptq.py``: a page of code that inverts the rest of the Hessian again after every column. This
module has to give the same codes.

Two things differ from the paper's script:

* A group gets its grid when the loop reaches its first column. Its weights then contain *every* correction made so far,
  also those from columns in the same block. In the script, these corrections arrive only at the block's end, so groups
  shorter than a block get stale grids. (At 2 bits, our order needs clip="mse" or static groups: corrections make a few
  weights large, and every step of the grid with them.)
* A column that no token ever used keeps its weight, rounded to nearest. The script sets it to zero, although
  calibration is only a sample.

Left out: orders that need an index per column at run time (``g_idx``). Groups are always neighbours in the stored row.
"""

from collections.abc import Iterator

import torch

from qtutor.core.float_scales import as_stored
from qtutor.core.grid import Grid, for_tensor
from qtutor.core.quantized import PER_TENSOR, QuantizedTensor, check_weight, resolve_group_size
from qtutor.errors import QtutorError, check_choice
from qtutor.methods import compiled, rtn
from qtutor.methods.clip import search_squares
from qtutor.methods.hessian import (
    ACT_ORDERS,
    DAMPING,
    HessianError,
    Prepared,
    column_order,
    factor,
    invert_lower,
    prepare,
)

# All parts of GPTQ are available here, for instance as ``qtutor.gptq.factor``.
__all__ = [
    "ACT_ORDERS",
    "DAMPING",
    "HessianError",
    "Prepared",
    "column_order",
    "factor",
    "invert_lower",
    "prepare",
    "quantize",
    "round_block",
    "round_columns",
]

BLOCK_SIZE = 128
CLIPS = (*rtn.CLIPS, "output")
CLIP_SHRINK = 0.6


@rtn.nearest_if_empty
def quantize(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    grid: Grid,
    group_size: int,
    *,
    act_order: str = "none",
    static_groups: bool = False,
    damping: float = DAMPING,
    block_size: int = BLOCK_SIZE,
    clip: str = "none",
) -> QuantizedTensor:
    """Quantize ``weight [out, in]`` (any float dtype) so that the layer's outputs change least.

    hessian: ``X^T X [in, in]`` of the layer's inputs, times any constant. grid, group_size: as in
    :func:`qtutor.rtn.quantize`. clip: ``"none"``, ``"mse"``, or ``"output"``. ``"output"`` chooses the range of each
    group with the smallest remaining error, which other columns cannot correct.
    act_order: the order in which columns are rounded. It is better to round columns with large inputs early, while many
    others can still compensate for their errors. ``"columns"`` sorts all columns (groups are then static), ``"groups"``
    sorts whole groups, and the columns inside each group.
    static_groups: fit all grids on the original weights instead of the corrected ones.
    damping: this share of H's mean diagonal is added to the diagonal. It is raised, up to 1, while H is not invertible.
    block_size: the number of columns whose corrections are collected before they are applied to the rest of the matrix;
    it only changes the speed.
    This function is for a matrix of your own. ``qtutor.quantize`` calls :func:`prepare` once for all layers that read
    the same input, then :func:`round_columns`; recipes have other defaults (act_order ``"groups"``, clip ``"output"``).
    Raises :class:`HessianError` if no damping helps, :class:`QtutorError` for other bad input.
    """
    check_weight(weight)
    prepared = prepare(hessian, group_size, act_order=act_order, damping=damping)
    return round_columns(weight, prepared, grid, group_size, static_groups, block_size, clip)


@rtn.nearest_if_empty
def round_columns(
    weight: torch.Tensor,
    prepared: Prepared,
    grid: Grid,
    group_size: int,
    static_groups: bool = False,
    block_size: int = BLOCK_SIZE,
    clip: str = "none",
) -> QuantizedTensor:
    """Round ``weight [out, in]`` block by block, with the Hessian as :func:`prepare` orders and factors it.

    The other arguments and the errors are those of :func:`quantize`.
    """
    check_choice("clip", clip, CLIPS)
    check_weight(weight)
    rows, columns = weight.shape
    if len(prepared.order) != columns:
        raise QtutorError(f"rows of {columns} weights, but a Hessian of {len(prepared.order)} inputs.")
    length = resolve_group_size(group_size, columns)
    static = static_groups or prepared.scattered or group_size == PER_TENSOR
    fitted = for_tensor(grid, weight)
    if static:
        scales, zeros = _fit_all(weight, prepared, fitted, group_size, clip)
    else:
        scales, zeros = torch.empty(2, rows, columns // length, device=weight.device)  # filled group by group
    scales, zeros = scales.T.contiguous(), zeros.T.contiguous()  # [groups, out]
    work = weight.float().T[prepared.order].contiguous()  # [in, out]: a column of weights is contiguous
    codes = torch.empty(columns, rows, dtype=torch.uint8, device=weight.device)
    groups = prepared.order // length  # the group of every column, in the order of rounding
    together = columns if static else length  # rounding has to stop before a group without a grid
    for begin, end in blocks(columns, length, block_size):  # a block's corrections stay in the processor's cache
        errors = []
        for first in range(begin, end, together):  # group by group, since a grid needs all corrections before it
            last = min(first + together, end)
            if not static and first % length == 0:  # now all earlier errors have reached this group
                reached = slice(first, first + length)
                scale, zero = _fit(work[reached].T.unsqueeze(1), prepared.upper.diagonal()[reached], fitted, clip)
                scales[groups[first]], zeros[groups[first]] = scale[:, 0], zero[:, 0]
            own = groups[first:last]
            inside = prepared.upper[first:end, first:end]  # columns after the block wait, see below
            coded, pushed = round_block(work[first:end], inside, scales[own], zeros[own], fitted)
            codes[prepared.order[first:last]] = coded
            errors.append(pushed)
        # Nothing reads the columns after a block before the block ends. So they get all errors of the block in one
        # matrix product: an outer product for every column would mostly wait for memory.
        work[end:].addmm_(prepared.upper[begin:end, end:].T, torch.cat(errors), alpha=-1)
    scales, zeros = scales.T.to(grid.scale_dtype).contiguous(), zeros.T.to(torch.uint8).contiguous()
    zeros = None if grid.symmetric else zeros
    return QuantizedTensor(codes.T.contiguous(), as_stored(scales, fitted), zeros, grid, group_size)


def round_block(
    work: torch.Tensor, upper: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, grid: Grid
) -> tuple[torch.Tensor, torch.Tensor]:
    """Round the first columns of ``work [columns, out]``, one after the other, and correct the others for their errors.

    upper: the rows and columns of U for ``work``, ``[columns, columns]``. scale, zero: ``[rounded, out]`` or
    ``[rounded, 1]``; as many columns are rounded as there are scales. Returns the codes, uint8 ``[rounded, out]``, and
    E, the errors divided by U's diagonal, float32 ``[rounded, out]``. Afterwards, ``work`` holds the rounded weights in
    its first columns and the corrected weights in the others. Columns that are not in ``work`` still have to move by
    ``-U^T E``.
    """
    if compiled.takes(work, grid):  # the same in one pass; see :mod:`.loops`
        return compiled.round_block(work, upper, scale, zero, grid)
    steps = upper.diagonal().tolist()  # all at once: reading one number of a tensor takes as long as a column
    errors = torch.empty(len(scale), work.shape[1], device=work.device)
    for column in range(len(scale)):  # in turn: each column includes the corrections from all before it
        rounded = grid.nearest(work[column], scale[column], zero[column])
        # For the columns that are left, row q of U is [H^-1]_q: / [H^-1]_qq^(1/2), and U_qq is this root. So e / U_qq
        # times the row is the step of equation 2, and no new inverse is needed.
        error = torch.sub(work[column], rounded, out=errors[column]).div_(steps[column])
        work[column] = rounded
        work[column + 1 :].addr_(upper[column, column + 1 :], error, alpha=-1)
    return grid.encode(work[: len(scale)], scale, zero), errors


def blocks(columns: int, length: int, block_size: int) -> Iterator[tuple[int, int]]:
    """(begin, end) of the blocks, of at most ``block_size`` columns each.

    A block ends where a group of ``length`` columns ends, or the whole block is inside one group. Otherwise, a group
    could begin in one block and end in the next. Its grid would then be fitted to columns that do not have all
    corrections yet.
    """
    span = max(block_size // length, 1) * length
    for start in range(0, columns, span):  # whole groups, as many as fit into a block
        stop = min(start + span, columns)
        for begin in range(start, stop, block_size):  # more than one only if a group is longer than a block
            yield begin, min(begin + block_size, stop)


def _fit_all(
    weight: torch.Tensor, prepared: Prepared, grid: Grid, group_size: int, clip: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero, float32 ``[out, groups]`` or ``[1, 1]``, of all groups of the unchanged ``weight [out, in]``."""
    if group_size == PER_TENSOR:  # one range for the matrix; "output" would need one U for all rows and columns
        return _fit(weight.float().reshape(1, 1, -1), None, grid, "none" if clip == "output" else clip)
    length = resolve_group_size(group_size, weight.shape[1])
    counted = prepared.upper.diagonal()[prepared.order.argsort()].reshape(-1, length)
    return _fit(weight.float().reshape(len(weight), -1, length), counted, grid, clip)


def _fit(grouped: torch.Tensor, upper: torch.Tensor | None, grid: Grid, clip: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero, float32 ``[out, groups]``, of every group of ``grouped [out, groups, group_size]``.

    upper: U's diagonal ``[groups, group_size]``, for ``clip="output"``. An error e of column q still costs
    ``e^2 / U_qq^2`` after all later columns have compensated for it.
    """
    if clip == "output":
        scale, zero = search_squares(grouped, grid, upper.reshape(-1, grouped.shape[2]) ** -2, shrink=CLIP_SHRINK)
    else:
        scale, zero = rtn.fit_clipped(grouped, grid, clip)
    return scale.float(), zero.float()

"""GPTQ: round one column of weights at a time, and let the columns to its right make up for the error.

Frantar et al. 2022 (arXiv 2210.17323, algorithm 1). A layer's inputs X ``[tokens, in]`` enter only as H = X^T X, since
an error D of its weights costs ``|X D^T|^2 = trace(D H D^T)``. Rounding weight q of a row with an error e costs least
if the weights still to be rounded move by ``-e [H^-1]_q: / [H^-1]_qq`` (optimal brain surgeon, eq. 2). The inverses
that this needs, one for every set of columns still to be rounded, are all rows of one triangular matrix U with
``H^-1 = U^T U``, so the whole layer takes one factorisation.

:func:`round_block` is the method; :func:`round_columns` around it gives groups their grids and keeps the memory busy
with few, large products. The clearest version of all is in the tests, ``tests/reference/gptq.py``: a page that
inverts the rest of the Hessian anew after every column. What is computed here has to equal it code for code.

Two things differ from the paper's script. A group's grid is fitted when its first column is reached, on weights that
carry *every* correction made so far, also those of columns in the same block; the script lets these arrive only at the
block's end, so groups shorter than a block get stale grids. (At 2 bits this needs clip="mse", or static groups:
corrections stretch a few weights, and every step of a grid with them.) And a column that no token ever used keeps its
weight, rounded to nearest; the script sets it to zero, although calibration is only a sample.

Left out: orders that need an index per column at run time (``g_idx``). Groups are always neighbours in the stored row.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from qtutor.core.grid import Grid
from qtutor.core.quantized import PER_TENSOR, QuantizedTensor, check_weight, resolve_group_size
from qtutor.errors import QtutorError, check_choice
from qtutor.methods import rtn
from qtutor.methods.clip import search

DAMPING = 0.01
BLOCK_SIZE = 128
CLIPS = (*rtn.CLIPS, "output")
CLIP_SHRINK = 0.6
ACT_ORDERS = ("none", "columns", "groups")


class HessianError(QtutorError):
    """A Hessian that GPTQ cannot use: NaN, Inf, or so far from positive definite that no damping mends it."""


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

    hessian: ``X^T X [in, in]`` of the layer's inputs, any constant factor. grid, group_size: as in
    :func:`qtutor.rtn.quantize`. clip: ``"none"``, ``"mse"``, or ``"output"``: narrow each group's range to where
    the errors that other columns cannot make up for are least.
    act_order: in which order columns are rounded; those with large inputs are better rounded early, while many others
    can still make up for them. ``"columns"`` sorts all of them (groups are then static), ``"groups"`` sorts whole
    groups, and the columns inside each.
    static_groups: fit all grids on the original weights instead of the corrected ones.
    damping: share of H's mean diagonal that is added to the diagonal; raised up to 1 where H is still not invertible.
    block_size: columns whose corrections are collected before the rest of the matrix is updated; speed only.
    Raises :class:`HessianError` where no damping helps, :class:`QtutorError` for other bad input.
    """
    check_weight(weight)
    if not weight.numel():  # nothing to make up for: rounding to nearest says what an empty matrix becomes
        return rtn.quantize(weight, grid, group_size)
    plan = prepare(hessian, group_size, act_order=act_order, damping=damping)
    return round_columns(weight, plan, grid, group_size, static_groups, block_size, clip)


@dataclass
class Plan:
    """What a Hessian says about rounding; shared by all layers that read the same inputs.

    order: int64 ``[in]``, the columns in the order of rounding. upper: float32 ``[in, in]``, upper triangular U with
    ``(H + damping)^-1 = U^T U``, rows and columns in that order. damping: the share of the diagonal it took.
    scattered: the order mixes the columns of all groups. No group is then reached as a whole, so that all grids have to
    be fitted beforehand.
    """

    order: torch.Tensor
    upper: torch.Tensor
    damping: float
    scattered: bool = False


def prepare(
    hessian: torch.Tensor,
    group_size: int,
    *,
    act_order: str = "none",
    damping: float = DAMPING,
) -> Plan:
    """Order the columns of ``hessian [in, in]`` and factor its inverse (in float64)."""
    check_choice("act_order", act_order, ACT_ORDERS)
    if not 0 <= damping <= 1:
        raise QtutorError(f"damping = {damping!r}: a share of the Hessian's mean diagonal is needed, 0 to 1.")
    if hessian.dim() != 2 or hessian.shape[0] != hessian.shape[1] or not hessian.is_floating_point():
        raise QtutorError(
            f"the Hessian is {hessian.dtype} of shape {list(hessian.shape)}; X^T X is floating point [in, in]."
        )
    hessian = hessian.double()
    if not torch.isfinite(hessian.sum()) and not torch.isfinite(hessian).all():  # the sum takes a tenth of the time
        row, column = (~torch.isfinite(hessian)).nonzero()[0].tolist()
        raise HessianError(
            f"the Hessian holds {hessian[row, column].item()} at [{row}, {column}]. The layer's inputs were "
            "NaN, infinite or too large during calibration: look at the activations, or compute them in float32."
        )
    length = resolve_group_size(group_size, hessian.shape[0])
    order = column_order(hessian.diagonal(), length, act_order)
    upper, damping = factor(hessian, damping, order)
    return Plan(order, upper.float(), damping, scattered=act_order == "columns")


def column_order(diagonal: torch.Tensor, length: int, act_order: str) -> torch.Tensor:
    """The columns in the order of rounding, int64 ``[in]``; ``diagonal [in]`` is H's, ``length`` a group's."""
    if act_order == "none":
        return torch.arange(len(diagonal), device=diagonal.device)
    if act_order == "columns":
        return diagonal.argsort(descending=True, stable=True)
    # Groups stay whole, so each can still be fitted when it is reached.
    grouped = diagonal.reshape(-1, length)
    inside = grouped.argsort(dim=1, descending=True, stable=True)
    groups = grouped.amax(dim=1).argsort(descending=True, stable=True)
    return (groups[:, None] * length + inside[groups]).flatten()


def factor(hessian: torch.Tensor, damping: float, order: torch.Tensor | None = None) -> tuple[torch.Tensor, float]:
    """Upper triangular U, float32, with ``(H + d)^-1 = U^T U``, and the damping that it took.

    Rows and columns turned around, ``H = L L^T`` gives ``H^-1 = L^-T L^-1``, and L^-1 turned back is U: one Cholesky
    factorisation and one triangular inverse, where the paper's script takes a Cholesky, an inverse and a Cholesky.
    order: of the rows and columns of U, int64 ``[in]``; that of ``hessian [in, in]`` (float64) if ``None``.
    """
    diagonal = hessian.diagonal()
    dead = diagonal == 0
    mean = diagonal[~dead].mean() if not dead.all() else diagonal.new_ones(())
    backward = torch.arange(len(hessian), device=hessian.device).flip(0) if order is None else order.flip(0)
    while True:
        # Nothing couples a dead column to the others: any positive number on its diagonal leaves it to itself.
        damped = torch.where(dead, mean, diagonal + damping * mean)
        # These matrices are the largest of all, so there is one copy, and L takes its place (H is its own transpose).
        turned = hessian[backward[:, None], backward].mT
        turned.diagonal().copy_(damped[backward])
        failed = torch.empty((), dtype=torch.int32, device=hessian.device)
        torch.linalg.cholesky_ex(turned, out=(turned, failed))
        if not failed:
            upper = invert_lower(turned.float()).flip(0, 1)
            if torch.isfinite(upper).all():
                return upper, damping
        if damping >= 1:
            raise HessianError(
                f"the Hessian is not positive definite, even with its mean diagonal ({mean.item():.3g}) added "
                f"to the diagonal, which runs from {diagonal.min().item():.3g} to {diagonal.max().item():.3g}. X^T X "
                "of real inputs always can be mended so: check how it was computed, or round this layer to nearest."
            )
        damping = min(max(2 * damping, DAMPING), 1.0)


def invert_lower(lower: torch.Tensor) -> torch.Tensor:
    """The inverse of a lower triangular ``[n, n]``, in its place: halves first, then the corner ``-C^-1 B A^-1``.

    A triangular solve against the identity would take three times as many operations, and slower ones.
    """
    size = len(lower)
    if size <= 128:
        identity = torch.eye(size, dtype=lower.dtype, device=lower.device)
        return lower.copy_(torch.linalg.solve_triangular(lower, identity, upper=False))
    upto, behind = slice(None, size // 2), slice(size // 2, None)
    first, second = invert_lower(lower[upto, upto]), invert_lower(lower[behind, behind])
    torch.mm(second, lower[behind, upto] @ first, out=lower[behind, upto]).neg_()
    return lower


def round_columns(
    weight: torch.Tensor,
    plan: Plan,
    grid: Grid,
    group_size: int,
    static_groups: bool = False,
    block_size: int = BLOCK_SIZE,
    clip: str = "none",
) -> QuantizedTensor:
    """Round ``weight [out, in]`` block by block, with what :func:`prepare` made of the Hessian.

    The other arguments and the errors are those of :func:`quantize`.
    """
    check_choice("clip", clip, CLIPS)
    check_weight(weight)
    rows, columns = weight.shape
    if len(plan.order) != columns:
        raise QtutorError(f"rows of {columns} weights, but a Hessian of {len(plan.order)} inputs.")
    length = resolve_group_size(group_size, columns)
    static = static_groups or plan.scattered or group_size == PER_TENSOR
    if static:
        scales, zeros = _fit_all(weight, plan, grid, group_size, clip)
    else:
        scales, zeros = torch.empty(2, rows, columns // length, device=weight.device)
    scales, zeros = scales.T.contiguous(), zeros.T.contiguous()  # [groups, out]
    work = weight.float().T[plan.order].contiguous()  # [in, out]: a column of weights lies in one piece
    codes = torch.empty(columns, rows, dtype=torch.uint8, device=weight.device)
    groups = plan.order // length  # of every column, in the order of rounding
    together = columns if static else length  # a grid that is still to be fitted ends what can be rounded in one go
    for begin, end in blocks(columns, length, block_size):
        errors = []
        for first in range(begin, end, together):
            last = min(first + together, end)
            if not static and first % length == 0:  # only now have all earlier errors reached this group
                reached = slice(first, first + length)
                scale, zero = _fit(work[reached].T.unsqueeze(1), plan.upper.diagonal()[reached], grid, clip)
                scales[groups[first]], zeros[groups[first]] = scale[:, 0], zero[:, 0]
            own = groups[first:last]
            inside = plan.upper[first:end, first:end]
            coded, pushed = round_block(work[first:end], inside, scales[own], zeros[own], grid)
            codes[plan.order[first:last]] = coded
            errors.append(pushed)
        # Nobody looks at the columns behind a block before it ends, so they get all its errors in one matrix product:
        # an outer product for every column would mostly wait for memory.
        work[end:].addmm_(plan.upper[begin:end, end:].T, torch.cat(errors), alpha=-1)
    scales, zeros = scales.T.to(grid.scale_dtype).contiguous(), zeros.T.to(torch.uint8).contiguous()
    return QuantizedTensor(codes.T.contiguous(), scales, None if grid.symmetric else zeros, grid, group_size)


def round_block(
    work: torch.Tensor, upper: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, grid: Grid
) -> tuple[torch.Tensor, torch.Tensor]:
    """Round the first columns of ``work [columns, out]``, one after the other, and push their errors onto all others.

    upper: U, the rows and columns of ``work`` alone, ``[columns, columns]``. scale, zero: ``[rounded, out]`` or
    ``[rounded, 1]``; as many columns are rounded as there are scales. Returns the codes, uint8 ``[rounded, out]``, and
    the errors over U's diagonal, E, float32 ``[rounded, out]``. Afterwards ``work`` holds the rounded weights and, in
    its other columns, what is left to be rounded; columns that are not in ``work`` have still to move by ``-U^T E``.
    """
    steps = upper.diagonal().tolist()
    errors = torch.empty(len(scale), work.shape[1], device=work.device)
    for column in range(len(scale)):
        rounded = grid.nearest(work[column], scale[column], zero[column])
        # Of the columns that are left, row q of U is [H^-1]_q: / [H^-1]_qq^(1/2), and U_qq that root. So e / U_qq times
        # the row is the step of equation 2, and nothing has to be inverted anew.
        error = torch.sub(work[column], rounded, out=errors[column]).div_(steps[column])
        work[column] = rounded
        work[column + 1 :].addr_(upper[column, column + 1 :], error, alpha=-1)
    return grid.encode(work[: len(scale)], scale, zero), errors


def blocks(columns: int, length: int, block_size: int) -> Iterator[tuple[int, int]]:
    """(begin, end) of the blocks, of at most ``block_size`` columns each.

    A block ends where a group of ``length`` ends, or lies within one group: a group that begins inside a block and goes
    on behind it would be fitted on columns that still miss corrections.
    """
    span = max(block_size // length, 1) * length
    for start in range(0, columns, span):
        stop = min(start + span, columns)
        for begin in range(start, stop, block_size):
            yield begin, min(begin + block_size, stop)


def _fit_all(
    weight: torch.Tensor, plan: Plan, grid: Grid, group_size: int, clip: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero, float32 ``[out, groups]`` or ``[1, 1]``, of all groups of ``weight [out, in]`` as it is."""
    if group_size == PER_TENSOR:  # one range for the matrix; "output" would need one U for all rows and columns
        return _fit(weight.float().reshape(1, 1, -1), None, grid, "none" if clip == "output" else clip)
    length = resolve_group_size(group_size, weight.shape[1])
    counted = plan.upper.diagonal()[plan.order.argsort()].reshape(-1, length)
    return _fit(weight.float().reshape(len(weight), -1, length), counted, grid, clip)


def _fit(grouped: torch.Tensor, upper: torch.Tensor | None, grid: Grid, clip: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero, float32 ``[out, groups]``, of every group of ``grouped [out, groups, group_size]``.

    upper: U's diagonal ``[groups, group_size]``, for ``clip="output"``: an error e of column q costs ``e^2 / U_qq^2``
    once all later columns have made up for it.
    """
    if clip == "output":
        scale, zero = search(grouped, grid, lambda error: error.div_(upper).square_().sum(dim=-1), shrink=CLIP_SHRINK)
    else:
        scale, zero = rtn.fit_clipped(grouped, grid, clip)
    return scale.float(), zero.float()

"""SINQ: scale rows and columns until all have about the same spread, and then round; no text is needed.

Müller et al. 2025 (arXiv 2509.22944; peer: sinq/sinkhorn.py and dual_shift.py of huawei-csl/SINQ). A large weight
makes its group's steps wide. If its column has a scale, too, the weight is divided before it is rounded. The error is
then spread over the row's group or over the column, depending on which tolerates it better. Which scales are used?
Those for which all rows and columns have about the same standard deviation: rows and columns are divided by their own
deviations in turn, as Sinkhorn and Knopp normalize sums. The worst ratio of two deviations is the matrix's
:func:`imbalance`; the turn with the least imbalance is kept.

A row's factor only goes into the scales of its groups, and rounding to nearest finds these by itself. So it is needed
during the search for columns, and not afterwards. A column's factor multiplies an input, which costs one product per
token: :class:`qtutor.runtime.scaled.ScaledLinear` is such a layer.

Two details are those of the peer: deviations are compared with the smallest one of the matrix, and a turn changes a
scale by a factor from 0.7 to 2, so that a few turns do not overshoot. Left out: tiles (the peer balances groups of
columns by themselves), the variants for NF4 and with AWQ's scales, and columns folded into norms ("pre-SINQ").
"""

import math

import torch

from qtutor.core.grid import Grid
from qtutor.core.quantized import QuantizedTensor, check_weight
from qtutor.methods import rtn

TURNS = 16
SMALLEST = 1e-3  # a smaller deviation of a row or column counts as this one
STEP = (0.7, 2.0)  # the factors by which a turn may change a scale
RANGE = (math.exp(-0.3), math.exp(10))  # the limits of scales


def quantize(weight: torch.Tensor, grid: Grid, group_size: int) -> tuple[QuantizedTensor, torch.Tensor]:
    """``(quantized, columns)`` for ``weight [out, in]``, which is about ``quantized.dequantize() * columns``.

    columns: float32 ``[in]``. The other arguments and the errors are those of :func:`qtutor.rtn.quantize`.
    """
    columns = columns_of(weight)
    return rtn.quantize(weight.float() / columns, grid, group_size), columns


def columns_of(weight: torch.Tensor) -> torch.Tensor:
    """The numbers by which the columns of ``weight [out, in]`` are divided before rounding: float32 ``[in]``.

    Raises :class:`QtutorError` for weights that are NaN or infinite.
    """
    check_weight(weight)
    return balance(weight.float())[1]


def balance(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales ``[out]`` of rows and ``[in]`` of columns, from the turn with the least imbalance.

    The imbalance is that of ``weight [out, in]`` divided by both. Matrices of one row or column have no deviation, and
    get ones.
    """
    rows, columns = weight.new_ones(len(weight)), weight.new_ones(weight.shape[1])
    if min(weight.shape) < 2:
        return rows, columns
    smallest = torch.minimum(*(spread.min() for spread in _spreads(weight))) + 1e-6
    best = None
    for _ in range(TURNS):
        scaled = weight / columns / rows[:, None]
        now = imbalance(scaled)
        if best is not None and now > best[0]:
            break  # the peer stops here, too: from now on, it would oscillate
        best = now, rows, columns
        of_rows, of_columns = (spread / smallest for spread in _spreads(scaled))
        rows = (rows * of_rows.clamp(*STEP)).clamp(*RANGE)
        columns = (columns * of_columns.clamp(*STEP)).clamp(*RANGE)
    return best[1], best[2]


def imbalance(weight: torch.Tensor) -> float:
    """The largest standard deviation of all rows and columns, divided by the smallest."""
    spreads = torch.cat([weight.std(dim=1), weight.std(dim=0)])
    return (spreads.max() / spreads.min().clamp(min=1e-12)).item()


def _spreads(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The standard deviations of rows ``[out]`` and of columns ``[in]``, but at least :data:`SMALLEST`."""
    return weight.std(dim=1).clamp(min=SMALLEST, max=1e3), weight.std(dim=0).clamp(min=SMALLEST, max=1e3)

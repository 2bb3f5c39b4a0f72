"""SINQ: scale rows and columns until all spread alike, and only then round; no text is needed.

Müller et al. 2025 (arXiv 2509.22944; peer: sinq/sinkhorn.py and dual_shift.py of huawei-csl/SINQ). A large weight
makes its group's steps wide. With a scale for its column, too, the weight is divided before it is rounded, and the
error is spread over the row's group or the column, whichever bears it better. Which scales? Those with which rows and
columns have about the same standard deviation: divide each by its own, by turns, as Sinkhorn and Knopp normalize sums.
The worst ratio of two deviations is the matrix's :func:`imbalance`; of all turns, the one with the least is kept.

A row's factor only goes into the scales of its groups, which rounding to nearest finds by itself: it is needed while
columns are searched, and not afterwards. A column's factor multiplies the inputs, which costs a product a
token: :class:`qtutor.runtime.scaled.ScaledLinear` is such a layer.

What is taken over from the peer: deviations are compared with the smallest one of the matrix, and a turn changes a
scale by a factor from 0.7 to 2, so that a few turns do not overshoot. Left out: tiles (the peer balances groups of
columns by themselves), the variants for NF4 and with AWQ's scales, and columns folded into norms ("pre-SINQ").
"""

import math

import torch

from qtutor.core.grid import Grid
from qtutor.core.quantized import QuantizedTensor, check_weight
from qtutor.methods import rtn

TURNS = 16
SMALLEST = 1e-3  # a row or column that deviates less counts as one that deviates so much
STEP = (0.7, 2.0)  # by what a turn may change a scale
RANGE = (math.exp(-0.3), math.exp(10))  # what scales may come to


def quantize(weight: torch.Tensor, grid: Grid, group_size: int) -> tuple[QuantizedTensor, torch.Tensor]:
    """``(quantized, columns)`` for ``weight [out, in]``: it is about ``quantized.dequantize() * columns``.

    columns: float32 ``[in]``. The other arguments and the errors are those of :func:`qtutor.rtn.quantize`.
    """
    columns = columns_of(weight)
    return rtn.quantize(weight.float() / columns, grid, group_size), columns


def columns_of(weight: torch.Tensor) -> torch.Tensor:
    """What the columns of ``weight [out, in]`` are divided by before they are rounded: float32 ``[in]``.

    Raises :class:`QtutorError` for weights that are NaN or infinite.
    """
    check_weight(weight)
    return balance(weight.float())[1]


def balance(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales ``[out]`` of rows and ``[in]`` of columns; divided by both, ``weight [out, in]`` has the least imbalance
    of all turns. Ones for matrices of one row or column, which have no deviation.
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
            break  # the peer stops here, too: from now on it would swing
        best = now, rows, columns
        of_rows, of_columns = (spread / smallest for spread in _spreads(scaled))
        rows = (rows * of_rows.clamp(*STEP)).clamp(*RANGE)
        columns = (columns * of_columns.clamp(*STEP)).clamp(*RANGE)
    return best[1], best[2]


def imbalance(weight: torch.Tensor) -> float:
    """The largest standard deviation of all rows and columns over the smallest."""
    spreads = torch.cat([weight.std(dim=1), weight.std(dim=0)])
    return (spreads.max() / spreads.min().clamp(min=1e-12)).item()


def _spreads(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The standard deviations of rows ``[out]`` and of columns ``[in]``, but at least :data:`SMALLEST`."""
    return weight.std(dim=1).clamp(min=SMALLEST, max=1e3), weight.std(dim=0).clamp(min=SMALLEST, max=1e3)

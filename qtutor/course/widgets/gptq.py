"""The widget of chapter 06: a duel of GPTQ and rounding to nearest over one row, in an order that the learner chooses.

:func:`duel` is the widget. This module computes its numbers; :mod:`.duel` draws them and runs both methods in the
browser, so one page serves the live widget, the stored notebook and the book. :func:`trace` runs the package's GPTQ on
the same row: its results are in the table for pages without scripts, and the browser must find the same results.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import ipywidgets
import torch

from qtutor.core.grid import IntGrid
from qtutor.core.quantized import PER_CHANNEL, QuantizedTensor
from qtutor.course.widgets.duel import duel_html
from qtutor.course.widgets.explorer import Explorer, explore, html_table
from qtutor.errors import QtutorError
from qtutor.methods import gptq, rtn

DIGITS = 9  # of a number on the page: the percentages shown need four


@dataclass(frozen=True)
class Trace:
    """GPTQ on one row, step by step, beside rounding to nearest in the same order.

    states: float64 ``[in + 1, in]``, the row after GPTQ has rounded 0, 1 ... columns, with its columns in their stored
    order. gptq, rtn: float64 ``[in + 1]``, the output error after each number of columns, relative to the row's output.
    """

    states: torch.Tensor
    gptq: torch.Tensor
    rtn: torch.Tensor


def trace(row: torch.Tensor, hessian: torch.Tensor, bits: int, order: Sequence[int]) -> Trace:
    """The package's GPTQ on ``row [in]``, its columns rounded in ``order``; ``hessian [in, in]`` of their inputs.

    The row has one grid, fitted before the first step.
    """
    order = torch.as_tensor(order)
    nearest = _nearest(row, bits)
    back = nearest.dequantize()[0].double()
    scale, zero = nearest.scales[None, 0], nearest.zeros[None, 0]
    prepared = gptq.prepare(hessian[order][:, order], PER_CHANNEL)
    work = row.float()[order, None].clone()  # [in, 1]: the package keeps columns of weights as rows
    gptqs, rtns = [row.double()], [row.double()]
    for step in range(len(order)):
        gptq.round_block(work[step:], prepared.upper[step:, step:], scale, zero, nearest.grid)
        gptqs.append(torch.empty_like(row, dtype=torch.float64).index_copy_(0, order, work[:, 0].double()))
        rtns.append(rtns[-1].clone().index_copy_(0, order[step : step + 1], back[order[step : step + 1]]))
    states = torch.stack(gptqs)
    return Trace(states, *(_relative_error(of - row.double(), row, hessian) for of in (states, torch.stack(rtns))))


def presets(hessian: torch.Tensor) -> dict[str, list[int]]:
    """The orders with a button of their own, by name; a further button shuffles the columns in the browser."""
    largest_first = gptq.column_order(hessian.diagonal(), len(hessian), "columns").tolist()
    return {
        "as stored": list(range(len(hessian))),
        "large inputs first": largest_first,
        "small inputs first": largest_first[::-1],
    }


def duel_data(row: torch.Tensor, hessian: torch.Tensor, bits: int, inputs: Sequence[int]) -> dict:
    """What the page needs for ``row [in]`` and ``hessian [in, in]``, as lists and numbers for JSON.

    inputs: the number of each column's input in its layer. Weights, levels and moves are in units of the weights.
    """
    nearest, orders = _nearest(row, bits), presets(hessian)
    traces = [trace(row, hessian, bits, order) for order in orders.values()]
    upper = gptq.prepare(hessian, PER_CHANNEL).upper.double()  # the package's own matrix, with damping
    size = hessian.diagonal().sqrt()
    return {
        "inputs": list(inputs),
        "weights": _short(row.double()),
        "sizes": _short(size / size.max()),
        "hessian": _short(hessian.double() / _output(row, hessian)),  # errors are then relative to the row's output
        "inverse": _short(upper.T @ upper),
        "scale": nearest.scales.double().item(),
        "zero": nearest.zeros.item(),
        "largest": nearest.grid.largest_code,
        "orders": orders,
        "top": max(_short(error.max()) for of in traces for error in (of.gptq, of.rtn)),
    }


def duel(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    row: int,
    inputs: Sequence[int],
    *,
    bits: int = 3,
    frames: dict[str, list] | None = None,
) -> Explorer:
    """One row of a layer, rounded by GPTQ and to nearest side by side, as if the layer had no other inputs.

    weight: ``[out, in]``. hessian: ``[in, in]`` of the layer's inputs. row: which output. inputs: which inputs, 16 to
    32 of them; more would be too narrow to click. bits: the first setting. frames: as in :func:`explore`; by default 2,
    3 and 4 bits. Raises :class:`QtutorError` for inputs or a row that the layer does not have.
    """
    inputs = [int(i) for i in inputs]
    if not inputs or not all(0 <= i < weight.shape[1] for i in inputs) or not 0 <= row < len(weight):
        raise QtutorError(
            f"row {row} and inputs {inputs}: the layer has rows 0 to {len(weight) - 1} and inputs 0 to "
            f"{weight.shape[1] - 1}, and at least one input is needed."
        )
    part, own = weight.detach()[row, inputs], hessian[inputs][:, inputs]
    title = f"Output {row} of the layer, {len(inputs)} of its inputs"

    def draw(bits: int) -> str:
        return duel_html(duel_data(part, own, bits, inputs), f"{title}, {bits} bits", _ends(part, own, bits))

    return explore(
        draw,
        frames={"bits": sorted({2, 3, 4, bits})} if frames is None else frames,
        bits=ipywidgets.IntSlider(value=bits, min=2, max=8, description="bits"),
    )


def _ends(row: torch.Tensor, hessian: torch.Tensor, bits: int) -> str:
    """How the duel ends in each order that has a button: a table for pages without scripts."""
    rows = []
    for name, order in presets(hessian).items():
        found = trace(row, hessian, bits, order)
        rows.append([name, f"{found.gptq[-1]:.2%}", f"{found.rtn[-1]:.2%}"])
    return html_table(["order of the columns", "final output error: GPTQ", "round to nearest"], *rows)


def _nearest(row: torch.Tensor, bits: int) -> QuantizedTensor:
    return rtn.quantize(row[None].float(), IntGrid(bits), PER_CHANNEL)


def _output(row: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    """The squared output of the row on the calibration text, ``w H w^T``."""
    return (row.double() @ hessian.double() @ row.double()).clamp(min=1e-30)


def _relative_error(changes: torch.Tensor, row: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    """``|X d| / |X w|`` for each d in ``changes [steps, in]``."""
    return (((changes @ hessian.double()) * changes).sum(dim=-1).clamp(min=0) / _output(row, hessian)).sqrt()


def _short(values: torch.Tensor):
    """A tensor as nested lists of numbers with few digits, for a small page."""
    if values.dim():
        return [_short(value) for value in values]
    return float(f"{values.item():.{DIGITS}g}")

"""The widget of chapter 06: GPTQ column by column, and the error that each column passes to those on its right.

Everything is computed once for each setting, and kept. Moving the slider only draws.
"""

import functools
from dataclasses import dataclass

import ipywidgets
import torch

from qtutor.core.grid import IntGrid
from qtutor.core.quantized import PER_CHANNEL
from qtutor.course.widgets.explorer import Explorer, explore, html_table
from qtutor.errors import QtutorError
from qtutor.methods import gptq, rtn
from qtutor.plots.gptq import column_step

ROWS, COLUMNS = 16, 64


@dataclass(frozen=True)
class Trace:
    """GPTQ on a small matrix, step by step; columns are in the order of rounding.

    order: that order, int64 ``[in]``. states: float32 ``[in + 1, out, in]``, where ``states[k]`` are the weights after
    k columns. gptq, rtn: output errors relative to the layer's output, ``[in + 1]``, after k columns are rounded (and
    GPTQ has moved the others). codes: uint8 ``[out, in]``.
    """

    order: torch.Tensor
    states: torch.Tensor
    gptq: torch.Tensor
    rtn: torch.Tensor
    codes: torch.Tensor


def trace(weight: torch.Tensor, hessian: torch.Tensor, bits: int, largest_first: bool = False) -> Trace:
    """All steps for ``weight [out, in]`` and ``hessian [in, in]``; each row has one grid, fitted before all steps."""
    plan = gptq.prepare(hessian, PER_CHANNEL, act_order="columns" if largest_first else "none")
    nearest = rtn.quantize(weight, IntGrid(bits), PER_CHANNEL)
    grid, scale, zero = nearest.grid, nearest.scales[:, 0], nearest.zeros[:, 0]
    work = weight.float().T[plan.order].contiguous()  # [in, out]
    states, codes = [work.T.clone()], []
    for column in range(len(work)):
        # Round one column with the scales of the rows; all later columns move.
        code, _ = gptq.round_block(work[column:], plan.upper[column:, column:], scale[None], zero[None], grid)
        codes.append(code)
        states.append(work.T.clone())
    states, before = torch.stack(states), states[0]
    done = torch.arange(len(states))[:, None, None] > torch.arange(before.shape[1])  # [in + 1, 1, in]
    rounded = torch.where(done, nearest.dequantize()[:, plan.order], before)
    ordered = hessian.double()[plan.order][:, plan.order]
    errors = (_relative_error(states - before, before, ordered), _relative_error(rounded - before, before, ordered))
    return Trace(plan.order, states, *errors, torch.cat(codes).T)


def _relative_error(difference: torch.Tensor, weight: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    """``|X D^T| / |X W^T|`` for every D in ``difference [steps, out, in]``."""
    squares = [((d.double() @ hessian) * d.double()).sum(dim=(-2, -1)).clamp(min=0) for d in (difference, weight)]
    return (squares[0] / squares[1].clamp(min=1e-30)).sqrt()


def column_stepper(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    *,
    columns: slice = slice(0, COLUMNS),
    bits: int = 3,
    frames: dict[str, list] | None = None,
) -> Explorer:
    """GPTQ on a part of a layer, as if the layer had no other inputs: a slider steps through its columns.

    weight: ``[out, in]``; only its first 16 rows are used. hessian: ``[in, in]`` of the layer's inputs. columns: the
    columns to use. bits: the first setting; the slider starts at the step that moves the other columns most. frames: as
    in :func:`explore`; by default seven steps at 2, 3 and 4 bits.
    """
    part, inputs = weight.detach()[:ROWS, columns], hessian[columns, columns]
    if not part.shape[1]:
        raise QtutorError(f"columns {columns.start} to {columns.stop}: the layer has {weight.shape[1]}; none is left.")
    width = part.shape[1]

    @functools.cache
    def traced(bits: int, largest_first: bool) -> Trace:
        return trace(part, inputs, bits, largest_first)

    def draw(step, bits, largest_first):
        found = traced(bits, largest_first)
        now, before = found.states[step], found.states[max(step - 1, 0)]
        errors = {"GPTQ": found.gptq, "round to nearest": found.rtn}
        figure = column_step(found.states[0], now, now - before, step, errors)
        return figure, _numbers(found, step, columns.start or 0)

    def describe(step, bits, largest_first):
        order = "the largest inputs first" if largest_first else "columns from left to right"
        return (
            f"{len(part)} rows by {width} columns of a layer after {step} steps of GPTQ at {bits} bits, {order}: the "
            "weights as they stand, how far they have moved, what the last step moved, and the output error so far as "
            "a curve beside that of rounding to nearest. The numbers are in the table."
        )

    most = _loudest_step(traced(bits, False))
    stored = sorted({0, 1, most, width // 8, width // 4, width // 2, width})
    by_itself = {"step": stored, "bits": sorted({2, 3, 4, bits})}
    return explore(
        draw,
        frames=by_itself if frames is None else frames,
        alt=describe,
        step=ipywidgets.IntSlider(value=most, min=0, max=width, description="step"),
        bits=ipywidgets.IntSlider(value=bits, min=2, max=8, description="bits"),
        largest_first=ipywidgets.Checkbox(value=False, description="largest inputs first"),
    )


def _loudest_step(found: Trace) -> int:
    """The number of rounded columns just after the column that moved the others most."""
    moves = found.states.diff(dim=0)
    return 1 + int(torch.stack([move[:, i + 1 :].square().sum() for i, move in enumerate(moves)]).argmax())


def _numbers(found: Trace, step: int, first: int) -> str:
    """The table below the picture; ``first`` is the number of the part's first input in its layer."""
    columns = len(found.order)
    left = (found.states[step] - found.states[0])[:, step:]
    return html_table(
        ["columns rounded", "the last one was input", "columns left, moved by (rms)", "GPTQ's error", "RTN's", "ratio"],
        [
            f"{step} of {columns}",
            int(found.order[step - 1]) + first if step else "-",
            f"{left.square().mean().sqrt():.4f}" if step < columns else "-",
            f"{found.gptq[step]:.2%}",
            f"{found.rtn[step]:.2%}",
            f"{found.gptq[step] / found.rtn[step]:.2f}" if step else "-",
        ],
    )

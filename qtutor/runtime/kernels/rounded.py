"""The CPU's product with int8 inputs: faster than :mod:`.cpu`, and less exact. It is used only on request.

Each token is rounded in the groups of the weights, to whole multiples of a step: its largest input in the group is 127
steps. Then the products of codes are whole numbers, and one instruction adds up dozens of them. Only the sum of a group
becomes a float: ``s step (sum c q - z sum q)``; all before that is exact. :mod:`.rounded_loops` has the loops; they
read the same tiles as :mod:`.cpu`.

The cost of rounding depends on the model; :func:`qtutor.evaluate.cost_of_int8_inputs` measures it. Inputs are rounded
alike for every batch and dtype. For more than a few tokens, torch multiplies the rounded inputs in float. It does the
same if a gradient is needed; the gradient ignores the rounding. Inputs that are not finite are not rounded. Only
weights of 4 bits on an integer grid are supported.
"""

import functools
import importlib
from collections.abc import Callable

import numpy as np
import torch

from qtutor.core.grid import IntGrid
from qtutor.runtime.kernels import cpu, gradients
from qtutor.runtime.kernels.tiles import ROWS, Tiles

prepare, packed = cpu.prepare, cpu.packed


def reason_against(layer) -> str | None:
    """Why this kernel does not support ``layer``, in words that end a sentence, or ``None``."""
    if not isinstance(layer.grid, IntGrid) or layer.grid.bits != 4:
        return "codes are not whole numbers of 4 bits"
    return cpu.reason_against(layer)


@functools.cache
def _loops():
    """The compiled loops; numba is imported with them."""
    return importlib.import_module("qtutor.runtime.kernels.rounded_loops")


def manner(batch: int, dtype: torch.dtype) -> str:
    """How a batch is multiplied, in words."""
    if batch > cpu.MOST:
        return f"inputs are rounded to int8; then {cpu.manner(batch, dtype)}"
    bits = _loops().width()
    how = f"vectors of {bits} bits" if bits else "plain loops, because this CPU has neither AVX2 nor SDOT"
    return f"inputs are rounded to int8, and codes are multiplied by codes: {how}"


def run(x: torch.Tensor, state: Tiles) -> torch.Tensor:
    """``round(x) [..., in] @ weight.T`` -> ``[..., out]`` in x's dtype."""
    tokens = x.numel() // state.columns
    if not tokens or x.shape[-1] != state.columns:
        return cpu.run(x, state)  # it refuses another width as torch does
    codes, steps, sums = _rounded(x, state)
    if codes is None:
        return cpu.run(x, state)
    if tokens > cpu.MOST or gradients.wanted(x):
        return cpu.run(_as_numbers(codes, steps, x), state)
    loops, tiles = _loops(), len(state.scales)
    y = np.empty((tokens, tiles * ROWS), np.float32)
    arguments = codes, steps, sums, state.planes, state.scales, state.zeros, state.each, y
    cpu.shared_out(loops.product, lambda first, last: loops.product(*arguments, first, last), tiles, state)
    return torch.from_numpy(y)[:, : state.rows].to(x.dtype).reshape(*x.shape[:-1], state.rows)


def one_token(x: np.ndarray, state: Tiles, inputs: tuple | None = None) -> tuple[Callable, tuple, Callable]:
    """As :func:`.cpu.one_token`; the inputs are codes, steps and sums of codes."""
    inputs = inputs or _room(x, state)
    return functools.partial(_loops().quantize, x, *inputs), inputs, _loops().product


def _room(x: np.ndarray, state: Tiles) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Arrays for :func:`.rounded_loops.quantize`: codes, steps and sums of codes of ``x [tokens, columns / 8, 8]``."""
    shape = len(x), state.scales.shape[1]
    return np.empty(x.shape, np.int8), np.empty(shape, np.float32), np.empty(shape, np.int32)


def _rounded(x: torch.Tensor, state: Tiles) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
    """x as codes, steps and sums of codes, see :func:`.rounded_loops.quantize`; no codes if x is not finite."""
    values = x.detach().to(torch.float32).reshape(-1, state.columns // 8, 8).contiguous().numpy()
    codes, steps, sums = _room(values, state)
    return codes if _loops().quantize(values, codes, steps, sums) else None, steps, sums


def _as_numbers(codes: np.ndarray, steps: np.ndarray, x: torch.Tensor) -> torch.Tensor:
    """The rounded inputs, in x's shape and dtype. The gradient passes as if nothing had been rounded."""
    in_order = codes[:, :, np.argsort(_loops().ORDER)].reshape(*steps.shape, -1)
    rounded = torch.from_numpy(in_order * steps[..., None]).reshape(x.shape).to(x.dtype)
    return x + (rounded - x).detach() if x.requires_grad else rounded

"""The fast product on a CPU: codes are decoded in registers, so generating reads packed bytes only.

What a token costs is the reading of all weights; four bits are an eighth of the bytes of float32. :mod:`.loops` has the
loops, :mod:`.tiles` the layout that they read. They compute in float32, whatever the dtype of x, and differ from
:mod:`.reference` by the rounding of float32 sums alone.

For up to :data:`MOST` tokens the codes are multiplied directly. For more, and for what these loops do not cover
(float64, gradients, x that is not finite), up to 4096 rows of weights at a time are decoded and multiplied by torch:
then the result is the reference's.

Left out: 5, 6 and 7 bits, codebooks of 8 bits, groups that 8 does not divide. The reference takes them. Against four
bits in groups of 64, scales and zero points in the loops' order take 8 % more memory beside those of the layer.
"""

import importlib.util
import sys

import numpy as np
import torch
from torch.nn.functional import linear

from qtutor.compiling import told_if_slow
from qtutor.core.codebooks import Codebook
from qtutor.core.quantized import resolve_group_size
from qtutor.runtime.kernels.reference import BLOCK_ROWS
from qtutor.runtime.kernels.threads import in_shares
from qtutor.runtime.kernels.tiles import ROWS, Tiles, tiles_of

MOST = 8  # tokens; for more, decoding once and torch's product are faster
SHARE = 4_000_000  # weights that are worth a thread: to wake one takes as long as half a million of them
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def reason_against(layer) -> str | None:
    """Why this kernel does not take ``layer``, in words that end a sentence, or ``None``."""
    grid = layer.grid
    if isinstance(grid, Codebook):
        if len(grid.values) != 16:
            return f"the codebook has {len(grid.values)} levels, and not 16"
    elif grid.bits not in (2, 3, 4, 8):
        return f"the codes have {grid.bits} bits, and not 2, 3, 4 or 8"
    if not layer.rows or not layer.columns:
        return "the matrix is empty"
    if resolve_group_size(layer.group_size, layer.columns) % 8:
        return "8 does not divide the groups"
    if sys.byteorder != "little":
        return "this machine's words begin with the high byte"
    if not available():
        return "numba is not installed"
    return None


def available() -> bool:
    """Whether numba is installed; it is imported when the first product is computed."""
    return "numba" in sys.modules or importlib.util.find_spec("numba") is not None


def prepare(layer) -> Tiles:
    """The codes of ``layer`` in the order in which the loops read them, and its scales and zero points."""
    return tiles_of(layer)


def packed(state: Tiles) -> torch.Tensor:
    """The layer's packed bytes, out of the state that replaced them."""
    return state.packed()


def run(x: torch.Tensor, state: Tiles) -> torch.Tensor:
    """``x [..., in] @ weight.T`` -> ``[..., out]`` in x's dtype."""
    tokens = x.numel() // state.columns
    differentiated = x.requires_grad and torch.is_grad_enabled()
    if x.shape[-1] == state.columns and 0 < tokens <= MOST and x.dtype in DTYPES and not differentiated:
        values = x.detach().reshape(tokens, state.columns).to(torch.float32).numpy()
        if np.isfinite(values).all():
            y = torch.from_numpy(_product(values, state))
            return y.to(x.dtype).reshape(*x.shape[:-1], state.rows)
    return _in_blocks(x, state)


def _product(x: np.ndarray, state: Tiles) -> np.ndarray:
    """float32 ``[tokens, columns]`` to float32 ``[tokens, rows]``."""
    from qtutor.runtime.kernels import loops
    from qtutor.runtime.kernels.codes import places

    tokens, (tiles, groups, _) = len(x), state.scales.shape
    sums = x.reshape(tokens, groups, -1).sum(axis=-1, dtype=np.float32)
    x = x.reshape(tokens, -1, 8)
    y = np.empty((tokens, tiles * ROWS), np.float32)
    matrix = state.planes, state.scales, state.zeros, state.each
    if tokens == 1 and not state.levels:
        inputs, loop, out = (x[0] * places(state.bits), sums[0]), loops.one, y[0]
    else:
        inputs, loop, out = (np.ascontiguousarray(x), sums), loops.many, y
    _in_shares(loop, lambda first, last: loop(*inputs, *matrix, out, first, last), tiles, state)
    return y[:, : state.rows]


def _in_blocks(x: torch.Tensor, state: Tiles) -> torch.Tensor:
    """The product with decoded weights, a block of rows after the other, as the reference computes it."""
    from qtutor.runtime.kernels import loops

    parts = []
    for start in range(0, state.rows, BLOCK_ROWS):
        weight = np.empty((min(BLOCK_ROWS, state.rows - start), state.columns // 8, 8), np.float32)

        def decode(first: int, last: int, weight=weight, at=start // ROWS) -> None:
            out = weight[first * ROWS : last * ROWS]
            loops.weights(state.planes, state.scales, state.zeros, state.each, out, at + first, at + last)

        _in_shares(loops.weights, decode, -(-len(weight) // ROWS), state)
        parts.append(linear(x, torch.from_numpy(weight.reshape(len(weight), -1)).to(x.dtype)))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


_ready = set()  # loops that are compiled, and for which kind of tiles


def _in_shares(loop, work, tiles: int, state: Tiles) -> None:
    """``work(first, last)`` for all ``tiles``, which calls ``loop``; it is compiled before threads share the work."""
    kind = loop, state.bits, state.levels, state.scales.dtype
    if kind not in _ready:
        with told_if_slow(f"the product of {state.bits}-bit weights"):
            work(0, 0)
        _ready.add(kind)
    in_shares(work, tiles, -(-SHARE // (ROWS * state.columns)))

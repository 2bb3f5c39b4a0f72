"""The fast product on a CPU: codes are decoded in registers, so generating reads packed bytes only.

The time for a token is the time to read all weights; four bits are an eighth of the bytes of float32. :mod:`.loops` has
the loops, :mod:`.tiles` the layout that they read. They compute in float32 for every dtype of x, and differ from
:mod:`.reference` only by the rounding of float32 sums.

For up to :data:`MOST` tokens the codes are multiplied directly. For more tokens, and in cases that these loops do not
cover (float64, gradients, x that is not finite), 1024 rows of weights at a time are decoded, and torch multiplies by
them, as in the reference.

Left out: 5, 6 and 7 bits, codebooks of 8 bits, groups that 8 does not divide. The reference supports them. The loops
need scales and zero points in their own order, beside those of the layer: at four bits in groups of 64, this takes 8 %
more memory.
"""

import functools
import importlib
import sys
from collections.abc import Callable
from types import ModuleType

import numpy as np
import torch
from torch.nn.functional import linear

from qtutor.compiling import told_if_slow
from qtutor.core.codebooks import Codebook
from qtutor.core.float_grid import FloatGrid
from qtutor.core.quantized import resolve_group_size
from qtutor.installed import installed
from qtutor.runtime.kernels import gradients
from qtutor.runtime.kernels.tiles import ROWS, Tiles, tiles_of
from qtutor.threads import in_shares

MOST = 64  # tokens; from some 100 on, decoding once and torch's product are faster
SHARE = 4_000_000  # weights that are worth a thread: waking a thread takes as long as half a million weights
BLOCK_ROWS = 1024  # rows that are decoded at a time for torch's product; a multiple of ROWS

# `one` needs the x of each column divided by a power of two, because codes stay in their places; this is exact above
# 1e-29. The highest code of a word would include the sign bit, so this code is moved; a word of 2 bits has the codes of
# 16 columns.
_PLACES = {2: [*range(0, 30, 2), 0], 3: range(0, 24, 3), 4: [*range(0, 28, 4), 0], 8: [0, 8, 16, 0] * 2}
_FACTORS = {bits: (np.float32(2) ** -np.array(places, np.float32)).reshape(-1, 8) for bits, places in _PLACES.items()}
_UNCHANGED = np.ones((1, 8), np.float32)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def reason_against(layer) -> str | None:
    """Why this kernel does not support ``layer``, in words that end a sentence, or ``None``."""
    if isinstance(layer.grid, FloatGrid):  # its codes are the bits of floats
        return f"the codes are floating-point numbers ({layer.grid.name})"
    levels = len(layer.grid.values) if isinstance(layer.grid, Codebook) else None
    return _reason_against(levels, layer.grid.bits, layer.rows, layer.columns, layer.group_size)


@functools.cache
def _reason_against(levels: int | None, bits: int, rows: int, columns: int, group_size: int) -> str | None:
    """The same from numbers; levels: how many a codebook has."""
    if levels not in (None, 16):
        return f"the codebook has {levels} levels, and not 16"
    if bits not in (2, 3, 4, 8):
        return f"the codes have {bits} bits, and not 2, 3, 4 or 8"
    if not rows or not columns:
        return "the matrix is empty"
    if resolve_group_size(group_size, columns) % 8:
        return "the group size is not a multiple of 8"
    if sys.byteorder != "little":
        return "this machine stores the high byte of a word first"
    if not available():
        return "numba is not installed: pip install 'qtutor[gguf]'"
    return None


@functools.cache
def available() -> bool:
    """Whether numba is installed; it is imported when the first product is computed. Warns, once, if it is not."""
    return installed(
        "numba",
        "numba is not installed, so packed layers use the reference kernel, which is about a hundred times "
        "slower. Install it: pip install 'qtutor[gguf]'.",
    )


def manner(batch: int, dtype: torch.dtype) -> str:
    """How a batch is multiplied, in words."""
    if dtype in DTYPES and batch == 1:
        return "codes are decoded in registers and multiplied, 64 rows at a time, in float32"
    if dtype in DTYPES and batch <= MOST:
        return f"eight columns of 64 rows are decoded once and multiplied by {batch} tokens, in float32"
    return f"{BLOCK_ROWS} rows at a time are decoded to {str(dtype)[6:]}, and torch multiplies"


@functools.cache
def _loops() -> ModuleType:
    """The compiled loops; numba is imported with them."""
    return importlib.import_module("qtutor.runtime.kernels.loops")


def prepare(layer) -> Tiles:
    """The codes of ``layer`` in the order in which the loops read them, and its scales and zero points."""
    return tiles_of(layer)


def packed(state: Tiles) -> torch.Tensor:
    """The layer's packed bytes, out of the state that replaced them."""
    return state.packed()


def run(x: torch.Tensor, state: Tiles) -> torch.Tensor:
    """``x [..., in] @ weight.T`` -> ``[..., out]`` in x's dtype."""
    tokens = x.numel() // state.columns
    if 0 < tokens <= MOST and x.dtype in DTYPES and not gradients.wanted(x) and x.shape[-1] == state.columns:
        values = x.detach().to(torch.float32).reshape(tokens, -1, 8).contiguous()
        y = _product(values.numpy(), state)
        if y is not None:
            return torch.from_numpy(y)[:, : state.rows].to(x.dtype).reshape(*x.shape[:-1], state.rows)
    return _in_blocks(x, state)


def _product(x: np.ndarray, state: Tiles) -> np.ndarray | None:
    """float32 ``[tokens, columns / 8, 8]`` to float32 ``[tokens, tiles * ROWS]``; ``None`` if x is not finite."""
    loops, tokens, (tiles, groups, _) = _loops(), len(x), state.scales.shape
    loop, factors = _loop_of(tokens, state)
    inputs, sums = np.empty_like(x), np.empty((tokens, groups), np.float32)
    if not loops.spread(x, factors, inputs, sums):
        return None
    y = np.empty((tokens, tiles * ROWS), np.float32)
    arguments = inputs, sums, state.planes, state.scales, state.zeros, state.each, y
    shared_out(loop, lambda first, last: loop(*arguments, first, last), tiles, state)
    return y


def _loop_of(tokens: int, state: Tiles) -> tuple[Callable, np.ndarray]:
    """The loop for this number of tokens, and the factors with which `spread` computes its inputs."""
    if tokens == 1 and not state.levels:
        return _loops().one, _FACTORS[state.bits]
    return _loops().many, _UNCHANGED


def one_token(x: np.ndarray, state: Tiles, inputs: tuple | None = None) -> tuple[Callable, tuple, Callable]:
    """For one token after the other in the same array: a function ``read``, the ``inputs`` that it writes, and a loop.

    x: float32 ``[1, columns / 8, 8]``. ``read()`` writes ``inputs`` and returns whether x is finite; ``loop(*inputs,
    planes, scales, zeros, each, y, first, last)`` multiplies. inputs: those of another matrix that reads the same x.
    """
    loop, factors = _loop_of(1, state)
    inputs = inputs or (np.empty_like(x), np.empty((1, state.scales.shape[1]), np.float32))
    return functools.partial(_loops().spread, x, factors, *inputs), inputs, loop


def _in_blocks(x: torch.Tensor, state: Tiles) -> torch.Tensor:
    """The product with decoded weights, some rows after the other rows, as the reference computes it."""
    loops, parts = _loops(), []
    room = np.empty((min(BLOCK_ROWS, state.rows), state.columns // 8, 8), np.float32)
    for start in range(0, state.rows, BLOCK_ROWS):
        weight = room[: state.rows - start]  # the last rows may be fewer

        def decode(first: int, last: int, weight=weight, at=start // ROWS) -> None:
            out = weight[first * ROWS : last * ROWS]
            loops.weights(state.planes, state.scales, state.zeros, state.each, out, at + first, at + last)

        shared_out(loops.weights, decode, -(-len(weight) // ROWS), state)
        decoded = torch.from_numpy(weight.reshape(len(weight), -1)).to(x.dtype)
        if x.requires_grad and decoded.dtype == torch.float32:
            decoded = decoded.clone()  # the gradient needs it later, when the room holds other rows
        parts.append(linear(x, decoded))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


_ready = set()  # compiled loops, each with the kind of tiles for which it is compiled


def shared_out(loop, work, tiles: int, state: Tiles) -> None:
    """Call ``work(first, last)``, which calls ``loop``, for all ``tiles``; before that, the loop is compiled once."""
    kind = loop, state.bits, state.levels, state.scales.dtype
    if kind not in _ready:
        with told_if_slow(f"the product of {state.bits}-bit weights"):
            work(0, 0)
        _ready.add(kind)
    in_shares(work, tiles, -(-SHARE // (ROWS * state.columns)))

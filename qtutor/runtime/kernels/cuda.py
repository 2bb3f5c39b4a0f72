"""The fast product on a GPU: codes are decoded in registers, so generating reads packed bytes only.

The kernel reads the layer's own bytes: they are stored along rows, which suits a GPU. Only scales and zero points are
copied to another order, ``[groups, rows]``: up to an eighth more memory at 4 bits in groups of 64.
:mod:`.triton_product` has the product, for up to :data:`MOST` tokens; it computes in float32. For more tokens, and for
float64 and gradients, the reference decodes 4096 rows at a time, and torch multiplies.

If rows are few, there are fewer programs than a GPU has room for. Then the columns are shared out, too. Each share
writes sums of its own, and torch adds them up in a fixed order, so results are the same each time.

If x has an infinite value, the results of its token are NaN, while the reference may return infinity. The reason: zero
points stay outside the sum, and looking for infinities first would stop the GPU.

The results are right under Triton's interpreter on a CPU, and the kernel was compiled for an H100 without one. No GPU
has run it yet: the numbers of :data:`LAUNCHES` are not measured, and ``benchmarks/gpu.py`` tries others.

Left out: 5, 6 and 7 bits, and groups that 8 does not divide.
"""

import functools
import importlib
import math
from dataclasses import dataclass

import torch

from qtutor.core.codebooks import Codebook
from qtutor.core.float_grid import FloatGrid
from qtutor.core.quantized import resolve_group_size
from qtutor.installed import installed
from qtutor.runtime.kernels import gradients, reference

MOST = 16  # tokens
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# The dtype of a word, and how many codes it has. For 3 bits a word is three bytes, for which torch has no dtype.
_WORDS = {2: (torch.int16, 8), 3: (torch.uint8, 8), 4: (torch.int32, 8), 8: (torch.int32, 4)}


@dataclass(frozen=True)
class Launch:
    """How the work is cut. rows, words: what a program multiplies at a time, powers of two; groups may be shorter.

    warps: per program. stages: blocks that are fetched ahead. programs: how many each processor of the GPU should have.
    """

    rows: int
    words: int
    warps: int = 4
    stages: int = 3
    programs: int = 4


# By tokens, rounded up to a power of two: all sums of a program stay in registers.
LAUNCHES = {1: Launch(64, 16), 2: Launch(64, 8), 4: Launch(64, 8), 8: Launch(32, 8), 16: Launch(32, 8)}


@dataclass(frozen=True)
class State:
    """A packed matrix ``[rows, columns]``.

    packed: the layer's bytes as words ``[rows, words]``. scales: ``[groups, rows]``. zeros: uint8, of the same shape,
    or ``None`` if ``middle`` serves all. levels: float32, of a codebook. plain: the state of the reference.
    """

    packed: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None
    levels: torch.Tensor | None
    rows: int
    columns: int
    group_size: int
    bits: int
    middle: int
    plain: reference.State


def reason_against(layer) -> str | None:
    """Why this kernel does not support ``layer``, in words that end a sentence, or ``None``."""
    if isinstance(layer.grid, FloatGrid):  # its codes are the bits of floats
        return f"the codes are floating-point numbers ({layer.grid.name})"
    if layer.grid.bits not in _WORDS:
        return f"the codes have {layer.grid.bits} bits, and not 2, 3, 4 or 8"
    if not layer.rows or not layer.columns:
        return "the matrix is empty"
    if resolve_group_size(layer.group_size, layer.columns) % 8:
        return "the group size is not a multiple of 8"
    if not available():
        return "triton is not installed: pip install triton"
    return None


@functools.cache
def available() -> bool:
    """Whether triton is installed; it is imported when the first product is computed. Warns, once, if it is not."""
    return installed(
        "triton",
        "triton is not installed, so packed layers on a GPU use the reference kernel, which is slow. Install it: "
        "pip install triton.",
    )


def manner(batch: int, dtype: torch.dtype) -> str:
    """How a batch is multiplied, in words."""
    if dtype in DTYPES and batch <= MOST:
        return "codes are decoded in registers and multiplied, a block of a group at a time, in float32"
    return f"{reference.BLOCK_ROWS} rows at a time are decoded to {str(dtype)[6:]}, and torch multiplies"


def prepare(layer) -> State:
    """The bytes of ``layer`` as words, and its scales and zero points group after group."""
    word, _ = _WORDS[layer.grid.bits]
    packed = layer.packed.contiguous()
    if packed.data_ptr() % 16:  # a part of another tensor may begin at any address
        packed = packed.clone()
    levels = None
    if isinstance(layer.grid, Codebook):
        levels = torch.tensor(layer.grid.values, dtype=torch.float32, device=packed.device)
    zeros = None if layer.zeros is None else _by_groups(layer.unpacked_zeros(), layer.rows)
    return State(
        packed.view(word),
        _by_groups(layer.stored_scales.decode().detach(), layer.rows),
        zeros,
        levels,
        layer.rows,
        layer.columns,
        resolve_group_size(layer.group_size, layer.columns),
        layer.grid.bits,
        layer.grid.middle,
        reference.prepare(layer),
    )


def _by_groups(values: torch.Tensor, rows: int) -> torch.Tensor:
    """``[rows, groups]``, or ``[1, 1]`` for all rows, as ``[groups, rows]``: a program reads those of its rows."""
    return values.expand(rows, -1).T.contiguous()


def run(x: torch.Tensor, state: State, launch: Launch | None = None) -> torch.Tensor:
    """``x [..., in] @ weight.T`` -> ``[..., out]`` in x's dtype; ``launch`` in place of that of :data:`LAUNCHES`."""
    tokens = x.numel() // state.columns
    if not 0 < tokens <= MOST or x.dtype not in DTYPES or gradients.wanted(x) or x.shape[-1] != state.columns:
        return reference.run(x, state.plain)
    padded = 1 << (tokens - 1).bit_length()
    launch = launch or LAUNCHES[padded]
    _, codes = _WORDS[state.bits]
    block = math.gcd(state.group_size, launch.words * codes)  # columns: a power of two that divides the groups
    tiles, blocks = -(-state.rows // launch.rows), state.columns // block
    each = share(blocks, tiles, launch.programs * _processors(x.device))
    shares = -(-blocks // each)
    flat = x.detach().reshape(tokens, state.columns).contiguous()
    y = torch.empty(shares, tokens, state.rows, dtype=x.dtype if shares == 1 else torch.float32, device=x.device)
    with torch.cuda.device_of(flat):  # Triton launches on the current GPU
        _product()[tiles, shares](
            flat,
            state.packed,
            state.scales,
            state.packed if state.zeros is None else state.zeros,  # any tensor; it is not read
            state.scales if state.levels is None else state.levels,
            y,
            tokens,
            state.rows,
            state.columns,
            state.columns // codes,
            state.group_size // block,
            each,
            state.middle,
            BITS=state.bits,
            EACH=state.zeros is not None,
            LEVELS=state.levels is not None,
            TOKENS=padded,
            ROWS=launch.rows,
            WORDS=block // codes,
            STAGES=launch.stages if state.levels is None else 1,  # levels would be fetched ahead, too, one by one
            num_warps=launch.warps,
            enable_fp_fusion=True,  # multiply and add in one step; Triton 3.10 no longer does so by default
        )
    y = y[0] if shares == 1 else y.sum(0).to(x.dtype)
    return y.reshape(*x.shape[:-1], state.rows)


def share(blocks: int, tiles: int, wanted: int) -> int:
    """How many of a row's ``blocks`` a program multiplies, so that there are about ``wanted`` programs.

    At least four, if there are so many blocks: otherwise a program would write about as much as it reads.
    """
    shares = max(1, min(wanted // tiles, blocks // 4))
    return -(-blocks // shares)


@functools.cache
def _processors(device: torch.device) -> int:
    """Multiprocessors of the GPU; 1 for Triton's interpreter."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


@functools.cache
def _product():
    """The compiled product; triton is imported with it."""
    return importlib.import_module("qtutor.runtime.kernels.triton_product").product

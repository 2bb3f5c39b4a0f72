"""Four formats over one block, in chapter 04: the levels of int4, NF4, MXFP4 and NVFP4 laid over its 32 weights.

:func:`levels_over_block` is the widget. Its script (live/block_levels.js) fits the levels by itself, so the levels move
with a weight that is dragged. The page stores four blocks of each layer, chosen by their peaks and errors
(:func:`told_blocks`), and the one number of the whole layer that NVFP4 needs, its unit. The package's own rounding
(:func:`made_of`) draws the picture for pages without scripts, and gives the tests the results that the script must
reach.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from qtutor.core.codebooks import NF4
from qtutor.core.float_grid import MXFP4, NVFP4, BlockGrid
from qtutor.core.grid import Grid, IntGrid, for_tensor
from qtutor.core.quantized import QuantizedTensor, check_weight
from qtutor.course.widgets.explorer import html_table
from qtutor.course.widgets.frames import frame
from qtutor.course.widgets.live import Live, live
from qtutor.course.widgets.sampling import named_layers, sample_rows
from qtutor.errors import QtutorError, naming
from qtutor.methods import bnb, rtn
from qtutor.plots.bnb import levels_over_one_block

LENGTH = 32  # weights of the block that is shown; NVFP4 divides it into two
SAMPLE = 2**16  # weights of a layer in which blocks are searched for
FORMATS: dict[str, Grid] = {"int4": IntGrid(4), "NF4": NF4, "MXFP4": MXFP4, "NVFP4": NVFP4}
ALT = (
    "The 32 weights of one block as dots in two lanes, the first and the last sixteen. Below them a row of ticks for "
    "the levels of each format: int4, evenly spaced between the smallest and the largest weight; NF4, closer together "
    "near zero; MXFP4, with few levels far out; NVFP4 in two rows, a scale for each half. The table has the errors."
)


@dataclass(frozen=True)
class Block:
    """A block of a layer: what it shows, its row, its first column, its weights float32 ``[32]``."""

    what: str
    row: int
    first: int
    weights: torch.Tensor


def levels_over_block(layers: torch.nn.Module | Mapping[str, torch.Tensor], layer: str | None = None) -> Live:
    """The widget. layers: a decoder, or matrices ``[out, in]`` by name. layer: the one that is shown first.

    Raises :class:`QtutorError` for a layer that does not exist, and for rows whose length 32 does not divide.
    """
    weights = named_layers(layers)
    first = next(iter(weights)) if layer is None else layer
    if first not in weights:
        raise QtutorError(f"there is no layer {first!r}; the layers are {', '.join(weights)}.")
    names = [first, *(name for name in weights if name != first)]
    told = {name: told_blocks(name, weights[name]) for name in names}
    stored = {name: _stored(weights[name], told[name]) for name in names}
    data = {"nf4": sorted(NF4.values), "layers": stored, "bits": _bits(weights[first])}
    block = told[first][0]
    made = made_of(block.weights, stored[first]["unit"])
    errors = [f"{_error(quantized.dequantize()[0], block.weights):.1%}" for quantized in made.values()]
    table = html_table([f"{first}, {block.what}", *made], ["relative error", *errors])
    rows = {name: [part.tolist() for part in levels_of(quantized)] for name, quantized in made.items()}
    still = frame((levels_over_one_block(block.weights, rows), table), ALT, small=True)
    return live("block_levels", data, still, "The levels of four formats over the weights of one block")


def told_blocks(name: str, weight: torch.Tensor) -> list[Block]:
    """Four blocks of ``weight [out, in]``: a usual one and three extreme ones, in the widget's order."""
    if weight.ndim != 2 or not weight.numel() or weight.shape[1] % LENGTH:
        raise QtutorError(
            f"{name} of shape {list(weight.shape)} cannot be divided into blocks of {LENGTH}: give a matrix "
            f"[out, in] in which in is a multiple of {LENGTH}."
        )
    with naming(name):
        check_weight(weight)
    rows = sample_rows(weight, SAMPLE)
    blocks = weight.detach()[rows].float().cpu().reshape(-1, LENGTH)
    peaks = blocks.abs().amax(dim=1) / blocks.square().mean(dim=1).sqrt().clamp(min=1e-30)
    nvfp4 = for_tensor(NVFP4, weight)
    grids = {"mx": MXFP4, "nf4": NF4, "nvfp4": nvfp4, "six": replace(nvfp4, wider=())}
    errors = {key: _errors(blocks, grid) for key, grid in grids.items()}
    found = {
        "a usual one": peaks.argsort()[len(peaks) // 2],
        "the largest peak": peaks.argmax(),
        "a power of two costs most": (errors["mx"] / errors["nf4"].clamp(min=1e-30)).argmax(),
        "4 beats 6 by most": (errors["six"] - errors["nvfp4"]).argmax(),
    }
    all_rows, per_row = torch.arange(len(weight))[rows], weight.shape[1] // LENGTH
    return [
        Block(what, int(all_rows[int(at) // per_row]), int(at) % per_row * LENGTH, blocks[at])
        for what, at in found.items()
    ]


def unit_of(weight: torch.Tensor) -> float:
    """NVFP4's unit: its one number for a whole layer."""
    return for_tensor(NVFP4, weight).unit


def made_of(weights: torch.Tensor, unit: float) -> dict[str, QuantizedTensor]:
    """A block ``[32]`` rounded to each format, ``[1, 32]``; unit: that of its layer."""
    return {name: _rounded(weights[None].float(), _grid(name, unit)) for name in FORMATS}


def levels_of(quantized: QuantizedTensor) -> list[torch.Tensor]:
    """The different levels of each group, ascending, for a matrix with one row."""
    grid, codes = quantized.grid, torch.arange(2**quantized.grid.bits, dtype=torch.uint8)
    zeros = [None] * quantized.scales.shape[1] if quantized.zeros is None else quantized.zeros[0]
    return [grid.decode(codes, scale, zero).unique() for scale, zero in zip(quantized.scales[0], zeros)]


def _grid(name: str, unit: float) -> Grid:
    grid = FORMATS[name]
    return replace(grid, unit=unit, settled=True) if grid == NVFP4 else grid


def _rounded(blocks: torch.Tensor, grid: Grid) -> QuantizedTensor:
    """Blocks ``[n, 32]`` rounded; NF4's scales stay as they are."""
    if grid == NF4:
        return bnb.quantize(blocks, grid, LENGTH, double=False)
    return rtn.quantize(blocks, grid, grid.block if isinstance(grid, BlockGrid) else LENGTH)


def _errors(blocks: torch.Tensor, grid: Grid) -> torch.Tensor:
    """The relative error of every block of ``blocks [n, 32]``; 0 for a block of zeros."""
    off = _rounded(blocks, grid).dequantize() - blocks
    return off.norm(dim=1) / blocks.norm(dim=1).clamp(min=1e-30)


def _error(back: torch.Tensor, weights: torch.Tensor) -> float:
    return ((back - weights).norm() / weights.norm().clamp(min=1e-30)).item()


def _bits(weight: torch.Tensor) -> dict[str, float]:
    """True bits a weight of ``weight [out, in]``; NF4's scales in 8 bits, as is usual."""
    made = {name: _rounded(weight.float(), grid) for name, grid in FORMATS.items() if grid != NF4}
    made["NF4"] = bnb.quantize(weight, NF4, LENGTH)
    return {name: round(made[name].bits_per_weight, 3) for name in FORMATS}


def _stored(weight: torch.Tensor, told: list[Block]) -> dict:
    """The page's data for a layer: its blocks with six digits, the unit, and how far a weight may be dragged."""
    blocks = [
        {"what": b.what, "row": b.row, "first": b.first, "weights": [float(f"{w:.6g}") for w in b.weights.tolist()]}
        for b in told
    ]
    return {"unit": unit_of(weight), "largest": weight.detach().abs().max().item(), "blocks": blocks}

"""The first widget of chapter 04: the levels of a format over a layer's weights, and what both cost in true bytes."""

import functools
from collections.abc import Mapping

import ipywidgets
import torch

from qtutor.core.codebooks import Codebook
from qtutor.core.grid import Grid, IntGrid
from qtutor.core.quantized import QuantizedTensor, resolve_group_size
from qtutor.core.scales import NestedScales
from qtutor.course.widgets.explorer import Explorer, explore, html_table
from qtutor.course.widgets.sampling import named_layers, sample_rows
from qtutor.errors import QtutorError, naming
from qtutor.methods import bnb, rtn
from qtutor.plots.bnb import levels_over_weights

SAMPLE = 2**18  # weights that are rounded a picture, as in the other widgets
FORMATS: dict[str, Grid] = {
    "int4 asymmetric": IntGrid(4),
    "int4 symmetric": IntGrid(4, symmetric=True),
    "NF4": bnb.NF4,
    "FP4": bnb.FP4,
    "int3 asymmetric": IntGrid(3),
}
ALT = (
    "Left, the histogram of weights over the largest of their block, under the dashed levels of the format. Right, "
    "the share of the weights that each level gets, and the share if all had the same. The table has the numbers."
)
BLOCKS = [("a row", -1), ("256", 256), ("128", 128), ("64", 64), ("32", 32), ("16", 16)]


def levels_over_bell(
    layers: torch.nn.Module | Mapping[str, torch.Tensor],
    layer: str | None = None,
    *,
    format: str = "NF4",
    block: int = 64,
    frames: dict[str, list] | None = None,
) -> Explorer:
    """Weights over the absmax of their block, the levels that they go to, and how often each level is used.

    layers: a decoder, or matrices ``[out, in]`` by name. format: one of :data:`FORMATS`. block: weights that share a
    scale. frames: as in :func:`.explore`; by itself all formats at two block sizes. On a large layer
    whole rows are sampled; bytes are always those of all its rows.
    """
    weights = named_layers(layers)
    layer = next(iter(weights)) if layer is None else layer
    if layer not in weights:
        raise QtutorError(f"there is no layer {layer!r}; the layers are {', '.join(weights)}.")

    @functools.cache
    def sample(layer: str) -> torch.Tensor:
        return weights[layer][sample_rows(weights[layer], SAMPLE)].float()

    def draw(layer, format, block, double):
        exact, grid = sample(layer), FORMATS[format]
        double = double and isinstance(grid, Codebook)
        with naming(layer):
            quantized = round_to(exact, grid, block, double)
        relative, levels, shares = seen(exact, quantized)
        error = (quantized.dequantize() - exact).norm() / exact.norm().clamp(min=1e-30)
        size, width = whole_bytes(weights[layer].shape, grid, block, double)
        scales = "8 bits and theirs" if double else f"{8 * grid.scale_dtype.itemsize} bits"
        figure = levels_over_weights({f"{layer}, {format}": (relative, levels, shares)})
        return figure, html_table(
            ["relative error", "busiest level", "idlest level", "scales", "true bytes", "bits a weight"],
            [f"{error:.2%}", f"{shares.max():.1%}", f"{shares.min():.1%}", scales, f"{size:,}", f"{width:.3f}"],
        )

    return explore(
        draw,
        frames={"format": list(FORMATS), "block": sorted({256, 64, block})} if frames is None else frames,
        alt=ALT,
        layer=ipywidgets.Dropdown(options=list(weights), value=layer, description="layer"),
        format=ipywidgets.Dropdown(options=list(FORMATS), value=format, description="format"),
        block=ipywidgets.Dropdown(options=BLOCKS, value=block, description="block"),
        double=ipywidgets.Checkbox(value=False, description="NF4, FP4: scales in 8 bits"),
    )


def round_to(weight: torch.Tensor, grid: Grid, block: int, double: bool) -> QuantizedTensor:
    """``weight [out, in]`` rounded to the nearest level, on either kind of grid."""
    if isinstance(grid, Codebook):
        return bnb.quantize(weight, grid, block, double)
    return rtn.quantize(weight, grid, block)


def whole_bytes(shape: tuple[int, int], grid: Grid, block: int, double: bool) -> tuple[int, float]:
    """True bytes of a whole layer, and bits a weight, from shapes alone."""
    rows, columns = shape
    groups = rows, columns // resolve_group_size(block, columns)

    def empty(size: tuple, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(size, dtype=dtype, device="meta")  # a shape and nothing else: nbytes needs no more

    nested = None
    if double:
        blocks = -(-groups[0] * groups[1] // NestedScales.BLOCK)
        nested = NestedScales(empty(groups, torch.uint8), empty((blocks,), torch.float32), empty((), torch.float32))
    zeros = None if grid.symmetric else empty(groups, torch.uint8)
    codes, scales = empty((rows, columns), torch.uint8), empty(groups, grid.scale_dtype)
    whole = QuantizedTensor(codes, scales, zeros, grid, block, nested)
    return whole.nbytes, whole.bits_per_weight


def seen(weight: torch.Tensor, quantized: QuantizedTensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What a picture shows of ``weight`` and its :class:`QuantizedTensor`: relative weights, levels, their shares.

    Weights ``[out, groups, group_size]`` over the largest of their block. Levels on that axis, ascending; on an integer
    grid they are those of one block, the one of median scale (every block has its own). Shares of all the weights.
    """
    grid, groups = quantized.grid, quantized.scales.shape[1]
    grouped = weight.float().reshape(len(weight), groups, -1)
    absmax = grouped.abs().amax(dim=-1, keepdim=True).clamp(min=1e-30)
    if isinstance(grid, Codebook):
        levels, count = torch.tensor(grid.values), len(grid.values)
    else:
        count = grid.largest_code + 1
        scales = quantized.scales.flatten().float()
        middle = scales.argsort()[len(scales) // 2]
        zero = grid.middle if quantized.zeros is None else int(quantized.zeros.flatten()[middle])
        levels = scales[middle] * (torch.arange(count) - zero) / absmax.flatten()[middle]
    shares = torch.bincount(quantized.codes.flatten().long(), minlength=count) / max(quantized.codes.numel(), 1)
    order = levels.argsort()
    return grouped / absmax, levels[order], shares[order]

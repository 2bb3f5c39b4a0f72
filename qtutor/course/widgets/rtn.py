"""The widgets of chapter 02: a layer's weights under a grid, and as a picture, before and after rounding."""

import functools
from collections.abc import Mapping

import ipywidgets
import torch
from matplotlib.figure import Figure

from qtutor import plots
from qtutor.core.grid import IntGrid
from qtutor.core.quantized import PER_TENSOR, QuantizedTensor
from qtutor.course.widgets.explorer import Explorer, explore, html_table
from qtutor.course.widgets.sampling import around_the_largest, named_layers, sample_rows, whole_bytes
from qtutor.errors import QtutorError, naming
from qtutor.methods import rtn
from qtutor.plots.rtn import before_after_error

SAMPLE = 2**18
CROP = (16, 128)  # rows and columns of the picture; 128 columns hold whole groups of up to 128
GROUP_SIZES = [("one scale a tensor", 0), ("one scale a row", -1), ("128", 128), ("64", 64), ("32", 32), ("16", 16)]
RANGES = [("smallest to largest", "none"), ("least squares", "mse")]


def weight_histogram(
    layers: torch.nn.Module | Mapping[str, torch.Tensor],
    layer: str | None = None,
    *,
    bits: int = 3,
    group_size: int = 64,
    symmetric: bool = False,
    clip: str = "none",
    frames: dict[str, list] | None = None,
) -> Explorer:
    """A layer's weights as a histogram under its grid, the rounding errors, and the cost in true bytes.

    layers: a decoder, or matrices ``[out, in]`` by name. layer: the first name to show; the other arguments are the
    first values of the controls. frames: as in :func:`explore`; by default bits 2, 3, 4 and 8, and two group sizes.
    """
    weights = named_layers(layers)

    @functools.cache
    def sample(layer: str) -> torch.Tensor:
        return sample_rows(weights[layer], SAMPLE)

    def draw(layer, bits, group_size, symmetric, clip):
        weight, rows = weights[layer], sample(layer)
        with naming(layer):
            quantized = rtn.quantize(weight[rows], IntGrid(bits, symmetric), group_size, clip)
        size, width = whole_bytes(weight.shape, quantized)
        exact = weight[rows].float()
        error = (quantized.dequantize() - exact).norm() / exact.norm().clamp(min=1e-30)
        measured = f"all {len(weight)} rows" if len(rows) == len(weight) else f"{len(rows)} of {len(weight)} rows"
        return plots.weights_and_grid(exact, quantized, f"{layer}, {bits} bits"), html_table(
            ["drawn and measured", "relative error", "median scale", "true bytes", "bits a weight", "share of 16 bits"],
            [
                measured,
                f"{error:.2%}",
                f"{quantized.scales.float().median():.3g}",
                f"{size:,}",
                f"{width:.3f}",
                f"{width / 16:.1%}",
            ],
        )

    alt = (
        "Left, the histogram of a layer's weights under the dashed grid levels of one group, the one with the "
        "median scale. Right, the histogram of the rounding errors. The table has the numbers."
    )
    controls = _controls(weights, layer, bits, group_size, symmetric, clip)
    return explore(draw, frames=_frames(frames, bits, group_size), alt=alt, **controls)


def weights_as_picture(
    layers: torch.nn.Module | Mapping[str, torch.Tensor],
    layer: str | None = None,
    *,
    bits: int = 3,
    group_size: int = 64,
    symmetric: bool = False,
    clip: str = "none",
    frames: dict[str, list] | None = None,
) -> Explorer:
    """The weights around a layer's largest as coloured cells: before, after, and the error.

    The arguments are those of :func:`weight_histogram`. Each weight is a cell, in 16 rows and 128 columns: averages
    over many weights would hide what rounding does.
    """
    weights = named_layers(layers)

    @functools.cache
    def crop(layer: str) -> tuple[torch.Tensor, slice]:
        return around_the_largest(weights[layer], *CROP)

    @functools.cache
    def with_sample(layer: str) -> torch.Tensor:
        return torch.cat([crop(layer)[0], sample_rows(weights[layer], SAMPLE)]).unique()

    def draw(layer, bits, group_size, symmetric, clip):
        shown, columns = crop(layer)
        rows = with_sample(layer) if group_size == PER_TENSOR else shown  # all weights determine the one scale
        with naming(layer):
            quantized = rtn.quantize(weights[layer][rows], IntGrid(bits, symmetric), group_size, clip)
        return _crop_rounded(weights[layer], quantized, rows, shown, columns)

    alt = (
        "Three pictures of the same weights, with a coloured cell for each: before rounding, after rounding, and the "
        "error on the same scale of colours; a smaller error is fainter. The table has the numbers."
    )
    controls = _controls(weights, layer, bits, group_size, symmetric, clip)
    return explore(draw, frames=_frames(frames, bits, group_size), alt=alt, **controls)


def _crop_rounded(
    weight: torch.Tensor, quantized: QuantizedTensor, rows: torch.Tensor, shown: torch.Tensor, columns: slice
) -> tuple[Figure, str]:
    """The picture of ``weight[shown, columns]`` and its table; ``quantized`` holds ``weight[rows]``."""
    size, width = whole_bytes(weight.shape, quantized)
    before = weight[shown, columns].float()
    after = quantized.dequantize()[torch.isin(rows, shown), columns]
    error = (after - before).norm() / before.norm().clamp(min=1e-30)
    figure = before_after_error(before, after, (int(shown[0]), columns.start), max(quantized.group_size, 0))
    return figure, html_table(
        ["rows shown", "columns shown", "relative error of these", "true bytes of the layer", "bits a weight"],
        [
            f"{shown[0]} to {shown[-1]} of {len(weight)}",
            f"{columns.start} to {columns.stop - 1} of {weight.shape[1]}",
            f"{error:.2%}",
            f"{size:,}",
            f"{width:.3f}",
        ],
    )


def _controls(weights: dict, layer: str | None, bits: int, group_size: int, symmetric: bool, clip: str) -> dict:
    """The controls of both widgets, set to their first values."""
    layer = next(iter(weights)) if layer is None else layer
    if layer not in weights:
        raise QtutorError(f"there is no layer {layer!r}; the layers are {', '.join(weights)}.")
    widths = {weight.shape[1] for weight in weights.values()}
    sizes = [option for option in GROUP_SIZES if option[1] < 1 or any(width % option[1] == 0 for width in widths)]
    if group_size not in [size for _, size in sizes]:
        sizes.append((str(group_size), group_size))
    return {
        "layer": ipywidgets.Dropdown(options=list(weights), value=layer, description="layer"),
        "bits": ipywidgets.IntSlider(value=bits, min=2, max=8, description="bits"),
        "group_size": ipywidgets.Dropdown(options=sizes, value=group_size, description="group size"),
        "symmetric": ipywidgets.Checkbox(value=symmetric, description="symmetric"),
        "clip": ipywidgets.Dropdown(options=RANGES, value=clip, description="range"),
    }


def _frames(frames: dict[str, list] | None, bits: int, group_size: int) -> dict[str, list]:
    """The settings to draw beforehand; by default four or five numbers of bits, and two or three group sizes."""
    if frames is not None:
        return frames
    return {"bits": sorted({2, 3, 4, 8, bits}), "group_size": sorted({-1, 64, group_size})}

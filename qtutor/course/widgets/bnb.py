"""The widgets of chapter 04: the levels of a format over a layer's weights; LLM.int8's threshold over its channels.

Block is bitsandbytes' name for a group of weights that share a scale.
"""

import copy
import functools
import math
from collections.abc import Mapping

import ipywidgets
import torch
from torch.nn.functional import linear

from qtutor.calibration.statistics import layer_inputs
from qtutor.core.codebooks import Codebook
from qtutor.core.grid import Grid, IntGrid
from qtutor.core.quantized import QuantizedTensor
from qtutor.course.widgets.explorer import Explorer, explore, html_table
from qtutor.course.widgets.sampling import named_layers, sample_rows, whole_bytes
from qtutor.decoder.outliers import add_outliers
from qtutor.errors import QtutorError, naming
from qtutor.families import decoder_blocks, family_of
from qtutor.methods import bnb, rtn
from qtutor.plots.bnb import levels_over_weights, outlier_channels

SAMPLE = 2**18  # weights that are rounded for each picture, as in the other widgets
FORMATS: dict[str, Grid] = {
    "int4 asymmetric": IntGrid(4),
    "int4 symmetric": IntGrid(4, symmetric=True),
    "NF4": bnb.NF4,
    "FP4": bnb.FP4,
    "int3 asymmetric": IntGrid(3),
}
ALT = (
    "Left, the histogram of the weights, divided by the largest of their block, under the dashed levels of the format. "
    "Right, the share of the weights that each level gets, and the share if all levels had the same. The table has the "
    "numbers."
)
BLOCKS = [("a row", -1), ("256", 256), ("128", 128), ("64", 64), ("32", 32), ("16", 16)]

THRESHOLDS = (1.0, 2.0, 4.0, 6.0, 12.0, 25.0, 50.0, 100.0, 200.0, 400.0, 1000.0, math.inf)
THRESHOLD_FRAMES = {
    "outliers": [False, True],
    "threshold": [2.0, 6.0, 25.0, 100.0, math.inf],
}


def levels_over_bell(
    layers: torch.nn.Module | Mapping[str, torch.Tensor],
    layer: str | None = None,
    *,
    format: str = "NF4",
    block: int = 64,
    frames: dict[str, list] | None = None,
) -> Explorer:
    """Weights over the absmax of their block, the levels of the format, and how often each level is used.

    layers: a decoder, or matrices ``[out, in]`` by name. format: one of :data:`FORMATS`. block: how many weights share
    a scale. frames: as in :func:`.explore`; by default all formats at two block sizes. If a layer is large, whole rows
    are sampled, but bytes are always those of all rows.
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
        wanted, double = double, double and isinstance(grid, Codebook)
        with naming(layer):
            quantized = round_to(exact, grid, block, double)
        relative, levels, shares = seen(exact, quantized)
        error = (quantized.dequantize() - exact).norm() / exact.norm().clamp(min=1e-30)
        size, width = whole_bytes(weights[layer].shape, quantized)
        scales = "8 bits, with scales of their own" if double else f"{8 * grid.scale_dtype.itemsize} bits"
        # If the switch changes nothing, the picture says so: nobody has to look for a difference.
        about = "" if not wanted else ", scales in 8 bits" if double else f", scales stay in {scales}"
        figure = levels_over_weights({f"{layer}, {format}{about}": (relative, levels, shares)})
        return figure, html_table(
            ["relative error", "busiest level", "least used level", "scales", "true bytes", "bits a weight"],
            [f"{error:.2%}", f"{shares.max():.1%}", f"{shares.min():.1%}", scales, f"{size:,}", f"{width:.3f}"],
        )

    return explore(
        draw,
        frames={"format": list(FORMATS), "block": sorted({256, 64, block}), "double": [False, True]}
        if frames is None
        else frames,
        alt=ALT,
        layer=ipywidgets.Dropdown(options=list(weights), value=layer, description="layer"),
        format=ipywidgets.Dropdown(options=list(FORMATS), value=format, description="format"),
        block=ipywidgets.Dropdown(options=BLOCKS, value=block, description="block"),
        double=ipywidgets.Checkbox(value=False, description="NF4, FP4: scales in 8 bits"),
    )


def round_to(weight: torch.Tensor, grid: Grid, block: int, double: bool) -> QuantizedTensor:
    """Round ``weight [out, in]`` to nearest on either kind of grid."""
    if isinstance(grid, Codebook):
        return bnb.quantize(weight, grid, block, double)
    return rtn.quantize(weight, grid, block)


def seen(weight: torch.Tensor, quantized: QuantizedTensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The three parts of the picture of ``weight`` and its :class:`QuantizedTensor`: weights, levels, shares.

    The weights are divided by the largest of their block, ``[out, groups, group_size]``. The levels are on the same
    axis, in ascending order; on an integer grid every block has its own levels, and those of the block with the median
    scale are shown. A share is the part of all weights that are rounded to a level.
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


def outlier_threshold(
    model: torch.nn.Module, token_ids: torch.Tensor, *, frames: dict[str, list] | None = None
) -> Explorer:
    """The input channels of a layer of ``model`` (a float decoder), and which of them LLM.int8 keeps out of int8.

    token_ids: int64 ``[1, length]``, read as one batch. Controls: the layer (one of those that share an input), with or
    without :func:`qtutor.add_outliers`, and the threshold. The error is that of the layer's output for these tokens,
    after rounding inputs and weights. frames: as in :func:`.explore`; by default both decoders at five thresholds.
    """
    length, family = token_ids.shape[1], family_of(model)
    decoders = {False: model, True: add_outliers(copy.deepcopy(model))}
    inputs = {o: layer_inputs(decoder, token_ids, samples=length) for o, decoder in decoders.items()}
    layers = [f"{i}.{names[0]}" for i in range(len(decoder_blocks(model))) for names in family.shared]
    of_mlp = [f"0.{names[0]}" for names in family.shared[2:]]

    @functools.cache
    def measured(layer: str, outliers: bool) -> tuple[torch.Tensor, dict[float, tuple[int, float]]]:
        name = f"{family.blocks}.{layer}"
        x = inputs[outliers][name].samples
        found = product_errors(decoders[outliers].get_submodule(name).weight.detach(), x, THRESHOLDS)
        return x.abs().amax(dim=0), found

    def draw(layer, outliers, threshold):
        largest, found = measured(layer, outliers)
        count, error = found[threshold]
        order = [threshold, *(t for t in THRESHOLDS if t != threshold)]  # the picture marks the first one
        shares, errors = [found[t][0] / len(largest) for t in order], [found[t][1] for t in order]
        title = f"inputs of {layer}{', with add_outliers' if outliers else ''}"
        return outlier_channels(largest, threshold, shares, errors, title), html_table(
            ["channels in 16 bits", "of all", "error of the output", "with no threshold", "with all inputs in 16 bits"],
            [
                f"{count} of {len(largest)}",
                f"{count / len(largest):.1%}",
                *(f"{e:.2%}" for e in (error, *errors_at_the_ends(found))),
            ],
        )

    return explore(
        draw,
        frames={"layer": of_mlp, **THRESHOLD_FRAMES} if frames is None else frames,
        alt=_described,
        layer=ipywidgets.Dropdown(options=layers, value=of_mlp[0], description="layer"),
        outliers=ipywidgets.Checkbox(value=True, description="with add_outliers"),
        threshold=ipywidgets.SelectionSlider(
            options=[("none", t) if t == math.inf else (f"{t:g}", t) for t in THRESHOLDS],
            value=bnb.THRESHOLD,
            description="threshold",
        ),
    )


def _described(layer: str, outliers: bool, threshold: float) -> str:
    across = "without a threshold" if threshold == math.inf else f"the threshold {threshold:g} across it"
    return (
        f"Left, the largest input of every channel of {layer}{', with add_outliers' if outliers else ''}, on a "
        f"logarithmic axis, {across}; channels that reach it are marked. Right, the error of the output against the "
        "share of channels in 16 bits. The numbers are in the table."
    )


def errors_at_the_ends(found: dict[float, tuple[int, float]]) -> tuple[float, float]:
    """The errors with no threshold, and with threshold 0, where only the rounding of the weights is left."""
    return found[math.inf][1], found[0.0][1]


def product_errors(
    weight: torch.Tensor, x: torch.Tensor, thresholds: tuple[float, ...]
) -> dict[float, tuple[int, float]]:
    """For each threshold, and for 0: the number of channels that stay in 16 bits, and ``|y - x W^T| / |x W^T|``.

    weight ``[out, in]``; x ``[tokens, in]``, read as one batch; y is the product by LLM.int8.
    """
    exact = linear(x.double(), weight.double())
    quantized = bnb.quantize(weight, bnb.INT8)
    codes, absmax = quantized.codes.double() - quantized.grid.middle, quantized.scales[:, 0]
    found = {}
    for threshold in (0.0, *thresholds):
        rows = bnb.quantize_rows(x, threshold)
        error = (bnb.mixed_product(x, *rows, codes, absmax) - exact).norm() / exact.norm().clamp(min=1e-30)
        found[threshold] = int(rows[2].sum()), error.item()
    return found

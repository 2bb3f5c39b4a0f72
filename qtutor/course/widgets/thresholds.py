"""The second widget of chapter 04: the threshold of LLM.int8 across the channels that a layer reads."""

import copy
import functools
import math

import ipywidgets
import torch
from torch.nn.functional import linear

from qtutor.calibration.statistics import layer_inputs
from qtutor.course.widgets.explorer import Explorer, explore, html_table
from qtutor.decoder.outliers import add_outliers
from qtutor.families import decoder_blocks, family_of
from qtutor.methods import bnb
from qtutor.plots.bnb import outlier_channels

FRAMES = {"outliers": [False, True], "threshold": [2.0, 6.0, 25.0, 100.0, math.inf]}
THRESHOLDS = (1.0, 2.0, 4.0, 6.0, 12.0, 25.0, 50.0, 100.0, 200.0, 400.0, 1000.0, math.inf)


def outlier_threshold(
    model: torch.nn.Module, token_ids: torch.Tensor, *, frames: dict[str, list] | None = None
) -> Explorer:
    """The channels that a layer of ``model`` (a float decoder) reads, and which of them LLM.int8 leaves out of int8.

    token_ids: int64 ``[1, length]``, read as one batch. Controls: the layer (one for all that read the same), with or
    without :func:`qtutor.add_outliers`, and the threshold. The error is that of the layer's output, from rounding the
    inputs and the weights, for these tokens. frames: as in :func:`.explore`; by itself both decoders
    at five thresholds.
    """
    length = token_ids.shape[1]
    decoders = {False: model, True: add_outliers(copy.deepcopy(model))}
    inputs = {o: layer_inputs(decoder, token_ids, samples=length) for o, decoder in decoders.items()}
    layers = [f"{i}.{names[0]}" for i in range(len(decoder_blocks(model))) for names in family_of(model).shared]

    @functools.cache
    def measured(layer: str, outliers: bool) -> tuple[torch.Tensor, dict[float, tuple[int, float]]]:
        name = f"model.layers.{layer}"
        x = inputs[outliers][name].samples
        found = product_errors(decoders[outliers].get_submodule(name).weight.detach(), x, THRESHOLDS)
        return x.abs().amax(dim=0), found

    def draw(layer, outliers, threshold):
        largest, found = measured(layer, outliers)
        count, error = found[threshold]
        order = [threshold, *(t for t in THRESHOLDS if t != threshold)]  # this one first, to be marked
        shares, errors = [found[t][0] / len(largest) for t in order], [found[t][1] for t in order]
        title = f"inputs of {layer}{', with add_outliers' if outliers else ''}"
        return outlier_channels(largest, threshold, shares, errors, title), html_table(
            ["channels in 16 bits", "of all", "error of the output", "with no threshold", "with all inputs in 16 bits"],
            [f"{count} of {len(largest)}", f"{count / len(largest):.1%}", *(f"{e:.2%}" for e in (error, *ends(found)))],
        )

    return explore(
        draw,
        frames=FRAMES if frames is None else frames,
        alt=_described,
        layer=ipywidgets.Dropdown(options=layers, value="0.mlp.gate_proj", description="layer"),
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


def ends(found: dict[float, tuple[int, float]]) -> tuple[float, float]:
    """The errors with no threshold, and with the threshold at 0: nothing but the rounding of the weights is left."""
    return found[math.inf][1], found[0.0][1]


def product_errors(
    weight: torch.Tensor, x: torch.Tensor, thresholds: tuple[float, ...]
) -> dict[float, tuple[int, float]]:
    """For each threshold, and 0: how many channels stay in 16 bits, and ``|y - x W^T| / |x W^T|``.

    weight ``[out, in]``, x ``[tokens, in]``, read as one batch; y is what LLM.int8 makes of them.
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

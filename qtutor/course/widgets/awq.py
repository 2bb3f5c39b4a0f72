"""The widget of chapter 05: what a ratio of AWQ's scales gains, how it changes a group's grid, what the decoder writes.

The widget runs the package's own search on few tokens, which takes some tens of milliseconds, and keeps the result.
When the slider of the ratio moves, the widget looks up this result. It also rounds the whole decoder with this ratio in
every layer, and lets it write.
"""

import copy
import functools
from collections.abc import Callable
from typing import NamedTuple

import ipywidgets
import torch

from qtutor.calibration import walk
from qtutor.core.grid import IntGrid
from qtutor.core.quantized import resolve_group_size
from qtutor.course.widgets.explorer import Explorer, explore, html_table
from qtutor.decoder.outliers import add_outliers
from qtutor.families import linear_layers
from qtutor.measure import generation
from qtutor.measure.against import compare
from qtutor.methods import awq, rtn
from qtutor.methods.scaling import parent_of
from qtutor.plots.awq import search_and_group
from qtutor.plots.generation import texts_side_by_side

SHOWN = 64  # columns of a group that are drawn
LOUD = 0.05  # the share of a layer's channels that is drawn as loud
PROMPT = 'def mean(values):\n    """Return the mean of a list of numbers."""\n'
NEW_TOKENS = 40
SUMS = ((37, 48), (12, 9), (56, 27), (81, 14), (5, 68), (43, 39))
SIZES = [("one scale a row", -1), ("128", 128), ("64", 64), ("32", 32)]


class Pair(NamedTuple):
    """Layers that share an input: the arguments of :func:`qtutor.awq.search`, and the layers' full names."""

    layers: list[torch.nn.Linear]
    inputs: list[torch.Tensor]
    mean_abs: torch.Tensor
    parent: Callable
    names: list[str]


def scale_search(model: torch.nn.Module, token_ids: torch.Tensor, tokenizer=None) -> Explorer:
    """AWQ's search for the layers of ``model`` (a float decoder) on ``token_ids``, int64 ``[samples, length]``.

    Controls: the layers (those that share an input), with or without :func:`qtutor.add_outliers`, bits, group size, and
    the ratio to draw. A ring marks the best ratio. Below is the result for the whole decoder if *all* its layers are
    rounded with scales of this ratio: its KL divergence, and with a ``tokenizer`` the text that it writes and the
    number of sums that it gets right. With one or two hundred tokens every control reacts quickly.
    """
    decoders = {False: model, True: add_outliers(copy.deepcopy(model))}
    pairs = {outliers: _pairs(decoder, token_ids) for outliers, decoder in decoders.items()}
    names = list(pairs[False])
    ratios = [step / awq.RATIOS for step in range(awq.RATIOS)]
    in_float = _written(model, tokenizer)

    @functools.cache
    def found(layers: str, outliers: bool, bits: int, group_size: int) -> awq.Search:
        return awq.search(*pairs[outliers][layers][:4], IntGrid(bits), group_size)

    @functools.cache
    def whole(outliers: bool, bits: int, group_size: int, ratio: float) -> tuple[float, tuple]:
        loudness = {name: pair.mean_abs for pair in pairs[outliers].values() for name in pair.names}
        rounded = rounded_everywhere(decoders[outliers], loudness, ratio, IntGrid(bits), group_size)
        return compare(rounded, model, token_ids).kl, _written(rounded, tokenizer)

    def draw(layers, outliers, bits, group_size, ratio):
        search = found(layers, outliers, bits, group_size)
        linear, _, mean_abs, *_ = pairs[outliers][layers]
        scale = awq.scale_of(mean_abs, ratio)
        weights, levels, loud = _loudest_group(linear[0].weight, scale, mean_abs, IntGrid(bits), group_size)
        kl, written = whole(outliers, bits, group_size, ratio)
        numbers = _numbers(ratio, search.errors[ratios.index(ratio)], search, scale, kl)
        titles = "the float decoder writes", f"all layers at {bits} bits with ratio {ratio:.2f}"
        texts = _beside(in_float, written, titles) if tokenizer is not None else ""
        return search_and_group(ratios, search.errors, ratio, weights, levels, loud), numbers + texts

    def describe(layers, outliers, bits, group_size, ratio):
        return (
            f"{layers}{', with add_outliers' if outliers else ''}, {bits} bits: left, the output error against the "
            f"ratio, with ratio {ratio:.2f} marked and the best one ringed; right, the weights of one group at that "
            "ratio on the levels of its grid. The numbers are in the table."
        )

    return explore(
        draw,
        frames={"outliers": [False, True], "bits": [2, 3, 4], "ratio": [0.0, 0.25, 0.5, 0.75]},
        alt=describe,
        layers=ipywidgets.Dropdown(options=names, index=0, description="layers"),
        outliers=ipywidgets.Checkbox(value=True, description="with add_outliers"),
        bits=ipywidgets.IntSlider(value=3, min=2, max=8, description="bits"),
        group_size=ipywidgets.Dropdown(options=_sizes(model), value=64, description="group size"),
        ratio=ipywidgets.SelectionSlider(options=[(f"{r:.2f}", r) for r in ratios], value=0.5, description="ratio"),
    )


def _numbers(ratio: float, error: float, search: awq.Search, scale: torch.Tensor, kl: float) -> str:
    """The table under the picture. error: with ``ratio``; kl: of the decoder with this ratio in all layers."""
    plain = max(search.errors[0], 1e-30)
    header = ["ratio", "its output error / RTN's", "best ratio", "its output error / RTN's", "largest / smallest scale"]
    row = [f"{ratio:.2f}", f"{error / plain:.0%}", f"{search.ratio:.2f}", f"{min(search.errors) / plain:.0%}"]
    return html_table(
        [*header, "KL with this ratio in all layers"], [*row, f"{scale.max() / scale.min():.1f}", f"{kl:.3f}"]
    )


def rounded_everywhere(
    decoder: torch.nn.Module, loudness: dict[str, torch.Tensor], ratio: float, grid: IntGrid, group_size: int
) -> torch.nn.Module:
    """A copy of ``decoder`` in which all layers hold their weights after rounding.

    loudness: a layer's full name -> mean |x| ``[in]``; the layer's columns get the scales of ``ratio``. Layers that are
    not named are rounded without scales, because the scales of their inputs cannot be folded.
    """
    rounded = copy.deepcopy(decoder)
    for name, layer in linear_layers(rounded).items():
        weight = layer.weight.data
        scale = awq.scale_of(loudness[name].float(), ratio) if name in loudness else weight.new_ones(weight.shape[1])
        layer.weight.data = rtn.quantize(weight * scale, grid, group_size).dequantize().to(weight.dtype) / scale
    return rounded


def _written(decoder: torch.nn.Module, tokenizer) -> tuple[str, list[bool]] | None:
    """What the decoder writes after the prompt, and which of the sums it gets right."""
    if tokenizer is None:
        return None
    text = generation.generate(decoder, tokenizer, PROMPT, NEW_TOKENS)
    return text, generation.right_answers(decoder, tokenizer, [(f"{a} + {b}", str(a + b)) for a, b in SUMS])


def _beside(before: tuple, after: tuple, titles: tuple[str, str]) -> str:
    """Two texts side by side, and under each the number of right sums."""
    right = [f"{sum(sums)} of {len(SUMS)} sums such as 37 + 48 are right" for _, sums in (before, after)]
    return texts_side_by_side(before[0], after[0], titles, tuple(right), len(PROMPT))


def _sizes(model: torch.nn.Module) -> list:
    """The group sizes that divide the inputs of every layer."""
    widths = {layer.in_features for layer in linear_layers(model).values()}
    return [(name, size) for name, size in SIZES if size < 1 or all(width % size == 0 for width in widths)]


def _pairs(model: torch.nn.Module, token_ids: torch.Tensor) -> dict[str, Pair]:
    """Every pair that can be scaled, under a short name."""
    pairs = {}
    for number, block in enumerate(walk.walk(model, token_ids)):
        for pair in block.family.pairs_of(block.module):
            layers = [block.module.get_submodule(name) for name in pair.readers]
            given = list(block.inputs(pair.readers[0])), block.statistics(pair.readers[0]).mean_abs
            short = ", ".join(name.rsplit(".")[-1] for name in pair.readers)
            names = [f"{block.name}.{name}" for name in pair.readers]
            pairs[f"{number}: {short}"] = Pair(layers, *given, parent_of(block, pair.parent), names)
    return pairs


def _loudest_group(
    weight: torch.Tensor, scale: torch.Tensor, mean_abs: torch.Tensor, grid: IntGrid, group_size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The group of row 0 that multiplies the loudest input: its scaled weights, its levels, and its loud columns."""
    length = resolve_group_size(group_size, weight.shape[1])
    start = int(mean_abs.argmax()) // length * length
    row = (weight[:1] * scale)[:, start : start + length].detach()
    quantized = rtn.quantize(row, grid, length)
    levels = quantized.scales[0, 0].float() * (torch.arange(grid.largest_code + 1) - quantized.zeros[0, 0].float())
    loud = mean_abs >= mean_abs.quantile(1 - LOUD)
    first = min(int(mean_abs.argmax()) - start, max(length - SHOWN, 0)) // SHOWN * SHOWN
    shown = slice(first, first + SHOWN)
    return row[0, shown], levels, loud[start : start + length][shown]

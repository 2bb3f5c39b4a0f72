"""The widget of chapter 05: what a ratio of AWQ's scales gains, at any bits, and how it changes a group's grid.

It runs the package's own search on few tokens, which takes some tens of milliseconds, and keeps the result. Moving the
slider of the ratio only looks it up.
"""

import copy
import functools

import ipywidgets
import torch

from qtutor.calibration import walk
from qtutor.core.grid import IntGrid
from qtutor.core.quantized import resolve_group_size
from qtutor.course.widgets.explorer import Explorer, explore, html_table
from qtutor.decoder.outliers import add_outliers
from qtutor.methods import awq, rtn
from qtutor.methods.scaling import parent_of
from qtutor.plots.awq import search_and_group

SHOWN = 64  # columns of a group that are drawn
LOUD = 0.05  # the share of a layer's channels that is drawn as loud
SIZES = [("one scale a row", -1), ("128", 128), ("64", 64), ("32", 32)]


def scale_search(model: torch.nn.Module, token_ids: torch.Tensor) -> Explorer:
    """AWQ's search for the layers of ``model`` (a float decoder) on ``token_ids``, int64 ``[samples, length]``.

    Controls: the layers (those that share an input), with or without :func:`qtutor.add_outliers`, bits, group size, and
    the ratio to draw. A ring marks the best ratio. With one or two hundred tokens every control reacts quickly.
    """
    decoders = {False: model, True: add_outliers(copy.deepcopy(model))}
    pairs = {outliers: _pairs(decoder, token_ids) for outliers, decoder in decoders.items()}
    names = list(pairs[False])
    ratios = [step / awq.RATIOS for step in range(awq.RATIOS)]

    @functools.cache
    def found(layers: str, outliers: bool, bits: int, group_size: int) -> awq.Search:
        linear, inputs, mean_abs, parent = pairs[outliers][layers]
        return awq.search(linear, inputs, mean_abs, parent, IntGrid(bits), group_size)

    def draw(layers, outliers, bits, group_size, ratio):
        search = found(layers, outliers, bits, group_size)
        linear, _, mean_abs, _ = pairs[outliers][layers]
        step = ratios.index(ratio)
        scale = awq.scale_of(mean_abs, ratio)
        weights, levels, loud = _loudest_group(linear[0].weight, scale, mean_abs, IntGrid(bits), group_size)
        errors, best = search.errors, search.ratio
        least = min(errors) / max(errors[0], 1e-30)
        return search_and_group(ratios, errors, ratio, weights, levels, loud), html_table(
            ["ratio", "its output error, of RTN's", "best ratio", "its output error", "largest scale / smallest"],
            [
                f"{ratio:.2f}",
                f"{errors[step] / max(errors[0], 1e-30):.0%}",
                f"{best:.2f}",
                f"{least:.0%}",
                f"{scale.max() / scale.min():.1f}",
            ],
        )

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
        group_size=ipywidgets.Dropdown(options=_sizes(pairs[False]), value=64, description="group size"),
        ratio=ipywidgets.SelectionSlider(options=[(f"{r:.2f}", r) for r in ratios], value=0.5, description="ratio"),
    )


def _sizes(pairs: dict) -> list:
    """The group sizes that divide the inputs of every pair."""
    widths = [len(mean_abs) for _, _, mean_abs, _ in pairs.values()]
    return [(name, size) for name, size in SIZES if size < 1 or all(width % size == 0 for width in widths)]


def _pairs(model: torch.nn.Module, token_ids: torch.Tensor) -> dict[str, tuple]:
    """The arguments of :func:`qtutor.awq.search`, by name: layers, their inputs, mean |x| of the inputs, the parent."""
    pairs = {}
    for number, block in enumerate(walk.walk(model, token_ids)):
        for pair in block.family.pairs_of(block.module):
            layers = [block.module.get_submodule(name) for name in pair.readers]
            given = list(block.inputs(pair.readers[0])), block.statistics(pair.readers[0]).mean_abs
            short = ", ".join(name.rsplit(".")[-1] for name in pair.readers)
            pairs[f"{number}: {short}"] = (layers, *given, parent_of(block, pair.parent))
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

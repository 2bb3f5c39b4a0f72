"""Pictures of chapter 05, AWQ: columns of weights on their grid, and errors against the ratio."""

import numpy as np
import torch
from matplotlib.figure import Figure

from qtutor.plots.base import BLACK, BLUE, GREEN, MARKERS, ORANGE, PURPLE, RED, curves, numpy

LINES = ("-", "--", ":", "-.")
COLOURS = (BLUE, RED, GREEN, PURPLE)
TOP = 1.9  # the top of the axis: errors twice as large as without scaling need no exact place


def scaled_columns(panels: dict[str, tuple], loud: int, reach: float) -> Figure:
    """Weights of one group on the levels of their grid; below, how much the rounding of each weight changes the output.

    panels: title -> (weights, levels, changes). loud: the column that multiplies the large input. reach: the axis of
    the weights runs from -reach to reach.
    """
    figure = Figure(figsize=(3.1 * len(panels), 4.2), layout="constrained")
    above, below = figure.subplots(2, len(panels), squeeze=False, sharex=True, sharey="row", height_ratios=(1.7, 1))
    for top, bottom, (title, parts) in zip(above, below, panels.items()):
        weights, levels, changes = (numpy(torch.as_tensor(x)).ravel() for x in parts)
        columns = np.arange(len(weights))
        _on_levels(top, weights, levels, columns == loud, errors=False)
        bottom.bar(columns, abs(changes), color=np.where(columns == loud, ORANGE, BLUE), edgecolor=BLACK, linewidth=0.5)
        top.set(title=title, ylim=(-reach, reach))
        bottom.set(xlabel="column", xticks=columns)
        top.title.set_size(10)
        for ax in (top, bottom):
            ax.spines[["top", "right"]].set_visible(False)
    above[0].set_ylabel("weight, as it is rounded")
    below[0].set_ylabel("changes the\noutput by")
    handles, labels = above[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def _on_levels(ax, weights: np.ndarray, levels: np.ndarray, loud: np.ndarray, errors: bool = True) -> None:
    """Draw levels as horizontal lines, weights as dots (``loud`` ones as diamonds), and their errors as bars."""
    columns = np.arange(len(weights))
    nearest = levels[abs(weights[:, None] - levels).argmin(axis=1)]
    ax.hlines(levels, -0.7, len(weights) - 0.3, color=BLACK, linewidth=0.5, alpha=0.45, label="level of the grid")
    if errors:
        ax.vlines(
            columns, np.minimum(weights, nearest), np.maximum(weights, nearest), RED, linewidth=2.5, label="error"
        )
    ax.plot(columns[~loud], weights[~loud], "o", color=BLUE, markersize=4, label="weight")
    ax.plot(columns[loud], weights[loud], "D", color=ORANGE, markersize=5, mec=BLACK, mew=0.6, label="of a loud input")
    ax.set_xlim(-0.7, len(weights) - 0.3)


def loud_and_others(loud: dict[float, float], quiet: dict[float, float]) -> Figure:
    """Squared error of the output against the factor s of the loud channel: its own part, the others', and both.

    loud, quiet: s -> error. The last s is left out, because it would leave no room for the others.
    """
    title = "squared error of the output"
    shown = list(loud)[:-1]
    series = {
        "from the loud channel": [loud[s] for s in shown],
        "from the 63 others": [quiet[s] for s in shown],
        "all": [loud[s] + quiet[s] for s in shown],
    }
    return curves({title: series}, shown, "s", lowest={title: 0})


def one_factor(factors: list[float], measured: dict[str, tuple]) -> Figure:
    """Perplexity against one factor on the loudest 1 % of the channels, beside the level of keeping them.

    measured: decoder -> (float, with each factor, with the 1 % kept, ...).
    """
    panels = {}
    for name, (_, found, kept, *_) in measured.items():
        level = [kept] * len(factors)
        panels[f"perplexity, {name}"] = {"1 % times s": found, "1 % kept in 16 bits": level}
    return curves(panels, factors, "s")


def ratio_curves(panels: dict[str, dict], ratios: list, ylabel: str, across: int = 3) -> Figure:
    """Errors against the ratio, as shares of the error at ratio 0; ``panels``: title -> a dict from label to errors.

    A ring marks the smallest error of each curve. A triangle at the upper edge marks a place where the curve leaves the
    picture. A dotted line is the error without scaling. across: the number of panels in a row.
    """
    lines = -(-len(panels) // across)
    figure = Figure(figsize=(3.2 * across, 2.6 * lines + 0.3), layout="constrained")
    axes = figure.subplots(lines, across, squeeze=False, sharex=True, sharey=True)
    for ax in axes.ravel()[len(panels) :]:
        ax.set_visible(False)
    for ax, (title, series) in zip(axes.ravel(), panels.items()):
        for i, (label, errors) in enumerate(series.items()):
            _curve(ax, ratios, errors, label, COLOURS[i], MARKERS[i], LINES[i], (0.965 - 0.07 * i) * TOP)
        ax.axhline(1, color=BLACK, linewidth=0.8, linestyle=":")
        ax.set(title=title, ylim=(0, TOP))
        ax.title.set_size(10)
        ax.spines[["top", "right"]].set_visible(False)
    for ax in axes[-1]:
        ax.set_xlabel("ratio")
    for ax in axes[:, 0]:
        ax.set_ylabel(ylabel)
    axes[0, 0].legend(frameon=False, fontsize=8, loc="lower left")
    return figure


def _curve(
    ax, ratios: list, errors, label: str, colour: str, marker: str, line: str, edge: float = 0.965 * TOP
) -> None:
    """Draw errors as shares of the first error, with a ring around the smallest, and a triangle where they leave.

    edge: the height of the triangles, so that those of two curves do not cover each other.
    """
    share = np.asarray(errors, dtype=np.float64) / max(errors[0], 1e-30)
    best = int(share.argmin())
    ax.plot(ratios, share, color=colour, marker=marker, markersize=3.5, linestyle=line, linewidth=1.2, label=label)
    ax.plot(ratios[best], share[best], "o", color=colour, markersize=11, fillstyle="none", mew=1.6)
    (above,) = np.nonzero((share > TOP) & (np.roll(share, 1) <= TOP))
    for leaves in above:
        ax.plot(ratios[leaves], edge, "^", color=colour, markersize=7)


def search_and_group(
    ratios: list, errors: list, ratio: float, weights: torch.Tensor, levels: torch.Tensor, loud: torch.Tensor
) -> Figure:
    """The curve of a search with ``ratio`` marked on it; beside it one group, scaled by that ratio, on its grid.

    weights ``[columns]``: scaled. levels: the levels of the group's grid. loud: booleans, true for columns of loud
    inputs.
    """
    figure = Figure(figsize=(9.0, 3.3))  # fixed margins: an automatic layout is too slow for a picture under a slider
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.6))
    figure.subplots_adjust(left=0.07, right=0.99, bottom=0.15, top=0.9, wspace=0.2)
    _curve(left, ratios, errors, "", BLUE, "o", "-")
    left.axhline(1, color=BLACK, linewidth=0.8, linestyle=":")
    left.axvline(ratio, color=ORANGE, linewidth=2, linestyle="--", label="the ratio shown")
    left.plot([], [], "o", color=BLUE, markersize=9, fillstyle="none", mew=1.6, label="the ratio chosen")
    left.set(title="output error / that of rounding to nearest", xlabel="ratio", ylim=(0, TOP))
    left.legend(framealpha=1, edgecolor="none", fontsize=8, loc="upper left")
    weights, levels = numpy(weights), numpy(levels)
    _on_levels(right, weights, levels, numpy(loud).astype(bool))
    reach = 1.3 * max(abs(weights).max(), 1e-12)  # room above for the legend
    right.set(title="a group of one row, as it is rounded", xlabel="column of the group", ylim=(-reach / 1.2, reach))
    right.legend(frameon=False, fontsize=8, loc="upper right", ncols=4)
    for ax in (left, right):
        ax.title.set_size(10)
        ax.spines[["top", "right"]].set_visible(False)
    return figure


TEN_WEIGHTS = (
    "Ten weights as dots over the lines of their grid, three times, and under each a bar for what its rounding changes "
    "in the output. With s = 1 the loud weight is small and its bar is several times as high as any other. With s = 4 "
    "it is nearly as large as the largest weight, the lines are where they were, and its bar is hardly higher than the "
    "next. With s = 8 it is the largest by far, the lines are further apart, and most bars are higher."
)
LOUD_AND_OTHERS = (
    "Squared error of the output against s from 1 to 8: the part of the loud channel falls steeply at first, that of "
    "the 63 others rises slowly and then faster, and their sum has its lowest point at a small s. The numbers are in "
    "the table."
)
ONE_FACTOR = (
    "Perplexity against the factor s on the loudest 1 % of the channels, one panel a decoder, beside the level of "
    "keeping them in 16 bits. The numbers are in the table."
)
SEARCHES = (
    "Output error against the ratio in six panels, three inputs of each of two blocks, as trained and with "
    "add_outliers, each as a share of the error at ratio 0, with the lowest point ringed. Triangles mark where a curve "
    "leaves its panel. The chosen ratios and their errors are in the table."
)
TOKENS_COUNTED = (
    "Output error against the ratio for gate and up of block 1: once with all tokens alike and once with each counting "
    "by the size of its residual stream, both jagged. The chosen ratios are in the table."
)
ONE_RATIO = (
    "Perplexity of both decoders at 3 bits against a ratio that is the same for all layers, from 0 to 1. The numbers "
    "are in the table."
)

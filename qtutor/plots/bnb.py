"""Pictures of chapter 04: levels over weights, error against true bits, scales under their map, outlier channels.

A block is a group of weights that share a scale, as bitsandbytes calls it.
"""

from itertools import pairwise

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from qtutor.plots.base import BLACK, BLUE, GREEN, MARKERS, ORANGE, PURPLE, RED, SKY, curves, new_figure, numpy

LINES = ("-", "--", "-.", ":", (0, (5, 1)))
COLOURS = (BLUE, SKY, RED, PURPLE, GREEN)
# For each line, the place of the text beside its points. If lines cross, texts on the same side would overlap.
BESIDE = (((-5, -3), "right"), ((4, 4), "left"), ((0, -11), "center"), ((4, 4), "left"), ((4, 4), "left"))


def levels_over_weights(panels: dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> Figure:
    """For each format, a histogram of the weights with the levels, and the share of the weights that each level gets.

    panels: title -> (weights divided by the absmax of their block, any shape; levels on that axis, ascending; their
    shares).
    """
    high = 2.2 * len(panels) + 0.6
    figure = Figure(figsize=(8.0, high))
    axes = figure.subplots(len(panels), 2, squeeze=False)
    # Fixed margins: an automatic layout would take half of a widget's time, and the axes would jump between settings.
    figure.subplots_adjust(left=0.09, right=0.985, bottom=0.5 / high, top=1 - 0.3 / high, wspace=0.2, hspace=0.34)
    for (left, right), (title, (weights, levels, shares)) in zip(axes, panels.items()):
        _histogram(left, numpy(weights).ravel(), numpy(levels))
        left.set_title(title, size=10)
        _shares(right, numpy(levels), 100 * numpy(shares))
        right.set_ylim(top=max(2.7 * 100 / len(levels), right.get_ylim()[1]))  # the same in every panel and setting
        for ax in (left, right):
            ax.set_xlim(-1.14, 1.14)
            ax.spines[["top", "right"]].set_visible(False)
    axes[-1][0].set_xlabel("weight / absmax of its block")
    axes[-1][1].set_xlabel("level")
    axes[0][1].set_title("share of the weights that a level gets", size=10)
    return figure


def _histogram(ax, values: np.ndarray, levels: np.ndarray) -> None:
    counts, edges = np.histogram(values, bins=121, range=(-1, 1))
    share = 100 * counts / max(len(values), 1)
    ax.stairs(share, edges, fill=True, color=SKY, label="weights")
    # The largest weight of every block is at an end. These two spikes would flatten the rest, so the axis cuts them.
    top = 1.35 * share[3:-3].max()
    ax.vlines(levels, 0, 0.75 * top, color=RED, linewidth=0.9, linestyle="--", label="levels")
    ax.set(ylabel="% of the weights", ylim=(0, top))
    ax.legend(framealpha=1, fontsize=8, loc="upper right", ncols=2)


def _shares(ax, levels: np.ndarray, shares: np.ndarray) -> None:
    ax.vlines(levels, 0, shares, color=BLUE, linewidth=3)
    even = 100 / len(levels)
    ax.axhline(even, color=ORANGE, linewidth=1.2, linestyle="--", label=f"all alike, {even:.3g} %")
    ax.set(ylabel="% of the weights", ylim=(0, 1.35 * max(shares.max(), even)))
    ax.legend(framealpha=1, fontsize=8, loc="upper right")


def levels_over_one_block(weights: torch.Tensor, rows: dict[str, list[list[float]]]) -> Figure:
    """The weights of one block as dots, and below them the levels of each format as ticks.

    weights: ``[n]``. rows: format -> its lists of levels. If a format has several lists, each belongs to an equal part
    of the weights, and has its own row and its own lane of dots.
    """
    parts = max(map(len, rows.values()))
    named = [(f"{name} {'ab'[i]}" if len(lists) > 1 else name, levels) for name, lists in rows.items()
             for i, levels in enumerate(lists)]  # fmt: skip
    figure, (ax,) = new_figure(8.0, 0.36 * (len(named) + parts) + 0.7)
    limit = 1.08 * max(numpy(weights.abs()).max(), 1e-30)
    labels = [f"weights {'ab'[i]}" for i in range(parts)] if parts > 1 else ["weights"]
    for lane, some in enumerate(weights.chunk(parts)):
        ax.plot(numpy(some), [-lane] * len(some), "o", color=SKY, mec=BLACK, mew=0.4, markersize=5)
    for row, (name, levels) in enumerate(named):
        inside = [level for level in levels if abs(level) <= limit]
        colour = (BLUE, GREEN, ORANGE, PURPLE)[list(rows).index(name.split(" ")[0]) % 4]
        ax.vlines(inside, -parts - row - 0.36, -parts - row + 0.36, color=colour, linewidth=2)
    ax.set_yticks([-place for place in range(parts + len(named))], [*labels, *(label for label, _ in named)])
    ax.set(xlim=(-limit, limit), xlabel="weight")
    ax.set_title("one block of weights, and the levels of each format", size=10)
    ax.grid(axis="y", alpha=0.3)
    return figure


def quantile_levels(levels: torch.Tensor, edge: float) -> Figure:
    """The bell curve cut into slices of equal area on each side, and the levels at their borders.

    levels: ascending, from -1 to 1, with 0 among them. edge: the place of level 1, in standard deviations.
    """
    figure, (ax,) = new_figure(8.0, 2.9)
    x = np.linspace(-3.2, 3.2, 641)
    bell = np.exp(-(x**2) / 2) / (2 * np.pi) ** 0.5
    ax.plot(x, bell, color=BLACK, linewidth=1.0)
    at = numpy(levels) * edge
    for number, (low, high) in enumerate(pairwise(at)):
        inside = (x >= low) & (x <= high)
        ax.fill_between(x[inside], bell[inside], color=SKY if number % 2 else "white", linewidth=0)
    heights = np.exp(-(at**2) / 2) / (2 * np.pi) ** 0.5
    ax.vlines(at, 0, heights, color=RED, linewidth=1.0, linestyle="--")
    ax.plot(at, 0 * at, "|", color=RED, markersize=10)
    for value, height, level in zip(at, heights, numpy(levels)):
        ax.annotate(
            f"{level + 0.0:.2f}", (value, height), (0, 5), "data", "offset points", ha="center", rotation=90, fontsize=7
        )
    ax.set(xlabel="standard deviations", ylabel="density", ylim=(0, 0.52))
    ax.set_title(f"the bell, with the {len(at)} levels above their places", size=10)
    return figure


def error_against_bits(series: dict[str, list[tuple[float, float, str]]], ylabel: str) -> Figure:
    """For each format, a line through points (true bits a weight, error, text); the text is written at its point.

    Lower and further left is better.
    """
    figure, (ax,) = new_figure(8.0, 3.9)
    for (label, points), marker, colour, line, (beside, side) in zip(series.items(), MARKERS, COLOURS, LINES, BESIDE):
        bits, errors, texts = zip(*sorted(points))
        ax.plot(bits, errors, marker=marker, color=colour, linestyle=line, label=label, markersize=5, linewidth=1.2)
        for place in zip(bits, errors, texts):
            ax.annotate(place[2], place[:2], beside, "data", "offset points", ha=side, fontsize=7)
    ax.set(xlabel="true bits a weight, scales and zero points counted", ylabel=ylabel)
    ax.set_title("the number at a mark is the size of its blocks", size=10)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    ax.grid(alpha=0.3)
    ax.legend(frameon=False, fontsize=8)
    return figure


def scales_and_map(scales: torch.Tensor, offset: float, absmax: float, values: torch.Tensor) -> Figure:
    """Histograms of a layer's scales, and of (scales - offset) / absmax with the levels ``values`` of a map below."""
    figure, (left, right) = new_figure(8.0, 2.8, panels=2)
    scales = numpy(scales).ravel()
    counts, edges = np.histogram(scales, bins=60, range=(0, scales.max()))
    left.stairs(counts, edges, fill=True, color=SKY)
    left.axvline(offset, color=RED, linestyle="--", linewidth=1.2, label="their mean")
    left.set(title="scales of one layer", xlabel="scale = absmax of a block", ylabel="how many")
    counts, edges = np.histogram((scales - offset) / absmax, bins=60, range=(-1, 1))
    right.stairs(counts, edges, fill=True, color=SKY)
    right.vlines(numpy(values), -0.16 * counts.max(), 0, color=RED, linewidth=0.5)
    right.axhline(0, color=BLACK, linewidth=0.8)
    right.set(title="less their mean, on the 256 levels of the map", xlabel="(scale - mean) / largest of these")
    right.set_yticks([tick for tick in right.get_yticks() if tick >= 0])  # below 0 there are the levels, no counts
    right.set_ylim(-0.18 * counts.max(), 1.06 * counts.max())
    left.legend(frameon=False, fontsize=8)
    for ax in (left, right):
        ax.title.set_size(10)
    return figure


def outlier_channels(
    largest: torch.Tensor, threshold: float, shares: list[float], errors: list[float], title: str = ""
) -> Figure:
    """The largest |x| of every channel, with the threshold as a line; and errors against shares of outlier channels.

    largest: ``[in]``. shares, errors: a point for every threshold; the first belongs to ``threshold``, and is marked.
    """
    figure = Figure(figsize=(8.0, 3.0))
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    figure.subplots_adjust(left=0.085, right=0.985, bottom=0.16, top=0.9, wspace=0.25)
    sizes = numpy(largest)
    floor = max(sizes[sizes > 0].min(initial=1.0), 1e-6) / 2
    left.stairs(np.maximum(sizes, floor), np.arange(len(sizes) + 1) - 0.5, baseline=None, color=BLUE, linewidth=0.9)
    out = np.flatnonzero(sizes >= threshold)
    left.plot(out, sizes[out], "^", color=RED, markersize=4, label="stay in 16 bits")
    if np.isfinite(threshold):
        left.axhline(threshold, color=ORANGE, linestyle="--", linewidth=1.3, label="threshold")
    left.set(yscale="log", xlabel="input channel", ylabel="largest |x|")
    left.yaxis.set_minor_locator(NullLocator())  # its many ticks would take half of the drawing time
    low, high = floor, max(sizes.max(), 10.0)
    left.set_ylim(low, high * (high / low) ** 0.3)  # room for the legend
    left.set_title(title, size=10)
    if left.get_legend_handles_labels()[1]:
        left.legend(framealpha=1, fontsize=8, loc="upper right", ncols=2)
    order = np.argsort(shares)
    x, y = 100 * np.array(shares), 100 * np.array(errors)
    right.plot(x[order], y[order], color=BLUE, marker=".", linewidth=1.0, label="other thresholds")
    right.plot(x[:1], y[:1], "D", color=RED, markersize=7, label="this one")
    right.set(xlabel="% of the channels in 16 bits", ylabel="% error of the output", xlim=(-4, 104))
    right.set_ylim(0, 1.15 * max(y.max(), 1e-9))
    right.set_title("what it buys", size=10)
    right.legend(frameon=False, fontsize=8, loc="upper right")
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
    return figure


def thresholds(swept: dict[str, list], channels: dict[str, list[float]], labels: list[str]) -> Figure:
    """KL (logarithmic) and the share of channels in 16 bits over the thresholds ``labels``, a line for each decoder.

    swept: decoder -> for each threshold (KL, anything). channels: decoder -> shares, 0 to 1.
    """
    kl = "KL to the float model, logarithmic"
    return curves(
        {
            kl: {name: [found[0] for found in by_threshold] for name, by_threshold in swept.items()},
            "% of the channels in 16 bits": {name: [100 * s for s in shares] for name, shares in channels.items()},
        },
        labels,
        "threshold",
        log=(kl,),
    )


# Descriptions of the larger pictures of the chapter, for readers who cannot see them.
TWO_SETS_OF_LEVELS = (
    "The ten numbers above two number lines with eight levels each. On the evenly spaced line two levels get three "
    "numbers each and three levels get none. On the other the levels lie closer together near zero, where most of the "
    "numbers are, and only the last one gets none."
)
SLICES_OF_THE_BELL = (
    "A bell curve, from -3 to 3 standard deviations, cut at 16 levels into slices of equal area on each side. The "
    "levels are close together around zero and far apart outside; the outermost lie at 1.85 standard deviations."
)
ERROR_AGAINST_BITS = (
    "Relative error of the weights against true bits a weight, a line for each format through blocks of 32, 64, 128 "
    "and 256. At equal bits, NF4 with scales in 8 bits is lowest; then come NF4 with scales in 32 bits and the "
    "asymmetric integers, which cross each other, then the symmetric ones; FP4 is highest. The numbers are in the "
    "table."
)
SCALES_AND_MAP = (
    "Left, the histogram of the scales of one layer, a hump around their mean, far from zero. Right, the same less "
    "their mean and over the largest of these, from -1 to 1, above the 256 levels of the map, dense near zero."
)
THRESHOLDS = (
    "Two panels over thresholds from 0 to none, a line for the decoder as trained and one with add_outliers. Left, "
    "the KL divergence on a logarithmic axis, rising nearly everywhere, with add_outliers about ten times as high. "
    "Right, the share of channels that stay in 16 bits, falling from all to none, nearly the same for both."
)
LEVELS_OVER_WEIGHTS = (
    "Three rows, for the symmetric integer grid, NF4 and FP4. Left, the histogram of the weights over the absmax of "
    "their block, a bell with a spike at each end, under the levels. Right, the share of the weights that each level "
    "gets: a steep hill for the integers, a flatter one for NF4, ups and downs for FP4."
)

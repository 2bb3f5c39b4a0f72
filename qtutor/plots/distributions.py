"""Pictures of chapter 03, distributions: tails, channels, and causes of the rounding error."""

import numpy as np
import torch
from matplotlib.figure import Figure

from qtutor.plots.base import BLUE, GREEN, ORANGE, PURPLE, RED, SKY, curves, new_figure, numpy

LINES = ("-", "--", ":", "-.")
COLOURS = (BLUE, RED, GREEN, PURPLE)


def shapes(samples: dict[str, torch.Tensor], reach: float = 10.0, bins: int = 128) -> Figure:
    """Outlines of histograms of several samples, in units of their standard deviations; on a linear and a log axis."""
    figure, axes = new_figure(8.0, 3.0, panels=2)
    for (label, sample), line, colour in zip(samples.items(), LINES, COLOURS):
        values = numpy(sample).ravel().astype(np.float64)
        values = (values - values.mean()) / values.std()
        counts, edges = np.histogram(values, bins=bins, range=(-reach, reach))
        share = counts / len(values)
        for ax in axes:
            ax.stairs(share, edges, color=colour, linestyle=line, label=label, linewidth=1.3)
    axes[1].set_yscale("log")
    axes[0].set(title="linear", ylabel="share of the numbers in a bin")
    axes[1].set(title="logarithmic: the tails become visible")
    for ax in axes:
        ax.set(xlabel="standard deviations from the mean")
        ax.title.set_size(10)
    axes[0].legend(frameon=False, fontsize=8)
    return figure


def against_normal(values: torch.Tensor, title: str = "", bins: int = 121) -> Figure:
    """A histogram of the values, linear and logarithmic, and their quantiles, against the normal distribution.

    The normal distribution has the same mean and variance; normally distributed values have quantiles on the straight
    line.

    The linear histogram ends at five standard deviations: values further out are too rare to be seen on it.
    """
    figure, (left, middle, right) = new_figure(8.8, 3.0, panels=3)
    values = np.sort(numpy(values).ravel().astype(np.float64))
    mean, spread = values.mean(), max(values.std(), 1e-30)
    reach = abs(values - mean).max() * 1.02 or 1.0
    counts, edges = np.histogram(values, bins=bins, range=(mean - reach, mean + reach))
    centres = (edges[1:] + edges[:-1]) / 2
    width = edges[1] - edges[0]
    normal = len(values) * width * np.exp(-(((centres - mean) / spread) ** 2) / 2) / (spread * (2 * np.pi) ** 0.5)
    for ax in (left, middle):
        ax.stairs(counts, edges, fill=True, color=SKY, label="here")
        ax.plot(centres, normal, color=RED, linestyle="--", linewidth=1.2, label="normal")
        ax.set(xlabel="value")
    shown = min(reach, max(5 * spread, reach / 1000))  # if all numbers are equal, they have no spread
    left.set(title=title, ylabel="how many", xlim=(mean - shown, mean + shown))
    left.legend(frameon=False, fontsize=8)
    middle.set_yscale("log")
    middle.set(title="all of them, logarithmic", ylim=(0.5, 2 * counts.max()))
    right.plot(*quantile_pairs(values), "o", color=BLUE, markersize=3, label="here")
    ends = np.array([-1.1, 1.1]) * max(abs(values - mean).max() / spread, 1.0)
    right.plot(ends, ends, color=RED, linestyle="--", linewidth=1.2, label="normal")
    right.set(title="quantile against quantile", xlabel="normal distribution, in σ", ylabel="here, in σ")
    right.set(xlim=(-5.5, 5.5), ylim=tuple(ends))
    right.legend(frameon=False, fontsize=8, loc="upper left")
    for ax in (left, middle, right):
        ax.title.set_size(10)
    return figure


def quantile_pairs(ordered: np.ndarray, points: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Quantiles of the normal distribution and of ``ordered`` (ascending) at the same probabilities, in units of sigma.

    There are ``points`` of them, evenly spaced along the normal axis, from the smallest value to the largest.
    """
    count = len(ordered)
    end = -torch.special.ndtri(torch.tensor(0.5 / count, dtype=torch.float64)).item()
    normal = np.linspace(-end, end, points)
    share = torch.special.ndtr(torch.from_numpy(normal)).numpy()
    places = np.clip(np.round(share * count - 0.5), 0, count - 1).astype(int)
    return normal, (ordered[places] - ordered.mean()) / max(ordered.std(), 1e-30)


def channels(panels: dict[str, dict[str, torch.Tensor]], xlabel: str, ylabel: str, log: bool = False) -> Figure:
    """A number per channel as outlines, with a panel per title; panels with linear axes share their vertical axis.

    The first series is a thin line above the others, so that none hides another if they agree.
    """
    figure = Figure(figsize=(9.0, 2.1 * len(panels) + 0.4), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False, sharey=not log)[:, 0]
    for ax, (title, series) in zip(axes, panels.items()):
        for i, ((label, values), colour) in enumerate(zip(series.items(), (BLUE, ORANGE, GREEN, PURPLE))):
            values = numpy(values)
            edges = np.arange(len(values) + 1) - 0.5
            width = 0.9 + 1.6 * i
            ax.stairs(values, edges, baseline=None, color=colour, label=label, linewidth=width, zorder=3 - 0.1 * i)
        ax.set(title=title, ylabel=ylabel, xlim=(-0.01 * len(values), 1.01 * len(values)))
        if log:
            ax.set_yscale("log")
        else:
            ax.set_ylim(bottom=0)
        ax.title.set_size(10)
        ax.spines[["top", "right"]].set_visible(False)
        if len(series) > 1:
            ax.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    axes[-1].set_xlabel(xlabel)
    return figure


def predicted_and_measured(panels: dict[str, tuple], xlabel: str, ylabel: str) -> Figure:
    """Measured points as dots, predicted ones as a line; ``panels``: title -> ``(x, measured, predicted)``.

    Each panel has a vertical axis of its own, because dots are compared with the line, not panels with each other.
    """
    figure, axes = new_figure(2.9 * len(panels), 3.1, panels=len(panels))
    for ax, (title, (x, measured, predicted)) in zip(axes, panels.items()):
        x, measured, predicted = (numpy(torch.as_tensor(values)).ravel() for values in (x, measured, predicted))
        ax.plot(x, measured, ".", color=BLUE, markersize=3, alpha=0.35, label="a group, measured", rasterized=True)
        order = x.argsort()
        ax.plot(x[order], predicted[order], color=RED, linestyle="--", label="predicted")
        ax.set(title=title, xlabel=xlabel, ylim=(0, None))
        ax.title.set_size(10)
    axes[0].set_ylabel(ylabel)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9, markerscale=3)
    return figure


def tokens_and_channels(x: torch.Tensor, title: str = "", log: bool = False) -> Figure:
    """Inputs ``|x| [tokens, in]`` as a picture with a column for each channel; above it, each channel's largest."""
    size = np.abs(numpy(x))
    figure = Figure(figsize=(9.0, 4.0))  # fixed margins: an automatic layout is too slow for a picture under a slider
    margins = {"left": 0.08, "right": 0.9, "bottom": 0.12, "top": 0.93, "hspace": 0.12}
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1.3), gridspec_kw=margins)
    largest = size.max(axis=0)
    above.stairs(largest, np.arange(len(largest) + 1) - 0.5, baseline=None, color=BLUE, linewidth=1.0)
    above.axhline(np.median(largest), color=ORANGE, linestyle="--", linewidth=1.2, label="median channel")
    above.set(title=title, ylabel="largest |x|")
    if log and largest.any():
        above.set_yscale("log")
    else:
        above.set_ylim(bottom=0)
    above.title.set_size(10)
    above.spines[["top", "right"]].set_visible(False)
    for ax in (above, below):  # otherwise the axis would hide the first channel
        ax.spines["left"].set_position(("outward", 4))
    above.legend(frameon=False, fontsize=8, loc="upper right")
    shown = np.log10(np.maximum(size, max(size.max() / 1e4, 1e-30))) if log else size  # four decades
    image = below.imshow(shown, aspect="auto", cmap="cividis", interpolation="nearest")
    below.set(xlabel="input channel", ylabel="token")
    place = below.get_position()
    bar = figure.add_axes((place.x1 + 0.01, place.y0, 0.012, place.height))
    figure.colorbar(image, cax=bar, label="log10 |x|" if log else "|x|")
    return figure


def crest_and_error(sizes: list[str], real: list[list[float]], bells: list[list[float]]) -> Figure:
    """By group size: the crest factor of real weights and of bells; the error at 4 bits, measured and predicted.

    real, bells: for each size the crest factor, the error measured, and the error predicted.
    """
    error = "relative error at 4 bits, %"
    return curves(
        {
            "crest factor": {"this decoder": [r[0] for r in real], "bells of the same shapes": [b[0] for b in bells]},
            error: {
                "measured": [100 * r[1] for r in real],
                "predicted from the crest factor": [100 * r[2] for r in real],
            },
        },
        sizes,
        "weights that share a scale",
        lowest={"crest factor": 0, error: 0},
    )


# Descriptions of the larger pictures of the chapter, for readers who cannot see them.
SHAPES = (
    "Outlines of four distributions of equal variance. Linear: the uniform one a box, the three others peaks in the "
    "middle. Logarithmic: the box, the bell a parabola, Laplace a tent, and the bell with outliers a parabola that "
    "stands on a wide, low foot."
)
CREST_AND_ERROR = (
    "Two panels over the group size, from one scale a tensor to groups of 16. Left, the crest factor of this decoder "
    "and of bells. Right, the error at 4 bits as measured and as predicted from the crest factor. The numbers are in "
    "the table below."
)


def against_normal_words(layer: str, excess: float) -> str:
    """:func:`against_normal` in words, for a layer with this excess kurtosis."""
    leaves = "above" if excess > 0 else "below"
    return (
        f"The weights of {layer} against a normal distribution of the same variance. Left, a histogram with a peak "
        "around zero. Middle, the same with a logarithmic count, on which the tails can be seen. Right, quantile "
        f"against quantile: with an excess kurtosis of {excess:.2f}, the largest weights lie {leaves} the dashed line."
    )


def channels_words(layer: str) -> str:
    """:func:`channels` in words, for the rows and columns of a layer's weights."""
    return (
        f"Root mean square of the weights of {layer}, above for every row, below for every column, as two jagged "
        "outlines on the same scale. The more jagged an outline, the more unequal are its channels."
    )

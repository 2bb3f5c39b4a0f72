"""Pictures of chapter 12: claims beside measurements, all models at once, and the decision at the end."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from qtutor.plots.base import (
    BLACK,
    BLUE,
    BROWN,
    DARK_GREY,
    GREEN,
    MARKERS,
    ORANGE,
    PALE,
    PURPLE,
    RED,
    SKY,
    new_figure,
)
from qtutor.plots.comparison import Point, best, label

COLOURS = (BLUE, RED, GREEN, PURPLE, ORANGE, SKY, DARK_GREY, BROWN, BLACK)
SHAPES = (*MARKERS, "X", "<", ">", "p")


def rises(panels: Mapping[str, Sequence[tuple[str, float, float]]], bound: float) -> Figure:
    """The rise of perplexity, a row for each model, with two standard errors; the bound is a dashed line.

    panels: decoder -> (name, per cent, standard error). Panels have axes of their own: a real model may rise far more.
    """
    figure, axes = new_figure(7.6, 0.34 * max(map(len, panels.values())) + 1.2, panels=len(panels))
    for ax, (title, rows) in zip(axes, panels.items()):
        names, values, errors = zip(*rows)
        ax.errorbar(values, range(len(rows)), xerr=[2 * e for e in errors], fmt="o", color=BLUE, capsize=3)
        ax.axvline(bound, color=RED, linestyle="--", linewidth=1.2, label=f"{bound:g} %")
        ax.set_yticks(range(len(rows)), names, fontsize=8)
        reach = max(bound, *(value + 2 * error for _, value, error in rows))
        ax.set(xlabel="perplexity rises by, per cent", xlim=(min(0, *values), 1.05 * reach))
        ax.set_ylim(len(rows) - 0.5, -0.5)
        ax.set_title(title, size=10)
        ax.grid(axis="x", alpha=0.3)
        ax.legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def where_bits_go(groups: Mapping[str, float], bits: int = 4) -> Figure:
    """Bars of true bits a weight for each group size: the codes, and on top the scales and zero points."""
    figure, (ax,) = new_figure(7.0, 2.8)
    names = list(groups)
    ax.barh(names, [bits] * len(names), color=SKY, label="codes")
    extra = [value - bits for value in groups.values()]
    ax.barh(names, extra, left=bits, color=ORANGE, hatch="//", edgecolor=BLACK, linewidth=0.4, label="scales and zeros")
    for place, value in enumerate(groups.values()):
        ax.text(value, place, f" {value:.2f} bits, {16 / value:.2f} times smaller", va="center", fontsize=8)
    ax.set(xlabel="bits of a weight", ylabel="weights that share a scale", xlim=(0, 8))
    ax.set_title("4 bits are never only 4", size=10)
    ax.invert_yaxis()
    ax.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def beside_a_bell(sizes: np.ndarray) -> Figure:
    """A logarithmic histogram of weights in standard deviations of their layers, with the bell of the same area."""
    figure, (ax,) = new_figure(7.0, 3.0)
    reach = float(np.abs(sizes).max()) * 1.05
    edges = np.linspace(-reach, reach, 121)
    width = edges[1] - edges[0]
    ax.hist(sizes, edges, color=SKY, label="weights")
    x = np.linspace(-reach, reach, 400)
    bell = len(sizes) * width * np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
    ax.plot(x, bell, color=BLACK, linewidth=1.2, label="bell (normal distribution)")
    ax.set(yscale="log", ylim=(0.5, 3 * len(sizes) * width), xlabel="σ of the layer", ylabel="weights")
    ax.set_title("most weights lie near zero, but the tails are long", size=10)
    ax.legend(frameon=False, fontsize=8)
    return figure


def parts_won_back(panels: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Bars of the part of the loss that is won back, a group of bars for each decoder; dots are single draws."""
    figure, (ax,) = new_figure(7.0, 3.0)
    ways = list(next(iter(panels.values())))
    for number, (title, found) in enumerate(panels.items()):
        places = np.arange(len(ways)) + 0.38 * number
        means = [sum(found[way]) / len(found[way]) for way in ways]
        ax.bar(places, means, 0.34, color=(BLUE, ORANGE)[number % 2], hatch=("", "//")[number % 2], label=title)
        for place, way in zip(places, ways):
            ax.plot([place] * len(found[way]), found[way], ".", color=BLACK, markersize=4)
    ax.axhline(0, color=BLACK, linewidth=0.8)
    ax.set_xticks(np.arange(len(ways)) + 0.19 * (len(panels) - 1), ways)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    ax.set(ylabel="share of the KL that is gone")
    ax.set_title("1 % of the channels stay in 16 bits, the rest has 3", size=10)
    ax.legend(frameon=False, fontsize=8)
    return figure


def without_one_weight(panels: Mapping[str, Sequence[tuple[int, float]]]) -> Figure:
    """The factor by which perplexity grows without one weight of each block; panels: decoder -> (block, factor)."""
    figure, (ax,) = new_figure(7.0, 3.0)
    for (title, rows), colour, marker in zip(panels.items(), (BLUE, RED), MARKERS):
        ax.plot([block for block, _ in rows], [times for _, times in rows], marker, color=colour, label=title)
    ax.axhline(1, color="0.5", linewidth=0.8)
    ax.set(yscale="log", xlabel="block whose candidate is removed", ylabel="perplexity is multiplied by")
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:.2g}" if value < 10 else ""))
    ax.tick_params(axis="y", which="minor", labelsize=7)
    ax.set_title("one weight is set to zero", size=10)
    ax.grid(axis="y", alpha=0.3)
    ax.legend(frameon=False, fontsize=8)
    return figure


def loss_against_bits(series: Mapping[str, Sequence[tuple[int, float]]]) -> Figure:
    """The rise of perplexity, logarithmic, against bits; series: name -> (bits, per cent)."""
    figure, (ax,) = new_figure(7.0, 3.2)
    for (name, rows), colour, marker in zip(series.items(), (BLUE, RED, GREEN, PURPLE), MARKERS):
        shown = [(bits, rise) for bits, rise in rows if rise > 0]
        ax.plot(*zip(*shown), marker=marker, color=colour, label=name)
    ax.set(yscale="log", xlabel="bits of a code", ylabel="perplexity rises by, per cent")
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.invert_xaxis()
    ax.set_title("each further bit costs more than the one before", size=10)
    ax.grid(alpha=0.3)
    ax.legend(frameon=False, fontsize=8)
    return figure


def calibrated_with(kinds: Mapping[str, Sequence[float]], counts: Mapping[str, Sequence[float]], none: float) -> Figure:
    """KL by the kind of text, and by the number of samples; each dot is a draw, the dashed line is without any text."""
    figure, (left, right) = new_figure(7.6, 3.0, panels=2)
    for ax, found in ((left, kinds), (right, counts)):
        for place, draws in enumerate(found.values()):
            ax.plot([place] * len(draws), draws, "o", color=BLUE, fillstyle="none")
        ax.plot(range(len(found)), [sum(d) / len(d) for d in found.values()], "_", color=BLACK, markersize=16)
        ax.axhline(none, color=RED, linestyle="--", linewidth=1.2, label="no text: rounded to nearest")
        ax.set_xticks(range(len(found)), list(found), fontsize=8)
        ax.set_ylim(0, 1.15 * max(none, *(kl for drawn in (kinds, counts) for kls in drawn.values() for kl in kls)))
        ax.set_xlim(-0.5, len(found) - 0.5)
        ax.grid(axis="y", alpha=0.3)
    left.set(ylabel="KL, nats a token")
    left.set_title("which text", size=10)
    right.set(xlabel="samples")
    right.set_title("how much of the matched text", size=10)
    right.legend(frameon=False, fontsize=8, loc="upper right")
    return figure


def arithmetic_against_perplexity(panels: Mapping[str, Sequence[tuple[str, float, float, float]]]) -> Figure:
    """A row for each model: the share of right sums that is left, and a ring for the share that perplexity suggests.

    If the ring is to the right of the dot and its bar, perplexity hides a loss.

    panels: decoder -> (name, suggested, left, chance). chance: one standard deviation of left, drawn twice.
    """
    figure, axes = new_figure(7.6, 0.3 * max(map(len, panels.values())) + 1.2, panels=len(panels))
    for ax, (title, rows) in zip(axes, panels.items()):
        names, suggested, left, chances = zip(*rows)
        places = range(len(rows))
        bars = [2 * chance for chance in chances]
        ax.errorbar(left, places, xerr=bars, fmt="o", color=BLUE, capsize=2, markersize=5, label="measured")
        ax.plot(suggested, places, "o", color=RED, fillstyle="none", markersize=9, label="suggested by perplexity")
        ax.set_yticks(places, names, fontsize=8)
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
        ax.set(xlabel="share of the right sums", xlim=(0, 1.15), ylim=(len(rows) - 0.5, -0.5))
        ax.set_title(title, size=10)
        ax.grid(axis="x", alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, fontsize=8, loc="outside lower center", ncols=2)
    return figure


def kinds_left(kinds: Sequence[str], series: Mapping[str, Mapping[str, float]]) -> Figure:
    """The share of right answers that is left for each kind of question, a marker for each model."""
    figure, (ax,) = new_figure(7.0, 0.34 * len(kinds) + 1.2)
    for (name, found), colour, marker in zip(series.items(), (BLUE, RED, GREEN), MARKERS):
        ax.plot([found[kind] for kind in kinds], range(len(kinds)), marker, color=colour, label=name, alpha=0.85)
    ax.set_yticks(range(len(kinds)), kinds)
    ax.set_ylim(len(kinds) - 0.5, -0.5)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    ax.set(xlabel="share of the float decoder's right answers that is left, without guesses", xlim=(-0.05, 1.15))
    ax.set_title("which answers go first", size=10)
    ax.grid(axis="x", alpha=0.3)
    ax.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def training(ways: Mapping[str, Sequence[float]]) -> Figure:
    """The loss of each step, smoothed over five, for each way to train."""
    figure, (ax,) = new_figure(7.0, 3.0)
    for (name, losses), colour, style in zip(ways.items(), (BLUE, GREEN, RED), ("-", "--", ":")):
        smooth = np.convolve(losses, np.ones(5) / 5, mode="valid")
        ax.plot(np.arange(len(smooth)) + 3, smooth, style, color=colour, label=name)
    ax.set(xlabel="step", ylabel="loss of the answers", ylim=(0, None))
    ax.set_title("learning a new kind of question", size=10)
    ax.grid(alpha=0.3)
    ax.legend(frameon=False, fontsize=8)
    return figure


def all_models(
    families: Mapping[str, Sequence[Point]], budget: float | None = None, chosen: Point | None = None
) -> Figure:
    """Megabytes against KL, logarithmic, a marker for each family; the front is a dotted line, its models are named.

    budget: bytes, a dashed line; models to the right of it are pale. chosen: the model with a ring.
    """
    figure, (ax,) = new_figure(7.6, 4.6)
    every = [point for points in families.values() for point in points]
    front = best(every)
    ax.set_yscale("log")
    ax.plot([p.nbytes / 1e6 for p in front], [p.kl for p in front], ":", color=BLACK, linewidth=0.9)
    for (family, points), colour, marker in zip(families.items(), COLOURS, SHAPES):
        for point in points:
            pale = budget is not None and point.nbytes > budget
            ax.errorbar(
                point.nbytes / 1e6, point.kl, yerr=point.error or None, fmt=marker, color=colour, capsize=2,
                markersize=6, markeredgecolor=BLACK, markeredgewidth=0.4, alpha=0.25 if pale else 0.9,
            )  # fmt: skip
        ax.plot([], [], marker, color=colour, label=family)
    if budget is not None:
        ax.axvline(budget / 1e6, color=RED, linestyle="--", linewidth=1.2)
    if chosen is not None:
        ax.plot(chosen.nbytes / 1e6, chosen.kl, "o", color=RED, markersize=16, fillstyle="none", markeredgewidth=2)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.set(xlabel="megabytes of all weights", ylabel="KL divergence from float, nats a token")
    ax.set_title("all models of the embedded decoder", size=10)
    ax.margins(0.08)
    ax.grid(alpha=0.3)
    ax.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    label(figure, ax, front if chosen is None or chosen in front else [*front, chosen])
    return figure


def decision(branches: Sequence[tuple[str, str, str]]) -> Figure:
    """The questions from top to bottom, each with a recommendation and its cost; the first question that fits decides.

    branches: (question, recommendation, its figure).
    """
    figure = Figure(figsize=(7.8, 0.62 * len(branches) + 0.5), layout="constrained")
    ax = figure.subplots()
    ax.set(xlim=(0, 10), ylim=(len(branches) + 0.1, -0.6))
    ax.axis("off")
    asks = {"boxstyle": "round,pad=0.35", "facecolor": "white", "edgecolor": BLACK, "linewidth": 0.9}
    takes = {"boxstyle": "round,pad=0.35", "facecolor": PALE, "edgecolor": BLUE, "linewidth": 0.9}
    for row, (question, take, figures) in enumerate(branches):
        ax.text(0.05, row, question, va="center", fontsize=8.5, bbox=asks, wrap=False)
        ax.annotate("", (6.0, row), (5.35, row), arrowprops={"arrowstyle": "->", "color": BLUE})
        ax.text(5.66, row - 0.14, "yes", ha="center", fontsize=7.5, color=BLUE)
        ax.text(6.1, row, f"{take}\n{figures}", va="center", fontsize=8, bbox=takes)
        if row + 1 < len(branches):
            ax.annotate("", (0.35, row + 0.74), (0.35, row + 0.26), arrowprops={"arrowstyle": "->", "color": "0.4"})
            ax.text(0.5, row + 0.5, "no", va="center", fontsize=7.5, color="0.4")
    ax.set_title("the first question answered with yes decides", size=10, loc="left")
    return figure

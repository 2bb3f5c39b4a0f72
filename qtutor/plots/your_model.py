"""Pictures of chapter 11, a model of your own: which layers hurt, bits of each layer, bytes against KL."""

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from qtutor.plots.base import BLACK, BLUE, ORANGE, RED, new_figure
from qtutor.plots.comparison import Point, bytes_against_kl, label

COSTS = colormaps["cividis"]  # designed for colour-blind readers: brighter is more, for every kind of sight
BITS = colormaps["cividis"]
GREY = "0.55"


def layer_grid(values: Mapping[str, float]) -> tuple[np.ndarray, list[str]]:
    """``values`` by layer name as a matrix, a row for each kind of layer and a column for each block; and the kinds.

    Names without a number (embedding, lm_head) are left out; NaN means that a block has no such layer.
    """
    kinds, blocks = [], 0
    places = {}
    for name, value in values.items():
        match = re.search(r"\.(\d+)\.(.+)$", name)
        if match is None:
            continue
        kind, block = match[2].rpartition(".")[2], int(match[1])
        if kind not in kinds:
            kinds.append(kind)
        places[kind, block] = value
        blocks = max(blocks, block + 1)
    grid = np.full((len(kinds), blocks), np.nan)
    for (kind, block), value in places.items():
        grid[kinds.index(kind), block] = value
    return grid, kinds


def costs_picture(costs: Mapping[str, float], title: str = "") -> Figure:
    """A square for each layer with the cost of rounding it, in nats a token; brightness has a logarithmic scale."""
    grid, kinds = layer_grid(costs)
    figure, ax = _map(grid, kinds)
    shown = np.log10(np.maximum(grid, np.nanmax(grid) * 1e-6))
    image = ax.imshow(shown, cmap=COSTS, aspect="auto", interpolation="nearest")
    low, high = math.ceil(np.nanmin(shown)), math.floor(np.nanmax(shown))
    bar = figure.colorbar(image, ax=ax, ticks=range(low, high + 1), pad=0.02)
    bar.ax.set_yticklabels([f"$10^{{{power}}}$" for power in range(low, high + 1)])
    bar.set_label("cost, nats a token", fontsize=9)
    ax.set_title(title, fontsize=10)
    return figure


def costs_words(costs: Mapping[str, float]) -> str:
    """A description of :func:`costs_picture` for readers who cannot see it."""
    grid, kinds = layer_grid(costs)
    total = np.nansum(grid)
    dearest, cheapest = max(costs, key=costs.get), min(costs, key=costs.get)
    shares = {kind: np.nansum(row) / total for kind, row in zip(kinds, grid)}
    leading = max(shares, key=shares.get)
    return (
        f"A map with a row for each of {len(kinds)} kinds of layer and a column for each of {grid.shape[1]} decoder "
        f"blocks; brighter squares cost more. The dearest layer is {short(dearest)}, the cheapest {short(cheapest)}. "
        f"Of the whole cost, the row of {leading} has the largest part, {shares[leading]:.0%}."
    )


def bits_picture(bits: Mapping[str, int], title: str = "") -> Figure:
    """A square for each layer with its number of bits in it."""
    grid, kinds = layer_grid(bits)
    figure, ax = _map(grid, kinds)
    ax.imshow(grid, cmap=BITS, vmin=2, vmax=8, aspect="auto", interpolation="nearest")
    for (row, column), value in np.ndenumerate(grid):
        if np.isfinite(value):
            ink = BLACK if value > 4.5 else "white"
            ax.text(column, row, f"{value:.0f}", ha="center", va="center", color=ink, fontsize=7)
    ax.set_title(title, fontsize=10)
    return figure


def bits_words(bits: Mapping[str, int]) -> str:
    """A description of :func:`bits_picture` for readers who cannot see it."""
    counts = {width: list(bits.values()).count(width) for width in sorted(set(bits.values()))}
    said = ", ".join(f"{count} layer{'s' * (count > 1)} with {width} bits" for width, count in counts.items())
    return (
        f"A map with a square for each layer, blocks from left to right, and in each square its number of bits: {said}."
    )


def short(name: str) -> str:
    """``model.layers.3.mlp.down_proj`` as "down_proj of block 3"."""
    match = re.search(r"\.(\d+)\.(.+)$", name)
    return name if match is None else f"{match[2].rpartition('.')[2]} of block {match[1]}"


def _map(grid: np.ndarray, kinds: Sequence[str]):
    figure, (ax,) = new_figure(min(3.0 + 0.24 * grid.shape[1], 8.4), 0.32 * len(kinds) + 1.0)
    ax.set_yticks(range(len(kinds)), kinds, fontsize=8)
    step = max(1, grid.shape[1] // 10)
    ax.set_xticks(range(0, grid.shape[1], step))
    ax.set_xlabel("decoder block")
    ax.spines[["left", "bottom"]].set_visible(False)
    return figure, ax


def pareto_words(points: Sequence[Point]) -> str:
    """:func:`.comparison.bytes_against_kl` for readers who cannot see it."""
    said = "; ".join(f"{point.name}: {point.nbytes / 1e6:.0f} MB, KL {point.kl:.3f}" for point in points)
    return f"Bytes of the weights against KL divergence from the float model, a mark for each model. {said}."


def pareto_picture(points: Sequence[Point], title: str = "") -> Figure:
    """:func:`.comparison.bytes_against_kl`, for a chapter."""
    return bytes_against_kl(points, title)


def attempts_picture(tried: Sequence[tuple[int, float]], limit: int, others: Mapping[str, tuple[int, float]]) -> Figure:
    """A learner's attempts, (bytes, KL), with their numbers; the best has a ring, and the dashed line is the limit.

    others: models to compare with, grey.
    """
    figure, (ax,) = new_figure(7.5, 4.0)
    ax.axvline(limit / 1e6, color=RED, linestyle="--", linewidth=1.2)
    ax.annotate(
        f"limit: {limit / 1e6:.3g} MB", (limit / 1e6, 1), (-3, -2), xycoords=("data", "axes fraction"),
        textcoords="offset points", ha="right", va="top", rotation=90, fontsize=8, color=RED,
    )  # fmt: skip
    for nbytes, kl in others.values():
        ax.plot(nbytes / 1e6, kl, "s", color=GREY, markersize=6)
    best = min(range(len(tried)), key=lambda number: tried[number][1])
    for number, (nbytes, kl) in enumerate(tried):
        ax.plot(nbytes / 1e6, kl, "o", color=BLUE, markersize=13, markeredgecolor=BLACK)
        ax.text(nbytes / 1e6, kl, str(number + 1), ha="center", va="center", color="white", fontsize=8)
    ax.plot(tried[best][0] / 1e6, tried[best][1], "o", color=ORANGE, markersize=21, fillstyle="none", markeredgewidth=2)
    kls = [kl for _, kl in [*tried, *others.values()] if kl > 0]
    ax.margins(0.12)
    if kls and max(kls) > 5 * min(kls):
        ax.set_yscale("log", nonpositive="clip")
        low, high = ax.get_ylim()
        ticks = [digit * 10.0**power for power in range(-6, 3) for digit in (1, 2, 5)]
        shown = [tick for tick in ticks if low <= tick <= high]
        ax.set_yticks(shown, [f"{tick:g}" for tick in shown])
        ax.minorticks_off()
    ax.grid(alpha=0.3)
    title = "Your attempts (blue, the best with a ring)" + (" and the chapter's models (grey)" if others else "")
    ax.set(xlabel="megabytes of weights", ylabel="KL divergence from float, nats a token")
    ax.set_title(title, fontsize=10)
    label(figure, ax, [Point(name, *place) for name, place in others.items()])
    return figure


def attempts_words(tried: Sequence[tuple[int, float]], limit: int, others: Mapping[str, tuple[int, float]]) -> str:
    """A description of :func:`attempts_picture` for readers who cannot see it."""
    best = min(range(len(tried)), key=lambda number: tried[number][1])
    said = "; ".join(f"attempt {i + 1}: {nbytes / 1e6:.2f} MB, KL {kl:.3f}" for i, (nbytes, kl) in enumerate(tried))
    grey = "".join(f"; {name}: {nbytes / 1e6:.0f} MB, KL {kl:.3f}" for name, (nbytes, kl) in others.items())
    return (
        f"Bytes against KL divergence, with a dashed line at the limit of {limit / 1e6:.3g} MB. {said}{grey}. The best "
        f"attempt is {best + 1}."
    )

"""Pictures of chapter 07, GGUF: the bytes of a file, the two levels of a super-block, a search, bits against error."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from qtutor.plots.base import BLACK, BLUE, GREEN, MARKERS, ORANGE, PURPLE, RED, SKY, YELLOW, new_figure

FILLS = (ORANGE, SKY, GREEN, YELLOW, PURPLE, RED)


def file_bytes(data: bytes, parts: list[tuple[str, int]], text: int, row: int = 32) -> Figure:
    """Every byte of a small file as a cell with the colour of its part.

    parts: name and number of bytes, in the order of the file. Parts of one name share a colour; "padding" is white.
    text: among the first ``text`` bytes, letters are shown as letters.
    """
    names = [name for name, size in parts for _ in range(size)]
    kinds = [name for name in dict.fromkeys(names) if name != "padding"]
    fills = dict(zip(kinds, FILLS)) | {"padding": "white"}
    rows = -(-len(data) // row)
    figure = Figure(figsize=(9, 0.25 * rows + 0.75), layout="constrained")
    ax = figure.subplots()
    for at, (byte, name) in enumerate(zip(data, names)):
        x, y = at % row, at // row
        ax.add_patch(Rectangle((x, y), 1, 1, facecolor=fills[name], edgecolor=BLACK, linewidth=0.4))
        letter = at < text and 32 < byte < 127
        style = {"family": "monospace", "weight": "bold" if letter else "normal"}
        ax.text(
            x + 0.5, y + 0.55, chr(byte) if letter else f"{byte:02x}", ha="center", va="center", fontsize=7, **style
        )
    ax.set(xlim=(-0.05, row + 0.05), ylim=(rows + 0.05, -0.05), xticks=[], yticks=np.arange(rows) + 0.5)
    ax.set_yticklabels([row * i for i in range(rows)], fontsize=7)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    handles = [Patch(facecolor=fill, edgecolor=BLACK, linewidth=0.4, label=name) for name, fill in fills.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8)
    return figure


def super_block(weights: np.ndarray, panels: dict[str, tuple[np.ndarray, np.ndarray]], top: int = 15) -> Figure:
    """Weights as dots on the grids of their sub-blocks: a band from the lowest to the highest level, levels as lines.

    panels: title -> (step, low), each ``[sub-blocks]``.
    """
    figure, axes = new_figure(4.6 * len(panels), 3.2, panels=len(panels))
    for ax, (title, (step, low)) in zip(axes, panels.items()):
        size = len(weights) // len(step)
        for s, (one, start) in enumerate(zip(step, low)):
            left, right = s * size - 0.5, (s + 1) * size - 0.5
            ax.add_patch(Rectangle((left, start), size, top * one, facecolor=SKY, alpha=0.35, linewidth=0))
            ax.hlines(start + one * np.arange(top + 1), left, right, color=BLUE, linewidth=0.6)
            ax.axvline(right, color="gray", linewidth=0.5)
        ax.plot(weights, ".", color=BLACK, markersize=2.5)
        ax.set(
            title=title,
            xlabel="number of the weight",
            xlim=(-0.5, len(weights) - 0.5),
            xticks=range(0, len(weights) + 1, 64),
        )
        ax.title.set_size(10)
    axes[0].set_ylabel("weight")
    low, high = min(ax.get_ylim()[0] for ax in axes), max(ax.get_ylim()[1] for ax in axes)
    for ax in axes:
        ax.set_ylim(low, high)
    return figure


def tries(stretch: np.ndarray, as_laid: np.ndarray, fitted: np.ndarray, kept: int) -> Figure:
    """Errors against the stretch of a grid: of the grid itself, and of the grid fitted to the codes that it gave."""
    figure, (ax,) = new_figure(7.0, 3.0)
    ax.plot(stretch, as_laid, "s--", color=RED, markersize=4, label="the grid that gave the codes")
    ax.plot(stretch, fitted, "o-", color=BLUE, markersize=4, label="scale and low fitted to these codes")
    ax.plot(stretch[kept], fitted[kept], "o", color=BLACK, markersize=12, fillstyle="none", label="kept")
    ax.set(xlabel="steps from the smallest weight to the largest", ylabel="weighted squared error", ylim=(0, None))
    ax.legend(frameon=False, fontsize=8)
    return figure


def bits_against(
    series: dict[str, dict[str, tuple[float, float]]],
    ylabel: str,
    through: str | None = None,
    unnamed: tuple[str, ...] = (),
) -> Figure:
    """Named points on a logarithmic axis, against true bits a weight; ``series``: label -> a dict name -> (bits, y).

    through: the name of a point; a line through it falls by half with every bit. unnamed: series whose points have no
    names beside them.
    """
    figure, (ax,) = new_figure(8.0, 4.2)
    for (label, points), marker, colour in zip(series.items(), MARKERS, (BLUE, ORANGE, GREEN, RED, PURPLE, BLACK)):
        ax.plot(*zip(*points.values()), marker, color=colour, markersize=6, mec=BLACK, mew=0.5, label=label)
    named = {name: point for label, points in series.items() if label not in unnamed for name, point in points.items()}
    if through:
        bits = np.array([min(x for x, _ in named.values()), max(x for x, _ in named.values())])
        x, y = named[through]
        label = f"half for every bit, through {through}"
        ax.plot(bits, y * 2 ** (x - bits), ":", color=BLACK, linewidth=1, label=label)
    ax.set(xlabel="true bits a weight", ylabel=ylabel, yscale="log")
    ax.margins(x=0.08)
    ax.grid(alpha=0.3, which="both", linewidth=0.5)
    ax.legend(frameon=False, fontsize=8)
    _name(ax, named)
    return figure


def _name(ax, points: dict[str, tuple[float, float]]) -> None:
    """Write names beside points: right, left, below, above or diagonal, whichever place is free first."""
    ax.figure.draw_without_rendering()  # the axes do not know their places before
    places = {name: ax.transData.transform(point) for name, point in points.items()}
    taken = [(x - 4, y, 8.0) for x, y in places.values()]  # left, middle, width: the points themselves
    for name, (x, y) in sorted(places.items(), key=lambda place: -place[1][1]):  # from top to bottom
        width = 6.0 * len(name)
        sides = [(x + 9, y, 9, 0), (x - 9 - width, y, -9 - width, 0)]
        sides += [(x - width / 2, y + side, -width / 2, side) for side in (-12, 12)]
        sides += [(x + side, y - 10, side, -10) for side in (7, -7 - width)]
        free = [s for s in sides if all(abs(s[1] - b) > 9 or s[0] > a + w or s[0] + width < a for a, b, w in taken)]
        left, middle, dx, dy = (free or sides)[0]
        taken.append((left, middle, width))
        pixel = 72 / ax.figure.dpi
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.3}
        shift = (dx * pixel, dy * pixel)
        ax.annotate(name, points[name], shift, textcoords="offset points", va="center", fontsize=7, bbox=box)

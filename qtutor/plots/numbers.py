"""Pictures of chapter 01, numbers: bits by field, grids on the number line, a picture at fewer and fewer bits."""

import math

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from qtutor.plots.base import BLACK, BLUE, GREEN, MARKERS, ORANGE, PURPLE, RED, SKY, new_figure

# By letter of a format's layout. The letters are also shown, so that colour is not the only sign.
FIELDS = {"S": ("sign", PURPLE), "E": ("exponent", ORANGE), "M": ("mantissa", SKY), "I": ("integer", GREEN)}
DENSE = 300  # more levels than this in the window are drawn as a bar


def bit_boxes(rows: dict[str, tuple]) -> Figure:
    """Numbers as coloured bits, aligned at the left, each with the letter of its field; label -> ``(format, code)``."""
    longest = max(fmt.bits for fmt, _ in rows.values())
    figure = Figure(figsize=(0.235 * longest + 2.4, 0.62 * len(rows) + 0.2), layout="constrained")
    ax = figure.subplots()
    for row, (label, (fmt, code)) in enumerate(rows.items()):
        for place, (letter, bit) in enumerate(zip(fmt.layout, f"{int(code):0{fmt.bits}b}")):
            box = Rectangle(
                (place, -row - 0.75), 0.9, 0.55, facecolor=FIELDS[letter][1], edgecolor=BLACK, linewidth=0.5
            )
            ax.add_patch(box)
            ax.text(place + 0.45, -row - 0.48, bit, ha="center", va="center", fontsize=9, family="monospace")
            ax.text(place + 0.45, -row - 0.02, letter, ha="center", va="center", fontsize=7, color="dimgray")
        ax.text(-0.4, -row - 0.48, label, ha="right", va="center", fontsize=9)
    ax.set(xlim=(0, longest), ylim=(-len(rows) + 0.1, 0.2))
    ax.axis("off")
    return figure


def grids(formats: list, low: float, high: float, value: float | None = None, title: str = "") -> Figure:
    """The levels of each format between ``low`` and ``high`` as ticks on a line, or as a bar if they are too many.

    If there is a ``title``, the axis also gets a name. value: a number above the lines, with an arrow to its level in
    each format (or a triangle at the border, if the level is outside the window).
    """
    figure = Figure(
        figsize=(7.5, (0.52 if value is None else 0.44) * len(formats) + (1.0 if title else 0.5)), layout="constrained"
    )
    ax = figure.subplots()
    if title:
        ax.set_title(title, size=10)
        ax.set_xlabel("number")
    for row, fmt in enumerate(formats):
        levels = fmt.levels(low, high, limit=DENSE)
        if levels is None:
            ax.fill_between((low, high), -row - 0.16, -row + 0.16, color="silver")
            ax.text(high, -row, f"over {DENSE} levels ", ha="right", va="center", fontsize=8)
        else:
            ax.hlines(-row, low, high, color=BLACK, linewidth=0.8)
            ax.vlines(levels, -row - 0.16, -row + 0.16, color=BLACK, linewidth=0.9)
        if value is not None:
            _arrow(ax, value, float(fmt.round(value)), low, high, -row)
    ax.set(xlim=(low, high), ylim=(-len(formats) + 0.6, 0.8 if value is not None else 0.4))
    ax.set_yticks([-row for row in range(len(formats))], [label(fmt) for fmt in formats])
    ax.tick_params(left=False)
    ax.spines[["top", "right", "left"]].set_visible(False)
    return figure


def label(fmt) -> str:
    """The format's name; for an integer with a scale, also the scale."""
    scale = getattr(fmt, "scale", 1)
    return fmt.name if scale == 1 else f"{fmt.name} × {scale:g}"


def _arrow(ax, value: float, level: float, low: float, high: float, row: float) -> None:
    """Draw an arrow from the number down to its level, or a triangle at the border if the level is outside."""
    ax.plot([value], [row + 0.55], "o", color=BLUE, markersize=4.5)
    if low <= level <= high:
        ax.annotate("", (level, row), (value, row + 0.5), arrowprops={"arrowstyle": "->", "color": BLUE})
        ax.plot([level], [row], "D", color=RED, markersize=4.5, clip_on=False)
    elif not math.isnan(level):
        right = level > high
        ax.plot([high if right else low], [row + 0.3], ">" if right else "<", color=RED, markersize=8, clip_on=False)


def over_sizes(series: dict[str, list], powers: list[int], xlabel: str, ylabel: str) -> Figure:
    """Lines over sizes ``2**powers``, with the legend beside them; NaN leaves a gap.

    If there are many powers, only every third has a mark and a tick, because more would overlap.
    """
    figure, (ax,) = new_figure(7.5, 3.2)
    every = 3 if len(powers) > 20 else 1
    for (label, values), marker, colour in zip(series.items(), MARKERS, (BLUE, RED, GREEN, PURPLE, BLACK)):
        ax.plot(powers, values, marker=marker, markevery=every, color=colour, label=label)
    ax.set_xticks(powers[::every], [f"$2^{{{power}}}$" for power in powers[::every]], fontsize=9)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.grid(axis="y", alpha=0.3)
    ax.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def worst_over_sizes(powers: np.ndarray, lines: dict[str, np.ndarray]) -> Figure:
    """Relative errors over sizes ``2**powers``, both axes logarithmic; NaN leaves a gap. lines: name -> errors."""
    figure, (ax,) = new_figure(7.5, 3.2)
    styles = ((BLACK, "-"), (BLUE, "-"), (GREEN, "-"), (RED, (0, (5, 1))), (PURPLE, ":"), (ORANGE, "-"))
    for (name, errors), (colour, style) in zip(lines.items(), styles):
        ax.plot(powers, errors, color=colour, linestyle=style, label=name)
    ticks = range(int(np.floor(powers[0])), int(np.ceil(powers[-1])) + 1, 5)
    ax.set_xticks(ticks, [f"$2^{{{power}}}$" for power in ticks], fontsize=9)
    ax.set(xlabel="size of the number", ylabel="largest relative error", yscale="log")
    ax.grid(axis="y", alpha=0.3)
    ax.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def pictures(panels: dict[str, np.ndarray], columns: int = 3, zoom: int = 1) -> Figure:
    """Pictures ``[height, width, 3]`` or ``[height, width]`` with titles, each pixel as exactly ``zoom`` by ``zoom``.

    This holds for figures saved at 100 dots an inch, and shows the data without any smoothing.
    """
    height, width = (zoom * side for side in next(iter(panels.values())).shape[:2])
    gap, title = 8, 22
    rows = math.ceil(len(panels) / columns)
    total = (columns * (width + gap) + gap, rows * (height + title + gap))
    figure = Figure(figsize=(total[0] / 100, total[1] / 100), dpi=100)
    for place, (text, picture) in enumerate(panels.items()):
        row, column = divmod(place, columns)
        left, bottom = gap + column * (width + gap), total[1] - (row + 1) * (height + title + gap) + gap
        ax = figure.add_axes((left / total[0], bottom / total[1], width / total[0], height / total[1]))
        ax.imshow(np.clip(picture, 0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
        ax.axis("off")
        ax.set_title(text, fontsize=9, pad=4)
    return figure


# Descriptions of the larger pictures of the chapter, for readers who cannot see them.
DECIBELS_BY_BITS = (
    "SQNR against bits. Uniform numbers lie on a straight line of about 6 dB a bit. Gaussian numbers with the range "
    "of 5 standard deviations lie on a parallel line some 9 dB lower; with the range of 3 and of 2 they start higher "
    "and then flatten at about 34 and 19 dB, however many bits there are."
)
SUNSETS = (
    "A sunset over the sea six times: as it is, and with 8, 4, 3, 2 and 1 bits per colour. 8 bits look the same. At 4 "
    "the sky shows bands around the sun, at 3 broad ones; at 2 the sky is a few flat areas, at 1 only eight pure "
    "colours are left."
)
TWO_BITS = (
    "The sunset at 2 bits per colour three times. Plain: flat areas with hard borders. With a scale for every block: "
    "nearly like the original, with faint blocks. Dithered: grainy, but the sky's gradient and the sun's glow are "
    "back."
)

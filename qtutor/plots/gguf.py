"""Pictures of chapter 07, GGUF: the bytes of a file, the two levels of a super-block, a search, bits against error."""

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from qtutor.plots.base import BLACK, BLUE, GREEN, MARKERS, ORANGE, PURPLE, RED, SAND, SKY, new_figure

FILLS = (ORANGE, SKY, GREEN, SAND, PURPLE, RED)
COLOURS = (BLUE, ORANGE, GREEN, RED, PURPLE, BLACK)


def file_bytes(data: bytes, parts: list[tuple[str, int]], text: int, row: int = 32) -> Figure:
    """Every byte of a small file as a cell with the colour of its part.

    parts: name and number of bytes, in the order of the file. Parts with the same name share a colour; "padding" is
    white.
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
    ax.set_ylabel("first byte of the row", fontsize=8)
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
    """Errors against the stretch of a grid: of the grid itself, and of the grid fitted to its codes."""
    figure, (ax,) = new_figure(7.0, 3.0)
    ax.plot(stretch, as_laid, "s--", color=RED, markersize=4, label="the grid that gave the codes")
    ax.plot(stretch, fitted, "o-", color=BLUE, markersize=4, label="scale and low fitted to these codes")
    ax.plot(stretch[kept], fitted[kept], "o", color=BLACK, markersize=12, fillstyle="none", label="kept")
    ax.set(
        title=f"one sub-block, {len(stretch)} grids",
        xlabel="steps from the smallest weight to the largest",
        ylabel="weighted squared error",
        ylim=(0, 1.05 * max(as_laid.max(), fitted.max())),
    )
    ax.title.set_size(10)
    ax.legend(frameon=False, fontsize=8)
    return figure


def bits_against(
    series: dict[str, dict[str, tuple[float, float]]],
    ylabel: str,
    through: str | None = None,
    unnamed: tuple[str, ...] = (),
    unnamed_points: tuple[str, ...] = (),
    title: str = "",
    height: float = 4.2,
) -> Figure:
    """Named points on a logarithmic axis, against true bits a weight; ``series``: label -> a dict name -> (bits, y).

    through: the name of a point; a line through it falls by half with every bit. unnamed: series whose points have no
    names beside them and are open, so that they hide nothing. unnamed_points: further points without names.
    """
    figure, (ax,) = new_figure(8.0, height)
    _points(ax, series, unnamed)
    named = {name: point for label, points in series.items() if label not in unnamed for name, point in points.items()}
    if through:
        bits = np.array([min(x for x, _ in named.values()), max(x for x, _ in named.values())])
        x, y = named[through]
        label = f"half for every bit, through {through}"
        ax.plot(bits, y * 2 ** (x - bits), ":", color=BLACK, linewidth=1, label=label)
    ax.set(title=title, xlabel="true bits a weight", ylabel=ylabel, yscale="log")
    ax.title.set_size(10)
    ax.margins(x=0.08)
    ax.grid(alpha=0.3, which="both", linewidth=0.5)
    ax.legend(frameon=False, fontsize=8)
    others = {f"{label}: {name}": point for label in unnamed for name, point in series[label].items()}
    _name(ax, named | others, _dark_colours(series), (*unnamed_points, *others))
    return figure


def _points(ax, series: dict[str, dict[str, tuple[float, float]]], hollow: tuple[str, ...] = ()) -> None:
    for (label, points), marker, colour in zip(series.items(), MARKERS, COLOURS):
        if not points:
            continue
        filled = {"markersize": 6, "mec": BLACK, "mew": 0.5}
        style = {"markersize": 8, "mfc": "none", "mew": 1.6} if label in hollow else filled
        ax.plot(*zip(*points.values()), marker, color=colour, label=label, **style)


def _dark_colours(series: dict[str, dict[str, tuple[float, float]]]) -> dict[str, tuple[float, ...]]:
    """For each name the colour of its marker, dark enough to read, so that it shows to which point a name belongs."""
    dark = [tuple(0.6 * part for part in to_rgb(colour)) for colour in COLOURS]
    # A name gets the colour of the first series that has it: later series show no names for the same points.
    return {name: colour for points, colour in reversed(list(zip(series.values(), dark))) for name in points}


def types_against_bits(series: dict[str, dict[str, tuple[float, float]]], ylabel: str, through: str) -> Figure:
    """:func:`bits_against` for block types; many of them have between 4 and 5 bits, so an inset shows these larger.

    Only the inset names them. through: as in :func:`bits_against`; the line also goes through the inset.
    """
    near = {label: {n: p for n, p in points.items() if 4.2 <= p[0] <= 5.05} for label, points in series.items()}
    crowded = [name for points in near.values() for name in points]
    figure = bits_against(series, ylabel, through, (), tuple(crowded), "block types on one layer of the decoder")
    (ax,) = figure.axes
    inset = ax.inset_axes((0.02, 0.04, 0.33, 0.44))
    _points(inset, near)
    (bits, error), x = series_point(series, through), np.array([4.15, 5.3])
    inset.plot(x, error * 2 ** (bits - x), ":", color=BLACK, linewidth=1)
    inset.set(xlim=(4.15, 5.3), yscale="log", ylim=(0.068, 0.135), xticks=[4.25, 4.5, 5])
    inset.set_yticks([0.07, 0.08, 0.1, 0.12], ["0.07", "0.08", "0.1", "0.12"])
    inset.set_yticks([], minor=True)
    inset.tick_params(labelsize=7, direction="in", pad=2)
    inset.yaxis.tick_right()
    ax.indicate_inset_zoom(inset, edgecolor=BLACK, linewidth=0.8)
    _name(inset, {name: point for points in near.values() for name, point in points.items()}, _dark_colours(near))
    return figure


def series_point(series: dict[str, dict[str, tuple[float, float]]], name: str) -> tuple[float, float]:
    """The point called ``name``, in whichever series it is."""
    return next(points[name] for points in series.values() if name in points)


def mixes_against_bits(found: dict[str, tuple], mixed: tuple[str, ...]) -> Figure:
    """KL against true bits for mixes, the same with importance, and rounding to nearest.

    found: label -> (bits, ..., comparison, ...), where "Q4_K_M, importance" is Q4_K_M with importance.
    """
    place = {label: (bits, comparison.kl) for label, (bits, _, comparison, _) in found.items()}
    series = {
        "mixes": {label: place[label] for label in mixed},
        "with importance": {label.split(",")[0]: place[label] for label in place if "importance" in label},
        "RTN, groups of 64": {label: place[label] for label in place if label.startswith("RTN")},
    }
    title = "the decoder in eight mixes, and rounded to nearest"
    # The picture is higher than the others: near 4.3 bits, three points are close above each other.
    return bits_against(series, "KL divergence from the float model", None, ("with importance",), (), title, 5.4)


def _name(ax, points: dict[str, tuple[float, float]], colours: dict, without: tuple[str, ...] = ()) -> None:
    """Write names beside points: right, left, below, above or diagonal, at the first place that is free.

    colours: colours of the names. without: points that get no name; the other names keep clear of them.
    """
    ax.figure.draw_without_rendering()  # before this, the axes do not know their places
    places = {name: ax.transData.transform(point) for name, point in points.items()}
    taken = [(x - 4, y, 8.0) for x, y in places.values()]  # left, middle, width: the points themselves
    for name, (x, y) in sorted(places.items(), key=lambda place: -place[1][1]):  # from top to bottom
        if name in without:
            continue
        width = 6.4 * len(name)
        sides = [(x + 9, y, 9, 0), (x - 9 - width, y, -9 - width, 0)]
        sides += [(x - width / 2, y + side, -width / 2, side) for side in (-12, 12)]
        sides += [(x + side, y - 10, side, -10) for side in (7, -7 - width)]
        free = [s for s in sides if all(abs(s[1] - b) > 9 or s[0] > a + w or s[0] + width < a for a, b, w in taken)]
        left, middle, dx, dy = (free or sides)[0]
        taken.append((left, middle, width))
        pixel = 72 / ax.figure.dpi
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.3}
        shift = (dx * pixel, dy * pixel)
        style = {"va": "center", "fontsize": 7.5, "bbox": box, "color": colours[name]}
        ax.annotate(name, points[name], shift, textcoords="offset points", **style)


FILE_BYTES = (
    "The 288 bytes of the file, 32 a row, coloured by part: header, metadata, tensor infos, padding, the vector v, "
    "padding, the matrix w, padding. Letters are shown as letters: GGUF, general.architecture, llama, "
    "llama.block_count. Data begin at the start of a row, and so does w."
)
TRIES = (
    "Weighted squared error against the number of steps between the smallest and the largest weight, 14 to 16. The "
    "line of the fitted grids is nowhere above that of the grids as they were laid; its lowest point is ringed."
)
SUPER_BLOCK = (
    "256 weights as dots. Left, one band of 16 levels covers all of them, and few dots lie near its edges. Right, "
    "eight bands, one for every 32 weights, each as wide as its own weights need; the numbers are in the table."
)
ALL_TYPES = (
    "Relative error, logarithmic, against true bits a weight for the types of the table, with a dotted line that falls "
    "by half for every bit and goes through Q4_0. An inset shows the types of 4 to 5 bits larger. The K types, both "
    "IQ4 and Q1_0 lie below the line, Q5_0, Q8_0 and NVFP4 on it, Q4_1, Q5_1, MXFP4, TQ1_0, TQ2_0 and Q2_0 above."
)
MIXES = (
    "KL divergence, logarithmic, against true bits a weight. From Q2_K to Q8_0 the mixes fall steadily; the same mixes "
    "with importance lie a little lower at the same bits; RTN at 4, 3 and 2 bits lies above. The numbers are in the "
    "table."
)

"""Pictures: pure functions, data in, matplotlib figure out. Notebooks and widgets only call them.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; no picture relies on colour alone. :func:`show`
puts a figure on the page together with the text that says what it shows.
"""

import io

import numpy as np
import torch
from IPython.display import Image, display
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW, BLACK = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#F0E442",
    "#000000",
)


def new_figure(width: float = 7.0, height: float = 3.2, panels: int = 1) -> tuple[Figure, list]:
    """A figure in the course's style and its axes, side by side. Not registered with pyplot: nothing to close."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def png(figure: Figure, dpi: int = 100) -> bytes:
    """The figure as PNG bytes, without a date, so that equal figures are equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def show(figure: Figure, alt: str) -> None:
    """Put ``figure`` on the page; ``alt`` says in a sentence or two what a reader who cannot see it would miss."""
    display(Image(data=png(figure), alt=alt))


def numpy(values: torch.Tensor):
    """A tensor of any float dtype as a float32 numpy array, which matplotlib takes."""
    return values.detach().float().cpu().numpy()


# --- Chapter 02, rounding to nearest ---------------------------------------------------------------------------------

MARKERS = ("o", "s", "^", "D", "v", "P")


def number_line(lines: dict[str, tuple]) -> Figure:
    """Numbers falling onto grids: per title ``(values, levels)``, an arrow from every value to its nearest level.

    A grid is drawn as ticks on a line; values that it moves further than half a step get a red triangle.
    """
    figure = Figure(figsize=(7.5, 1.5 * len(lines) + 0.4), layout="constrained")
    axes = figure.subplots(len(lines), 1, squeeze=False, sharex=True)[:, 0]
    for ax, (title, (values, levels)) in zip(axes, lines.items()):
        values, levels = (numpy(torch.as_tensor(x)).ravel() for x in (values, levels))
        half_step = abs(levels[1] - levels[0]) / 2
        ax.axhline(0, color=BLACK, linewidth=0.8)
        ax.plot(levels, 0 * levels, "|", color=BLACK, markersize=14, label="level of the grid")
        nearest = levels[abs(values[:, None] - levels).argmin(axis=1)]
        far = abs(values - nearest) > half_step * 1.001
        for value, level in zip(values, nearest):
            ax.annotate("", (level, 0.03), (value, 0.9), arrowprops={"arrowstyle": "->", "color": "gray"})
        ax.plot(values[~far], 0 * values[~far] + 1, "o", color=BLUE, label="number")
        if far.any():
            ax.plot(values[far], 0 * values[far] + 1, "^", color=RED, label="moved more than half a step")
        ax.set(title=title, ylim=(-0.3, 1.3), yticks=[])
        ax.title.set_size(10)
        ax.spines[["top", "right", "left"]].set_visible(False)
        ax.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def matrices(panels: dict[str, torch.Tensor], limit: float, digits: int = 2) -> Figure:
    """Small matrices under one another as coloured cells with their numbers; colours saturate at ``±limit``."""
    figure = Figure(figsize=(7.0, 1.75 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for ax, (title, matrix) in zip(axes, panels.items()):
        matrix = numpy(matrix)
        image = ax.imshow(matrix, cmap="PuOr", vmin=-limit, vmax=limit, aspect="auto")
        for (row, column), value in np.ndenumerate(matrix):
            ink = "white" if abs(value) > 0.7 * limit else BLACK
            text = f"{round(float(value), digits) + 0:.{digits}f}"  # + 0 turns -0.00 into 0.00
            ax.text(column, row, text, ha="center", va="center", fontsize=8, color=ink)
        ax.set(title=title, xticks=[], yticks=range(len(matrix)))
        ax.set_yticklabels([f"row {i}" for i in range(len(matrix))], fontsize=8)
        ax.title.set_size(10)
    figure.colorbar(image, ax=list(axes), extend="both", shrink=0.6)
    return figure


def weights_and_grid(weight: torch.Tensor, quantized, title: str = "", bins: int = 201) -> Figure:
    """A layer's weights as a histogram under the grid of its group of median scale; beside it the rounding errors.

    ``quantized`` is the :class:`~qtutor.quantized.QuantizedTensor` of ``weight``. Counting with numpy and drawing
    outlines is many times faster than bars, which matters under a slider.
    """
    figure, (left, right) = new_figure(8.0, 3.0, panels=2)
    error = numpy(quantized.dequantize() - weight.float()).ravel()
    values = numpy(weight).ravel()
    scales = quantized.scales.flatten().float()
    middle = scales.argsort()[len(scales) // 2]
    zero = quantized.grid.middle if quantized.zeros is None else int(quantized.zeros.flatten()[middle])
    levels = float(scales[middle]) * (torch.arange(quantized.grid.largest_code + 1) - zero).numpy()
    reach = abs(values).max()
    counts, edges = np.histogram(values, bins=bins, range=(-reach, reach))
    left.stairs(counts, edges, fill=True, color=SKY, label="weights")
    left.vlines(levels, 0, counts.max() * 1.05, color=RED, linewidth=0.8, linestyle="--", label="levels of one group")
    left.set(title=title, xlabel="weight", ylabel="how many", xlim=(-1.05 * reach, 1.05 * reach))
    far = max(abs(error).max(), 1e-12)
    counts, edges = np.histogram(error, bins=bins, range=(-far, far))
    right.stairs(counts, edges, fill=True, color=ORANGE)
    right.set(title="rounding error", xlabel="rounded minus weight", xlim=(-1.05 * reach / 2, 1.05 * reach / 2))
    for ax in (left, right):
        ax.title.set_size(10)
    left.legend(framealpha=1, fontsize=8, loc="upper right")
    left.set_ylim(top=left.get_ylim()[1] * 1.25)  # room for the legend above the bell
    return figure


def curves(panels: dict[str, dict], x: list, xlabel: str, log: tuple = (), lowest: dict | None = None) -> Figure:
    """Lines with markers over a common ``x``: per panel title a dict from label to values.

    log: titles of the panels with a logarithmic axis. lowest: titles whose axis starts at that number.
    """
    figure, axes = new_figure(3.6 * len(panels) + 1, 3.0, panels=len(panels))
    places = range(len(x)) if any(isinstance(value, str) for value in x) else x
    for ax, (title, series) in zip(axes, panels.items()):
        for label, values, marker, colour in zip(series, series.values(), MARKERS, (BLUE, RED, GREEN, PURPLE, BLACK)):
            ax.plot(places, values, marker=marker, color=colour, label=label)
        if places is not x:
            ax.set_xticks(places, x)
        if title in log:
            ax.set_yscale("log")
        if lowest and title in lowest:
            ax.set_ylim(bottom=lowest[title])
        ax.set(title=title, xlabel=xlabel)
        ax.title.set_size(10)
        ax.grid(axis="y", alpha=0.3)
        if len(series) > 1:
            ax.legend(frameon=False, fontsize=8)
    return figure

"""The common parts of all pictures: colours, an empty figure, PNG bytes, lines over a common axis.

Colour-blind readers can distinguish the colours, which are Okabe and Ito's; no picture relies on colour alone.
"""

import io

import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import torch
from IPython.display import Image, display
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

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
SAND = "#F2E2B6"  # for areas: YELLOW would glare
GREY, PALE = "#BBBBBB", "#DCEFFA"  # for areas, too
DARK_GREY, BROWN = "#777777", "#8C564B"  # if eight colours are too few
MARKERS = ("o", "s", "^", "D", "v", "P")
MARGIN = 0.1  # inches: on a dark page a figure is a white card, and letters at its very edge would look cut off


def new_figure(width: float = 7.0, height: float = 3.2, panels: int = 1) -> tuple[Figure, list]:
    """A figure in the course's style, and its axes side by side. pyplot does not know it, so it need not be closed."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def card(figure: Figure, dpi: int, within: bool = False) -> PIL.Image.Image:
    """The figure on a white card with a margin, in dots.

    within: the whole card has the size of the figure. Otherwise the picture without the margin has this size, so that
    pictures drawn pixel by pixel stay sharp.
    """
    size, margin = figure.get_size_inches(), round(MARGIN * dpi)
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    added = 0 if within else 2 * margin
    drawn = PIL.Image.new("RGB", [dots + added for dots in canvas.get_width_height()], "white")
    if within:
        figure.set_size_inches(size - 2 * MARGIN)
    engine = figure.get_layout_engine()
    if engine is not None:  # otherwise matplotlib draws twice: once to measure the layout, and once more for real
        engine.execute(figure)
        figure.set_layout_engine("none")
    canvas.draw()
    drawn.paste(PIL.Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"), (margin, margin))
    figure.set_size_inches(size)
    return drawn


def png(figure: Figure, dpi: int = 100, title: str | None = None) -> bytes:
    """The figure as PNG bytes, without the software's version, so that equal figures give equal bytes.

    title: written into the file's metadata; it is not visible in the picture.
    """
    buffer, about = io.BytesIO(), PIL.PngImagePlugin.PngInfo()
    if title:
        about.add_text("Title", title)
    card(figure, dpi).save(buffer, format="PNG", optimize=True, pnginfo=about)
    return buffer.getvalue()


def show(figure: Figure, alt: str) -> None:
    """Put ``figure`` on the page; ``alt`` describes it in a sentence or two for readers who cannot see it."""
    display(Image(data=png(figure), alt=alt))


def numpy(values: torch.Tensor):
    """A tensor of any float dtype as a float32 numpy array, which matplotlib accepts."""
    return values.detach().float().cpu().numpy()


def log_scale(ax) -> None:
    """Make the vertical axis logarithmic for its data, with ticks in plain numbers: few for a wide range."""
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    ticks = (1,) if high > 300 * low else (1, 2, 5) if high > 5 * low else (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
    ax.yaxis.set_major_locator(LogLocator(10, ticks))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def curves(panels: dict[str, dict], x: list, xlabel: str, log: tuple = (), lowest: dict | None = None) -> Figure:
    """Lines with markers over a common ``x``; ``panels``: title -> a dict from label to values.

    log: titles of the panels with a logarithmic axis. lowest: title -> the number at which that panel's axis starts.
    """
    figure, axes = new_figure(max(3.6 * len(panels) + 1, 7.0), 3.0, panels=len(panels))
    places = range(len(x)) if any(isinstance(value, str) for value in x) else x
    for ax, (title, series) in zip(axes, panels.items()):
        for label, values, marker, colour in zip(series, series.values(), MARKERS, (BLUE, RED, GREEN, PURPLE, BLACK)):
            ax.plot(places, values, marker=marker, color=colour, label=label)
        if places is not x:
            ax.set_xticks(places, x)
        if title in log:
            log_scale(ax)
        if lowest and title in lowest:
            ax.set_ylim(bottom=lowest[title])
        ax.set(title=title, xlabel=xlabel)
        ax.title.set_size(10)
        ax.grid(axis="y", alpha=0.3)
        if len(series) > 1:
            ax.legend(frameon=False, fontsize=8)
    return figure

"""One picture of several quantized models: the size of each against its loss."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from qtutor.plots.base import BLACK, BLUE, GREEN, MARKERS, ORANGE, PURPLE, RED, SKY, new_figure, png

COLOURS = (BLUE, RED, GREEN, PURPLE, ORANGE, SKY)
NEAR = 6  # a label's distance from its mark, in points
# Possible places of a label: sideways and upwards, in distances; the first place at which it covers nothing is used.
PLACES = tuple((side, up) for up in (1, -1, 0, 2.5, -2.5, 4, -4) for side in (1, -1))


@dataclass(frozen=True)
class Point:
    """A model in the picture: bytes of its weights, KL divergence in nats a token, and the standard error of the KL."""

    name: str
    nbytes: int
    kl: float
    error: float | None = None


def bytes_against_kl(points: Sequence[Point], title: str = "") -> Figure:
    """Every model as a labelled mark with its standard error.

    Further left is smaller, lower is nearer to the float model. A dotted line joins the models that no other beats in
    both. The KL axis is logarithmic if KL spans more than a factor of ten.
    """
    figure, (ax,) = new_figure(7.5, 4.2)
    kls = [point.kl for point in points]
    if min(kls) > 0 and max(kls) > 10 * min(kls):
        ax.set_yscale("log", nonpositive="clip")
    front = best(points)
    ax.plot([point.nbytes / 1e6 for point in front], [point.kl for point in front], ":", color=BLACK, linewidth=0.8)
    for number, point in enumerate(points):
        marker, colour = MARKERS[number % len(MARKERS)], COLOURS[number % len(COLOURS)]
        place = point.nbytes / 1e6, point.kl
        ax.errorbar(*place, yerr=point.error or None, fmt=marker, color=colour, capsize=3, markeredgecolor=BLACK)
    ax.set(title=title, xlabel="megabytes of weights", ylabel="KL divergence from float, nats a token")
    ax.margins(0.12)
    ax.grid(alpha=0.3)
    label(figure, ax, points)
    return figure


def best(points: Sequence[Point]) -> list[Point]:
    """The models that no other beats in bytes and KL at once (the Pareto front), starting with the smallest."""
    front = []
    for point in sorted(points, key=lambda point: (point.nbytes, point.kl)):
        if not front or point.kl < front[-1].kl:
            front.append(point)
    return front


def image(figure: Figure, kind: str = "png", title: str | None = None) -> bytes:
    """The figure as the bytes of a "png" or "svg" file, without a date, so that equal figures are equal bytes.

    title: written into the file's metadata; it is not visible in the picture.
    """
    if kind == "png":
        return png(figure, dpi=150, title=title)
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "qtutor"}):  # ids inside the file are computed from it
        figure.savefig(buffer, format="svg", metadata={"Date": None} | ({"Title": title} if title else {}))
    return buffer.getvalue()


def label(figure: Figure, ax, points: Sequence[Point]) -> None:
    """Write a name beside each mark, at a place where it covers neither a mark nor another name."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()  # now the axes have their size, and places in pixels are known
    marks = [ax.transData.transform((point.nbytes / 1e6, point.kl)) for point in points]
    taken = [Bbox.from_extents(x - NEAR, y - NEAR, x + NEAR, y + NEAR) for x, y in marks]
    for point in points:
        for side, up in PLACES:
            text = ax.annotate(
                point.name,
                (point.nbytes / 1e6, point.kl),
                (side * NEAR, up * NEAR),
                textcoords="offset points",
                ha="left" if side > 0 else "right",
                va="center",
                fontsize=8,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5},  # legible over error bars
            )
            text.set_in_layout(False)
            box = text.get_window_extent(renderer)
            inside = ax.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
            if inside and not any(box.overlaps(other) for other in taken):
                break
            if (side, up) != PLACES[-1]:
                text.remove()
        taken.append(box)

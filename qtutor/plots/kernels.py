"""Pictures of chapter 09: dots under a roof, two orders of reading, speed against bits and batch, first and next token.

Dots and machines come from :mod:`qtutor.course.ladder.roofline`.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from qtutor.plots.base import BLACK, BLUE, GREEN, MARKERS, ORANGE, PURPLE, RED, SKY, YELLOW, new_figure

LIGHT = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # behind labels that a line may cross
COLOURS = (BLUE, RED, GREEN, PURPLE, ORANGE, BLACK, SKY)


def roofline(machines: Sequence, dots: Iterable = (), now: str | None = None, span: tuple = (0.02, 200)) -> Figure:
    """Roofs of one or two machines, and operations as dots below them, on logarithmic axes.

    machines: each with bandwidth, peak, threads, corner and limit(intensity). dots: each with name, intensity, speed.
    now: the name of the dot that is filled and large; if it is ``None``, all are. span: the axis of intensities.
    """
    figure, (ax,) = new_figure(7.6, 4.2)
    intensity = np.geomspace(*span, 200)
    for machine, style in zip(machines, ("-", "--")):
        limits = [machine.limit(i) / 1e9 for i in intensity]
        label = f"the limit on {machine.threads} thread{'s' if machine.threads > 1 else ''}"
        ax.plot(intensity, limits, style, color=BLACK, linewidth=1.3, label=label)
    first = machines[0]
    ax.axvline(first.corner, color="0.7", linewidth=0.8, linestyle=":")
    ax.text(first.corner * 1.1, first.peak / 1e9 / 300, f"corner: {first.corner:.1f}", fontsize=8, color="0.3")
    dots = list(dots)
    for dot, colour, marker in zip(dots, COLOURS, MARKERS * 2):
        filled = now is None or dot.name == now
        ax.plot(
            dot.intensity, dot.speed / 1e9, marker, color=colour, label=dot.name, linestyle="none",
            markersize=11 if dot.name == now else 7, markerfacecolor=colour if filled else "none",
        )  # fmt: skip
    lowest = min([dot.speed for dot in dots] + [first.limit(span[0])]) / 1e9
    ax.set(xscale="log", yscale="log", xlim=span, ylim=(lowest / 2, 3 * max(m.peak for m in machines) / 1e9))
    ax.set(xlabel="operations for each byte that is moved", ylabel="billion operations a second")
    ax.set_title("operations a second, and what limits them", size=10)
    ax.grid(alpha=0.25)
    ax.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def two_orders(rows: int = 8, words: int = 4) -> Figure:
    """A packed matrix twice, its words numbered in the order in which a loop reads them: row by row, and rows as lanes.

    The words that one vector instruction reads at once have one colour.
    """
    figure = Figure(figsize=(7.6, 3.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    along = np.arange(rows * words).reshape(rows, words)
    down = np.arange(rows * words).reshape(words, rows).T
    for ax, order, title in (
        (left, along, "a row, then the next row:\nproducts of one row have to be added up"),
        (right, down, "rows as lanes:\neach row adds to its own sum"),
    ):
        for row in range(rows):
            for word in range(words):
                unit = row if order is along else word
                colour = (SKY, YELLOW)[unit % 2]
                ax.add_patch(Rectangle((word, row), 1, 1, facecolor=colour, edgecolor=BLACK, linewidth=0.6))
                ax.text(word + 0.5, row + 0.5, str(order[row, word]), ha="center", va="center", fontsize=8)
        ax.set(xlim=(-0.05, words + 0.05), ylim=(rows + 0.05, -0.05), yticks=np.arange(rows) + 0.5)
        ax.set(xticks=np.arange(words) + 0.5, xlabel="word of eight inputs")
        ax.set_xticklabels(range(words), fontsize=8)
        ax.set_yticklabels([f"row {row}" for row in range(rows)], fontsize=8)
        ax.set_title(title, size=9)
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0)
    return figure


def speed_and_bits(bits: Sequence[float], speeds: Sequence[float], names: Sequence[str], ceiling: float) -> Figure:
    """Tokens a second against true bits a weight, with the curve of a machine that only reads.

    ceiling: the tokens a second at one bit a weight, if only reading counted.
    """
    figure, (ax,) = new_figure(7.0, 3.6)
    line = np.geomspace(min(bits) * 0.8, max(bits) * 1.2, 100)
    ax.plot(line, ceiling / line, color=BLACK, linewidth=1.2, label="if only reading counted")
    ax.plot(bits, speeds, "o", color=BLUE, label="measured")
    for x, y, name in zip(bits, speeds, names):
        ax.annotate(name, (x, y), xytext=(6, -11), textcoords="offset points", fontsize=8, bbox=LIGHT)
    ax.set(xscale="log", yscale="log", xlabel="true bits of a weight", ylabel="tokens a second, by these alone")
    ax.set_xticks([2, 3, 4, 8, 16, 32], ["2", "3", "4", "8", "16", "32"])
    ax.minorticks_off()
    ax.set_yticks([1, 2, 5, 10, 20, 50, 100, 200], ["1", "2", "5", "10", "20", "50", "100", "200"])
    ax.set_ylim(min(speeds) / 1.8, 1.3 * max(max(speeds), ceiling / min(bits)))
    ax.set_title("the matrices of 22 blocks with TinyLlama's shapes", size=10)
    ax.grid(alpha=0.25)
    ax.legend(frameon=False, fontsize=8)
    return figure


def gain_and_batch(batches: Sequence[int], gains: Mapping[str, Sequence[float]]) -> Figure:
    """The speed of each way as a multiple of float32's, against the tokens that share a product; 1 is marked."""
    figure, (ax,) = new_figure(7.0, 3.4)
    for (name, values), colour, marker in zip(gains.items(), (BLUE, GREEN, PURPLE), MARKERS):
        ax.plot(batches, values, marker=marker, color=colour, label=name)
    ax.axhline(1, color=RED, linestyle="--", linewidth=1, label="as fast as float32")
    ax.set(xscale="log", xlabel="tokens that share the product", ylabel="times as fast as float32")
    ax.set_xticks(batches, batches)
    ax.minorticks_off()
    ax.set_ylim(bottom=0)
    ax.set_title("the gain, as more tokens share the weights", size=10)
    ax.grid(axis="y", alpha=0.3)
    ax.legend(frameon=False, fontsize=8)
    return figure


def first_and_next(names: Sequence[str], firsts: Sequence[float], others: Sequence[float], prompt: int) -> Figure:
    """Bars of milliseconds in two panels: until the first token, and for each further one."""
    figure, axes = new_figure(7.6, 0.45 * len(names) + 1.3, panels=2)
    panels = ((f"the first token, behind a prompt of {prompt}", firsts), ("each further token", others))
    for ax, (title, seconds) in zip(axes, panels):
        ax.barh(list(names), [1e3 * s for s in seconds], color=(BLUE, ORANGE, GREEN)[: len(names)])
        for y, s in enumerate(seconds):
            ax.text(1e3 * s, y, f" {1e3 * s:.0f}", va="center", fontsize=9)
        ax.set(title=title, xlabel="milliseconds", xlim=(0, 1.2e3 * max(seconds)))
        ax.title.set_size(10)
        ax.invert_yaxis()
    axes[1].set_yticklabels([])
    return figure

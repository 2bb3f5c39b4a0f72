"""Pictures of chapter 08: weights in files, a word, reads of threads, 3-bit streams, inputs that lean to one side.

Layouts come from :mod:`qtutor.course.layouts`, as arrays of places.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from qtutor.plots.base import BLACK, BLUE, GREEN, MARKERS, ORANGE, RED, SKY, YELLOW, new_figure

# Light enough for black text, and different in lightness all along.
SHADES = ListedColormap(colormaps["cividis"](np.linspace(0.5, 1, 256)))
FILLS = (SKY, YELLOW)


def order_in_memory(units: Mapping[str, np.ndarray], titles: Mapping[str, str]) -> Figure:
    """A block of weights once for each format: every weight has the colour and number of the unit that contains it.

    units: format -> int ``[outputs, inputs]``, numbers of words or blocks in the order of the file. titles: format -> a
    few words below its name.
    """
    figure = Figure(figsize=(8.6, 4.9), layout="constrained")
    axes = figure.subplots(2, 2).flat
    for ax, (name, unit) in zip(axes, units.items()):
        rows, columns = unit.shape
        ax.imshow(unit / max(unit.max(), 1), cmap=SHADES, aspect="auto", extent=(0, columns, rows, 0))
        for number in range(unit.max() + 1):
            down, across = np.nonzero(unit == number)
            left, top = across.min(), down.min()
            width, height = across.max() + 1 - left, down.max() + 1 - top
            ax.add_patch(Rectangle((left, top), width, height, fill=False, edgecolor=BLACK, linewidth=0.6))
            if width > 1 or number % 4 == 0:  # more numbers would overlap
                ax.text(left + width / 2, top + height / 2, str(number), ha="center", va="center", fontsize=7)
        ax.set(xlabel="input", ylabel="output", xticks=range(0, columns + 1, 8), yticks=range(0, rows + 1, 2))
        ax.set_title(f"{name}: {titles[name]}", size=9)
        ax.tick_params(labelsize=8)
    return figure


def inside_a_word(rows: Mapping[str, Sequence[str]], first: str = "the first eight half bytes of the codes") -> Figure:
    """For each format the weights in the first 32 bits, from the lowest; weights of one output have one colour."""
    figure, (ax,) = new_figure(8.0, 0.55 * len(rows) + 0.9)
    for y, labels in enumerate(rows.values()):
        for x, label in enumerate(labels):
            fill = FILLS[int("".join(c for c in label.split()[-1] if c.isdigit()) or 0) % 2]
            ax.add_patch(Rectangle((x, y + 0.1), 1, 0.8, facecolor=fill, edgecolor=BLACK, linewidth=0.6))
            ax.text(x + 0.5, y + 0.5, label, ha="center", va="center", fontsize=8)
    count = len(next(iter(rows.values())))
    ax.set(
        xlim=(-0.03, count + 0.03),
        ylim=(len(rows), 0),
        yticks=np.arange(len(rows)) + 0.5,
        xticks=np.arange(count) + 0.5,
    )
    ax.set_yticklabels(rows, fontsize=9)
    ax.set_xticklabels([f"bits {4 * n} to {4 * n + 3}" for n in range(count)], fontsize=7)
    ax.set_title(f"{first}, from the lowest bit", size=10)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    return figure


def touched(reads: Mapping[str, tuple[np.ndarray, int]], piece: int = 32, shown: int = 4096) -> Figure:
    """The pieces of memory that 32 threads touch in one step, as marks on a strip for each layout.

    reads: layout -> (the address from which each thread reads, the bytes that it reads). piece: bytes that the memory
    delivers at once. shown: bytes from the first address on; the rest is not drawn.
    """
    figure, (ax,) = new_figure(8.0, 0.6 * len(reads) + 0.9)
    for y, (addresses, size) in enumerate(reads.values()):
        pieces = sorted({address // piece for at in addresses for address in (at, at + size - 1)})
        ax.broken_barh([(0, shown)], (y + 0.2, 0.6), facecolor="0.91")
        drawn = [(number * piece, piece) for number in pieces if number * piece < shown]
        ax.broken_barh(drawn, (y + 0.2, 0.6), facecolor=BLUE)
    ax.set(xlim=(0, shown), ylim=(len(reads), 0), yticks=np.arange(len(reads)) + 0.5, xlabel="byte of the tensor")
    ax.set_yticklabels(reads, fontsize=9)
    ax.set_title(f"pieces of {piece} bytes that 32 threads fetch in one step", size=10)
    ax.tick_params(axis="y", length=0)
    return figure


def bits_of_words(layouts: Mapping[str, np.ndarray]) -> Figure:
    """Words as rows of 32 bits, the lowest on the left, coloured by the code to which a bit belongs; -1 for none.

    layouts: title -> int ``[words, 32]``, the number of the code.
    """
    figure = Figure(figsize=(8.6, 0.55 * sum(len(o) for o in layouts.values()) + 1.3), layout="constrained")
    heights = [len(owners) for owners in layouts.values()]
    axes = np.atleast_1d(figure.subplots(len(layouts), 1, height_ratios=heights))
    for ax, (title, owners) in zip(axes, layouts.items()):
        for y, row in enumerate(owners):
            for x, code in enumerate(row):
                fill = "white" if code < 0 else (SKY, ORANGE)[code % 2]
                ax.add_patch(Rectangle((x, y), 1, 0.85, facecolor=fill, edgecolor=BLACK, linewidth=0.3))
            for code in sorted({int(code) for code in row if code >= 0}):
                (own,) = np.nonzero(row == code)
                ax.text(own.mean() + 0.5, y + 0.43, str(code), ha="center", va="center", fontsize=8)
        ax.set(xlim=(0, 32), ylim=(len(owners), 0), xticks=range(0, 33, 4), yticks=np.arange(len(owners)) + 0.43)
        ax.set_yticklabels([f"word {y}" for y in range(len(owners))], fontsize=8)
        ax.set_title(title, size=9, loc="left")
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0, labelsize=8)
    axes[-1].set_xlabel("bit of the word")
    return figure


def leaning(series: Mapping[str, Mapping[str, float]]) -> Figure:
    """How far the inputs of each layer lean to one side, 0 to 1: a line for each model, over the layers."""
    figure, (ax,) = new_figure(7.0, 3.0)
    for (label, found), colour, marker in zip(series.items(), (BLUE, GREEN, RED), MARKERS):
        ax.plot(range(len(found)), found.values(), marker=marker, color=colour, label=label)
    names = list(next(iter(series.values())))
    ax.set_xticks(range(len(names)), names, fontsize=8)
    ax.set(xlabel="block: layers that read the input", ylabel="|mean| / root mean square", ylim=(0, 1.05))
    ax.set_title("how far a layer's inputs lie to one side", size=10)
    ax.grid(axis="y", alpha=0.3)
    ax.legend(frameon=False, fontsize=8)
    return figure

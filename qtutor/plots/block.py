"""A block of the decoder as a diagram: seven matrices, two norms, and the stream that both halves add to."""

from collections.abc import Mapping
from operator import attrgetter

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from qtutor.families.known import DOWN, GATE, UP, K, O, Q, V
from qtutor.plots.base import BLACK, BLUE, ORANGE, SAND, SKY

WIDE, HIGH = 1.5, 0.62  # the size of a box, in units of the picture
# Name -> the middle of its box; first the attention's matrices, then the MLP's.
PLACES = {
    "q": (3.0, 3.3),
    "k": (3.0, 2.5),
    "v": (3.0, 1.7),
    "o": (7.2, 2.5),
    "gate": (11.5, 2.95),
    "up": (11.5, 2.05),
    "down": (15.7, 2.5),
}
NORMS, ATTENTION, PRODUCT, SUMS = (1.0, 9.5), 5.1, 13.6, (8.4, 16.9)


def _arrows():
    """The start and end of each arrow: up out of the stream, to the right, and down into it."""
    for norm, readers, middle, last, into in zip(
        NORMS, ("qkv", ("gate", "up")), (ATTENTION, PRODUCT), ("o", "down"), SUMS
    ):
        yield (norm, 0.45), (norm, 2.15)
        for name in readers:
            x, y = PLACES[name]
            yield (norm + 0.78, 2.5), (x - 0.8, y)
            yield (x + 0.78, y), (middle - 0.8, 2.5)
        yield (middle + 0.78, 2.5), (PLACES[last][0] - 0.8, 2.5)
        yield (PLACES[last][0] + 0.78, 2.5), (into, 0.66)


def decoder_block(shapes: Mapping[str, tuple[int, int]]) -> Figure:
    """The seven matrices of a block, with their inputs and outputs; between them the norms and parts without weights.

    shapes: ``q``, ``k``, ``v``, ``o``, ``gate``, ``up``, ``down`` -> (outputs, inputs).
    """
    figure = Figure(figsize=(9.0, 2.5))
    ax = figure.add_axes((0.005, 0.02, 0.99, 0.96))
    ax.set(xlim=(-0.3, 18.2), ylim=(-0.35, 4.35))
    ax.axis("off")
    ax.annotate("", (18.1, 0.35), (-0.2, 0.35), arrowprops={"arrowstyle": "-|>", "color": BLUE, "linewidth": 2.5})
    ax.text(-0.2, -0.15, f"the residual stream: {shapes['q'][1]} numbers a token", fontsize=8, va="center")
    for start, end in _arrows():
        ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": BLACK, "linewidth": 0.8})
    for name, middle in PLACES.items():
        colour = ORANGE if name in "qkvo" else SKY
        _box(ax, middle, f"{name}\n{shapes[name][0]} × {shapes[name][1]}", colour, "bold")
    for x in NORMS:
        _box(ax, (x, 2.5), "norm", SAND)
    _box(ax, (ATTENTION, 2.5), "attention\nto earlier\ntokens", "white", high=1.2)
    _box(ax, (PRODUCT, 2.5), "act(gate)\n· up", "white", high=0.9)
    for x in SUMS:
        ax.plot(x, 0.35, "o", markersize=13, color="white", mec=BLUE, mew=1.5)
        ax.text(x, 0.35, "+", ha="center", va="center", fontsize=11)
    for x, text in ((4.1, "attention: four matrices"), (12.6, "MLP: three matrices")):
        ax.text(x, 4.1, text, ha="center", va="center", fontsize=9)
    return figure


def _box(ax, middle: tuple[float, float], text: str, colour: str, weight: str = "normal", high: float = HIGH) -> None:
    x, y = middle
    corner = (x - WIDE / 2, y - high / 2)
    style = {"boxstyle": "round,pad=0.02,rounding_size=0.1", "edgecolor": BLACK, "linewidth": 0.8, "zorder": 3}
    ax.add_patch(FancyBboxPatch(corner, WIDE, high, facecolor=colour, **style))
    ax.text(x, y, text, ha="center", va="center", fontsize=7.5, fontweight=weight, linespacing=1.1, zorder=4)


def shapes_of(block) -> dict[str, tuple[int, int]]:
    """The shapes of the seven matrices of a Llama block, for :func:`decoder_block`."""
    layers = zip((*"qkvo", "gate", "up", "down"), (Q, K, V, O, GATE, UP, DOWN))
    return {name: tuple(attrgetter(layer)(block).weight.shape) for name, layer in layers}


DECODER_BLOCK = (
    "A diagram of one block above a line, the residual stream. Left half: a norm reads the stream and feeds q, k and "
    "v; attention looks at earlier tokens with them; o makes what is added to the stream. Right half: a norm feeds "
    "gate and up; the activation of gate times up feeds down, whose output is added to the stream. Each matrix has its "
    "outputs times its inputs written in it."
)

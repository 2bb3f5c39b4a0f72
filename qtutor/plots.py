"""Pictures: pure functions, data in, matplotlib figure out. Notebooks and widgets only call them.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; no picture relies on colour alone. :func:`show`
puts a figure on the page together with the text that says what it shows.
"""

import io

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

"""Pictures: pure functions from data to a matplotlib figure. Notebooks and widgets only call them.

:mod:`.base` holds the common parts of all pictures; every other module belongs to one chapter. :func:`show` puts a
figure on the page, together with a text that describes it.
"""

from qtutor.plots.base import curves, new_figure, png, show
from qtutor.plots.rtn import matrices, number_line, weights_and_grid
from qtutor.plots.start import bars, product_times, stacked_bytes

__all__ = [
    "bars",
    "curves",
    "matrices",
    "new_figure",
    "number_line",
    "png",
    "product_times",
    "show",
    "stacked_bytes",
    "weights_and_grid",
]

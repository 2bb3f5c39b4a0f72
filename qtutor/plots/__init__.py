"""Pictures: pure functions, data in, matplotlib figure out. Notebooks and widgets only call them.

:mod:`.base` holds what all share, the others are one a chapter. :func:`show` puts a figure on the page together with
the text that says what it shows.
"""

from qtutor.plots.base import curves, new_figure, png, show
from qtutor.plots.rounding import matrices, number_line, weights_and_grid

__all__ = ["curves", "matrices", "new_figure", "number_line", "png", "show", "weights_and_grid"]

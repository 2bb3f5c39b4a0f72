"""Live controls over the pictures in :mod:`qtutor.plots`.

:func:`explore` redraws a picture when a control moves. The picture goes into an ``ipywidgets.Image`` rather than an
``Output``: swapping bytes is several times faster than replaying a cell's output, and does not flicker.
"""

from collections.abc import Callable

import ipywidgets
from matplotlib.figure import Figure

from qtutor import plots


def explore(draw: Callable[..., tuple[Figure, str]], **controls: ipywidgets.ValueWidget) -> ipywidgets.VBox:
    """A column of ``controls`` over the picture that ``draw(**values)`` makes of their values.

    draw: returns the figure and a text (HTML, say a table) with its numbers, which stands beneath it for readers who
    cannot see the picture. Controls can be reached and moved by keyboard. Where ``draw`` raises, the message is shown
    in place of the text and the last picture stays.
    """
    picture = ipywidgets.Image(format="png")
    text = ipywidgets.HTML()

    def redraw(_change=None) -> None:
        try:
            figure, caption = draw(**{name: control.value for name, control in controls.items()})
        except ValueError as error:
            text.value = f"<p role='alert'><b>{error}</b></p>"
            return
        picture.value, text.value = plots.png(figure), caption

    for control in controls.values():
        control.observe(redraw, names="value")
    redraw()
    return ipywidgets.VBox([*controls.values(), picture, text])

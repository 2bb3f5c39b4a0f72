"""Live controls over a picture: :func:`explore`, which all widgets of the course use."""

from collections.abc import Callable
from html import escape

import ipywidgets
from matplotlib.figure import Figure

from qtutor.course.widgets.frames import describe, frame, label, page
from qtutor.errors import QtutorError

Draw = Callable[..., tuple[Figure, str] | str]


def explore(
    draw: Draw,
    *,
    frames: dict[str, list] | None = None,
    alt: str | Callable[..., str] | None = None,
    **controls: ipywidgets.ValueWidget,
) -> "Explorer":
    """A column of ``controls`` above the picture that ``draw(**values)`` makes from their values.

    draw: returns a figure and a text (HTML, such as :func:`html_table`) with its numbers, or such a text alone. If it
    raises ValueError, the message is shown below the last picture.
    frames: the values of controls that are drawn beforehand, in every combination, for pages without a kernel:
    ``{"bits": [2, 3, 4], "symmetric": [False, True]}`` makes six frames of about 10 kB. Without it, one still picture.
    alt: a description for readers who cannot see the picture: a function of the values, or a sentence, to which the
    values are added. Raises :class:`QtutorError` for a figure without ``alt``.

    The keyboard can move the controls. The picture is exchanged inside one HTML widget. This is several times faster
    than replaying a cell's output, does not flicker, and has an alt text, which an image widget cannot have.
    """
    picture = _Picture(draw, alt, controls)
    still = page(controls, frames or {}, picture.frame)
    for control in controls.values():
        control.observe(picture.redraw, names="value")
    picture.redraw()
    return Explorer([*controls.values(), picture.shown], still)


class Explorer(ipywidgets.VBox):
    """What :func:`explore` returns. Its output holds two forms, and the page shows the one that it can.

    JupyterLab with a kernel shows the live form, ``children``. The stored notebook and the book show the other form,
    :attr:`still` (HTML). The text with them is the same in every run, so that tests can compare stored outputs.
    """

    def __init__(self, children: list, still: str):
        super().__init__(children)
        self.still = still

    def _repr_mimebundle_(self, **kwargs) -> dict:
        data = super()._repr_mimebundle_(**kwargs)
        return data | {"text/plain": "(controls over a picture: run this cell to move them)", "text/html": self.still}


class _Picture:
    """The picture under the controls: drawn again when a control moves, and beforehand for the still form."""

    def __init__(self, draw: Draw, alt: str | Callable[..., str] | None, controls: dict):
        self.draw, self.alt, self.controls = draw, alt, controls
        self.shown, self.last = ipywidgets.HTML(), ""

    def redraw(self, _change=None) -> None:
        values = {name: control.value for name, control in self.controls.items()}
        try:
            drawn = self.draw(**values)
        except ValueError as error:
            self.shown.value = self.last + _alert(error)
            return
        self.shown.value = self.last = frame(drawn, self._described(drawn, values), small=False)

    def frame(self, **values) -> str:
        """One frame of the still form."""
        try:
            drawn = self.draw(**values)
        except ValueError as error:
            return _alert(error)
        return frame(drawn, self._described(drawn, values), small=True)

    def _described(self, drawn: tuple[Figure, str] | str, values: dict) -> str:
        if isinstance(drawn, str):
            return ""  # a text needs no description
        if self.alt is None:
            raise QtutorError("this picture needs alt=..., a description for people who cannot see it.")
        if callable(self.alt):
            return self.alt(**values)
        settings = (f"{describe(self.controls[n], n)} {label(self.controls[n], values[n])}" for n in values)
        return f"{self.alt} Now {', '.join(settings)}."


def _alert(error: ValueError) -> str:
    return f"<p role='alert'><b>{escape(str(error))}</b></p>"


def html_table(header: list, *rows: list, caption: str = "") -> str:
    """An HTML table with the numbers of a picture."""
    room = "style='padding:0.2em 0.7em;text-align:left'"  # widgets have no style sheet for tables
    lines = ["".join(f"<th scope='col' {room}>{escape(str(cell))}</th>" for cell in header)]
    lines += ["".join(f"<td {room}>{escape(str(cell))}</td>" for cell in row) for row in rows]
    above = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{above}{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"

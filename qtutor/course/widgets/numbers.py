"""A number under a microscope: the same number in seven formats, as bits that can be flipped, over the formats' grids.

:func:`lens` is the picture with its table; :func:`microscope` puts live bits above it. When a bit is flipped, the new
code's value becomes the number, and all other formats show it. For pages without a kernel, a few numbers are drawn
beforehand.
"""

import math
from functools import partial
from html import escape

import ipywidgets
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from qtutor.core.numbers import BF16, E4M3, E5M2, FP16, FP32, FloatFormat, IntFormat
from qtutor.course.widgets.explorer import Explorer, html_table
from qtutor.course.widgets.frames import frame, page
from qtutor.plots.numbers import FIELDS, grids, label

NUMBERS = (0.15625, 3.14159, 0.1, -1 / 3, 7.9, 300.0, 70000.0, 1e-7)
REACHES = (1.0, 8.0, 128.0)
WINDOWS = {"± 0.1 %": 0.001, "± 2 %": 0.02, "± 20 %": 0.2, "± 200 %": 2.0}
BIT = 19  # pixels: then 32 bits and the names of the formats fit in JupyterLab on a screen of 1280


def formats(reach: float) -> list[FloatFormat | IntFormat]:
    """The seven formats; the scales of int8 and int4 make their lowest code mean ``-reach``."""
    return [FP32, BF16, FP16, E4M3, E5M2, IntFormat(8, reach / 128), IntFormat(4, reach / 8)]


def code_of(fmt, value: float) -> int | None:
    """The code nearest to ``value``; ``None`` for a NaN in a format that has none."""
    return None if isinstance(fmt, IntFormat) and math.isnan(value) else int(fmt.encode(value))


def lens(number: float, reach: float = 8.0, window: float = 0.2) -> tuple[Figure, str] | str:
    """The levels of every format from ``number * (1 - window)`` to ``number * (1 + window)``, and a table of the number
    in each format. For infinity and NaN, the table alone."""
    rows = []
    for fmt in formats(reach):
        code = code_of(fmt, number)
        if code is None:
            rows.append([label(fmt), "has no NaN", "", ""])
            continue
        value = float(fmt.decode(code))
        rows.append([label(fmt), f"{code:0{fmt.bits}b}", f"{value:.9g}", _error(number, value)])
    table = html_table(["format", "bits", "value", "error"], *rows, caption=f"The number is {number:.9g}")
    if not math.isfinite(number):
        return table
    # Zero has no size, so the window is absolute. The smallest numbers need a window that shows their neighbours.
    half = window * max(abs(number), FP32.smallest_normal) if number else window
    return grids(formats(reach), number - half, number + half, number), table


def lens_alt(number: float, reach: float = 8.0, **_others) -> str:
    """The picture of :func:`lens` in words."""
    given = ", ".join(
        f"{fmt.name} {float(fmt.round(number)):.6g}" for fmt in formats(reach) if code_of(fmt, number) is not None
    )
    return f"The levels of seven formats around {number:.6g}, and an arrow from it to the nearest of each: {given}."


def _error(number: float, value: float) -> str:
    if not math.isfinite(number) or not math.isfinite(value):
        return "" if value == number or math.isnan(number) else "out of range"
    if value == number:
        return "exact"
    share = f" ({abs(value - number) / abs(number):.2g} of it)" if number else ""
    return f"{value - number:+.3g}{share}"


def bits_html(number: float, reach: float) -> str:
    """The bits as coloured text, for pages without buttons: a box for each field, with its letter in front."""
    lines = []
    for fmt in formats(reach):
        code = code_of(fmt, number)
        bits = "no NaN" if code is None else f"{code:0{fmt.bits}b}"
        boxes, start = [], 0
        for letter in dict.fromkeys(fmt.layout):
            name, colour = FIELDS[letter]
            end = start + fmt.layout.count(letter)
            style = f"color:black;background:{colour};padding:0 4px;margin-right:2px"
            boxes.append(f"<span title='{name}' style='{style}'><small>{letter}</small> {bits[start:end]}</span>")
            start = end
        head = f"<span style='display:inline-block;width:7.5em'>{label(fmt)}</span>"
        lines.append(f"<div style='white-space:nowrap;line-height:1.6'>{head}<code>{''.join(boxes)}</code></div>")
    return f"<div style='overflow-x:auto'>{''.join(lines)}</div>"


class Row:
    """The bits of one format as buttons, under the letters of their fields."""

    def __init__(self, fmt, flip):
        self.title = ipywidgets.HTML(layout={"width": "124px", "flex": "0 0 auto"})
        letters = "".join(
            f"<span style='{_cell(fmt, i)};text-align:center'>{c}</span>" for i, c in enumerate(fmt.layout)
        )
        self.buttons = []
        for place, letter in enumerate(fmt.layout):
            tooltip = f"{fmt.name}: flip bit {fmt.bits - 1 - place}, {FIELDS[letter][0]}"
            button = ipywidgets.Button(tooltip=tooltip, layout=_button_layout(fmt, place))
            button.style.text_color = "black"
            button.on_click(partial(flip, fmt.name, fmt.bits - 1 - place))
            self.buttons.append(button)
        header = ipywidgets.HTML(f"<div style='display:flex;line-height:1;font-size:10px'>{letters}</div>")
        bits = ipywidgets.VBox([header, ipywidgets.HBox(self.buttons)], layout={"flex": "0 0 auto"})
        self.box = ipywidgets.HBox([self.title, bits])

    def show(self, fmt, code: int | None) -> None:
        value = "has no NaN" if code is None else f"{float(fmt.decode(code)):.9g}"
        self.title.value = f"<div style='line-height:1.2'><b>{label(fmt)}</b><br>{value}</div>"
        for button, letter, bit in zip(self.buttons, fmt.layout, f"{code or 0:0{fmt.bits}b}"):
            button.description = bit
            # A 0 is paler than a 1, but the digit shows it, too.
            button.style.button_color = FIELDS[letter][1] if bit == "1" else pale(FIELDS[letter][1])


def pale(colour: str) -> str:
    """The colour mixed with white, one part in three. Opaque: black digits on it are legible in a dark theme, too."""
    return to_hex([1 - (1 - part) / 3 for part in to_rgb(colour)])


def _gap(fmt, place: int) -> int:
    """Pixels before a bit: more where a field begins."""
    return 6 if place and fmt.layout[place] != fmt.layout[place - 1] else 0


def _cell(fmt, place: int) -> str:
    return f"width:{BIT}px;margin-left:{_gap(fmt, place)}px;flex:0 0 auto"


def _button_layout(fmt, place: int) -> dict:
    return {"width": f"{BIT}px", "height": "21px", "padding": "0", "margin": f"0 0 0 {_gap(fmt, place)}px"}


def microscope(number: float = 0.15625) -> Explorer:
    """The widget. Every bit is a button (Tab reaches it, Space flips it); the number can also be typed."""
    typed = ipywidgets.FloatText(value=number, description="number")
    reach = ipywidgets.Dropdown(options=[(f"{r:g}", r) for r in REACHES], value=8.0, description="ints reach")
    window = ipywidgets.Dropdown(options=list(WINDOWS.items()), value=0.2, description="window")
    shown = ipywidgets.HTML()

    def flip(name: str, bit: int, _button) -> None:
        fmt = next(fmt for fmt in formats(reach.value) if fmt.name == name)
        typed.value = float(fmt.decode((code_of(fmt, typed.value) or 0) ^ (1 << bit)))

    rows = {fmt.name: Row(fmt, flip) for fmt in formats(reach.value)}

    def redraw(_change=None) -> None:
        for fmt in formats(reach.value):
            rows[fmt.name].show(fmt, code_of(fmt, typed.value))
        drawn = lens(typed.value, reach.value, window.value)
        alt = "" if isinstance(drawn, str) else lens_alt(typed.value, reach.value)
        shown.value = frame(drawn, alt, small=False)

    for control in (typed, reach, window):
        control.observe(redraw, names="value")
    redraw()
    legend = " &nbsp; ".join(f"<b>{letter}</b> {escape(name)}" for letter, (name, _) in FIELDS.items())
    controls = ipywidgets.HBox([typed, reach, window], layout={"flex_flow": "row wrap"})
    bits = ipywidgets.VBox([row.box for row in rows.values()], layout={"overflow": "auto"})
    return Explorer([controls, ipywidgets.HTML(legend), bits, shown], _still(number))


def _still(number: float) -> str:
    """A few numbers drawn beforehand, with their bits as text."""
    numbers = list(dict.fromkeys([number, *NUMBERS]))
    control = ipywidgets.Dropdown(options=[(f"{n:.6g}", n) for n in numbers], value=number, description="number")

    def draw_frame(number: float) -> str:
        return bits_html(number, 8.0) + frame(lens(number), lens_alt(number), small=True)

    return page({"number": control}, {"number": numbers}, draw_frame)

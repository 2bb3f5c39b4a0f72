"""The still form of a widget, for pages without a kernel (the stored notebook, the book): pictures drawn beforehand.

A frame is the picture for one setting of the controls. :func:`page` makes one piece of HTML that needs nothing else: no
request, no library, no id (so the same piece may be on a page twice). It holds the frames as JSON, and a few lines of
script exchange them. Where scripts do not run (GitHub, a notebook that is not trusted yet), the first frame is an
ordinary picture, its controls are off, and a line says what to do.
"""

import base64
import io
import itertools
import json
from collections.abc import Callable
from html import escape

import ipywidgets
from matplotlib.figure import Figure
from PIL import Image

from qtutor.errors import QtutorError
from qtutor.plots.base import card

FRAME_DPI = 80
FRAME_COLOURS = 96  # enough for antialiased lines and both sides of a colour map; a picture takes 6 to 12 kB
LARGEST = 500_000  # characters in one widget; a chapter has two or three widgets and must stay below 2 MB
STILL = "A still picture. To move the controls, run this cell in a notebook."

SCRIPT = """
for (const box of document.querySelectorAll("div.qtutor-frames[data-still]")) {
  box.removeAttribute("data-still");
  const frames = JSON.parse(box.querySelector("script[type='application/json']").textContent);
  const controls = [...box.querySelectorAll("[data-labels]")];
  const show = () => {
    let index = 0;  // frames are in the order of a product: the last control turns fastest
    for (const control of controls) {
      const labels = JSON.parse(control.dataset.labels);
      const chosen = control.type === "checkbox" ? Number(control.checked) : Number(control.value);
      index = index * labels.length + chosen;
      if (control.type === "range") {
        control.setAttribute("aria-valuetext", labels[chosen]);
        control.parentElement.querySelector("output").textContent = labels[chosen];
      }
    }
    box.querySelector("[data-frame]").innerHTML = frames[index];
  };
  for (const control of controls) {
    control.disabled = false;
    control.addEventListener("input", show);
  }
  box.querySelector("[data-remark]").hidden = controls.length > 0;
}
"""


def frame(drawn: str | tuple[Figure, str], alt: str, small: bool) -> str:
    """The result of ``draw`` as HTML: the picture with its alt text, then the numbers.

    drawn: HTML alone, or a figure and the HTML below it. small: use fewer dots and colours, for stored frames.
    """
    if isinstance(drawn, str):
        return drawn
    figure, numbers = drawn
    data, (width, height) = _png(figure, small)
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    # With its size given, the page does not move while the browser decodes a picture; "sync" avoids white flashes.
    style = "max-width:100%;height:auto"
    picture = (
        f'<img alt="{escape(alt)}" width="{width}" height="{height}" decoding="sync" style="{style}" src="{source}">'
    )
    return f"{picture}{numbers}"


def _png(figure: Figure, small: bool) -> tuple[bytes, tuple[int, int]]:
    """PNG bytes and size in dots. Equal figures give equal bytes."""
    image = card(figure, FRAME_DPI if small else 100, within=True)
    if small:
        image = image.quantize(FRAME_COLOURS, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=small, compress_level=9 if small else 1)
    return buffer.getvalue(), image.size


def page(controls: dict[str, ipywidgets.ValueWidget], frames: dict[str, list], draw_frame: Callable[..., str]) -> str:
    """HTML with a frame for every combination of the values in ``frames``, and a control for each of its names.

    controls: the live controls; those not in ``frames`` keep their value, and the page shows it. draw_frame:
    ``draw_frame(**values)`` returns the HTML of one frame. Raises :class:`QtutorError` if ``frames`` has a name that no
    control has, if it leaves out the value with which a control starts, or if the HTML is too large to be stored.
    """
    start = {name: control.value for name, control in controls.items()}
    _check(start, frames)
    pictures = [
        draw_frame(**start | dict(zip(frames, values, strict=True))) for values in itertools.product(*frames.values())
    ]
    first = 0
    for name, values in frames.items():
        first = first * len(values) + values.index(start[name])
    # "</" would end the script element early, and "<\/" is the same string in JSON.
    stored = json.dumps(pictures, ensure_ascii=False).replace("</", "<\\/")
    if len(stored) > LARGEST:
        raise QtutorError(
            f"{len(pictures)} frames take {len(stored):,} characters, more than the {LARGEST:,} that one widget may "
            "add to a notebook. Name fewer values in frames."
        )
    moved = "".join(_control(controls[name], name, values, start[name]) for name, values in frames.items())
    fixed = "; ".join(
        f"{describe(controls[n], n)}: {label(controls[n], v)}" for n, v in start.items() if n not in frames
    )
    return (
        # suppress-shortcuts: in JupyterLab, a key pressed on a control moves the control, not the selected cell.
        f'<div class="qtutor-frames" data-still data-lm-suppress-shortcuts="true" role="group">{moved}'
        f'<div data-frame aria-live="polite" style="overflow-x:auto">{pictures[first]}</div>'
        f"<p><small>{f'Here {escape(fixed)}. ' if fixed else ''}<span data-remark>{STILL}</span></small></p>"
        f'<script type="application/json">{stored}</script><script>{SCRIPT}</script></div>'
    )


def _check(start: dict, frames: dict[str, list]) -> None:
    """Refuse frames that do not fit the controls, whose first values are ``start``."""
    for name, values in frames.items():
        if name not in start:
            raise QtutorError(f"frames: there is no control {name!r}. The controls are {', '.join(map(repr, start))}.")
        if start[name] not in values:
            raise QtutorError(
                f"frames: {name} = {values!r} has no frame for {start[name]!r}, which the control starts with. Add it, "
                "or start with another value."
            )


def _control(control: ipywidgets.ValueWidget, name: str, values: list, start) -> str:
    """A live control as plain HTML, with the values that have a frame. The control is off until scripts run."""
    labels = [label(control, value) for value in values]
    shared = f"data-labels='{escape(json.dumps(labels, ensure_ascii=False))}' autocomplete=\"off\" disabled"
    at = values.index(start)
    if values == [False, True]:
        inner = f'<input type="checkbox" {shared}{" checked" if start else ""}>'
    elif "Slider" in type(control).__name__:
        inner = (
            f'<input type="range" min="0" max="{len(values) - 1}" step="1" value="{at}" '
            f'aria-valuetext="{escape(labels[at])}" {shared}> <output>{escape(labels[at])}</output>'
        )
    else:
        options = "".join(
            f'<option value="{i}"{" selected" if i == at else ""}>{escape(text)}</option>'
            for i, text in enumerate(labels)
        )
        inner = f'<select style="max-width:100%" {shared}>{options}</select>'
    return f'<p style="margin:0.2em 0"><label>{escape(describe(control, name))} {inner}</label></p>'


def describe(control: ipywidgets.ValueWidget, name: str) -> str:
    """The name of a control on the page."""
    return getattr(control, "description", "") or name.replace("_", " ")


def label(control: ipywidgets.ValueWidget, value) -> str:
    """The text that a control shows for ``value``: the option's text, yes or no, or the value itself."""
    for option in getattr(control, "options", ()):
        if isinstance(option, tuple) and len(option) == 2 and option[1] == value:
            return str(option[0])
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)

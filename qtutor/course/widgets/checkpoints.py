"""One block of a layer in the bytes of four formats: click a weight to see its bits in each of them.

:func:`four_formats` is the widget, and :func:`formats_html` the picture in it: plain HTML with a few lines of script in
its attributes, which works the same in a live widget, in the stored notebook and in the book. Weights are buttons (Tab
reaches them, arrows go from one to the next). :mod:`qtutor.course.layouts` finds the places.
"""

from collections.abc import Mapping
from html import escape

import ipywidgets
import torch

from qtutor.core.quantized import QuantizedTensor
from qtutor.course.layouts import GRID, INPUTS, OUTPUTS, Laid, Part, block_of, side_by_side
from qtutor.course.widgets.explorer import Explorer, explore
from qtutor.errors import QtutorError
from qtutor.methods import rtn

STYLE = """
.qtutor-formats {overflow-x: auto; padding: 2px}
.qtutor-formats .codes {display: grid; grid-template-columns: 6.5em repeat(32, 17px); font: 12px/19px monospace}
.qtutor-formats .codes button {font: 12px monospace; width: 17px; height: 19px; margin: 0; padding: 0; cursor: pointer;
  color: inherit; background: transparent; border: 0; border-radius: 2px}
.qtutor-formats .codes button[aria-pressed=true] {color: black; background: #F0E442; font-weight: bold;
  box-shadow: 0 0 0 2px black}
.qtutor-formats .codes button:focus-visible {outline: 3px solid #0072B2; outline-offset: 2px}
.qtutor-formats .panels {display: flex; flex-wrap: wrap; gap: 10px 26px; margin-top: 0.7em}
.qtutor-formats .panel {flex: 0 1 auto; line-height: 1.35; width: 23.5em}
.qtutor-formats pre {font: 12px/1.45 monospace; margin: 0; padding: 0; background: transparent; color: inherit;
  overflow: visible}
.qtutor-formats .where {margin: 0}
.qtutor-formats i {font-style: normal}
.qtutor-formats .w {color: black; background: #F0E442; font-weight: bold; text-decoration: underline;
  box-shadow: 0 0 0 1px black}
.qtutor-formats .s {color: black; background: #56B4E9}
.qtutor-formats .z {color: black; background: #E69F00; font-weight: bold}
"""
# show(weight): mark its half bytes in every panel, and say where they are.
SHOW = """
const show = (box, chosen) => {
  const buttons = [...box.querySelectorAll('.codes button')], w = buttons.indexOf(chosen), o = Math.floor(w / 32);
  for (const button of buttons) {
    button.setAttribute('aria-pressed', button === chosen);
    button.tabIndex = button === chosen ? 0 : -1;
  }
  box.querySelector('.about').textContent = chosen.getAttribute('aria-label');
  for (const panel of box.querySelectorAll('.panel')) {
    const [codes, scales, zeros] = ['codes', 'scales', 'zeros'].map(what => JSON.parse(panel.dataset[what]));
    const marks = {w: codes[w], s: scales[o], z: zeros[o] || []};
    const places = [...panel.querySelectorAll('i')];
    for (const place of places) place.className = '';
    /* of a byte the high half is written first, and numbered second */
    for (const kind of 'szw') for (const at of marks[kind]) places[at ^ 1].className = kind;
    const at = marks.w[0], unit = Number(panel.dataset.bytes) * 2, n = Math.floor(at / unit), inside = at % unit;
    const bits = panel.dataset.unit === 'word' ? 'bits ' + 4 * inside + ' to ' + (4 * inside + 3)
      : 'byte ' + Math.floor(inside / 2) + ', ' + (inside % 2 ? 'high' : 'low') + ' half';
    panel.querySelector('.where').textContent = panel.dataset.unit + ' ' + n + ', ' + bits + ' (byte '
      + Math.floor(at / 2) + ' of the block)';
  }
};
"""
CLICK = (
    SHOW
    + """
const chosen = event.target.closest('.codes button');
if (chosen) show(this, chosen);
"""
)
KEY = """
const buttons = [...this.querySelectorAll('.codes button')], w = buttons.indexOf(event.target);
const step = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -32, ArrowDown: 32}[event.key];
const next = w >= 0 && step ? buttons[w + step] : null;
if (next) { event.preventDefault(); next.focus(); next.click(); }
"""


def four_formats(
    layers: Mapping[str, QuantizedTensor] | torch.Tensor, *, frames: dict[str, list] | None = None
) -> Explorer:
    """The widget: controls for a layer and one of its blocks, above the block's codes and its bytes in four formats.

    layers: packed layers by name, of symmetric 4 bits in groups of 32; or one float matrix, which is rounded in this
    way. frames: as in :func:`.explore`; by default the first block of up to three layers. Raises :class:`QtutorError`
    for layers of another grid, and if there are no layers.
    """
    if isinstance(layers, torch.Tensor):
        layers = {"weights": rtn.quantize(layers, GRID, INPUTS)}
    if not layers:
        raise QtutorError("there is no layer to show: give a dict from names to quantized layers.")
    first = next(iter(layers))
    block_of(layers[first])  # raises for another grid
    chooser = ipywidgets.Dropdown(options=list(layers), value=first, description="layer")
    outputs, inputs = (ipywidgets.BoundedIntText(value=0, min=0, description=name) for name in ("outputs", "inputs"))

    def fit(change) -> None:
        shape = layers[change.new].shape
        for control, count in ((outputs, shape[0] // OUTPUTS), (inputs, shape[1] // INPUTS)):
            control.max, control.disabled = count - 1, count == 1

    fit(type("Change", (), {"new": first}))
    chooser.observe(fit, names="value")

    def draw(layer: str, outputs: int, inputs: int) -> str:
        title = f"{layer}: outputs from {OUTPUTS * outputs}, inputs from {INPUTS * inputs}"
        return formats_html(block_of(layers[layer], outputs, inputs), title, OUTPUTS * outputs, INPUTS * inputs)

    frames = {"layer": list(layers)[:3]} if frames is None and len(layers) > 1 else frames
    return explore(draw, frames=frames or {}, layer=chooser, outputs=outputs, inputs=inputs)


def formats_html(block: QuantizedTensor, title: str, output: int = 0, input: int = 0, start: int = 0) -> str:
    """A block as HTML: its codes as buttons, and four dumps of bytes. output, input: those of its first weight.

    start: the weight that is marked at first, 0 to 255.
    """
    codes, weights = block.codes.flatten().tolist(), block.dequantize().flatten().tolist()
    scales = block.scales.flatten().tolist()
    labels = [
        f"output {output + w // INPUTS}, input {input + w % INPUTS}: code {code:x} = {code}, {code - GRID.middle:+d} "
        f"steps of {scales[w // INPUTS]:.5g} = {weight:.5g}"
        for w, (code, weight) in enumerate(zip(codes, weights))
    ]
    cells = []
    for w, code in enumerate(codes):
        if w % INPUTS == 0:
            cells.append(f"<span>output {output + w // INPUTS}</span>")
        cells.append(
            f"<button type=button tabindex={-1 if w != start else 0} aria-pressed={str(w == start).lower()} "
            f"aria-label='{labels[w]}'>{code:x}</button>"
        )
    panels = "".join(_panel_html(laid, start) for laid in side_by_side(block))
    return (
        f"<div class='qtutor-formats' data-lm-suppress-shortcuts='true' onclick=\"{escape(CLICK)}\" "
        f'onkeydown="{escape(KEY)}"><style>{STYLE}</style>'
        f"<p><b>{escape(title)}</b>. Each digit is a code, 0 to f. Click one, or move with the arrows.</p>"
        f"<div class='codes' role='group' aria-label='the codes of the block: arrows move'>{''.join(cells)}</div>"
        f"<p class='about' aria-live='polite' style='font-weight:bold'>{labels[start]}</p>"
        "<p>In the bytes: <i class='w'>its code</i>, <i class='s'>its scale</i>, <i class='z'>its zero point</i>.</p>"
        f"<div class='panels'>{panels}</div></div>"
    )


def _panel_html(laid: Laid, start: int) -> str:
    places, at, dumps = {"codes": [], "scales": [], "zeros": []}, 0, []
    for part in laid.parts:
        for what in places:
            if what in part.holds:
                places[what] = (laid.places(what) + at).tolist()
        at += 2 * len(part.data)
    marks = {place: "s" for place in places["scales"][start // INPUTS]}
    marks |= {place: "z" for place in (places["zeros"] or [[]] * OUTPUTS)[start // INPUTS]}
    marks |= {place: "w" for place in places["codes"][start]}
    at = 0
    for part in laid.parts:
        dumps.append(_dump_html(part, laid, at, marks))
        at += 2 * len(part.data)
    data = " ".join(f"data-{what}='{str(of).replace(' ', '')}'" for what, of in places.items())
    own = places["codes"][start][0]
    unit, inside = divmod(own, 2 * laid.unit_bytes)
    where = f"bits {4 * inside} to {4 * inside + 3}" if laid.unit == "word" else _half(inside)
    return (
        f"<div class='panel' data-unit='{laid.unit}' data-bytes='{laid.unit_bytes}' {data}><b>{laid.format}</b>"
        f"<p class='where'>{laid.unit} {unit}, {where} (byte {own // 2} of the block)</p>{''.join(dumps)}</div>"
    )


def _half(inside: int) -> str:
    return f"byte {inside // 2}, {'high' if inside % 2 else 'low'} half"


def _dump_html(part: Part, laid: Laid, first: int, marks: dict[int, str]) -> str:
    """The bytes of a tensor, two digits each, in groups of four. A half byte is an element; the high one is first."""
    ahead = laid.unit_bytes % 4  # a Q4_0 block has two bytes of scale before its codes
    row = laid.unit_bytes if laid.unit == "block" else 16
    lines = []
    for start in range(0, len(part.data), row):
        digits = ""
        for i, value in enumerate(part.data[start : start + row].tolist()):
            place = first + 2 * (start + i)
            gap = " " if i and (i - ahead) % 4 == 0 else ""
            digits += gap + _digit(value >> 4, place + 1, marks) + _digit(value & 15, place, marks)
        lines.append(digits)
    shape = ", ".join(map(str, part.shape))
    return f"<small>{part.name}: {part.kind} [{shape}]</small><pre>{chr(10).join(lines)}</pre>"


def _digit(value: int, place: int, marks: dict[int, str]) -> str:
    return f"<i class={marks[place]}>{value:x}</i>" if place in marks else f"<i>{value:x}</i>"

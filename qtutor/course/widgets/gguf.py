"""A block of a GGUF file, byte by byte: click a byte to see what its bits mean and which weights they change.

:func:`block_view` is the widget, and :func:`block_html` the picture in it: plain HTML with a few lines of script in its
attributes. So the same text works without a kernel in a live widget, in the stored notebook and in the book. Bytes are
buttons (Tab reaches them, arrows go from one to the next). :mod:`qtutor.gguf.anatomy` supplies the content of the
widget, and also the output of `qtutor inspect --tensor`.
"""

from html import escape
from pathlib import Path

import ipywidgets
import numpy as np
import torch

from qtutor.course.widgets.explorer import Explorer, explore
from qtutor.errors import QtutorError
from qtutor.gguf import TYPES, encode, read
from qtutor.gguf.anatomy import item_counts, item_value, parts_of
from qtutor.gguf.hexview import (
    COLOURS,
    ROW,
    Block,
    block_of,
    check_number,
    format_numbers,
    formula,
    items_of,
    part_text,
)
from qtutor.gguf.reader import GGUFFile

# The book's theme has a class "row" of its own, with margins and paddings: they are undone here.
STYLE = """
.qtutor-block {overflow-x: auto; padding: 2px}
.qtutor-block button {font: 13px monospace; width: 27px; height: 23px; margin: 0 2px 2px 0; padding: 0;
  color: black; background: var(--field); border: 0; border-radius: 2px; cursor: pointer}
.qtutor-block button[aria-pressed=true] {box-shadow: 0 0 0 2px black, 0 0 0 3px white; font-weight: bold}
.qtutor-block button:focus-visible {outline: 3px solid #0072B2; outline-offset: 2px}
.qtutor-block ul {margin: 0; padding-left: 1.2em}
.qtutor-block i {display: inline-block; width: 2.4em; padding: 0; font: 11px monospace; opacity: 0.7}
.qtutor-block .row {display: block; margin: 0; white-space: nowrap}
.qtutor-block .parts {display: flex; flex-wrap: wrap; gap: 4px 28px; line-height: 1.4}
.qtutor-block .name {color: black; background: var(--field); padding: 0 5px; font-family: monospace}
.qtutor-block .weights {display: grid; grid-template-columns: 2.4em repeat(16, var(--width));
  font: 10px monospace; line-height: 1.6}
.qtutor-block .weights span {padding: 0 2px; text-align: right}
.qtutor-block .weights .on {background: rgba(230, 159, 0, 0.35); text-decoration: underline}
@media (max-width: 620px) { /* on a phone a line holds half as many, so that nothing has to be scrolled sideways */
  .qtutor-block .row {box-sizing: content-box; white-space: normal; max-width: 232px; padding-left: 28px}
  .qtutor-block .row i {width: 28px; margin-left: -28px}
  .qtutor-block .weights {grid-template-columns: 2.4em repeat(8, var(--width))}
  .qtutor-block .weights span:nth-of-type(8n+1) {grid-column: 2}
}
"""
CLICK = """
const chosen = event.target.closest('[data-weights]');
if (!chosen) return;
for (const byte of this.querySelectorAll('[data-weights]')) {
  byte.setAttribute('aria-pressed', byte === chosen);
  byte.tabIndex = byte === chosen ? 0 : -1;
}
this.querySelector('.about').innerHTML = chosen.dataset.about;
const ranges = chosen.dataset.weights.split(' ').map(range => range.split('-').map(Number));
this.querySelectorAll('.weights span').forEach((weight, i) =>
  weight.classList.toggle('on', ranges.some(([first, last]) => first <= i && i <= last)));
"""
KEY = """
const rows = [...this.querySelectorAll('.row')].map(row => [...row.querySelectorAll('button')]);
const row = rows.find(row => row.includes(event.target));
if (!row) return;
const bytes = rows.flat(), other = rows[rows.indexOf(row) + {ArrowUp: -1, ArrowDown: 1}[event.key]];
const next = other
  ? other[Math.min(row.indexOf(event.target), other.length - 1)]
  : bytes[bytes.indexOf(event.target) + {ArrowLeft: -1, ArrowRight: 1}[event.key]];
if (next) { event.preventDefault(); next.focus(); next.click(); }
"""


def block_view(
    source: str | Path | GGUFFile | np.ndarray | torch.Tensor,
    tensor: str | None = None,
    block: int = 0,
    *,
    frames: dict[str, list] | None = None,
) -> Explorer:
    """The widget: controls for a tensor and the number of a block, above the bytes of that block.

    source: an open GGUF file, or its path; or weights ``[rows, columns]`` of any float dtype. For weights, ``tensor``
    is the type that encodes them, and the control offers all types that fit. frames: as in :func:`.explore`; by default
    this block in up to three tensors of different types.
    """
    if isinstance(source, str | Path):
        source = read(source)
    kind, choices, find, count = _of_file(source) if isinstance(source, GGUFFile) else _of_rows(source)
    if tensor is None:
        tensor = next((name for name, of in choices.items() if TYPES[of].values > 1), next(iter(choices)))
    find(tensor, block)  # raises for a wrong name or number, and says which would be right
    if tensor not in choices:
        raise QtutorError(f"{tensor}: qtutor does not decode this type. It decodes {', '.join(choices)}.")
    if frames is None:
        shown = {choices[tensor]: tensor}
        for name, of in choices.items():
            if TYPES[of].values > 1 and block < count(name):
                shown.setdefault(of, name)
        frames = {kind: list(shown.values())[:3]} if len(shown) > 1 else {}
    chooser = ipywidgets.Dropdown(options=list(choices), value=tensor, description=kind)
    number = ipywidgets.BoundedIntText(value=block, min=0, max=count(tensor) - 1, description="block")
    number.disabled = number.max == 0  # a single block leaves no choice

    def fit(change) -> None:
        number.max = count(change.new) - 1
        number.disabled = number.max == 0

    chooser.observe(fit, names="value")

    def draw(block: int, **chosen: str) -> str:
        return block_html(find(chosen[kind], block))

    return explore(draw, frames=frames, **{kind: chooser}, block=number)


def _of_file(file: GGUFFile):
    choices = {name: info.type.name for name, info in file.tensors.items() if info.type.name in TYPES}
    if not choices:
        raise QtutorError(f"{file.path} has no tensor that qtutor decodes, so there is no block to show.")

    def count(name: str) -> int:
        return file.tensors[name].nbytes // file.tensors[name].type.nbytes

    return "tensor", choices, lambda name, number: block_of(file, name, number), count


def _of_rows(rows):
    rows = np.asarray(rows.detach().float().cpu() if isinstance(rows, torch.Tensor) else rows, np.float32)
    if rows.ndim != 2 or not rows.size:
        raise QtutorError(f"weights of shape {list(rows.shape)}: block_view takes [rows, columns], or a GGUF file.")
    choices = {name: name for name, of in TYPES.items() if rows.shape[1] % of.values == 0}

    def find(name: str, number: int) -> Block:
        if name not in choices:
            fitting = ", ".join(choices)
            raise QtutorError(f"{name!r} is not a type for rows of {rows.shape[1]} weights. Choose from {fitting}.")
        blocks, title = rows.reshape(-1, TYPES[name].values), f"weights as {name}"
        check_number(number, len(blocks), title)
        data = encode(blocks[number : number + 1], name)[0]  # blocks are independent of each other
        first = divmod(number * TYPES[name].values, rows.shape[1])
        return Block(title, TYPES[name], data, number, len(blocks), first)

    return "type", choices, find, lambda name: rows.size // TYPES[name].values


def block_html(block: Block) -> str:
    """The block as HTML: the bytes of each field as buttons, what the chosen byte means, and all weights."""
    name, block_type = block.type.name, block.type
    bytes_ = range(block_type.nbytes)
    start = next((byte for byte in bytes_ if len(parts_of(name, byte)[0].weights) < block_type.values), 0)
    moved = _moved(name, start)
    numbers = format_numbers(block.weights, 3)
    cells = "".join(
        (f"<i>{i}</i>" if i % ROW == 0 else "") + f"<span{' class=on' * any(i in of for of in moved)}>{text}</span>"
        for i, text in enumerate(numbers)
    )
    width = max(map(len, numbers))
    return (
        f"<div class='qtutor-block' data-lm-suppress-shortcuts='true' onclick=\"{escape(CLICK)}\" "
        f'onkeydown="{escape(KEY)}"><style>{STYLE}</style>'
        f"<p><b>{escape(str(block))}</b><br>{name}: {block_type.nbytes} bytes for {block_type.values} weights, "
        f"{block_type.bits_per_weight:g} bits a weight; weight = <code>{formula(name)}</code></p>"
        "<div class='parts'><div role='group' aria-label='the bytes of the block: arrows move'>"
        f"{_fields_html(block, start)}</div>"
        f"<div class='about' aria-live='polite' style='flex:1 1 17em'>{about(block, start)}</div></div>"
        f"<p style='margin:0.6em 0 0'>The weights. Those that the chosen byte changes are underlined.</p>"
        f"<div class='weights' role='group' aria-label='the weights of the block' style='--width:{width + 1}ch'>"
        f"{cells}</div></div>"
    )


def _fields_html(block: Block, start: int) -> str:
    name, fields, at = block.type.name, [], 0
    for field in block.type.fields:
        buttons = [_button(block, byte, field.name, start) for byte in range(at, at + field.size)]
        rows = "".join(
            f"<div class='row'><i>{at + i}</i>{''.join(buttons[i : i + ROW])}</div>"
            for i in range(0, len(buttons), ROW)
        )
        alone = f" = {item_value(name, block.data, field.name):.6g}" if field.name in item_counts(name) else ""
        items = "".join(
            f"<br>{item}: {' '.join(f'{v:g}' for v in values)}" for item, values in items_of(block, field.name).items()
        )
        fields.append(
            f"<div style='--field:{COLOURS[field.name][0]}'><span class='name'>{field.name}</span> "
            f"<small>{escape(field.meaning)}{alone}{items}</small>{rows}</div>"
        )
        at += field.size
    return "".join(fields)


def _button(block: Block, byte: int, field: str, start: int) -> str:
    spans = " ".join(f"{of.start}-{of.stop - 1}" for of in _moved(block.type.name, byte))
    text = f"{block.data[byte]:02x}"
    return (
        f"<button type=button tabindex={'0' if byte == start else '-1'} aria-pressed={str(byte == start).lower()} "
        f"aria-label='byte {byte}, {text}, {field}' data-weights='{spans}' "
        f'data-about="{escape(about(block, byte))}">{text}</button>'
    )


def _moved(name: str, byte: int) -> list[range]:
    return list(dict.fromkeys(part.weights for part in parts_of(name, byte)))


def about(block: Block, byte: int) -> str:
    """What a byte means, as HTML: its bits, the parts that they form, and the weights that each part changes."""
    value = int(block.data[byte])
    parts = parts_of(block.type.name, byte)
    groups = dict.fromkeys((part.low, part.bits) for part in parts)
    bits = " ".join(f"{value >> low & (1 << count) - 1:0{count}b}" for low, count in groups)
    lines = "".join(f"<li>{part_text(block, part)}</li>" for part in parts)
    return f"<b>Byte {byte}</b> is {value:02x}, in bits <code>{bits}</code><ul>{lines}</ul>"

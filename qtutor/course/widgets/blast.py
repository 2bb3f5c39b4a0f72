"""Blast radius: click a bit of a Q4_K block and see which weights jump, and what the decoder then writes.

:func:`blast_radius` is plain HTML with a script of its own (``blast.js``), which decodes the block's bytes as an engine
does. So the same HTML works in the live notebook, in the stored one and in the book, without a kernel or a request. The
results that need the decoder itself, a KL for each bit and the texts, are stored (:mod:`qtutor.course.bit_flips`).
Where scripts do not run, a table with the numbers remains.
"""

import statistics
from dataclasses import asdict
from html import escape
from pathlib import Path

from qtutor.course.bit_flips import BLOCK, LAYER, PROMPT, TYPE, bits_by_kind, document, part_of
from qtutor.course.widgets.explorer import html_table
from qtutor.course.widgets.live import Live, stored_with
from qtutor.gguf import TYPES
from qtutor.gguf.anatomy import strips_of

STYLE, SCRIPT = (Path(__file__).with_name(f"blast.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
RANGE = (-8, 1)  # log10 of the KL of the first colour and of the last; values outside get the nearer of the two
# Viridis from its second tenth on: it gets evenly lighter, so it reads without colour, and is never as dark as a theme.
COLOURS = (
    *("#482475", "#424086", "#38598c", "#2d708e", "#25848e", "#1e9b8a"),
    *("#2ab07f", "#52c569", "#86d549", "#c2df23", "#fde725"),
)
FIELDS = {  # heading and the bytes below it
    "d": "d: step of scale codes",
    "dmin": "dmin: step of min codes",
    "scales": "scales and minima, 6 bits each",
    "qs": "codes: two weights a byte",
}
KINDS = {"d": "d", "dmin": "dmin", "scale": "a scale", "min": "a minimum", "code": "a code"}
STILL = "The bits need a script: run this cell in a notebook, or read the chapter in the book."


def blast_radius() -> Live:
    """The widget: a map of all 1,152 bits of a block coloured by KL, its 256 weights as bars, the decoder's text."""
    stored = document()
    shown = {key: stored[key] for key in ("block", "kl", "texts", "text_of")}
    shown |= {"strips": [asdict(strip) for strip in strips_of(TYPE)], "colours": COLOURS, "range": RANGE}
    worst = {kind: max(bits, key=stored["kl"].__getitem__) for kind, bits in bits_by_kind().items()}
    # suppress-shortcuts: in JupyterLab, a key pressed on a bit moves in the map, not to the next cell.
    return Live(
        f"<div class='qtutor-blast' data-still data-start='{worst['scale']}' data-lm-suppress-shortcuts='true' "
        f"role='group' aria-label='one bit of a block, flipped'><style>{STYLE}</style>"
        f"<p><b>{LAYER}, block {BLOCK}, as {TYPE}.</b> Every small square is one of its {len(stored['kl']):,} bits.</p>"
        f"<div class='live' hidden>{_map_html()}{_shortcuts_html(worst)}{_weights_html()}{_texts_html(stored)}</div>"
        f"{_table_html(stored['kl'])}<p data-remark><small>{STILL}</small></p>"
        f"{stored_with(shown)}<script>{SCRIPT}</script></div>",
        plain="(bits over a picture: click one)",
    )


def _map_html() -> str:
    """The places of the bits, which the script fills, and the scale of their colours."""
    fields, at = "", 0
    for field in TYPES[TYPE].fields:
        last = at + field.size - 1
        fields += (
            f"<div class='field' data-field='{field.name}' data-first='{at}' data-last='{last}'>"
            f"<small>{FIELDS[field.name]} (bytes {at} to {last})</small><div class='bytes'></div></div>"
        )
        at = last + 1
    gradient = f"linear-gradient(to right, {', '.join(COLOURS)})"
    return (
        f"<div class='fields' role='group' aria-label='all bits of the block: arrows move'>{fields}</div>"
        f"<div class='scale'><small>KL 10<sup>{RANGE[0]}</sup> or less</small><i style='background:{gradient}'></i>"
        f"<small>10 or more, in nats a token</small></div>"
    )


def _shortcuts_html(worst: dict[str, int]) -> str:
    """Buttons for the worst bit of each kind, the eight bits of the chosen byte, and the sentence about the bit."""
    buttons = "".join(
        f"<button type=button data-bit='{worst[kind]}'>of {KINDS[kind]}</button>" for kind in ("d", "scale", "code")
    )
    return (
        f"<div class='choose'><div>The worst bit {buttons}<button type=button data-bit=''>flip none</button></div>"
        "<div class='byte'><span class='which'></span><span class='large' role='group' "
        "aria-label='the bits of the chosen byte'></span></div></div><p class='about' aria-live='polite'></p>"
    )


def _weights_html() -> str:
    """The frame of the bars: 256 wide, and from -1 to 1 high."""
    return (
        "<div><span class='key'></span>the weights as they are &ensp; <span class='key new'></span>those that move"
        "<span class='wider'></span></div><div class='plot'><div class='axis'><span class='top'></span><span>0</span>"
        "<span class='bottom'></span></div><svg viewBox='0 -1 256 2' preserveAspectRatio='none' role='img'></svg>"
        f"<div class='subs'>{''.join(f'<span>sub {s}</span>' for s in range(8))}</div></div>"
    )


def _texts_html(stored: dict) -> str:
    prompt = f"<span>{escape(PROMPT)}</span>"
    return (
        f"<div class='texts'><div>The decoder writes, as it is<pre>{prompt}{escape(stored['texts'][0])}</pre></div>"
        f"<div>flipped: <span class='told' aria-live='polite'></span><pre>{prompt}<b class='now'></b></pre></div></div>"
    )


def _table_html(kl: list[float]) -> str:
    """For each kind of bit: how many there are, how many weights depend on one, and the cost of flipping one."""
    rows = []
    for kind, bits in bits_by_kind().items():
        of = [kl[bit] for bit in bits]
        depend = len(part_of(bits[0]).weights)
        median = f"{statistics.median(of):.1e}".replace("e-0", "e-")
        rows.append([KINDS[kind], f"{len(bits):,}", depend, median, f"{max(of):.2g}"])
    return html_table(["a bit of", "there are", "weights that depend on it", "median KL", "largest KL"], *rows)

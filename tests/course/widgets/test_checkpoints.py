"""A block in four formats: every code is a button, and its half byte is marked in every dump."""

import json
import re
from html import unescape

import numpy as np
import pytest
import torch

from qtutor.core.grid import IntGrid
from qtutor.course import layouts
from qtutor.course.widgets.checkpoints import formats_html, four_formats
from qtutor.errors import QtutorError
from qtutor.methods import rtn


def layer(rows: int = 16, columns: int = 64, seed: int = 0):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    return rtn.quantize(weight, layouts.GRID, layouts.INPUTS)


def panels_of(html: str) -> list[dict]:
    """For each format: its places by kind, its digits in the order of half bytes, and the mark of each digit."""
    found = []
    for text in html.split("<div class='panel' ")[1:]:
        digits = re.findall(r"<i(?: class=(\w))?>([0-9a-f])</i>", text)
        in_order = [digits[at ^ 1] for at in range(len(digits))]  # the high half of a byte is written first
        places = {
            kind: json.loads(re.search(rf"data-{kind}='([^']*)'", text)[1]) for kind in ("codes", "scales", "zeros")
        }
        found.append({"places": places, "digits": [d for _, d in in_order], "marks": [m for m, _ in in_order],
                      "where": re.search(r"class='where'>([^<]*)<", text)[1]})  # fmt: skip
    return found


def test_buttons_are_the_codes_and_say_what_they_are():
    block = layouts.block_of(layer(), 1, 1)
    html = formats_html(block, "a layer", 8, 32)
    buttons = re.findall(r"<button [^>]*aria-label='([^']*)'>(.)</button>", html)
    assert [int(text, 16) for _, text in buttons] == block.codes.flatten().tolist()
    label = buttons[32 + 3][0]
    code, weight = int(block.codes[1, 3]), float(block.dequantize()[1, 3])
    assert label.startswith(f"output 9, input 35: code {code:x} = {code}, {code - 8:+d} steps of ")
    assert float(label.rpartition("= ")[2]) == pytest.approx(weight, rel=1e-4)
    assert html.count("tabindex=0") == html.count("aria-pressed=true aria-label") == 1


@pytest.mark.parametrize("start", [0, 37, 255])
def test_the_marked_digits_are_the_code_its_scale_and_its_zero_point(start):
    block = layouts.block_of(layer(seed=2))
    html = formats_html(block, "a layer", start=start)
    panels = panels_of(html)
    assert len(panels) == 4
    for panel, zero in zip(panels, (None, "7", "8", None)):
        marked = {kind: [at for at, mark in enumerate(panel["marks"]) if mark == kind] for kind in "wsz"}
        assert marked["w"] == panel["places"]["codes"][start]
        assert "".join(panel["digits"][at] for at in marked["w"]) == f"{int(block.codes.flatten()[start]):x}"
        data = bytes(int(panel["digits"][at + 1] + panel["digits"][at], 16) for at in marked["s"][::2])
        assert np.frombuffer(data, np.float16)[0] == block.scales[start // 32, 0].item()
        assert [panel["digits"][at] for at in marked["z"]] == [zero] * (zero is not None)


def test_places_are_told_in_words_and_bits():
    html = formats_html(layouts.block_of(layer()), "a layer", start=4 * 32 + 6)  # output 4, input 6
    assert [panel["where"] for panel in panels_of(html)] == [
        "block 4, byte 8, low half (byte 80 of the block)",
        "word 4, bits 24 to 27 (byte 19 of the block)",
        "word 6, bits 8 to 11 (byte 25 of the block)",
        "word 16, bits 24 to 27 (byte 67 of the block)",
    ]


def test_controls_go_over_the_layers_and_their_blocks():
    layers = {"first": layer(), "second": layer(8, 32, seed=1)}
    widget = four_formats(layers)
    chooser, outputs, inputs, shown = widget.children
    assert chooser.options == ("first", "second") and (outputs.max, inputs.max) == (1, 1)
    outputs.value = inputs.value = 1
    assert shown.value == formats_html(
        layouts.block_of(layers["first"], 1, 1), "first: outputs from 8, inputs from 32", 8, 32
    )
    chooser.value = "second"
    assert outputs.disabled and inputs.disabled and outputs.value == inputs.value == 0
    assert "second: outputs from 0, inputs from 0" in shown.value
    frames = json.loads(re.search(r"<script type=\"application/json\">(.*?)</script>", widget.still, re.DOTALL)[1])
    assert len(frames) == 2 and "first: outputs from 0" in frames[0] and "second" in frames[1]


def test_one_matrix_is_rounded_by_itself():
    weight = torch.randn(8, 32)
    shown = four_formats(weight).children[-1].value
    assert shown == formats_html(rtn.quantize(weight, layouts.GRID, 32), "weights: outputs from 0, inputs from 0")


def test_what_cannot_be_shown_is_refused():
    with pytest.raises(QtutorError, match="no layer to show"):
        four_formats({})
    with pytest.raises(QtutorError, match="share symmetric 4 bits"):
        four_formats({"asymmetric": rtn.quantize(torch.randn(8, 32), IntGrid(4), 32)})


def test_a_script_in_a_name_stays_text():
    name = "<img src=x onerror='alert(1)'>"
    shown = four_formats({name: layer(8, 32)}).children[-1].value
    assert "<img" not in shown and name in unescape(shown)

"""A block of bytes: every byte is a button that explains this byte, live and in the stored output."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from qtutor.course.widgets.frames import LARGEST
from qtutor.course.widgets.gguf import block_html, block_view
from qtutor.errors import QtutorError
from qtutor.gguf import TYPES, Tensor, encode, read, write
from qtutor.gguf.anatomy import parts_of
from qtutor.gguf.hexview import block_of, format_numbers
from tests.gguf import inputs


class Seen(HTMLParser):
    """What a reader finds in a block's HTML: its buttons, its weights, and which weights are marked."""

    def __init__(self, html: str):
        super().__init__()
        self.open, self.buttons, self.weights, self.marked, self.text = [], [], [], [], ""
        self.feed(html)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        if tag == "br":
            return
        attributes = dict(attributes)
        self.open.append((tag, attributes))
        if tag == "button":
            self.buttons.append(attributes | {"text": ""})

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        tag, attributes = self.open[-1] if self.open else ("", {})
        self.text += data if tag != "style" else ""
        if tag == "button":
            self.buttons[-1]["text"] += data
        elif tag == "span" and any(a.get("class") == "weights" for _, a in self.open):
            self.weights.append(data)
            self.marked.append(attributes.get("class") == "on")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A file with every type (the three with the longest HTML first), and a tensor that qtutor does not decode."""
    names = ["Q6_K", "Q5_K", "Q3_K", *(name for name in TYPES if name not in ("Q6_K", "Q5_K", "Q3_K"))]
    tensors = [
        Tensor(f"{name}.weight", (2, 512), name, encode(inputs.gaussian(2, 512, i + 1), name))
        for i, name in enumerate(names)
    ]
    tensors.append(Tensor("other", (1, 256), "IQ2_XS", np.zeros(74, np.uint8)))
    path = tmp_path_factory.mktemp("blockview") / "all.gguf"
    write(path, {}, tensors)
    return path


def ranges(button) -> set[int]:
    spans = (map(int, span.split("-")) for span in button["data-weights"].split())
    return {weight for first, last in spans for weight in range(first, last + 1)}


@pytest.mark.parametrize("name", TYPES)
def test_every_byte_is_a_button_that_names_its_weights(path, name):
    block = block_of(read(path), f"{name}.weight", 1)
    seen = Seen(block_html(block))
    assert [button["text"] for button in seen.buttons] == [f"{byte:02x}" for byte in block.data]
    assert seen.weights == format_numbers(block.weights, 3)
    for byte, button in enumerate(seen.buttons):
        assert button["aria-label"].startswith(f"byte {byte}, {block.data[byte]:02x}, ")
        assert ranges(button) == {weight for part in parts_of(name, byte) for weight in part.weights}
        said = Seen(button["data-about"]).text
        assert f"Byte {byte} is {block.data[byte]:02x}" in said and f"{block.data[byte]:08b}" in said.replace(" ", "")
        assert button["data-about"].count("<li>") == len(parts_of(name, byte))
    pressed = [button for button in seen.buttons if button["aria-pressed"] == "true"]
    assert len(pressed) == 1 and [button["tabindex"] for button in seen.buttons].count("0") == 1
    assert pressed[0]["tabindex"] == "0" and Seen(pressed[0]["data-about"]).text in seen.text
    assert {i for i, marked in enumerate(seen.marked) if marked} == ranges(pressed[0])
    for field in TYPES[name].fields:  # also in words: colour is never the only sign
        assert field.name in seen.text and field.meaning in seen.text


def test_bits_are_grouped_by_what_they_belong_to(path):
    block = block_of(read(path), "Q4_K.weight")
    said = Seen(Seen(block_html(block)).buttons[4]["data-about"]).text
    bits = f"{block.data[4]:08b}"
    assert f"in bits {bits[:2]} {bits[2:]}" in said
    assert "scale 0" in said and "weights 0 to 31" in said and "scale 4" in said and "weights 128 to 159" in said


def test_tensor_and_block_are_chosen_live(path):
    widget = block_view(path, "Q4_0.weight", 5)
    tensor, number, shown = widget.children
    assert (tensor.value, number.value, number.max) == ("Q4_0.weight", 5, 31)
    assert "other" not in tensor.options and len(tensor.options) == len(TYPES)
    assert shown.value == block_html(block_of(read(path), "Q4_0.weight", 5))
    number.value = 31
    assert shown.value == block_html(block_of(read(path), "Q4_0.weight", 31))
    tensor.value = "Q6_K.weight"  # it has fewer blocks, so the number becomes smaller
    assert (number.value, number.max) == (3, 3)
    assert shown.value == block_html(block_of(read(path), "Q6_K.weight", 3))


def test_weights_are_shown_in_any_type_that_fits():
    rows = inputs.gaussian(3, 64)
    kind, _, shown = block_view(rows, "Q4_1", 4).children
    assert kind.options == (
        "F32",
        "F16",
        "Q4_0",
        "Q4_1",
        "Q5_0",
        "Q5_1",
        "Q8_0",
        "IQ4_NL",
        "BF16",
        "MXFP4",
        "NVFP4",
        "Q2_0",
    )
    expected = encode(rows[2:3, :32], "Q4_1")[0]
    assert [button["text"] for button in Seen(shown.value).buttons] == [f"{byte:02x}" for byte in expected]
    assert "weights as Q4_1: block 4 (of 0 to 5), row 2, columns 0 to 31" in Seen(shown.value).text
    assert block_view(torch.from_numpy(rows).requires_grad_(), "Q4_1", 4).children[2].value == shown.value
    assert block_view(rows.astype(np.float64), "Q4_1", 4).children[2].value == shown.value
    assert block_view(torch.ones(1, 32, dtype=torch.bfloat16)).children[0].value == "Q4_0"


def test_weights_that_no_block_holds_get_a_message():
    rows = np.ones((1, 64), np.float32)
    rows[0, 40] = np.nan
    _, number, shown = block_view(rows, "Q4_0").children
    number.value = 1
    assert "role='alert'" in shown.value and "is nan" in shown.value


def test_what_is_not_there_is_said(path, tmp_path):
    with pytest.raises(QtutorError, match=r"no tensor 'Q4K.weight'.*Did you mean Q4_K.weight"):
        block_view(path, "Q4K.weight")
    with pytest.raises(QtutorError, match=r"Q4_K\.weight has no block 4: it has 4, 0 to 3"):
        block_view(path, "Q4_K.weight", 4)
    with pytest.raises(QtutorError, match="other: qtutor does not decode this type"):
        block_view(path, "other")
    with pytest.raises(QtutorError, match=r"'Q4_K' is not a type for rows of 64 weights\. Choose from F32"):
        block_view(np.ones((2, 64)), "Q4_K")
    with pytest.raises(QtutorError, match=r"weights of shape \[64\]"):
        block_view(np.ones(64))
    write(tmp_path / "a.gguf", {}, [Tensor("other", (1, 256), "IQ2_XS", np.zeros(74, np.uint8))])
    with pytest.raises(QtutorError, match="no tensor that qtutor decodes"):
        block_view(tmp_path / "a.gguf")


def test_without_a_kernel_some_types_are_drawn_beforehand(path):
    widget = block_view(path)
    still = widget.still
    assert len(still) < LARGEST  # with the types whose HTML is longest
    assert re.findall(r"<option[^>]*>([^<]+)<", still) == ["Q6_K.weight", "Q5_K.weight", "Q3_K.weight"]
    frames = json.loads(re.search(r"<script type=\"application/json\">(.*?)</script>", still, re.DOTALL)[1])
    assert frames == [block_html(block_of(read(path), f"{name}.weight", 0)) for name in ("Q6_K", "Q5_K", "Q3_K")]
    assert " id=" not in still and "Here block: 0" in still
    assert "controls over a picture" in widget._repr_mimebundle_()["text/plain"]
    alone = block_view(np.ones((1, 3), np.float32), "F16", frames={})
    assert "<option" not in alone.still and "data-weights" in alone.still


def test_a_script_in_a_name_stays_text(tmp_path):
    name = "<img src=x onerror='alert(1)'>"
    write(tmp_path / "a.gguf", {}, [Tensor(name, (1, 32), "Q8_0", encode(np.ones((1, 32), np.float32), "Q8_0"))])
    shown = block_view(tmp_path / "a.gguf").children[2].value
    assert "<img" not in shown and name in Seen(shown).text


def test_a_single_block_leaves_nothing_to_choose():
    for rows, disabled in ((1, True), (2, False)):
        number = block_view(np.ones((rows, 32), np.float32), "Q4_0", frames={}).children[1]
        assert number.disabled == disabled

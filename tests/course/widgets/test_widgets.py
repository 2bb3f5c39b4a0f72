"""Widgets: they redraw when a control moves, and their stored outputs work without a kernel and without scripts."""

import base64
import io
import json
import re
import runpy
from html.parser import HTMLParser
from pathlib import Path

import ipywidgets
import nbformat
import pytest
import torch
from matplotlib.figure import Figure
from nbval.plugin import get_sanitize_patterns
from PIL import Image

from qtutor import rtn
from qtutor.calibration import statistics
from qtutor.core.grid import IntGrid
from qtutor.course import widgets
from qtutor.course.widgets.explorer import Explorer, explore, html_table
from qtutor.course.widgets.sampling import named_layers, sample_rows, whole_bytes
from qtutor.errors import QtutorError
from qtutor.pipeline import Recipe, quantize
from tests.models import some_ids, tiny

VIEW = "application/vnd.jupyter.widget-view+json"


def bar(bits, kind="plain"):
    """A function for explore: it draws a bar as high as ``bits``."""
    figure = Figure(figsize=(3, 2))
    figure.subplots().bar([kind], [bits])
    return figure, html_table(["bits", "kind"], [bits, kind])


def bit_slider(value=4):
    return ipywidgets.IntSlider(value=value, min=2, max=8, description="bits")


def stored(html: str) -> list[str]:
    """The frames that are stored in the page."""
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', html, re.DOTALL)[1])


def without_scripts(html: str) -> str:
    return re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)


def cells(html: str | Explorer) -> list[str]:
    """The numbers in a table, or in the table that a widget shows."""
    html = html if isinstance(html, str) else html.children[-1].value
    return re.findall(r"<td[^>]*>(.*?)</td>", html)


def picture(html: str) -> bytes:
    return base64.b64decode(re.search(r"data:image/png;base64,([A-Za-z0-9+/=]+)", html)[1])


class Tags(HTMLParser):
    """The elements of a page, and those that are opened but not closed."""

    def __init__(self, html: str):
        super().__init__()
        self.open, self.seen = [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        if tag not in ("img", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def all(self, tag):
        return [attributes for seen, attributes in self.seen if seen == tag]


def test_the_picture_and_its_numbers_follow_the_control():
    slider = bit_slider()
    shown = explore(bar, alt="A bar.", bits=slider).children[-1]
    before = shown.value
    slider.value = 7
    assert cells(before)[0] == "4" and cells(shown.value)[0] == "7"
    assert picture(before) != picture(shown.value)
    assert "Now bits 4." in before and "Now bits 7." in shown.value  # the alt text moves too


def test_html_alone_may_be_drawn():
    slider = bit_slider()
    explorer = explore(lambda bits: f"<p>{bits} bits</p>", frames={"bits": [3, 4]}, bits=slider)
    slider.value = 3
    assert explorer.children[-1].value == "<p>3 bits</p>"
    assert stored(explorer.still) == ["<p>3 bits</p>", "<p>4 bits</p>"]


def test_an_error_is_shown_beneath_the_last_picture_and_goes_away():
    def draw(bits):
        if bits == 5:
            raise QtutorError("groups of <5> do not divide 64")
        return bar(bits)

    slider = bit_slider()
    explorer = explore(draw, alt="A bar.", frames={"bits": [4, 5]}, bits=slider)
    shown = explorer.children[-1]
    before = shown.value
    slider.value = 5
    alert = "<p role='alert'><b>groups of &lt;5&gt; do not divide 64</b></p>"
    assert shown.value == before + alert
    slider.value = 6
    assert "alert" not in shown.value
    assert stored(explorer.still)[1] == alert


def test_a_mistake_in_draw_is_not_swallowed():
    with pytest.raises(TypeError):
        explore(lambda bits: bar(bits + "1"), alt="A bar.", bits=bit_slider())


def test_a_picture_needs_its_text():
    with pytest.raises(QtutorError, match="needs alt="):
        explore(bar, bits=bit_slider())


def test_alt_may_be_a_function_of_the_values():
    explorer = explore(bar, alt=lambda bits: f'bar of "{bits}"', frames={"bits": [4, 5]}, bits=bit_slider())
    assert [Tags(frame).all("img")[0]["alt"] for frame in stored(explorer.still)] == ['bar of "4"', 'bar of "5"']


def test_one_frame_for_every_combination():
    kind = ipywidgets.Dropdown(options=[("plain one", "plain"), ("other one", "other")], description="kind")
    frames = {"bits": [2, 4, 8], "kind": ["plain", "other"]}
    explorer = explore(bar, alt="A bar.", frames=frames, bits=bit_slider(), kind=kind)
    drawn = stored(explorer.still)
    assert len(drawn) == 6 and len({picture(frame) for frame in drawn}) == 6
    settings = [cells(frame) for frame in drawn]  # the last control changes fastest
    assert settings == [[str(bits), kind] for bits in (2, 4, 8) for kind in ("plain", "other")]
    page = Tags(without_scripts(explorer.still))
    assert page.open == []
    (slider,) = page.all("input")
    assert (slider["type"], slider["min"], slider["max"], slider["value"]) == ("range", "0", "2", "1")
    assert json.loads(slider["data-labels"]) == ["2", "4", "8"] and slider["aria-valuetext"] == "4"
    assert json.loads(page.all("select")[0]["data-labels"]) == ["plain one", "other one"]


def test_two_values_of_a_checkbox_are_a_checkbox():
    box = ipywidgets.Checkbox(value=True, description="clip")
    explorer = explore(lambda clip: str(clip), frames={"clip": [False, True]}, clip=box)
    (shown,) = Tags(without_scripts(explorer.still)).all("input")
    assert shown["type"] == "checkbox" and "checked" in shown and json.loads(shown["data-labels"]) == ["no", "yes"]


def test_without_scripts_the_first_setting_is_a_picture_and_nothing_looks_alive():
    explorer = explore(bar, alt="A bar.", frames={"bits": [2, 4, 8]}, bits=bit_slider(), kind=ipywidgets.Text("x"))
    page = without_scripts(explorer.still)
    assert page.count("<img ") == 1 and cells(page)[0] == "4"
    assert all("disabled" in control for control in Tags(page).all("input"))
    assert "run this cell in a notebook" in page and "Here kind: x." in page


def test_without_frames_one_still_picture():
    assert len(stored(explore(bar, alt="A bar.", bits=bit_slider()).still)) == 1


def test_the_page_asks_for_nothing_and_has_no_ids():
    """Ids would clash if a page shows a widget twice."""
    html = explore(bar, alt="A bar.", frames={"bits": [2, 4]}, bits=bit_slider()).still
    assert html.count("data:image/png;base64,") == 3  # two frames, and once more the frame shown at the start
    rest = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "DATA", html)
    assert "src=" in rest and not re.search(r'https?:|//\w|src=(?!\\?"DATA)|href=|import|fetch|\sid=', rest)


def test_a_frame_that_ends_a_script_does_not_end_the_page():
    html = explore(lambda bits: "<b></script></b>", frames={"bits": [4]}, bits=bit_slider()).still
    assert stored(html) == ["<b></script></b>"]


def test_two_builds_are_equal_to_the_byte():
    first, second = (explore(bar, alt="A bar.", frames={"bits": [2, 4]}, bits=bit_slider()) for _ in range(2))
    assert first.still == second.still and first.children[-1].value == second.children[-1].value


def test_frames_are_small():
    weight = 0.02 * torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    for widget, most in ((widgets.weight_histogram, 8_000), (widgets.weights_as_picture, 14_000)):
        for frame in stored(widget({"layer": weight}).still):
            image = picture(frame)
            assert len(image) < most, widget.__name__
            assert Image.open(io.BytesIO(image)).format == "PNG"


def test_the_output_holds_both_forms_and_a_text_that_is_always_the_same():
    bundles = [explore(bar, alt="A bar.", bits=bit_slider())._repr_mimebundle_() for _ in range(2)]
    assert VIEW in bundles[0] and bundles[0][VIEW] != bundles[1][VIEW]
    for mime in ("text/plain", "text/html"):
        assert bundles[0][mime] == bundles[1][mime]


@pytest.mark.parametrize(
    "frames, message",
    [
        ({"bit": [4]}, "there is no control 'bit'. The controls are 'bits'"),
        ({"bits": [2, 3]}, "bits = [2, 3] has no frame for 4"),
    ],
)
def test_frames_that_do_not_fit_the_controls_are_refused(frames, message):
    with pytest.raises(QtutorError, match=re.escape(message)):
        explore(bar, alt="A bar.", frames=frames, bits=bit_slider())


def test_more_frames_than_a_notebook_should_hold_are_refused():
    with pytest.raises(QtutorError, match="Name fewer values"):
        explore(lambda bits: "x" * 300_000, frames={"bits": [3, 4]}, bits=bit_slider())


# --- a layer under a grid ---


def test_layers_of_a_decoder_by_name():
    model = tiny()
    layers = named_layers(model)
    assert len(layers) == 14 and torch.equal(layers["1.mlp.down_proj"], model.model.layers[1].mlp.down_proj.weight)
    quantize(model, Recipe(bits=4, group_size=16), progress=False)
    with pytest.raises(QtutorError, match="float decoder"):
        named_layers(model)


def test_sampled_rows_hold_the_range_and_about_as_many_weights_as_asked_for():
    weight = torch.randn(512, 64, generator=torch.Generator().manual_seed(0))
    weight[77, 3], weight[201, 60] = 9.0, -9.0
    rows = sample_rows(weight, 64 * 32)
    assert {77, 201} <= set(rows.tolist()) and 32 <= len(rows) <= 34
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert sample_rows(weight, weight.numel()).tolist() == list(range(512))


@pytest.mark.parametrize("group_size", [-1, 0, 16, 64])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 8])
def test_sampled_rows_are_rounded_as_in_the_whole_layer_and_its_bytes_are_the_package_s(group_size, symmetric, bits):
    weight = torch.randn(96, 64, generator=torch.Generator().manual_seed(1))
    rows = sample_rows(weight, 64 * 10)
    grid = IntGrid(bits, symmetric)
    quantized = rtn.quantize(weight[rows], grid, group_size)
    whole = rtn.quantize(weight, grid, group_size)
    assert torch.equal(quantized.dequantize(), whole.dequantize()[rows])
    assert whole_bytes(weight.shape, quantized) == (whole.nbytes, whole.bits_per_weight)


def control(explorer, name):
    return next(c for c in explorer.children[:-1] if c.description == name)


@pytest.mark.parametrize("widget", [widgets.weight_histogram, widgets.weights_as_picture])
def test_every_control_of_a_layer_changes_its_numbers_or_its_picture(widget):
    generator = torch.Generator().manual_seed(0)
    explorer = widget({name: torch.randn(64, 128, generator=generator) + 0.3 for name in ("first", "second")})
    moves = {"layer": "second", "bits": 2, "group size": 16, "symmetric": True, "range": "mse"}
    for name, value in moves.items():
        before = explorer.children[-1].value
        control(explorer, name).value = value
        assert explorer.children[-1].value != before, name


def test_activation_outliers_are_those_that_the_layer_reads():
    model, ids = tiny(), some_ids(rows=1, length=32)
    kept = statistics.layer_inputs(model, ids)["model.layers.0.self_attn.q_proj"]
    explorer = widgets.activation_outliers(model, ids)
    control(explorer, "tokens").value = 32
    assert cells(explorer)[:2] == [f"{kept.max_abs.max():.2f}", str(int(kept.max_abs.argmax()))]
    for name, value in {
        "layer": "1.mlp.down_proj",
        "with add_outliers": True,
        "logarithmic": True,
        "tokens": 1,
    }.items():
        before = explorer.children[-1].value
        control(explorer, name).value = value
        assert explorer.children[-1].value != before, name
    assert len(stored(explorer.still)) == 16  # two layers, with outliers or without, two axes, few tokens and many


def test_the_table_says_what_the_package_computes():
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    explorer = widgets.weight_histogram({"layer": weight}, bits=4, group_size=32, symmetric=True, clip="mse")
    quantized = rtn.quantize(weight, IntGrid(4, symmetric=True), 32, clip="mse")
    error = (quantized.dequantize() - weight).norm() / weight.norm()
    assert cells(explorer)[:2] == ["all 64 rows", f"{error:.2%}"]
    assert cells(explorer)[3:5] == [f"{quantized.nbytes:,}", f"{quantized.bits_per_weight:.3f}"]


def test_a_large_layer_is_sampled_and_the_table_says_so():
    weight = torch.randn(2048, 1024, generator=torch.Generator().manual_seed(0))
    explorer = widgets.weight_histogram({"layer": weight}, frames={})
    rows, error, _, size, *_ = cells(explorer)
    counted = int(re.fullmatch(r"(\d+) of 2048 rows", rows)[1])
    assert 256 <= counted <= 258
    whole = rtn.quantize(weight, IntGrid(3), 64)
    exact = (whole.dequantize() - weight).norm() / weight.norm()
    assert float(error.rstrip("%")) / 100 == pytest.approx(exact.item(), rel=0.01)  # from a sample, so not equal
    assert size == f"{whole.nbytes:,}"


def test_the_picture_shows_the_largest_weight():
    weight = torch.randn(100, 300, generator=torch.Generator().manual_seed(0))
    weight[98, 299] = -50.0
    explorer = widgets.weights_as_picture({"layer": weight}, group_size=-1, frames={})
    assert cells(explorer)[:2] == ["96 to 99 of 100", "256 to 299 of 300"]


def test_a_group_size_that_does_not_fit_is_an_alert():
    explorer = widgets.weight_histogram({"wide": torch.randn(8, 64), "odd": torch.randn(8, 48)}, frames={})
    control(explorer, "layer").value = "odd"
    assert "odd: groups of 64 do not divide rows of 48" in explorer.children[-1].value


def test_a_layer_that_is_not_there_is_refused():
    with pytest.raises(QtutorError, match="there is no layer 'q'; the layers are layer"):
        widgets.weight_histogram({"layer": torch.randn(8, 64)}, "q")


# --- the same prompt ---


class Words:
    """A tokenizer for tests/models.tiny: one token a byte."""

    bos_token, eos_token_id = None, 0

    def __call__(self, text, **_):
        return {"input_ids": list(text.encode())}

    def batch_decode(self, rows, **_):
        return ["".join(chr(32 + int(token) % 90) for token in row) for row in rows]


def test_the_same_prompt_is_written_once_a_precision():
    calls = []

    class Counting(Words):
        def batch_decode(self, rows, **_):
            calls.append(len(rows))
            return super().batch_decode(rows)

    model = tiny(tied=False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    explorer = widgets.same_prompt(
        model, Counting(), ("def f(x):\n", "1 + 1\n"), bits=(16, 4, 2), group_size=16, max_new_tokens=8
    )
    assert calls == [2, 2, 2]  # both prompts at once, float and two precisions
    frames = stored(explorer.still)
    assert len(frames) == 6 and "<mark" not in frames[0]  # the text at 16 bits is what the others are compared with
    assert "<mark" in frames[2] and "2 bits" in frames[2]
    assert "ast.parse" in frames[0] and "nothing to parse" in frames[3]
    control(explorer, "bits").value = 2
    assert explorer.children[-1].value == frames[2] and calls == [2, 2, 2]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# --- what execute.py stores of them ---


def test_a_stored_chapter_keeps_the_frames_and_drops_what_needs_a_kernel():
    path = Path(__file__).parents[3] / "notebooks" / "execute.py"
    execute = runpy.run_path(str(path))
    bundles = [explore(bar, alt="A bar.", bits=bit_slider())._repr_mimebundle_(), bit_slider()._repr_mimebundle_()]
    cell = nbformat.v4.new_code_cell("widgets", outputs=[nbformat.v4.new_output("display_data", b) for b in bundles])
    notebook = nbformat.v4.new_notebook(cells=[cell])
    execute["normalise"](notebook)
    framed, bare = (output.data for output in notebook.cells[0].outputs)
    assert framed == {mime: bundles[0][mime] for mime in ("text/plain", "text/html")}
    assert bare == {"text/plain": "(a widget: run this cell to use it)"}


def test_pictures_of_another_machine_compare_equal_and_their_numbers_do_not():
    """nbval compares HTML, but not the bytes of pictures: they depend on fonts and on zlib."""
    patterns = get_sanitize_patterns((Path(__file__).parents[2] / "nbval_sanitize.cfg").read_text(encoding="utf-8"))

    def compared(html: str) -> str:
        for regex, replacement in patterns:
            html = re.sub(regex, replacement, html)
        return html

    html = explore(bar, alt="A bar.", frames={"bits": [3, 4]}, bits=bit_slider()).still
    elsewhere = re.sub(r"base64,[^\"\\]{50}", "base64," + 50 * "A", html)
    assert elsewhere != html and compared(elsewhere) == compared(html)
    assert compared(html.replace(">4<", ">5<")) != compared(html)

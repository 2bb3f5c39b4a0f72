"""The widget of chapter 05: it shows what AWQ's own search finds, and draws one group on the group's own grid."""

import json
import re
import time

import pytest
import torch

import qtutor
from qtutor import IntGrid, awq, evaluate, rtn
from qtutor.calibration import walk
from qtutor.calibration.statistics import layer_inputs
from qtutor.course.widgets import awq as widgets
from tests.models import some_ids, tiny


def shown(explorer) -> list[str]:
    """The numbers in the table of the live picture."""
    return re.findall(r"<td[^>]*>(.*?)</td>", explorer.children[-1].value)


def controls(explorer) -> dict:
    return {control.description: control for control in explorer.children[:-1]}


@pytest.fixture(scope="module")
def widget():
    return widgets.scale_search(tiny(), some_ids(2))


def test_the_numbers_are_those_of_awqs_own_search(widget):
    moved = controls(widget)
    moved["with add_outliers"].value, moved["bits"].value, moved["group size"].value = False, 2, 32
    block = next(walk.walk(tiny(), some_ids(2)))
    layers = [block.module.get_submodule(name) for name in ("mlp.gate_proj", "mlp.up_proj")]
    inputs, mean_abs = list(block.inputs("mlp.gate_proj")), block.statistics("mlp.gate_proj").mean_abs
    found = awq.search(layers, inputs, mean_abs, block.module.mlp, IntGrid(2), 32)
    moved["layers"].value = "0: gate_proj, up_proj"
    for step in (0, 7, 19):
        moved["ratio"].value = step / awq.RATIOS
        scale = awq.scale_of(mean_abs, step / awq.RATIOS)
        assert shown(widget) == [
            f"{step / 20:.2f}",
            f"{found.errors[step] / found.errors[0]:.0%}",
            f"{found.ratio:.2f}",
            f"{min(found.errors) / found.errors[0]:.0%}",
            f"{scale.max() / scale.min():.1f}",
            f"{kl_of_the_whole(step / awq.RATIOS, 2, 32):.3f}",
        ]


def kl_of_the_whole(ratio: float, bits: int, group_size: int) -> float:
    """The KL of a tiny decoder with all layers rounded. Layers whose scale can be folded use this ratio."""
    rounded = tiny()
    for name, seen in layer_inputs(tiny(), some_ids(2)).items():
        layer = rounded.get_submodule(name)
        folds = not name.endswith("o_proj")  # v has fewer heads than q, so no scale of o's inputs can be folded into v
        scale = awq.scale_of(seen.mean_abs.float(), ratio if folds else 0.0)
        layer.weight.data = rtn.quantize(layer.weight.data * scale, IntGrid(bits), group_size).dequantize() / scale
    return evaluate.compare(rounded, tiny(), some_ids(2)).kl


def test_every_pair_that_can_be_scaled_is_offered(widget):
    per_block = ("q_proj, k_proj, v_proj", "gate_proj, up_proj", "down_proj")  # v and o have different shapes
    assert list(controls(widget)["layers"].options) == [f"{i}: {names}" for i in (0, 1) for names in per_block]
    assert [size for _, size in controls(widget)["group size"].options] == [-1, 64, 32]  # 128 does not divide 64


def test_what_is_stored_has_a_frame_for_every_combination_and_says_what_it_shows(widget):
    frames = json.loads(re.search(r'<script type="application/json">(.*?)</script>', widget.still, re.DOTALL)[1])
    assert len(frames) == 2 * 3 * 4 == len(set(frames))
    assert all("the output error against the ratio" in frame and "<td" in frame for frame in frames)


def test_what_the_whole_decoder_writes_stands_below_and_follows_the_slider():
    """The embedded decoder: at 8 bits it writes what it writes in float, at 2 bits it does not."""
    model, tokenizer = qtutor.load_decoder(device="cpu")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    drawn = widgets._written(model, tokenizer)
    assert drawn[0].startswith(widgets.PROMPT) and sum(drawn[1]) >= 5
    seen = {name: of.mean_abs for name, of in layer_inputs(model, some_ids(1)).items() if not name.endswith("o_proj")}
    fine, coarse = (widgets.rounded_everywhere(model, seen, 0.5, IntGrid(bits), 64) for bits in (8, 2))
    assert sum(widgets._written(fine, tokenizer)[1]) >= 5
    text, sums = widgets._written(coarse, tokenizer)
    assert text != drawn[0] and sum(sums) <= 2
    html = widgets._beside(drawn, (text, sums), ("the float decoder", "2 bits"))
    assert f"{sum(sums)} of 6 sums such as 37 + 48 are right" in html and "<mark" in html
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("group_size", [16, -1])
def test_the_group_drawn_is_the_one_with_the_loudest_input(group_size):
    generator = torch.Generator().manual_seed(0)
    weight, mean_abs = torch.randn(4, 128, generator=generator), torch.rand(128, generator=generator)
    mean_abs[71] = 9
    scale, grid = awq.scale_of(mean_abs, 0.5), IntGrid(3)
    row, levels, loud = widgets._loudest_group(weight, scale, mean_abs, grid, group_size)
    first, width = (64, 16) if group_size == 16 else (64, widgets.SHOWN)
    assert torch.equal(row, (weight * scale)[0, first : first + width]) and bool(loud[71 - first])
    back = rtn.quantize(weight * scale, grid, group_size).dequantize()[0, first : first + width]
    assert torch.allclose((row[:, None] - levels).abs().amin(dim=-1), (row - back).abs(), atol=1e-6)


def test_the_ratio_moves_without_a_new_search(widget, monkeypatch):
    moved = controls(widget)
    moved["ratio"].value = 0.1
    monkeypatch.setattr(awq, "search", lambda *_arguments: pytest.fail("the curve is known already"))
    began = time.process_time()
    for ratio in (0.2, 0.3, 0.4):
        moved["ratio"].value = ratio
        assert shown(widget)[0] == f"{ratio:.2f}"
    assert time.process_time() - began < 3 * 0.5  # about 0.05 s each on an idle machine

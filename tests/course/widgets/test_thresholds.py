"""The widget of LLM.int8's threshold: what it says is what the layer in int8 does."""

import math

import pytest
import torch
from torch.nn.functional import linear

from qtutor import bnb
from qtutor.calibration import statistics
from qtutor.course.widgets.thresholds import THRESHOLDS, outlier_threshold, product_errors
from qtutor.runtime.int8 import Int8Linear
from tests.course.widgets.test_widgets import cells, control, stored
from tests.models import some_ids, tiny


def test_errors_are_those_of_the_layer_in_int8():
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(16, 32, generator=generator), torch.randn(20, 32, generator=generator)
    x[:, 7] *= 30
    found = product_errors(weight, x, (6.0, math.inf))
    layer = Int8Linear.from_quantized(bnb.quantize(weight, bnb.INT8))
    exact = linear(x.double(), weight.double())
    for threshold, (count, error) in found.items():
        layer.threshold = threshold
        assert error == pytest.approx(((layer(x).double() - exact).norm() / exact.norm()).item(), rel=1e-5)
        assert count == int((x.abs() >= threshold).any(dim=0).sum())
    assert list(found) == [0.0, 6.0, math.inf] and [count for count, _ in found.values()] == [32, 1, 0]
    assert found[0.0][1] <= found[6.0][1] < found[math.inf][1]


def test_the_table_says_how_many_channels_stay():
    model, ids = tiny(), some_ids(rows=1, length=32)
    explorer = outlier_threshold(model, ids, frames={})
    control(explorer, "with add_outliers").value = False
    control(explorer, "layer").value = "1.mlp.down_proj"
    control(explorer, "threshold").value = 1.0
    x = statistics.layer_inputs(model, ids, samples=32)["model.layers.1.mlp.down_proj"].samples
    weight = model.model.layers[1].mlp.down_proj.weight.detach()
    found = product_errors(weight, x, THRESHOLDS)
    count, error = found[1.0]
    expected = [f"{count} of {x.shape[1]}", f"{count / x.shape[1]:.1%}"]
    assert cells(explorer) == [*expected, *(f"{e:.2%}" for e in (error, found[math.inf][1], found[0.0][1]))]
    assert len(stored(explorer.still)) == 1


def test_every_control_changes_what_is_shown():
    explorer = outlier_threshold(tiny(), some_ids(rows=1, length=32))
    for name, value in {"layer": "1.self_attn.q_proj", "with add_outliers": False, "threshold": math.inf}.items():
        before = explorer.children[-1].value
        control(explorer, name).value = value
        assert explorer.children[-1].value != before, name
    assert "without a threshold" in explorer.children[-1].value

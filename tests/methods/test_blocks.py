"""What the report says of a layer: the error of its output against the outputs themselves, and what went wrong."""

import copy

import pytest
import torch

import qtutor
from qtutor import rtn
from qtutor.methods import blocks
from tests.models import some_ids, tiny


def output_error(x: torch.Tensor, weight: torch.Tensor, back: torch.Tensor) -> float:
    """``|X (W - Q)^T| / |X W^T|``, out of the outputs themselves, in float64."""
    x, weight, back = x.double(), weight.double(), back.double()
    return ((x @ (weight - back).T).norm() / (x @ weight.T).norm()).item()


@pytest.mark.parametrize("rows", [1, 5, 128, 200, 255])
def test_the_error_of_the_output_is_that_of_all_rows(rows):
    """Rows of very different size and error, so that any of them counts."""
    generator = torch.Generator().manual_seed(rows)
    weight = torch.randn(rows, 32, generator=generator) * 2.0 ** torch.arange(rows).remainder(7)[:, None]
    x = torch.randn(50, 32, generator=generator) * torch.linspace(0.1, 3, 32)
    noise = 1 + 0.1 * torch.rand(rows, 1, generator=generator)
    back = rtn.quantize(weight, qtutor.IntGrid(2), 32).dequantize() * noise
    found = blocks._output_error(weight, back, x.T @ x)
    assert found == pytest.approx(output_error(x, weight, back), rel=1e-4)


def test_the_error_of_a_large_layer_is_that_of_some_rows_all_over_it():
    generator = torch.Generator().manual_seed(0)
    rows = 4 * blocks.ERROR_ROWS + 3
    weight, noise, x = (torch.randn(count, 16, generator=generator) for count in (rows, rows, 50))
    back = weight + 0.1 * noise * torch.arange(rows)[:, None]
    some = torch.arange(0, rows, 4)
    expected = output_error(x, weight[some], back[some])
    assert blocks._output_error(weight, back, x.T @ x) == pytest.approx(expected, rel=1e-4)


def test_errors_that_are_nothing_and_outputs_that_are_nothing():
    weight, x = torch.randn(3, 8), torch.randn(9, 8)
    assert blocks._output_error(weight, weight.clone(), x.T @ x) == 0
    assert blocks._output_error(torch.zeros(3, 8), torch.zeros(3, 8), x.T @ x) == 0


def test_the_report_holds_the_error_of_each_layers_output():
    """Of block 0, whose inputs are those of the float model until something before it is rounded."""
    model, ids, x = tiny("qwen2"), some_ids(16, 32), []
    layer = model.model.layers[0].self_attn.v_proj
    handle = layer.register_forward_pre_hook(lambda _module, given: x.append(given[0].flatten(0, 1)))
    with torch.no_grad():
        model(ids)
    handle.remove()
    made = copy.deepcopy(model)
    report = qtutor.quantize(made, qtutor.Recipe("gptq", 3, 32, propagate=False), ids, progress=False)
    row = next(row for row in report.rows if row.name == "model.layers.0.self_attn.v_proj")
    back = made.model.layers[0].self_attn.v_proj.quantized().dequantize()
    assert row.output_error == pytest.approx(output_error(x[0], layer.weight, back), rel=1e-3)


@pytest.mark.parametrize("damping", [0.0, 0.001, 0.05])
def test_damping_that_had_to_be_raised_is_reported(damping):
    """Fewer tokens than inputs: without damping nothing inverts X^T X."""
    model, ids = tiny(), some_ids(1, 48)
    report = qtutor.quantize(model, qtutor.Recipe("gptq", group_size=32, damping=damping), ids, progress=False)
    few = "48 tokens for a width of 128: too few to tell all inputs apart, damping decides; calibrate with more text"
    raised = f"; damping raised from {damping:g} to 0.01 to make the Hessian invertible" if damping == 0 else ""
    assert f"model.layers.1.mlp.down_proj: {few}{raised}" in report.notes

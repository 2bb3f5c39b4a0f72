"""Rounders call the methods' own functions, with their options."""

from dataclasses import replace

import pytest
import torch

from qtutor import IntGrid, Recipe, awq, bnb, gptq, rtn
from qtutor.methods import sinq
from qtutor.methods.rounders import Gptq, LayerInputs, Listed, Nearest, Sinq
from tests.methods.test_gptq import correlated, weights

GRID, GROUP = IntGrid(3), 16


def inputs(act_order: str = "groups") -> LayerInputs:
    x = correlated(200, 64, seed=3)
    hessian = x.T @ x
    return LayerInputs(hessian, gptq.prepare(hessian, GROUP, act_order=act_order))


def same(left, right) -> bool:
    return torch.equal(left.codes, right.codes) and torch.equal(left.scales, right.scales)


@pytest.mark.parametrize("clip", ["none", "mse", "output"])
def test_nearest(clip):
    weight, given = weights(12, 64, seed=1), inputs()
    expected = {
        "none": lambda: rtn.quantize(weight, GRID, GROUP),
        "mse": lambda: rtn.quantize(weight, GRID, GROUP, "mse"),
        "output": lambda: awq.quantize(weight, given.hessian, GRID, GROUP),
    }
    found = Nearest(clip).round(weight, GRID, GROUP, given)
    assert [name for name, make in expected.items() if same(found, make())] == [clip]
    assert Nearest(clip).reads_inputs == (clip == "output")
    assert not Nearest(clip).follows and not Nearest(clip).factors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_search_of_ranges_multiplies_in_the_dtype_that_the_block_allows(dtype, monkeypatch):
    seen, quantize = [], awq.quantize
    monkeypatch.setattr(awq, "quantize", lambda *given: (seen.append(given[-1]), quantize(*given))[1])
    Nearest("output").round(weights(12, 64, seed=1), GRID, GROUP, replace(inputs(), dtype=dtype))
    assert seen == [dtype]


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("clip", ["none", "mse", "output"])
def test_gptq(clip, static):
    weight, given = weights(12, 64, seed=1), inputs()
    found = Gptq(clip, static).round(weight, GRID, GROUP, given)
    options = {"act_order": "groups", "static_groups": static, "clip": clip}
    assert same(found, gptq.quantize(weight, given.hessian, GRID, GROUP, **options))
    others = [gptq.quantize(weight, given.hessian, GRID, GROUP, **options | {"static_groups": not static})]
    others += [Gptq(other, static).round(weight, GRID, GROUP, given) for other in {"none", "mse", "output"} - {clip}]
    assert not any(same(found, other) for other in others)
    assert Recipe("gptq").rounder == Gptq() and Recipe().rounder == Nearest()
    assert Gptq().follows and Gptq().factors and Gptq().reads_inputs


@pytest.mark.parametrize(("clip", "nearest"), [("none", "none"), ("output", "none"), ("mse", "mse")])
def test_gptq_without_a_plan_rounds_to_nearest(clip, nearest):
    """Ranges judged by the output would need the prepared Hessian, too, so they stay whole."""
    weight, given = weights(12, 64, seed=1), inputs()
    found = Gptq(clip).round(weight, GRID, GROUP, LayerInputs(given.hessian))
    assert same(found, Nearest(nearest).round(weight, GRID, GROUP))


@pytest.mark.parametrize("double", [False, True])
def test_listed(double):
    weight = weights(12, 64, seed=1)
    found = Listed(double).round(weight, bnb.NF4, 16)
    assert same(found, bnb.quantize(weight, bnb.NF4, 16, double))
    assert found.nbytes == bnb.quantize(weight, bnb.NF4, 16, double).nbytes
    assert found.nbytes != Listed(not double).round(weight, bnb.NF4, 16).nbytes
    assert not (Listed(True).follows or Listed(True).factors or Listed(True).reads_inputs)


def test_sinq_divides_columns_and_the_others_nothing():
    weight = weights(12, 64, seed=1)
    left, columns = Sinq().divided(weight)
    expected, scales = sinq.quantize(weight, GRID, GROUP)
    assert torch.equal(columns, scales) and same(Sinq().round(left, GRID, GROUP), expected)
    assert (columns != 1).any() and not (Sinq().follows or Sinq().factors or Sinq().reads_inputs)
    for other in (Nearest(), Gptq(), Listed(True)):
        left, columns = other.divided(weight)
        assert left is weight and columns is None

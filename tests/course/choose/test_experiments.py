"""The experiments of chapter 12 on small models: spikes, steps on a grid, adapters, bytes in 16 bits."""

import copy

import pytest
import torch

import qtutor
from qtutor.core.grid import IntGrid
from qtutor.course.choose import adapters, candidates, steps, super_weight
from qtutor.methods import rtn
from qtutor.runtime.linear import QuantLinear
from qtutor.runtime.scaled import ScaledLinear
from tests.models import tiny

IDS = torch.arange(1, 9)


def test_a_planted_super_weight_is_found():
    model = tiny()
    with torch.no_grad():
        layer = model.model.layers[0].mlp
        layer.gate_proj.weight[5] *= 30  # a channel of the down projection's inputs becomes loud
        layer.up_proj.weight[5] *= 30
        layer.down_proj.weight[3, 5] = 50
    first = super_weight.spikes(model, IDS)[0]
    assert (first.row, first.column, first.weight) == (3, 5, 50)
    assert first.layer.endswith("0.mlp.down_proj") and first.largest_out > 50 * first.largest_in * 0.5


def test_a_weight_is_away_inside_and_back_behind():
    model = tiny()
    name = next(iter(super_weight.last_layers(model)))
    weight = model.get_submodule(name).weight
    before = weight.detach().clone()
    with pytest.raises(RuntimeError), super_weight.without(model, name, 2, 4):
        assert weight[2, 4] == 0 and (weight != before).sum() == 1
        raise RuntimeError
    assert torch.equal(weight, before)


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_step_moves_codes_from_half_a_scale_on(symmetric):
    quantized = rtn.quantize(torch.randn(8, 64), IntGrid(4, symmetric), 32)
    scale = quantized.scales.float().repeat_interleave(32, dim=1)
    assert steps.moved(quantized, torch.zeros(8, 64)) == 0
    assert steps.moved(quantized, 0.49 * scale) == 0
    inside = (quantized.codes < 15).float().mean().item()
    assert steps.moved(quantized, 0.51 * scale) == pytest.approx(inside)


def test_a_step_in_a_model_goes_either_way():
    model = tiny()
    qtutor.quantize(model, qtutor.Recipe(bits=4, group_size=32), progress=False)
    assert steps.moved_in_model(model, 0.0) == 0
    assert 0.9 < steps.moved_in_model(model, 10.0) <= 1  # nearly all: only codes that are already at that end stay
    assert steps.moved_in_model(model, 10.0) == steps.moved_in_model(model, 10.0)


def test_adapters_begin_as_the_base_and_leave_its_codes_alone():
    model = tiny()
    qtutor.quantize(model, qtutor.Recipe("nf4"), progress=False)
    before = model(IDS[None]).logits.detach()
    codes = {n: m.packed.clone() for n, m in model.named_modules() if isinstance(m, QuantLinear)}
    trained = adapters.with_adapters(model, rank=2)
    torch.testing.assert_close(model(IDS[None]).logits.detach(), before)
    assert all(p.requires_grad == any(p is t for t in trained) for p in model.parameters())
    model(IDS[None]).logits.square().mean().backward()
    assert all(t.grad is not None for t in trained) and sum(t.grad.abs().sum() for t in trained) > 0
    with torch.no_grad():
        for part in trained:
            part -= 0.1 * part.grad
    after = {n.removesuffix(".base"): m for n, m in model.named_modules() if isinstance(m, QuantLinear)}
    assert codes and all(torch.equal(after[n].packed, packed) for n, packed in codes.items())


def test_training_inside_the_codes_comes_back():
    layer = torch.nn.Linear(64, 8, bias=False)
    back = adapters.rounded_again([layer], bits=4, group_size=32)
    start = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight += 1e-4
    back()
    torch.testing.assert_close(layer.weight.detach(), start, rtol=0, atol=1e-7)
    with torch.no_grad():
        layer.weight += 1
    back()
    assert (layer.weight - start).abs().max() > 1e-3


def test_only_answers_are_asked_for():
    _, tokenizer = qtutor.load_decoder()
    ids, wanted = adapters.examples(tokenizer, 2, seed=0, each=2)
    assert ids.shape == wanted.shape
    asked = tokenizer.decode(ids[0][wanted[0]])
    assert ">>>" not in asked and asked.count("'") >= 2
    again, _ = adapters.examples(tokenizer, 2, seed=0, each=2)
    assert torch.equal(ids, again)


def test_bytes_of_sinq_count_columns_in_16_bits():
    model = tiny()
    plain = copy.deepcopy(model)
    qtutor.quantize(model, qtutor.Recipe("sinq", group_size=32), progress=False)
    qtutor.quantize(plain, qtutor.Recipe(bits=4, group_size=32), progress=False)
    columns = sum(m.columns for m in model.modules() if isinstance(m, ScaledLinear))
    assert candidates.bytes_in_16(model) == candidates.bytes_in_16(plain) + 2 * columns
    assert candidates.bytes_in_16(tiny()) == 2 * sum(p.numel() for p in tiny().parameters())

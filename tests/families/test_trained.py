"""Every family on a trained decoder: the walk, AWQ's scales, each method, export and back."""

import copy
import math

import pytest
import torch

import qtutor
from qtutor.calibration.walk import walk
from qtutor.families import FAMILIES
from qtutor.measure.against import compare
from qtutor.methods import scaling
from tests.families import small


def test_all_families_are_tried():
    assert small.FAMILIES.keys() == FAMILIES.keys()


@pytest.mark.parametrize("family", small.FAMILIES)
def test_it_has_learned_from_the_text(trained, family):
    """A random guess among all tokens has a perplexity of 1024."""
    assert qtutor.perplexity(trained(family), small.unseen()) < 350


@pytest.mark.parametrize("family", small.FAMILIES)
def test_the_walk_computes_what_the_model_computes(trained, family):
    model, ids = trained(family), small.calibration()[:20]
    with torch.no_grad():
        expected = model(ids, output_hidden_states=True).hidden_states
    last = len(model.model.layers) - 1
    for index, block in enumerate(walk(model, ids, twin=True)):
        assert small.near(block.states, expected[index], 1e-5)
        if index < last:  # after the last block, transformers returns the output of the final norm
            assert small.near(block.run(slice(None)), expected[index + 1], 1e-5)
    assert index == last
    with torch.no_grad():
        assert small.near(model.model.norm(block.states), expected[-1], 1e-5)


@pytest.mark.parametrize("family", small.FAMILIES)
def test_folded_scales_leave_the_logits(trained, family):
    model, ids = copy.deepcopy(trained(family)), small.unseen()
    with torch.no_grad():
        expected = model(ids).logits
        scaling.fold_model(model, small.calibration()[:16], qtutor.IntGrid(3), 32)
        assert small.near(model(ids).logits, expected, 1e-4)
    before = trained(family).state_dict()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert len(changed) > len(model.model.layers)  # a search may find that a pair is best without scales


@pytest.mark.parametrize("family", small.FAMILIES)
def test_methods_lose_less_than_rounding_to_nearest_and_come_back_from_disk(tmp_path, trained, family):
    original, losses, ids = trained(family), {}, small.unseen()
    for method in ("rtn", "awq", "gptq"):
        model = copy.deepcopy(original)
        report = qtutor.quantize(model, qtutor.Recipe(method, 3, 64), small.calibration(), progress=False)
        assert len(report.rows) == len(model.model.layers) * sum(map(len, FAMILIES[family].shared))
        found = compare(model, original, ids)
        assert math.isfinite(found.perplexity)
        losses[method] = found.kl
        qtutor.export(model, tmp_path / method)
        again = qtutor.load_quantized(tmp_path / method, device="cpu")
        with torch.inference_mode():
            assert torch.equal(again(ids).logits, model(ids).logits)
    assert losses["gptq"] < 0.9 * losses["rtn"] and losses["awq"] < 0.9 * losses["rtn"], losses

"""The cost of rounding a layer: the same block by block as in one graph of the model, and from files as from memory."""

import pytest
import torch

import qtutor
from qtutor.budget.sensitivity import losses_of
from qtutor.families import decoder_blocks, family_of, linear_layers
from qtutor.formats.streamed import opened
from tests.families import small
from tests.gguf.small_tokenizers import letters
from tests.models import some_ids, tiny
from tests.reference import sensitivity as reference


def halves(weight: torch.Tensor) -> torch.Tensor:
    return (2 * weight.float()).round() / 2 + 0.01


def finer(weight: torch.Tensor) -> torch.Tensor:
    return (20 * weight.float()).round() / 20


@pytest.mark.parametrize("family", small.FAMILIES)
def test_block_by_block_as_in_one_graph(family):
    """Also for the embedding and the output matrix: Gemma and Granite multiply the embeddings that are looked up."""
    model, ids = small.random(family), small.calibration()[:3, :16]
    names = [*linear_layers(model), family_of(model).embedding, family_of(model).head]
    choices = {"halves": halves, "finer": finer}
    table = losses_of(model, ids, {name: choices for name in names}, set(names), seed=5)
    assert list(table) == names and all(list(row) == ["halves", "finer"] for row in table.values())
    for choice, rounding in choices.items():
        expected = reference.losses(model, ids, names, rounding, seed=5)
        for name in names:
            assert expected[name] > 0
            assert table[name][choice] == pytest.approx(expected[name], rel=2e-3), name


def test_nothing_of_the_model_changes_and_the_same_seed_gives_the_same():
    model, ids = tiny().train(), some_ids(4, 32)
    model.model.layers[0].self_attn.attention_dropout = 0.5
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    roundings = {name: {"finer": finer} for name in (*linear_layers(model), "model.embed_tokens")}
    table = losses_of(model, ids, roundings)
    assert table == losses_of(model, ids, roundings) != losses_of(model, ids, roundings, seed=1)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
    assert not any("forward" in vars(block) for block in decoder_blocks(model))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_from_files_as_from_memory(tmp_path, dtype):
    model, ids = tiny(tied=False, dtype=dtype), some_ids(4, 32)
    model.save_pretrained(tmp_path)
    letters().save_pretrained(tmp_path)
    weights, _ = opened(tmp_path, "cpu")
    model, _ = qtutor.load(tmp_path, dtype="auto", device="cpu")
    roundings = {name: {"finer": finer} for name in (*linear_layers(model), "model.embed_tokens", "lm_head")}
    table = losses_of(weights, ids, roundings)
    assert table == losses_of(model, ids, roundings) and next(model.parameters()).dtype == dtype
    assert all(parameter.device.type == "meta" for parameter in weights.model.parameters())


def test_the_rows_of_some_outputs_stand_for_all(monkeypatch):
    model, ids = tiny(), some_ids(4, 32)
    roundings = {name: {"finer": finer} for name in linear_layers(model)}
    full = losses_of(model, ids, roundings)
    monkeypatch.setattr("qtutor.budget.sensitivity.ROWS", 16)
    some, whole = losses_of(model, ids, roundings), losses_of(model, ids, roundings, set(roundings))
    for name in full:  # all rows, in a different order
        assert whole[name]["finer"] == pytest.approx(full[name]["finer"], rel=1e-5)
        assert some[name]["finer"] != pytest.approx(full[name]["finer"], rel=1e-5)
    ratios = torch.tensor([some[name]["finer"] / full[name]["finer"] for name in full])
    assert ratios.min() > 0.3 and ratios.max() < 3 and 0.8 < ratios.mean() < 1.25


def test_a_broken_block_is_named():
    model = tiny()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3] = float("inf")
    with pytest.raises(qtutor.QtutorError, match=r"model\.layers\.1: its output is"):
        losses_of(model, some_ids(4, 32), {"model.layers.0.mlp.down_proj": {"finer": finer}})

"""Weights that are one step off: how far, to which side, and the effect on the inputs of layers."""

import pytest
import torch

import qtutor
from qtutor.course.off_by_one import lean, stepped
from tests.models import tiny


@pytest.fixture(scope="module")
def packed():
    model, _ = qtutor.load_decoder()
    qtutor.quantize(model, qtutor.Recipe(bits=4, symmetric=True, group_size=32), progress=False)
    return model


def test_every_weight_is_one_step_of_its_scale_off(packed):
    stored = packed.model.layers[0].mlp.down_proj.quantized()
    for random, signs in ((False, {1}), (True, {-1, 1})):
        moved = stepped(packed, random=random).model.layers[0].mlp.down_proj.weight
        steps = (moved - stored.dequantize()) / stored.scales.float().repeat_interleave(32, dim=1)
        assert torch.allclose(steps.abs(), torch.ones(()), atol=1e-3)
        assert set(steps.sign().int().unique().tolist()) == signs
    assert torch.equal(moved, stepped(packed, random=True).model.layers[0].mlp.down_proj.weight)


def test_it_is_what_a_file_with_the_wrong_version_gives(packed, tmp_path):
    import json

    folder = qtutor.export(packed, tmp_path / "out", format="gptq")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= {"checkpoint_format": "gptq_v2", "format": "gptq_v2", "sym": False}
    (folder / "config.json").write_text(json.dumps(config))
    read = qtutor.load_quantized(folder, device="cpu").model.layers[1].mlp.up_proj.quantized()
    assert torch.allclose(read.dequantize(), stepped(packed).model.layers[1].mlp.up_proj.weight, atol=1e-6)


def test_inputs_lean_where_all_errors_have_one_sign(packed):
    ids = torch.arange(1, 65)[None]
    plain, chance, one = (lean(of, ids) for of in (packed, stepped(packed, random=True), stepped(packed)))
    assert list(one) == [f"{block}: {of}" for block in (0, 1) for of in ("q, k, v", "o", "gate, up", "down")]
    assert max(plain.values()) < 0.2 and max(chance.values()) < 0.2
    assert one["0: q, k, v"] == pytest.approx(plain["0: q, k, v"], abs=1e-3)  # no changed weight comes before them
    assert min(list(one.values())[3:]) > 0.5
    assert not any(module._forward_pre_hooks for module in packed.modules())


def test_inputs_that_are_all_equal_lean_fully():
    model = tiny(tied=False)
    with torch.no_grad():
        model.model.embed_tokens.weight[0] = 2
        model.model.embed_tokens.weight[1] = torch.tensor([1.0, -1.0]).repeat(32)
        model.model.layers[0].input_layernorm.weight.fill_(1)
    leans = lean(model, torch.tensor([[0, 1]]))
    assert leans["0: q, k, v"] == pytest.approx(0.5, abs=1e-6)  # the mean of 1 and 0

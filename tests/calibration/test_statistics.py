"""Statistics of the layers' inputs, compared with sums over all inputs, which are kept until the end."""

import copy

import pytest
import torch

import qtutor
from qtutor.calibration.statistics import RunningStatistics, layer_inputs
from qtutor.errors import QtutorError
from tests.models import FAMILIES, some_ids, tiny


def inputs_kept_whole(model, token_ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Every input of every layer, ``[tokens, in]``: one sample at a time, one hook per layer, nothing shared."""
    kept = {}
    hooks = [
        module.register_forward_hook(
            lambda module, arguments, output, name=name: kept.setdefault(name, []).append(arguments[0][0].clone())
        )
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and "lm_head" not in name
    ]
    with torch.no_grad():
        for sample in token_ids:
            model(sample[None])
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(pieces) for name, pieces in kept.items()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_equals_the_inputs_kept_whole(family, tied):
    model = tiny(family, tied)
    token_ids = some_ids(rows=11)  # more than one batch
    whole = inputs_kept_whole(model, token_ids)
    ours = layer_inputs(model, token_ids)
    assert list(ours) == list(whole) and len(ours) == 14
    for name, x in whole.items():
        statistics = ours[name]
        assert statistics.tokens == token_ids.numel() and statistics.samples is None
        for mine, theirs in [
            (statistics.mean_abs, x.double().abs().mean(dim=0)),
            (statistics.max_abs, x.double().abs().amax(dim=0)),
            (statistics.mean_square, x.double().square().mean(dim=0)),
        ]:
            assert mine.dtype == torch.float64 and mine.shape == (x.shape[1],)
            # The model computes in float32, and a batch of 8 samples is summed in a different order than single ones.
            assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-7)


def test_a_model_that_is_being_trained_is_watched_without_dropout():
    model = tiny()
    expected = layer_inputs(model, some_ids())
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    model.train()
    for name, found in layer_inputs(model, some_ids()).items():
        assert torch.equal(found.mean_square, expected[name].mean_square)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("samples", [1, 30, 200, 10**6])  # 200: more than a batch of 192, and fewer than all
def test_samples_are_the_first_tokens_in_order(samples):
    model, token_ids = tiny(), some_ids(rows=10)
    whole = inputs_kept_whole(model, token_ids)
    for name, statistics in layer_inputs(model, token_ids, samples=samples).items():
        assert statistics.samples.dtype == torch.float32
        assert torch.allclose(statistics.samples, whole[name][:samples], rtol=1e-4, atol=1e-6)


def test_layers_that_read_the_same_tensor_share_and_others_do_not():
    ours = layer_inputs(tiny(), some_ids())
    for i in range(2):
        attention, mlp = f"model.layers.{i}.self_attn", f"model.layers.{i}.mlp"
        assert ours[f"{attention}.q_proj"] is ours[f"{attention}.k_proj"] is ours[f"{attention}.v_proj"]
        assert ours[f"{mlp}.gate_proj"] is ours[f"{mlp}.up_proj"]
    assert len({id(statistics) for statistics in ours.values()}) == 8


def test_each_shared_input_is_counted_once(monkeypatch):
    counted = []
    add = RunningStatistics.add
    monkeypatch.setattr(RunningStatistics, "add", lambda self, x: (counted.append(self), add(self, x)))
    layer_inputs(tiny(), some_ids(rows=3))
    assert len(counted) == len(set(counted)) == 8


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_are_float64_whatever_the_model_computes_in(dtype):
    running = RunningStatistics(1)
    for _ in range(3000):  # in float16 the sum would stop at 2048, in bfloat16 at 256
        running.add(torch.ones(1, 1, dtype=dtype))
    result = running.result()
    assert result.tokens == 3000 and result.mean_abs == 1 and result.mean_square == 1
    model = tiny(dtype=dtype)
    assert all(s.mean_abs.dtype == torch.float64 for s in layer_inputs(model, some_ids()).values())


def test_the_model_is_only_read():
    model, token_ids = tiny(), some_ids()
    before = copy.deepcopy(model.state_dict())
    logits = model(token_ids).logits
    layer_inputs(model, token_ids)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(model(token_ids).logits, logits)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_outliers_put_in_are_seen():
    """add_outliers multiplies channels of a layer's input by powers of two: the ratios are exactly these powers."""
    model, token_ids = tiny(), some_ids()
    plain = layer_inputs(model, token_ids)
    harder = layer_inputs(qtutor.add_outliers(copy.deepcopy(model), share=0.2), token_ids)
    changed = 0
    for name in plain:
        ratio = harder[name].max_abs / plain[name].max_abs
        assert torch.equal(ratio, 2 ** ratio.log2().round())
        changed += int((ratio > 1).sum())
        assert "o_proj" not in name or (ratio == 1).all()
    assert changed > 20


def test_nan_is_reported_where_it_appears_first():
    model = tiny()
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight[3, 5] = torch.nan
    with pytest.raises(QtutorError, match=r"model\.layers\.1\.mlp\.gate_proj: the input is nan at token 0, channel"):
        layer_inputs(model, some_ids())
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("token_ids", "message"),
    [
        (torch.tensor([1, 2, 3]), r"int64 \[samples, length\]"),
        (torch.ones(2, 8), "float32"),
        (torch.empty(0, 8, dtype=torch.int64), "are needed"),
        (torch.tensor([[1, 256]]), "from 1 to 256, but the model's vocabulary has 256"),
        (torch.tensor([[-1, 3]]), "from -1 to 3"),
    ],
)
def test_texts_that_are_none(token_ids, message):
    with pytest.raises(QtutorError, match=message):
        layer_inputs(tiny(), token_ids)


def test_a_quantized_model_has_nothing_to_watch():
    model = tiny()
    qtutor.quantize(model, qtutor.Recipe(group_size=32), progress=False)
    with pytest.raises(QtutorError, match="calibrate before quantizing"):
        layer_inputs(model, some_ids())


def test_a_channel_that_is_always_zero_and_nothing_counted():
    running = RunningStatistics(3)
    running.add(torch.tensor([[[1.0, 0.0, -2.0], [-1.0, 0.0, 4.0]]]))
    running.add(torch.empty(1, 0, 3))
    result = running.result()
    assert result.mean_abs.tolist() == [1, 0, 3]
    assert result.max_abs.tolist() == [1, 0, 4]
    assert result.mean_square.tolist() == [1, 0, 10]
    assert result.tokens == 2
    assert RunningStatistics(2).result().mean_abs.tolist() == [0, 0]

"""AWQ: ratio 0 is rounding to nearest, no search gives a worse result, and folding changes nothing."""

import copy
import sys
from dataclasses import replace
from itertools import groupby
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import qtutor
from qtutor import awq, rtn
from qtutor.calibration import walk
from qtutor.core.quantized import PER_CHANNEL, PER_TENSOR
from qtutor.methods import clip, scaling, transforms
from tests.methods.test_gptq import correlated, output_error, weights
from tests.models import FAMILIES, some_ids, tiny


def layer(rows: int, columns: int, seed: int) -> nn.Linear:
    made = nn.Linear(columns, rows, bias=False)
    made.weight.data = weights(rows, columns, seed)
    return made


def with_outliers(tokens: int, width: int, seed: int, count: int = 4, size: float = 20.0) -> torch.Tensor:
    """Float32 inputs in which a few channels are far larger than the others, as in large models."""
    x = correlated(tokens, width, seed).float()
    x[:, torch.randperm(width, generator=torch.Generator().manual_seed(seed))[:count]] *= size
    return x


@pytest.mark.parametrize("duo", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_ratio_0_is_rounding_to_nearest_and_others_are_not(bits, duo):
    made, x, grid = layer(16, 64, seed=bits), with_outliers(256, 64, seed=bits), qtutor.IntGrid(bits)
    weight = made.weight.data.clone()
    found = awq.search([made], [x], x.abs().mean(0), made, grid, 32, duo)
    nearest = rtn.quantize(weight, grid, 32)
    expected = output_error(weight, nearest, x.double()) ** 2 / (256 * 16)
    assert found.errors[0] == pytest.approx(expected, rel=1e-4)
    assert len(found.errors) == len(set(found.errors)) == 20 == awq.RATIOS  # as in the paper
    assert torch.equal(awq.scale_of(x.abs().mean(0), 0.0), torch.ones(64))
    assert torch.equal(made.weight.data, weight)  # the search has put the weights back
    assert found.ratio > 0  # scaling pays off with outliers, so the result differs from rounding to nearest
    scaled = rtn.quantize(weight * found.scale, grid, 32).dequantize() / found.scale
    assert not torch.equal(scaled, nearest.dequantize())


@pytest.mark.parametrize("seed", range(20))
def test_the_search_never_ends_above_rounding_to_nearest(seed):
    bits, outliers = (2, 3, 4)[seed % 3], seed % 5
    x = with_outliers(128, 64, seed, outliers) if outliers else torch.randn(128, 64)
    layers = [layer(16, 64, seed), layer(24, 64, seed + 1)]

    def parent(x):  # two layers with the same input, and a nonlinear function after them
        return torch.tanh(layers[0](x) / 30) * layers[1](x)[:, :16]

    found = awq.search(layers, x.split(50), x.abs().mean(0), parent, qtutor.IntGrid(bits), 32, duo=bool(seed % 2))
    assert min(found.errors) <= found.errors[0]
    assert found.errors[round(found.ratio * awq.RATIOS)] == min(found.errors)
    target = parent(x)
    with torch.no_grad():
        for made in layers:
            made.weight.copy_(
                rtn.quantize(made.weight * found.scale, qtutor.IntGrid(bits), 32).dequantize() / found.scale
            )
        assert (parent(x) - target).square().mean().item() == pytest.approx(min(found.errors), rel=1e-3)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("group", [16, 64, PER_CHANNEL])
def test_clipping_never_raises_the_error_of_the_output(bits, symmetric, group):
    weight, x, grid = weights(12, 64, seed=bits), correlated(200, 64, seed=3), qtutor.IntGrid(bits, symmetric)
    clipped, nearest = awq.quantize(weight, x.T @ x, grid, group), rtn.quantize(weight, grid, group)
    errors = [(x @ (weight - q.dequantize()).double().T).norm(dim=0) for q in (clipped, nearest)]  # of every row
    assert (errors[0] <= errors[1] * (1 + 1e-4)).all()
    assert (errors[0] < 0.99 * errors[1]).sum() >= 6
    assert clipped.nbytes == nearest.nbytes


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_clipping_keeps_a_zero_at_the_end_of_the_codes(bits, sign):
    """One-sided weights have their zero at the first or the last code, where a step beyond is none."""
    weight, x, grid = sign * weights(12, 64, seed=bits).abs(), correlated(200, 64, seed=3), qtutor.IntGrid(bits)
    clipped, nearest = awq.quantize(weight, x.T @ x, grid, 16), rtn.quantize(weight, grid, 16)
    last = 0 if sign > 0 else 2**bits - 1
    assert (nearest.zeros == last).all() and (clipped.zeros == last).float().mean() > 0.5
    errors = [(x @ (weight - q.dequantize()).double().T).norm(dim=0) for q in (clipped, nearest)]
    assert (errors[0] <= errors[1] * (1 + 1e-4)).all()


@pytest.mark.parametrize(("columns", "rounds"), [(512, 3), (513, 2)])
def test_wide_layers_leave_out_the_last_finest_round(columns, rounds, monkeypatch):
    search, given = clip.search_together, []
    monkeypatch.setattr(clip, "search_together", lambda *all: (given.append(all[3]), search(*all))[1])
    awq.quantize(weights(4, columns, seed=1), torch.eye(columns), qtutor.IntGrid(4), PER_CHANNEL)
    assert given == [rounds]


def test_one_scale_for_the_tensor_and_empty_ones_are_rounded_to_nearest():
    weight, grid = weights(4, 64, seed=1), qtutor.IntGrid(4)
    assert torch.equal(awq.quantize(weight, torch.eye(64), grid, PER_TENSOR).codes, rtn.quantize(weight, grid, 0).codes)
    assert awq.quantize(torch.zeros(0, 8), torch.eye(8), grid, 8).shape == (0, 8)
    with pytest.raises(qtutor.QtutorError, match=r"^groups of 5"):
        awq.quantize(torch.zeros(2, 8), torch.eye(8), grid, 5)


def test_a_norm_that_adds_to_its_weight_is_divided_as_a_whole():
    """Gemma's norms multiply by 1 + w."""
    norm, reader, scale = nn.RMSNorm(64), layer(8, 64, seed=1), torch.linspace(0.5, 2, 64)
    norm.weight.data = torch.linspace(-0.5, 3, 64)
    gain, before = norm.weight.detach() + 1, reader.weight.detach().clone()
    awq.fold(norm, [reader], scale, norm_offset=1.0)
    assert torch.allclose(norm.weight + 1, gain / scale, rtol=1e-5)
    assert torch.allclose(reader.weight, before * scale, rtol=1e-5)


def test_a_norm_weight_that_its_dtype_cannot_hold_stays():
    """In float16, 60000 / 0.5 is infinite, and 1e-7 / 4 is 0. Other weights are divided, and rounded to float16."""
    norm, reader = nn.RMSNorm(4), layer(8, 4, seed=1)
    norm.weight.data = torch.tensor([60000.0, 1e-7, 1.5, 0.1])
    before = reader.weight.detach().clone()
    awq.fold(norm, [reader], torch.tensor([0.5, 4.0, 4.0, 3.0]), torch.float16)
    assert norm.weight.tolist() == pytest.approx([60000, 1e-7, 0.375, (torch.tensor(0.1) / 3).half().item()])
    factors = (reader.weight / before).mean(dim=0).tolist()
    assert factors == pytest.approx([1, 1, 4, 0.1 / norm.weight[3].item()], rel=1e-5)


def test_columns_behind_a_norm_weight_of_0_stay_as_they_are():
    """Their inputs are always 0, so any factor is right; but another one would widen the range of their group."""
    norm, reader = nn.RMSNorm(64), layer(8, 64, seed=1)
    norm.weight.data[[3, 40]] = 0
    before = reader.weight.detach().clone()
    awq.fold(norm, [reader], torch.full((64,), 4.0))
    assert torch.equal(reader.weight[:, [3, 40]], before[:, [3, 40]]) and (norm.weight[[3, 40]] == 0).all()
    assert torch.equal(reader.weight[:, 41:], 4 * before[:, 41:]) and (norm.weight[41:] == 0.25).all()


def test_a_silent_channel_and_silent_inputs_do_no_harm():
    made, x = layer(8, 64, seed=2), with_outliers(128, 64, seed=2)
    x[:, 5] = 0
    for inputs in (x, torch.zeros(16, 64)):
        found = awq.search([made], [inputs], inputs.abs().mean(0), made, qtutor.IntGrid(3), 32)
        assert torch.isfinite(found.scale).all() and (found.scale > 0).all()
    assert found.ratio == 0  # all candidates are equal, so nothing is scaled


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads", ["grouped", "equal"])
def test_folding_leaves_the_float_models_logits(family, dtype, heads):
    model = tiny(family)
    if heads == "equal":  # as many k, v heads as q heads: v -> o is a pair too
        config = copy.deepcopy(model.config)
        config.num_key_value_heads = config.num_attention_heads
        model = type(model)(config).eval()
    model = qtutor.add_outliers(model.to(dtype)).float()
    expected = model(some_ids()).logits
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for block, original in zip(walk.walk(model, some_ids(8)), model.model.layers):
        block.dtype = dtype
        changed = scaling.scale_block(block, qtutor.IntGrid(3), 32)
        assert set(changed) == {"input_layernorm.weight", "post_attention_layernorm.weight"}
        assert all(torch.equal(value, value.to(dtype).float()) for value in changed.values())  # exact in this dtype
        original.load_state_dict(block.module.state_dict())
    moved = {name.split(".", 3)[3] for name, t in model.state_dict().items() if not torch.equal(t, before[name])}
    assert {"mlp.up_proj.weight", "mlp.down_proj.weight", "self_attn.q_proj.weight"} <= moved
    assert ("self_attn.o_proj.weight" in moved) == (heads == "equal")
    assert torch.allclose(model(some_ids()).logits, expected, atol=1e-4 * expected.abs().max().item())


def test_a_twin_is_scaled_as_well_and_nothing_seems_to_have_drifted():
    model = qtutor.add_outliers(tiny())
    block = next(walk.walk(model, some_ids(8), twin=True))
    before = {name: tensor.clone() for name, tensor in block.module.state_dict().items()}
    changed = scaling.scale_block(block, qtutor.IntGrid(3), 32)
    ours, twins = block.module.state_dict(), block.twin.module.state_dict()
    assert all(torch.equal(twins[name], tensor) for name, tensor in ours.items())
    assert all(not torch.equal(ours[name], before[name]) for name in changed)
    for reading in block.readings():  # nothing is rounded yet
        moments, weight = reading.moments(), reading.layers[0].weight
        if moments.target is None:
            assert moments.drift.abs().max() == 0
        else:  # the layer's own weights already give the target
            made = weight.double() @ moments.hessian
            assert torch.allclose(moments.target, made, atol=1e-6 * made.abs().max().item())


@pytest.mark.parametrize("heads", [2, 4])
def test_every_search_sees_what_the_float_block_reads_and_makes(heads, monkeypatch):
    """Also after earlier pairs have been scaled. Each token counts by the weight of its error."""
    config = copy.deepcopy(tiny().config)
    config.num_key_value_heads = heads  # with 4 of 4, v -> o is scaled too
    torch.manual_seed(1)
    model, ids = qtutor.add_outliers(type(tiny())(config).eval()), some_ids(8)
    plain, block = (next(walk.walk(model, ids)) for _ in range(2))
    search, searched = awq.search, []

    def spy(layers, inputs, mean_abs, parent, *rest):
        names = [name for name, module in block.module.named_modules() if module in layers]
        expected = torch.cat(list(plain.inputs(names[0])))
        assert torch.allclose(mean_abs.double(), plain.statistics(names[0]).mean_abs, rtol=1e-3)
        assert torch.allclose(torch.cat([x for x, _ in inputs]), expected, atol=1e-4 * expected.abs().max())
        weights = plain.weights(names[0])
        roots = torch.ones(ids.shape) if weights is None else weights.sqrt()
        assert torch.allclose(torch.cat([root for _, root in inputs])[..., 0], roots, rtol=1e-3)
        x, root = inputs[0]
        makes = {"self_attn.q_proj": lambda x: block.module.self_attn(x, **block.arguments)[0],
                 "self_attn.o_proj": block.module.self_attn.o_proj,
                 "mlp.gate_proj": block.module.mlp, "mlp.down_proj": block.module.mlp.down_proj}[names[0]]  # fmt: skip
        assert torch.allclose(parent((x, root)), makes(x) * root, atol=1e-6)
        searched.append(names[0])
        return search(layers, inputs, mean_abs, parent, *rest)

    monkeypatch.setattr(awq, "search", spy)
    scaling.scale_block(block, qtutor.IntGrid(3), 32)
    pairs = ["self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"]
    # Each pair is searched twice: ratios from 0 to 0.8 in large steps, then ratios around the best one.
    assert searched == [name for name in pairs if heads == 4 or "o_proj" not in name for _ in range(2)]


@pytest.mark.parametrize("narrow", [512, 32])
def test_a_search_looks_at_few_tokens_and_statistics_at_more(narrow, monkeypatch):
    monkeypatch.setattr(awq, "NARROW", narrow)
    model, tokens, rows = tiny(), [], set()
    hessian, search, narrowed = scaling.CalibratedBlock.hessian, awq.search, awq.narrowed
    monkeypatch.setattr(scaling.CalibratedBlock, "hessian", lambda block, *rest: (
        tokens.append(block.tokens), hessian(block, *rest))[1])  # fmt: skip
    monkeypatch.setattr(awq, "narrowed", lambda *given: (rows.add(given[3]), narrowed(*given))[1])

    def spy(layers, inputs, *rest):
        tokens.append(sum(len(x.flatten(0, 1)) for x, _ in inputs))
        return search(layers, inputs, *rest)

    monkeypatch.setattr(awq, "search", spy)
    scaling.scale_block(next(walk.walk(model, some_ids(270, 64))), qtutor.IntGrid(3), 32, narrowed=True)
    # The search for attention runs on whole samples. The other modules treat each token by itself, so they run on some
    # tokens of every sample. The model is 64 wide. If it does not count as narrow, fewer tokens are used everywhere,
    # but a search may need a third step.
    known, tried = (16384, 2048) if narrow == 512 else (2048, 1024)
    found = [list(group) for is_known, group in groupby(tokens, lambda count: count == known) if not is_known]
    assert [set(group) for group in found] == [{tried}, {tried // 2}, {tried // 2}] and tokens.count(known) == 3
    assert all(len(group) == 2 or (narrow == 32 and len(group) == 3) for group in found)
    assert rows == ({sys.maxsize} if narrow == 512 else {128})


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("first", [3, 5])
@pytest.mark.parametrize("lowest", [0.0, 0.04, 0.16, 0.25, 0.38, 0.55, 0.74, 0.8, 0.95])
def test_the_best_ratio_is_looked_for_coarsely_and_then_closer(lowest, first, power):
    tried = []

    def search(ratios):
        tried.append(tuple(ratios))
        errors = tuple(1 + abs(ratio - lowest) ** power for ratio in ratios)
        best = min(zip(errors, ratios))
        return awq.Search(torch.tensor(best[1]), best[1], errors)

    found = scaling._best_scale(search, first)
    assert abs(found.ratio - lowest) <= (0.1 if power == 1 else 0.05) + 1e-9
    assert found.scale == torch.tensor(found.ratio)
    assert tried[0] == scaling.RATIOS[:first]
    if first == 5:
        assert len(tried) == 2
        return
    # The ratios after the first three are tried only if the error still falls at the third one.
    assert (scaling.RATIOS[3:] in tried) == (lowest > 0.3)
    if 0.1 < lowest < 0.7 and power == 2:  # the error is a parabola, and its minimum is between tried ratios
        assert len(tried[-1]) == 1 and found.ratio == pytest.approx(lowest)


@pytest.mark.parametrize("first", [3, 5])
def test_of_equal_ratios_the_one_that_scales_less_stays(first):
    found = scaling._best_scale(
        lambda ratios: awq.Search(torch.tensor(ratios[0]), ratios[0], (1.0,) * len(ratios)), first
    )
    assert found.ratio == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_is_folded_in_float32_for_the_grid_that_was_named(dtype, monkeypatch):
    plain, searched, search = qtutor.add_outliers(tiny(dtype=dtype)), set(), awq.search
    # Also check the arguments of the search: there are only a few ratios, so two grids may get the same result.
    monkeypatch.setattr(awq, "search", lambda *given: (searched.add(given[4:6]), search(*given))[1])
    expected = copy.deepcopy(plain).float()(some_ids()).logits
    default = qtutor.IntGrid(4), 32
    folded = {}
    for grid in ((), default, (qtutor.IntGrid(2), 32), (qtutor.IntGrid(4), 64)):
        model = copy.deepcopy(plain)
        searched.clear()
        assert scaling.fold_model(model, some_ids(8), *grid) is model and model.dtype == torch.float32
        assert searched == {grid or default}
        assert torch.allclose(model(some_ids()).logits, expected, atol=1e-4 * expected.abs().max().item())
        folded[grid] = model.model.layers[1].mlp.down_proj.weight
    assert torch.equal(folded[()], folded[default])
    assert not torch.equal(folded[()], folded[qtutor.IntGrid(2), 32])


class Judge:
    """A quantizer that returns weights with an error; scaled weights get an error of a different size."""

    def __init__(self, block, as_they_are: float, scaled: float):
        # As long as no scale is kept, weights that come unscaled are the weights from the start.
        self.known = {tuple(m.weight.flatten()[:9].tolist()) for m in block.module.modules() if hasattr(m, "weight")}
        self.as_they_are, self.scaled, self.hessians = as_they_are, scaled, []

    def __call__(self, weight, hessian):
        known = tuple(weight.flatten()[:9].tolist()) in self.known
        self.hessians.append((known, hessian))
        error = self.as_they_are if known else self.scaled
        return SimpleNamespace(dequantize=lambda: weight * (1 + error))


@pytest.mark.parametrize("errors", [(0.1, 0.2), (-1, -1), (0.2, 0.1), (0, 0)])
def test_scales_that_the_final_quantizer_rounds_no_better_with_are_dropped(errors):
    """Scales with a larger or an equal error are dropped: with an error of -1, all weights are 0, scaled or not.

    The search itself rounds to nearest.
    """
    block = next(walk.walk(qtutor.add_outliers(tiny()), some_ids(8)))
    before = {name: tensor.clone() for name, tensor in block.module.state_dict().items()}
    judge = Judge(block, *errors)
    scaling.scale_block(block, qtutor.IntGrid(3), 32, judge=judge)
    moved = {name for name, tensor in block.module.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {known for known, _ in judge.hessians} == {True, False}  # both were tried
    assert bool(moved) == (errors == (0.2, 0.1))


def test_the_judge_is_given_the_hessian_of_scaled_inputs():
    block = next(walk.walk(qtutor.add_outliers(tiny()), some_ids(8)))
    expected = block.hessian("mlp.down_proj", True)
    weight, seen = block.module.mlp.down_proj.weight.clone(), []

    def judge(given, hessian):
        if given.shape == weight.shape:
            seen.append((given, hessian))
        return SimpleNamespace(dequantize=lambda: given + 0.01 * weight.std())

    scaling.scale_block(block, qtutor.IntGrid(3), 32, judge=judge)
    (plain, first), (scaled, second) = seen
    assert torch.equal(plain, weight) and torch.allclose(first.double(), expected, atol=1e-4 * expected.abs().max())
    scale = (scaled / weight)[0]
    assert (scale.max() / scale.min()) > 1.2
    assert torch.allclose(second * scale[:, None] * scale, first, rtol=1e-4)


@pytest.mark.parametrize("best", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9])
def test_the_search_ends_where_rounding_loses_least(best, monkeypatch):
    """The error here grows on both sides of one ratio; rounding to nearest plays no part."""
    block = next(walk.walk(qtutor.add_outliers(tiny()), some_ids(8)))
    reading = next(found for found in block.readings(ahead=True) if found.names == ("mlp.down_proj",))
    mean_abs = block.statistics("mlp.down_proj").mean_abs
    wanted = awq.scale_of(mean_abs, best)

    def rounded(weights, scale):
        distance = (scale.log() - wanted.log()).norm()
        return [weight * (1 + 0.01 * (1 + distance)) for weight in weights]

    monkeypatch.setattr(awq, "narrowed", lambda *_arguments: rounded)
    rounding = transforms.Rounding(qtutor.IntGrid(3), 32, narrowed=True)
    found = scaling._scale_of_pair(reading, block.family.pairs[-1], rounding, scaling.CHEAP, duo=False)
    assert torch.allclose(found, wanted, rtol=1e-3)


@pytest.mark.parametrize("group_size", [16, 64, 0])
def test_a_search_narrows_ranges_of_some_rows_and_leaves_the_others_exact(group_size):
    layers, scale = [layer(14, 64, seed=1), layer(3, 64, seed=2)], torch.linspace(0.5, 2, 64)
    weights, x, grid = [part.weight.data for part in layers], with_outliers(200, 64, seed=3), qtutor.IntGrid(3)
    before = [weight.clone() for weight in weights]
    found = awq.narrowed((x.T @ x).float(), grid, group_size, 4)(weights, scale)
    whole = awq.nearest(grid, group_size)(weights, scale)
    assert all(torch.equal(weight, kept) for weight, kept in zip(weights, before))
    for weight, new, nearest in zip(weights, found, whole):
        if group_size == 0:
            assert torch.equal(new, nearest)
            continue
        some = torch.arange(0, len(weight), 4 if len(weight) == 14 else 1)
        assert len(some) <= 4
        exact = torch.ones(len(weight), dtype=torch.bool).index_fill(0, some, False)
        assert torch.equal(new[exact], weight[exact])
        costs = [(x @ (rows[some] - weight[some]).T).square().sum() for rows in (new, nearest)]
        assert costs[0] < 0.95 * costs[1]


def test_a_norm_of_another_kind_is_refused(monkeypatch):
    """The norm here multiplies by 1 + weight, like Gemma's, so dividing its weight does not divide its output."""
    found = awq.Search(torch.linspace(0.5, 2, 64), 0.5, (2.0, 1.0))
    monkeypatch.setattr(awq, "search", lambda *_arguments: found)
    block = next(walk.walk(tiny(), some_ids(8)))
    block.family = replace(block.family, pairs=block.family.pairs[:1])
    norm = block.module.input_layernorm
    plain = norm.forward
    norm.forward = lambda x: plain(x) + x / x.square().mean(dim=-1, keepdim=True).sqrt()
    with pytest.raises(qtutor.QtutorError, match=r"model\.layers\.0: folding AWQ's scales changed .* method 'gptq'"):
        scaling.scale_block(block, qtutor.IntGrid(2), 32)


def test_folding_by_hand():
    norm, reader = nn.LayerNorm(4), layer(3, 4, seed=1)
    norm.weight.data, norm.bias.data = torch.tensor([1.0, 0.0, 3.0, -2.0]), torch.tensor([0.5, 1.0, 0.0, 2.0])
    x = torch.randn(5, 4)
    expected = reader(norm(x))
    awq.fold(norm, [reader], torch.tensor([2.0, 3.0, 0.5, 1.7]), torch.bfloat16)
    assert torch.equal(norm.weight.data, norm.weight.data.bfloat16().float())
    assert torch.allclose(reader(norm(x)), expected, atol=1e-5)

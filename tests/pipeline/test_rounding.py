"""The layers of a block: how they are rounded, the error of a layer's output in the report, and its notes."""

import copy
from dataclasses import replace

import pytest
import torch

import qtutor
from qtutor import Recipe, awq, bnb, gptq, rtn
from qtutor.calibration import precision
from qtutor.calibration.walk import walk
from qtutor.families import LLAMA, linear_layers
from qtutor.methods import clip, scaling
from qtutor.methods.propagation import strength
from qtutor.pipeline import rounding
from tests.models import some_ids, tiny


def output_error(x: torch.Tensor, weight: torch.Tensor, back: torch.Tensor) -> float:
    """``|X (W - Q)^T| / |X W^T|``, computed from the outputs themselves, in float64."""
    x, weight, back = x.double(), weight.double(), back.double()
    return ((x @ (weight - back).T).norm() / (x @ weight.T).norm()).item()


@pytest.mark.parametrize("rows", [1, 5, 128, 200, 255])
def test_the_error_of_the_output_is_that_of_all_rows(rows):
    """The rows have very different sizes and errors, so a row that is left out would show."""
    generator = torch.Generator().manual_seed(rows)
    weight = torch.randn(rows, 32, generator=generator) * 2.0 ** torch.arange(rows).remainder(7)[:, None]
    x = torch.randn(50, 32, generator=generator) * torch.linspace(0.1, 3, 32)
    noise = 1 + 0.1 * torch.rand(rows, 1, generator=generator)
    back = rtn.quantize(weight, qtutor.IntGrid(2), 32).dequantize() * noise
    found = rounding._output_error(weight, back, x.T @ x)
    assert found == pytest.approx(output_error(x, weight, back), rel=1e-4)


def test_the_error_of_a_large_layer_is_that_of_some_rows_all_over_it():
    generator = torch.Generator().manual_seed(0)
    rows = 4 * rounding.ERROR_ROWS + 3
    weight, noise, x = (torch.randn(count, 16, generator=generator) for count in (rows, rows, 50))
    back = weight + 0.1 * noise * torch.arange(rows)[:, None]
    some = torch.arange(0, rows, 4)
    expected = output_error(x, weight[some], back[some])
    assert rounding._output_error(weight, back, x.T @ x) == pytest.approx(expected, rel=1e-4)


def test_errors_that_are_nothing_and_outputs_that_are_nothing():
    weight, x = torch.randn(3, 8), torch.randn(9, 8)
    assert rounding._output_error(weight, weight.clone(), x.T @ x) == 0
    assert rounding._output_error(torch.zeros(3, 8), torch.zeros(3, 8), x.T @ x) == 0


def test_the_report_holds_the_error_of_each_layers_output():
    """The layer is in block 0, and nothing before it is rounded, so its inputs are those of the float model."""
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
    """There are fewer tokens than inputs, so X^T X cannot be inverted without damping."""
    model, ids = tiny(), some_ids(1, 48)
    report = qtutor.quantize(model, qtutor.Recipe("gptq", group_size=32, damping=damping), ids, progress=False)
    few = "48 tokens for a width of 128: too few to tell all inputs apart, so damping decides; calibrate with more text"
    raised = f"; damping raised from {damping:g} to 0.01 to make the Hessian invertible" if damping == 0 else ""
    assert f"model.layers.1.mlp.down_proj: {few}{raised}" in report.notes


@pytest.mark.parametrize("tokens", [63, 64])
def test_as_many_tokens_as_inputs_are_not_too_few(tokens):
    recipe = qtutor.Recipe("gptq", group_size=32, propagate=False)
    report = qtutor.quantize(tiny(), recipe, some_ids(1, tokens), progress=False)
    few = [note for note in report.notes if "tokens for a width of 64: too few" in note]
    assert len(few) == (12 if tokens < 64 else 0)  # six of the layers in each of the two blocks


def rounded_first_block(recipe: Recipe, model=None):
    """The first block after its layers were rounded, the rounded layers, and the other changed tensors.

    The layers and tensors are found by their names in the block.
    """
    model = model or qtutor.add_outliers(tiny("qwen2"))
    block = next(walk(model, some_ids(16, 32), bool(recipe.propagate)))
    rounded, changed = {}, {}
    for item in rounding.round_layers(block, recipe, recipe.of_layers(linear_layers(model))):
        name = item.name.removeprefix("model.layers.0.")
        if isinstance(item, rounding.Changed):
            changed[name] = item.value
        else:  # copied at once: the block changes its layers later
            rounded[name] = replace(item, weight=item.weight.clone())
    return block, rounded, changed


@pytest.mark.parametrize(("wide", "expected"), [(64, torch.bfloat16), (65, torch.float32), (None, torch.float32)])
def test_searches_multiply_as_exactly_as_the_block_itself(wide, expected, monkeypatch):
    """Both searches, for scales and for ranges, on any CPU. A width of 64 just counts as wide, or just does not."""
    monkeypatch.setattr(precision, "quick_in", lambda instructions: instructions == "avx512_bf16")
    monkeypatch.setattr(precision, "sums_bytes", lambda: False)
    search, seen = clip.search_together, set()
    monkeypatch.setattr(clip, "search_together", lambda *given: (seen.add((given[3], given[4])), search(*given))[1])
    model = tiny()
    qtutor.quantize(model, Recipe("awq", 3, 32, wide=wide), some_ids(16, 32), progress=False)
    assert seen == {(0, expected), (3, expected)}


def test_bfloat16_on_a_cpu_says_nothing_of_other_devices(monkeypatch):
    monkeypatch.setattr(precision, "quick_in", lambda instructions: instructions == "avx512_bf16")
    block = next(walk(tiny(), some_ids(2), wide=64))
    elsewhere = replace(block, states=block.states.to("meta"))
    assert (block.product_dtype, elsewhere.product_dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize("propagate", [False, True])
@pytest.mark.parametrize("method", ["awq", "gptq", "awq+gptq"])
def test_what_lies_behind_a_layer_reads_what_it_makes_when_rounded(method, propagate):
    """Except for AWQ alone without propagation: there, all layers are rounded for the inputs of the float model."""
    block, rounded, _ = rounded_first_block(Recipe(method, 3, 32, propagate=propagate))
    assert list(rounded) == [name for names in block.family.shared for name in names]
    for name, item in rounded.items():
        now = block.module.get_submodule(name).weight
        assert torch.equal(item.back, item.quantized.dequantize())
        assert torch.equal(now, item.back) == (propagate or "gptq" in method)
        bias = block.module.get_submodule(name).bias  # qwen2 has them in q, k and v
        assert item.bias is None if bias is None else torch.equal(item.bias, bias)


@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_what_is_rounded_makes_up_for_drift_as_far_as_the_text_allows(method, monkeypatch):
    calls = []

    def spy(weight, moments, prepared, share):
        calls.append((weight.clone(), moments.hessian, share, propagated(weight, moments, prepared, share)))
        return calls[-1][-1]

    propagated = rounding.propagated
    monkeypatch.setattr(rounding, "propagated", spy)
    _, rounded, _ = rounded_first_block(Recipe(method, 3, 32, clip="none", propagate=True))
    assert len(calls) == len(rounded) == 7
    for (weight, hessian, share, wanted), (name, item) in zip(calls, rounded.items(), strict=True):
        assert share == strength(16 * 32, weight.shape[1])
        assert torch.equal(wanted, weight) == (name in LLAMA.halves[0].readers)  # nothing is rounded before these
        assert torch.equal(item.weight, weight)
        if method == "awq":
            assert torch.equal(item.quantized.codes, rtn.quantize(wanted, qtutor.IntGrid(3), 32).codes)
        difference = (item.back - wanted).double()  # the layer's output should be that of `wanted`
        squares = [((matrix @ hessian) * matrix).sum() for matrix in (difference, wanted.double())]
        assert item.output_error == pytest.approx((squares[0] / squares[1]).sqrt().item(), rel=1e-3)


def test_a_layer_that_is_rounded_to_nearest_beside_others_is_rounded_as_it_is():
    """Even if its inputs have drifted: only methods that look at inputs compensate for drift."""
    recipe = Recipe(bits=3, group_size=32, layers={"*.up_proj": {"method": "gptq"}}, propagate=True)
    model = tiny()
    _, rounded, _ = rounded_first_block(recipe, model)
    for name, item in rounded.items():
        nearest = rtn.quantize(model.model.layers[0].get_submodule(name).weight.detach(), qtutor.IntGrid(3), 32)
        assert torch.equal(item.quantized.codes, nearest.codes) == (name != "mlp.up_proj")


# With columns of all groups mixed, groups are static in any case.
ORDERS = [("none", False), ("none", True), ("columns", False), ("groups", False), ("groups", True)]


@pytest.mark.parametrize("asked", ORDERS)
def test_gptq_rounds_in_the_order_of_its_recipe(asked):
    model = qtutor.add_outliers(tiny())
    weight = model.model.layers[0].self_attn.q_proj.weight.detach().clone()
    hessian = next(walk(model, some_ids(16, 32))).hessian("self_attn.q_proj")
    recipe = Recipe("gptq", 3, 32, clip="none", act_order=asked[0], static_groups=asked[1])
    codes, same = rounded_first_block(recipe, model)[1]["self_attn.q_proj"].quantized.codes, {}
    for order, static in ORDERS:
        alone = gptq.quantize(weight, hessian, qtutor.IntGrid(3), 32, act_order=order, static_groups=static)
        same[order, static] = (codes == alone.codes).float().mean().item()
    assert same.pop(asked) > 0.99 and max(same.values()) < 0.97


@pytest.mark.parametrize(("method", "judged"), [("awq", False), ("awq+gptq", True)])
def test_a_rounder_that_does_more_than_round_to_nearest_judges_the_scales(method, judged, monkeypatch):
    called, own = [], scaling._confirmed
    monkeypatch.setattr(scaling, "_confirmed", lambda *given: (called.append(given), own(*given))[1])
    rounded_first_block(Recipe(method, 3, 32))
    assert bool(called) == judged


@pytest.mark.parametrize(("clip", "narrowed"), [("none", False), ("mse", True), ("output", True)])
@pytest.mark.parametrize("method", ["awq", "awq+gptq"])
def test_a_search_of_scales_narrows_ranges_where_the_rounder_will(method, clip, narrowed, monkeypatch):
    """With wide ranges, large scales look better than they will be, and with narrow ones worse."""
    called, own = [], awq.narrowed
    monkeypatch.setattr(awq, "narrowed", lambda *given: (called.append(given), own(*given))[1])
    rounded_first_block(Recipe(method, 3, 32, clip=clip))
    assert bool(called) == narrowed


@pytest.mark.parametrize("method", ["awq", "awq+gptq", "gptq"])
def test_norms_are_changed_by_scales_and_by_nothing_else(method):
    _, _, changed = rounded_first_block(Recipe(method, 3, 32))
    norms = ["input_layernorm.weight", "post_attention_layernorm.weight"]
    assert sorted(changed) == (norms if "awq" in method else [])
    _, rounded, changed = rounded_first_block(Recipe(method, 3, 32, layers={"*.q_proj": "float"}))
    kept = ["self_attn.q_proj.bias", "self_attn.q_proj.weight"]
    assert sorted(changed) == (norms + kept if "awq" in method else []) and len(rounded) == 6


@pytest.mark.parametrize("group_size", [-1, 0, 32])
@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_layers_that_read_the_same_are_rounded_as_if_each_were_alone(method, group_size, monkeypatch):
    """They are rounded as one matrix, since rows are independent. With one scale per tensor, each layer has its own."""
    model = tiny()
    with torch.no_grad():
        model.model.layers[0].self_attn.k_proj.weight.mul_(9)  # a shared scale would be the one of k
    recipe = Recipe(method, 3, group_size)
    _, together, _ = rounded_first_block(recipe, model)

    def one_by_one(weights, inputs, recipe):
        return [recipe.rounder.round(weight, recipe.grid, recipe.group_size, inputs) for weight in weights]

    monkeypatch.setattr(rounding, "_round_together", one_by_one)
    _, alone, _ = rounded_first_block(recipe, model)
    for name, item in together.items():
        same = item.quantized.codes == alone[name].quantized.codes
        assert same.float().mean() > 0.99  # a weight in the middle may go either way, by the order of sums
        assert item.quantized.shape == tuple(item.weight.shape)


@pytest.mark.parametrize("what", ["nan", "width"])
@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_what_cannot_be_rounded_is_refused_before_any_search(method, what, monkeypatch):
    model = tiny()
    recipe = Recipe(method, group_size=32, layers={"*.down_proj": {"group_size": 48}} if what == "width" else {})
    if what == "nan":
        model.model.layers[0].mlp.down_proj.weight.data[3, 4] = float("nan")
    monkeypatch.setattr(qtutor.awq, "search", None)
    monkeypatch.setattr(rounding, "_reading", None)
    with pytest.raises(qtutor.QtutorError, match=r"model\.layers\.0\.mlp\.down_proj: .*(groups of 48|NaN)"):
        rounded_first_block(recipe, model)


def test_layers_that_read_the_same_input_keep_nested_scales_of_their_own():
    """Among layers of GPTQ, NF4 rounds q, k and v one by one: its second scales count all first scales of a matrix."""
    model, plain = tiny(), tiny()
    recipe = qtutor.Recipe("gptq", group_size=32, layers={"*.self_attn.*": {"method": "nf4"}})
    qtutor.quantize(model, recipe, some_ids(8), progress=False)
    for name in ("q_proj", "k_proj", "v_proj"):
        found = getattr(model.model.layers[0].self_attn, name).quantized()
        alone = bnb.quantize(getattr(plain.model.layers[0].self_attn, name).weight.data, bnb.NF4, 32)
        assert torch.equal(found.codes, alone.codes) and torch.equal(found.dequantize(), alone.dequantize())

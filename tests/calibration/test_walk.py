"""The walk over blocks: its states are the model's states, nothing runs without need, and the model is only read."""

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import qtutor
from qtutor import gptq
from qtutor.calibration import block as block_module
from qtutor.calibration import mapped, moments, precision, stream, walk
from qtutor.calibration.moments import Factor, Gram
from qtutor.families import LLAMA
from tests.families import small
from tests.live_bytes import LiveBytes
from tests.models import FAMILIES, VOCABULARY, some_ids, tiny

LAST = tuple(half.last for half in LLAMA.halves)


def float_states(model, ids) -> tuple[torch.Tensor, ...]:
    """The states that arrive at each block, according to transformers."""
    with torch.no_grad():
        return model(ids, output_hidden_states=True).hidden_states


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("samples", [3, 19])  # less than one batch; a little more than two batches
def test_states_are_those_of_the_model(family, samples):
    model, ids = tiny(family), some_ids(samples)
    expected = float_states(model, ids)
    for i, block in enumerate(walk.walk(model, ids)):
        assert block.name == f"model.layers.{i}" and block.tokens == ids.numel()
        assert torch.allclose(block.states, expected[i], atol=1e-5)
    assert i == 1


def test_the_float_decoder_is_carried_along_only_when_asked():
    model, ids = tiny("llama"), some_ids(2)
    assert all(block.twin is None for block in walk.walk(model, ids))
    assert all(block.twin is not None for block in walk.walk(model, ids, twin=True))


def test_statistics_of_inputs_that_are_no_numbers_name_their_layer():
    block = next(iter(walk.walk(tiny("llama"), some_ids(2))))
    block.states[1, 2, 5] = float("inf")
    with pytest.raises(qtutor.QtutorError, match=r"^model\.layers\.0\.self_attn\.q_proj: its input is nan \(token 2 "):
        block.statistics("self_attn.q_proj")


def test_dropout_is_off_while_others_stand_in_for_the_blocks():
    model, seen = tiny("llama").train(), []
    with walk.in_place_of_blocks(model, lambda states, **_: (seen.append(model.training), states)[1]):
        model(some_ids(2))
    assert seen == [False, False] and model.training and all(block.training for block in model.model.layers)


def test_masks_of_sliding_windows_are_kept():
    model = tiny("mistral")
    model.config.sliding_window = 4
    ids = some_ids(9)
    expected = float_states(model, ids)
    full = float_states(tiny("mistral"), ids)
    assert not torch.allclose(expected[1], full[1], atol=1e-3)  # the window matters
    states = []
    for block in walk.walk(model, ids):
        states.append(block.states.clone())
    assert torch.allclose(states[1], expected[1], atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_hessian_and_statistics_are_sums_over_every_token(family):
    model, ids = tiny(family), some_ids(11)
    seen = {}
    for name, module in model.model.layers.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(
                lambda _m, arguments, name=name: seen.update({name: arguments[0].flatten(0, 1)})
            )
    with torch.no_grad():
        model(ids)
    for i, block in enumerate(walk.walk(model, ids)):
        for names in LLAMA.shared:
            for name in names:
                x = seen[f"{i}.{name}"].double()
                hessian = block.hessian(name)
                assert hessian.dtype == torch.float64
                assert torch.allclose(hessian, x.T @ x, rtol=1e-4, atol=1e-4 * (x.T @ x).abs().max())
            assert all(torch.equal(seen[f"{i}.{names[0]}"], seen[f"{i}.{name}"]) for name in names)
            assert torch.allclose(block.statistics(names[0]).mean_abs, x.abs().mean(0), atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_moments_with_a_twin_tell_what_rounding_did_to_the_inputs(family):
    """Compared with sums over all tokens at once, from two decoders: the original, and one with block 0 changed."""
    model, ids = tiny(family), some_ids(11)
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.model.layers[0].mlp.down_proj.weight.mul_(-1)
    seen = []
    for decoder in (changed, model):
        seen.append(found := {})
        decoder = copy.deepcopy(decoder)  # only this copy gets hooks
        block = decoder.model.layers[1]
        for name in (*LAST, "self_attn.q_proj", "post_attention_layernorm"):
            block.get_submodule(name).register_forward_pre_hook(
                lambda _m, given, name=name, found=found: found.update({name: given[0].double()})
            )
        block.register_forward_hook(lambda _m, _given, out, found=found: found.update(out=out.double()))
        with torch.no_grad():
            decoder(ids)
    blocks = walk.walk(model, ids, twin=True)
    first = next(blocks)
    assert next(first.readings()).moments().drift.abs().max() == 0
    with torch.no_grad():
        first.module.mlp.down_proj.weight.mul_(-1)
    block = next(blocks)
    states = [float_states(decoder, ids)[1].double() for decoder in (changed, model)]
    before = {"self_attn.q_proj": None, "self_attn.o_proj": states}
    before["mlp.down_proj"] = [found["post_attention_layernorm"] for found in seen]
    behind = {"self_attn.o_proj": seen[1]["post_attention_layernorm"], "mlp.down_proj": seen[1]["out"]}
    for reading in block.readings():
        name = reading.names[0]
        if name not in before:
            continue
        streams = before[name]
        x, undisturbed = (found[name].flatten(0, 1) for found in seen)
        if streams is None:
            w = torch.ones(len(x), 1, dtype=torch.float64)
        else:
            w = behind[name].square().mean(-1).flatten()[:, None] ** -0.5
            w = w / w.mean()
        moments = reading.moments()
        expected = {"hessian": (w * x).T @ x}
        if streams is None:
            expected["drift"] = (undisturbed - x).T @ (w * x)
        else:
            made = undisturbed @ reading.layers[0].weight.double().T
            expected["target"] = (made + (streams[1] - streams[0]).flatten(0, 1)).T @ (w * x)
        for key, value in expected.items():
            assert torch.allclose(getattr(moments, key), value, atol=2e-4 * value.abs().max()), key
        assert {key for key, value in vars(moments).items() if value is not None} == expected.keys()


def test_some_tokens_are_whole_samples_always_the_same():
    model, ids = tiny(), some_ids(12, 24)
    block = next(walk.walk(model, ids))
    every = torch.cat(list(block.inputs("mlp.down_proj")))
    some = torch.cat(list(block.inputs("mlp.down_proj", tokens=4 * 24)))
    distances = (some[:, None] - every[None]).abs().amax(dim=(2, 3))  # [some, every]
    assert some.shape[0] == 4 and ((distances < 1e-5).sum(dim=1) == 1).all()
    assert distances.argmin(dim=1).unique().numel() == 4 and set(distances.argmin(dim=1).diff().tolist()) != {3}
    assert torch.equal(some, torch.cat(list(block.inputs("mlp.down_proj", tokens=4 * 24))))
    assert len(torch.cat(list(block.inputs("mlp.down_proj", tokens=1)))) == 1
    assert len(torch.cat(list(block.inputs("mlp.down_proj", tokens=10**6)))) == 12


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_the_same_wherever_the_states_are(family):
    """At the start, then with kept inputs, then after attention, and there with kept inputs again."""
    model, ids, some = tiny(family), some_ids(7), torch.tensor([1, 5])
    block = next(walk.walk(model, ids))
    layers = [names[0] for names in LLAMA.shared]
    inputs = {layer: block.reach(layer, slice(None)) for layer in layers}
    outputs, sizes = block.run(slice(None)), [block.sizes(half) for half in (0, 1)]
    assert torch.allclose(outputs, float_states(model, ids)[1], atol=1e-5)
    assert torch.allclose(sizes[1], outputs.square().mean(-1), rtol=1e-5)

    def check(left: list[str], halves: list[int]):
        for layer in left:
            for index in (slice(None), slice(2, 4), some):
                assert torch.allclose(block.reach(layer, index), inputs[layer][index], atol=1e-6)
        assert torch.allclose(block.run(some), outputs[some], atol=1e-5)
        assert all(torch.allclose(block.sizes(half), sizes[half], rtol=1e-5) for half in halves)

    block.keep()
    check(layers, [0, 1])
    block.pass_half()
    block.kept = None
    check(layers[2:], [0, 1])
    with pytest.raises(ValueError, match="already past it"):
        block.reach(layers[1], slice(None))
    block.keep()
    check(layers[2:], [1])
    block.advance()
    assert torch.allclose(block.states, outputs, atol=1e-5) and (block.passed, block.kept) == (0, None)


@pytest.mark.parametrize("ahead", [False, True])
def test_a_block_that_is_read_to_its_end_runs_each_layer_once(ahead):
    block, ran = next(walk.walk(tiny(), some_ids(3), twin=True, token_weights=False)), []
    for stream_of in (block, block.twin):
        for name, module in stream_of.module.named_modules():
            if isinstance(module, torch.nn.Linear):
                # A half's last layer is also called when its inputs are kept, but then it multiplies nothing.
                module.register_forward_pre_hook(
                    lambda module, _x, name=name: ran.append(name) if "forward" not in vars(module) else None
                )
    for reading in block.readings(ahead):
        reading.moments()
    block.advance()
    assert sorted(ran) == sorted(2 * [name for names in LLAMA.shared for name in names])


def test_samples_of_a_block_have_states_and_weights_of_their_own():
    block = next(walk.walk(tiny(), some_ids(12, 24), twin=True))
    chosen = block.chosen(4 * 24)
    assert chosen.tolist() == sorted(chosen.tolist())
    sample, before = block.sample(4 * 24), block.states.clone()
    for layer in LAST:
        weights = sample.weights(layer)
        assert weights.shape == (4, 24) and weights.mean() == pytest.approx(1, rel=1e-5)
        assert block.weights(layer).shape == (12, 24)
        part = block.weights(layer)[chosen]
        assert torch.allclose(weights, part / part.mean(), rtol=1e-4)
    for reading in sample.readings():
        list(reading.block.inputs(reading.names[0]))
    sample.advance()
    assert sample.twin is None and torch.equal(block.states, before) and block.passed == 0


@pytest.mark.parametrize("tokens", [None, 4 * 24])
@pytest.mark.parametrize("layer", [names[0] for names in LLAMA.shared])
def test_inputs_come_with_the_weights_of_their_own_tokens(layer, tokens, monkeypatch):
    monkeypatch.setattr(stream, "PASS", 60)  # two samples at a time
    block = next(walk.walk(tiny(), some_ids(12, 24)))
    x, w = (torch.cat(parts) for parts in zip(*block.weighted_inputs(layer, tokens)))
    every = block.weights(layer)
    every = torch.ones(12, 24) if every is None else every
    chosen = block.chosen(tokens)
    assert torch.allclose(x, block.reach(layer, chosen), atol=1e-6) and torch.equal(w, every[chosen][..., None])
    assert (every.std() > 0) == (layer not in LLAMA.halves[0].readers)
    weighted = (w.double() * x.double()).flatten(0, 1).T @ x.double().flatten(0, 1)
    assert torch.allclose(block.hessian(layer, True, tokens), weighted, atol=1e-4 * weighted.abs().max())


def test_tokens_count_alike_where_nobody_asked_for_weights():
    block = next(walk.walk(tiny(), some_ids(3), token_weights=False))
    assert all(block.weights(names[0]) is None for names in LLAMA.shared)
    assert torch.equal(block.hessian("mlp.down_proj", weighted=True), block.hessian("mlp.down_proj"))


def test_samples_longer_than_a_pass_run_one_by_one(monkeypatch):
    monkeypatch.setattr(stream, "PASS", 20)
    block = next(walk.walk(tiny(), some_ids(3, 24)))
    assert [len(x) for x in block.inputs("mlp.down_proj")] == [1, 1, 1]
    assert list(block.batches()) == [slice(0, 1), slice(1, 2), slice(2, 3)] and block.step(50) == 2


def test_what_a_method_changes_reaches_the_next_block_and_not_the_model():
    model, ids = tiny(), some_ids(5)
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for name in ("self_attn.v_proj", "mlp.down_proj"):
            changed.model.layers[0].get_submodule(name).weight.mul_(-2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = float_states(changed, ids)[1]
    blocks = walk.walk(model, ids)
    block = next(blocks)
    with torch.no_grad():
        for name in ("self_attn.v_proj", "mlp.down_proj"):
            block.module.get_submodule(name).weight.mul_(-2)
    assert torch.allclose(next(blocks).states, expected, atol=1e-5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("half", [0, 1])
def test_a_forward_of_the_last_layers_own_is_put_back(half, fails, monkeypatch):
    """accelerate's hooks put one into every module. While a pass only looks for the layer's inputs, it is away."""
    model, ids = tiny(), some_ids(3)
    exact = next(walk.walk(model, ids)).run(slice(None))
    block, called = next(walk.walk(model, ids)), []
    last = block.module.get_submodule(LAST[half])

    def own(x):
        called.append(len(x))
        return type(last).forward(last, x)

    last.forward = own
    if fails:
        monkeypatch.setattr(stream, "check_finite", lambda *_: None)
        last_of = block.module.get_submodule(LLAMA.halves[half].parent)
        last_of.register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            block.reach(LAST[half], slice(None))
    else:
        block.reach(LAST[half], slice(None))
    assert not called and vars(last)["forward"] is own
    if not fails:
        assert torch.equal(block.run(slice(None)), exact) and called == [3]


def test_a_pass_runs_no_further_than_its_layer():
    model = tiny()
    block = next(walk.walk(model, some_ids(4)))
    ran = []
    for name, module in block.module.named_modules():
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
    list(block.inputs("self_attn.q_proj"))
    assert ran == ["input_layernorm"]
    ran.clear()
    list(block.inputs("mlp.up_proj"))
    assert "self_attn.o_proj" in ran and ran[-1] == "post_attention_layernorm"


def test_a_model_that_is_being_trained_is_calibrated_without_dropout():
    model, ids = tiny(), some_ids(5)
    expected = float_states(model, ids)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    model.train()
    for i, block in enumerate(walk.walk(model, ids, twin=True)):
        assert torch.allclose(block.states, expected[i], atol=1e-5)
        assert torch.equal(block.twin.states, block.states) and block.twin.states is not block.states
    assert model.training and all(module.training for module in model.modules())


def test_all_blocks_leave_memory_at_the_beginning_and_each_once_it_is_copied(monkeypatch):
    """This matters if they are mapped from a file; page_out itself is tested in test_mapped."""
    model, paged = tiny(), []
    monkeypatch.setattr(mapped, "page_out", lambda tensors: paged.append(list(tensors)))
    for number, _ in enumerate(walk.walk(model, some_ids(3)), 1):
        assert len(paged) == number + 1 and paged[-1][0] is next(model.model.layers[number - 1].parameters())
    assert {id(parameter) for parameter in paged[0]} == {id(parameter) for parameter in model.parameters()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_are_calibrated_in_float32(dtype):
    model = tiny("qwen3", dtype=dtype)
    exact = copy.deepcopy(model).float()
    exact.model.rotary_emb = model.model.rotary_emb
    expected = float_states(exact, some_ids(3))
    for i, block in enumerate(walk.walk(model, some_ids(3))):
        assert block.dtype == dtype and block.states.dtype == torch.float32
        floats = [value for value in block.arguments["position_embeddings"] if value.is_floating_point()]
        assert len(floats) == 2 and {value.dtype for value in floats} == {torch.float32}
        assert torch.allclose(block.states, expected[i], atol=3e-2)  # positions are rounded to the model's dtype
    assert all(parameter.dtype == dtype for parameter in model.parameters())


def add(gram: Gram, x: torch.Tensor, other: torch.Tensor) -> None:
    factor = Factor(x)
    gram.add(factor if gram.symmetric else Factor(other), factor)


@pytest.mark.parametrize("symmetric", [True, False])
def test_gram_is_the_sum_of_products(symmetric, monkeypatch):
    monkeypatch.setattr(Gram, "PANEL", 16)  # 40 channels: panels of 16, 16 and 8
    generator = torch.Generator().manual_seed(0)
    x, other = torch.randn(3, 7, 40, generator=generator), torch.randn(3, 7, 24, generator=generator)
    gram = Gram(symmetric, rounded=False)
    for some in ([0, 1], [2]):
        add(gram, x[some], other[some])
    expected = (x if symmetric else other).double().flatten(0, 1).T @ x.double().flatten(0, 1)
    assert gram.result().dtype == torch.float64 and torch.allclose(gram.result(), expected, atol=1e-4)
    if symmetric:
        lower = gram.result().tril(-16)
        assert torch.equal(lower, gram.result().triu(16).T)
    assert Gram(symmetric=True, rounded=False).result() is None


@pytest.mark.parametrize(("wide", "rounded"), [(64, True), (65, False), (None, False)])
def test_only_wide_blocks_may_round_to_bytes(wide, rounded):
    """A block of width 64, with samples of another length."""
    block = next(walk.walk(tiny(), some_ids(3, 20), wide=wide))
    assert [block.gram(symmetric).rounded for symmetric in (True, False)] == [rounded] * 2


def test_a_gram_is_summed_in_float32_whatever_is_going_on_around_it():
    """A wide block computes its layers with bfloat16 factors."""
    x = torch.randn(40, 300, generator=torch.Generator().manual_seed(0))
    inside, outside = Gram(symmetric=True, rounded=False), Gram(symmetric=True, rounded=False)
    outside.add(Factor(x), Factor(x))
    with torch.autocast("cpu", torch.bfloat16):
        inside.add(Factor(x), Factor(x))
    assert torch.allclose(inside.result(), outside.result(), rtol=1e-5, atol=1e-4)


def test_bytes_are_multiplied_where_their_sums_are_exact(monkeypatch):
    most = torch.full((8, 64), 127, dtype=torch.int8)
    exact = torch.equal(torch._int_mm(most, most.T), torch.full((8, 8), 64 * 127**2, dtype=torch.int32))
    assert precision.bytes_are_exact.__wrapped__() is exact
    assert exact or not precision.sums_bytes.__wrapped__()
    for quick in (True, False):
        for right in (True, False):
            monkeypatch.setattr(precision, "quick_in", lambda _, quick=quick: quick)
            monkeypatch.setattr(precision, "bytes_are_exact", lambda right=right: right)
            assert precision.sums_bytes.__wrapped__() is (quick and right)


@pytest.mark.skipif(
    not precision.bytes_are_exact(), reason="oneDNN adds up bytes in 16 bits here, and nobody asks it to"
)
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_gram_of_bytes_is_that_of_rounded_numbers(symmetric, monkeypatch):
    monkeypatch.setattr(Gram, "PANEL", 16)
    monkeypatch.setattr(moments, "sums_bytes", lambda: True)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 7, 40, generator=generator) * torch.logspace(-6, 6, 40)  # channels of all sizes
    x[..., 3] = 0
    x[..., 4], x[0, 0, 4] = 1e-3, 50  # one token has nearly the whole sum of this channel
    other = torch.randn(3, 7, 24, generator=generator)
    gram, rounded = Gram(symmetric, rounded=True), []
    for some in ([0, 1], [2]):
        add(gram, x[some], other[some])
        both = []
        for given in (x if symmetric else other, x):
            flat = given[some].flatten(0, 1).double()
            step = (flat.abs().amax(0) / 127).clamp(min=1e-40)
            both.append((flat / step).round() * step)
        rounded.append(both[0].T @ both[1])
    # Relative to the channels' sizes: a number near the middle between two steps may be rounded to either one.
    sizes = [given.double().flatten(0, 1).norm(dim=0).clamp(min=1e-30) for given in (x if symmetric else other, x)]
    difference = (gram.result() - sum(rounded)) / torch.outer(*sizes)
    assert difference.abs().max() < 1e-5 and (gram.result()[:, 3] == 0).all()
    if symmetric:
        assert torch.linalg.eigvalsh(gram.result() / torch.outer(*sizes)).min() > -1e-6
    plain = Gram(symmetric, rounded=False)
    add(plain, x, other)
    lost = (gram.result() - plain.result()) / torch.outer(*sizes)
    assert 1e-5 < lost.abs().max() < 0.01


def test_little_is_lost_in_bytes_even_where_one_token_has_all():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2048, 64, generator=generator)
    x[0] *= torch.logspace(0, 3, 64)  # in the last channels, one token has nearly the whole sum
    for given in (x, x.bfloat16()):
        codes, step = precision.bytes_of(given)
        assert codes.dtype == torch.int8 and step.dtype == torch.float32 and codes.abs().amax(0).eq(127).all()
        lost = (codes * step - given.float()).square().sum(0) / given.float().square().sum(0)
        assert lost.max() < 0.0107 and lost[:8].max() < 5e-4  # 2048 / (12 * 127^2) is 0.0106


def test_wide_blocks_may_multiply_in_bfloat16_and_small_ones_may_not():
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=precision.WIDE,
        intermediate_size=256,
        num_hidden_layers=1,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    model, before = LlamaForCausalLM(config).eval(), torch.backends.mkldnn.matmul.fp32_precision
    block = next(walk.walk(model, some_ids(4)))
    with torch.no_grad():
        exact = block.module(block.states, **block.arguments)
    wide = block.run(slice(None))
    error = (wide - exact).norm() / (exact - block.states).norm()
    # Rounding to 8 bits has errors of up to 2^-9; a CPU without instructions for bfloat16 continues in float32.
    able = torch.cpu.get_capabilities().get("avx512_bf16") and "AVX512" in torch.backends.cpu.get_cpu_capability()
    assert (1e-4 < error < 0.01) if able else error < 1e-6
    assert wide.dtype == block.reach("mlp.down_proj", slice(None)).dtype == torch.float32
    assert torch.backends.mkldnn.matmul.fp32_precision == before and not torch.is_autocast_enabled("cpu")
    for threshold in (None, precision.WIDE + 1):
        narrow = next(walk.walk(model, some_ids(4), wide=threshold))
        assert (narrow.run(slice(None)) - exact).norm() < 1e-6 * (exact - block.states).norm()


WAYS = {
    "run": lambda block: block.run(slice(None)),
    "reach": lambda block: block.reach("mlp.up_proj", slice(None)),
    "keep": lambda block: block.keep(),
    "pass_half": lambda block: block.pass_half(),
    "sizes": lambda block: block.sizes(1),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("wide", "expected"), [(64, True), (65, False), (None, False)])
def test_every_product_of_a_wide_block_is_as_exact_as_asked_for(way, wide, expected, monkeypatch):
    """The test pretends that the CPU has the instructions. A block of width 64 counts as wide, or just does not."""
    monkeypatch.setattr(precision, "quick_in", lambda instructions: instructions == "avx512_bf16")
    seen = []
    for stream_of in ("block", "twin"):
        block = next(walk.walk(tiny(), some_ids(3), twin=True, wide=wide))
        block = block if stream_of == "block" else block.twin
        for module in block.module.modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
        WAYS[way](block)
        assert set(seen) == {expected} and not torch.is_autocast_enabled("cpu")
        assert block.states.dtype == torch.float32
        if way == "keep":  # kept in the dtype in which the block computes it: bfloat16 takes half the memory
            assert block.kept[1].dtype == (torch.bfloat16 if expected else torch.float32)
            assert block.reach(block.kept[0], slice(None)).dtype == torch.float32
        seen.clear()


@pytest.mark.parametrize("capability", ["AVX512", "AVX512_VNNI", "AVX2", "DEFAULT"])
@pytest.mark.parametrize("has", [{"avx512_bf16": True, "avx512_vnni": False}, {}])
def test_instructions_count_where_torch_may_use_them(capability, has, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    wanted = bool(has) and capability.startswith("AVX512")
    assert precision.quick_in.__wrapped__("avx512_bf16") is wanted
    assert precision.quick_in.__wrapped__("avx512_vnni") is False


def test_a_cpu_that_rounds_nothing_takes_the_faster_library_at_every_size(monkeypatch):
    before = torch.backends.mkldnn.matmul.fp32_precision
    for rounds, expected in ((False, "bf16"), (True, before)):
        monkeypatch.setattr(precision, "rounds_factors", lambda rounds=rounds: rounds)
        for way in (precision.in_float32(), precision.products(63, 64), precision.products(64, None)):
            with way:
                assert torch.backends.mkldnn.matmul.fp32_precision == expected
        assert torch.backends.mkldnn.matmul.fp32_precision == before


def test_what_a_cpu_does_with_factors_is_found_by_a_product(monkeypatch):
    before, real = torch.backends.mkldnn.matmul.fp32_precision, torch.nn.functional.linear
    assert precision.rounds_factors.__wrapped__() is torch.cpu._is_amx_tile_supported()
    monkeypatch.setattr(torch.nn.functional, "linear", lambda x, w: real(x.bfloat16().float(), w.bfloat16().float()))
    assert precision.rounds_factors.__wrapped__() is True
    monkeypatch.setattr(torch.nn.functional, "linear", lambda x, w: real(x.double(), w.double()).float())
    assert precision.rounds_factors.__wrapped__() is False
    assert torch.backends.mkldnn.matmul.fp32_precision == before


def test_precision_is_put_back_after_a_failure(monkeypatch):
    monkeypatch.setattr(precision, "quick_in", lambda _: True)
    before = torch.backends.mkldnn.matmul.fp32_precision
    for width, wide in ((64, 64), (63, 64), (64, None)):
        with pytest.raises(KeyboardInterrupt), precision.products(width, wide):
            assert torch.is_autocast_enabled("cpu") == (width == wide)
            with precision.in_float32():
                assert not torch.is_autocast_enabled("cpu")
            raise KeyboardInterrupt
        assert torch.backends.mkldnn.matmul.fp32_precision == before and not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("half", [0, 1])
@pytest.mark.parametrize("family", ["llama", "granite"])  # granite multiplies the output of a half before adding it
def test_the_sizes_of_a_wide_stream_come_from_sums_of_its_channels(family, half, bias, monkeypatch):
    block = next(walk.walk(small.random(family), some_ids(19)))
    last = block.module.get_submodule(block.family.halves[half].last)
    with torch.no_grad():
        last.weight.mul_(20)  # so that the half adds numbers as large as the stream
    if bias:
        last.bias = torch.nn.Parameter(torch.linspace(-2, 2, last.out_features))
    exact = block.sizes(half)
    monkeypatch.setattr(stream, "SUMS", 9)  # 64 channels are fewer than 8 * 9, so nothing is estimated
    assert torch.equal(block.sizes(half), exact)
    monkeypatch.setattr(stream, "SUMS", 8)
    assert 0.05 < (block.sizes(half) / exact - 1).abs().mean() < 1  # an estimate from 8 sums is off by about half
    turned = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(0)))[0]
    monkeypatch.setattr(stream, "random_signs", lambda width, device: turned)  # as many sums as channels are exact
    assert torch.allclose(block.sizes(half), exact, rtol=1e-4)
    if half == 0:  # after the half, nothing has to be estimated
        block.pass_half()
        assert torch.allclose(block.sizes(half), exact, rtol=1e-4)


@pytest.mark.parametrize("family", ["gemma2", "olmo2"])
@pytest.mark.parametrize("half", [0, 1])
def test_nothing_is_estimated_where_a_norm_follows_the_half(family, half, monkeypatch):
    """The norm divides by the size of all channels, which sums of them do not show."""
    block = next(walk.walk(small.random(family), some_ids(5)))
    exact = block.sizes(half)
    monkeypatch.setattr(stream, "SUMS", 8)
    assert torch.equal(block.sizes(half), exact)


@pytest.mark.parametrize("family", ["llama", "granite"])  # granite multiplies what a half adds
def test_the_wanted_output_of_a_half_makes_both_streams_equal(family):
    block = next(walk.walk(small.random(family), some_ids(5), twin=True))
    block.states += 0.1 * torch.randn(block.states.shape, generator=torch.Generator().manual_seed(0))
    wanted = block.twin.pass_half(before=block.states)
    assert torch.allclose(block.states + block.multiplier * wanted, block.twin.states, atol=1e-4)


def test_the_target_of_a_layer_with_a_bias_leaves_the_bias_out():
    """Nothing is rounded here, so what the layer should compute is what it computes."""
    block = next(walk.walk(tiny(), some_ids(11), twin=True))
    for stream_of in (block, block.twin):
        for name in LAST:
            stream_of.module.get_submodule(name).bias = torch.nn.Parameter(torch.linspace(-2, 2, 64))
    for reading in block.readings():
        if reading.names[0] in LAST:
            moments = reading.moments()
            expected = reading.layers[0].weight.double() @ moments.hessian
            assert torch.allclose(moments.target, expected, atol=1e-4 * expected.abs().max())


def test_a_token_whose_stream_is_zero_has_a_weight():
    """As a row of padding in the embedding, at the beginning of a text: attention adds nothing to it either."""
    model, ids = tiny(), some_ids(3)
    model.model.embed_tokens.weight.data[ids[1, 0]] = 0
    block = next(walk.walk(model, ids))
    for name in ("mlp.up_proj", "mlp.down_proj"):
        weights = block.weights(name)
        assert weights.isfinite().all() and weights.mean() == pytest.approx(1, rel=1e-5)
        assert block.hessian(name, weighted=True).isfinite().all()


def test_random_signs_keep_lengths():
    signs = stream.random_signs(1000, torch.device("cpu"))
    assert signs.shape == (stream.SUMS, 1000) and torch.equal(signs.abs(), torch.full_like(signs, stream.SUMS**-0.5))
    vectors = torch.randn(200, 1000, generator=torch.Generator().manual_seed(1))
    ratio = (vectors @ signs.T).square().sum(-1) / vectors.square().sum(-1)
    assert 0.95 < ratio.mean() < 1.05 and ratio.std() < 0.25


def test_nothing_stays_behind():
    model, ids = tiny(), some_ids(3)
    expected = model(ids).logits
    for _ in walk.walk(model, ids):
        break
    assert torch.equal(model(ids).logits, expected)
    assert not any("forward" in vars(module) for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())
    model.model.norm.weight.data = torch.ones(3)  # now the pass that records the blocks' arguments fails
    with pytest.raises(RuntimeError):
        next(walk.walk(model, ids))
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("fails", [False, True])
def test_a_forward_of_a_blocks_own_is_put_back(fails):
    """accelerate's hooks put one into every module."""
    model, ids = tiny(), some_ids(3)
    first, second = model.model.layers
    first.forward = own = type(first).forward.__get__(first)
    if fails:
        model.model.norm.weight.data = torch.ones(3)
        with pytest.raises(RuntimeError):
            next(walk.walk(model, ids))
    else:
        next(walk.walk(model, ids))
    assert vars(first)["forward"] is own and "forward" not in vars(second)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("model.embed_tokens.weight", r"model\.embed_tokens: its output is nan"),
        ("model.layers.0.input_layernorm.weight", r"model\.layers\.0\.self_attn\.q_proj: its input is nan"),
        ("model.layers.1.self_attn.v_proj.weight", r"model\.layers\.1\.self_attn\.o_proj: its input is nan"),
        ("model.layers.0.mlp.down_proj.weight", r"model\.layers\.0: its output is nan"),
    ],
)
def test_nan_is_named_where_it_first_appears(where, message):
    model = tiny()
    with torch.no_grad():
        model.get_parameter(where)[:] = float("nan")
    with pytest.raises(qtutor.QtutorError, match=message):
        for block in walk.walk(model, some_ids(3)):
            for names in LLAMA.shared:
                block.hessian(names[0])


def test_the_first_number_that_is_not_finite_is_named():
    x = torch.zeros(2, 3, 4)
    stream.check_finite(x, "x")
    x[0, 2, 1] = x[1, 0, 3] = x[1, 1, 0] = float("nan")
    with pytest.raises(qtutor.QtutorError, match=r"x is nan \(token 2 of a sample, channel 1\)"):
        stream.check_finite(x, "x")
    stream.check_finite(torch.full((1, 2, 2), 3e38), "x")  # finite, although their sum is not


def test_text_that_is_just_usable():
    assert next(walk.walk(tiny(), some_ids(2, 64))).tokens == 128  # the longest samples that the model reads
    assert next(walk.walk(tiny(), torch.tensor([[7]]))).tokens == 1


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.full((2, 8), 256), r"token ids run from 256 to 256, but the model's vocabulary has 256"),
        (torch.full((2, 8), -1), "run from -1 to -1"),
        (torch.zeros(16, dtype=torch.int64), r"int64 of shape \[16\]"),
        (torch.zeros(2, 8), r"float32 of shape \[2, 8\]"),
        (torch.zeros(0, 8, dtype=torch.int64), r"shape \[0, 8\]"),
        (torch.full((2, 8), 7), r"all 16 tokens are 7"),
        (some_ids(2, 65), r"samples of 65 tokens, but the model reads 64 at most"),
    ],
)
def test_unusable_text_is_refused(ids, message):
    with pytest.raises(qtutor.QtutorError, match=message):
        next(walk.walk(tiny(), ids))


@pytest.mark.parametrize("twin", [False, True])
def test_memory_stays_within_what_the_docstring_says(twin, monkeypatch):
    """With many blocks and samples, a second copy of the blocks or of the states would show."""
    monkeypatch.setattr(stream, "PASS", 128)
    monkeypatch.setattr(block_module, "TOGETHER", 128)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=12,
        num_attention_heads=4,
        max_position_embeddings=64,
    )
    model, ids = LlamaForCausalLM(config), some_ids(192, 16)
    states = 4 * ids.numel() * 64
    block = 4 * sum(parameter.numel() for parameter in model.model.layers[0].parameters())
    hessian = 8 * 64**2
    batch = 4 * stream.PASS * 64  # one tensor of the hidden width; a pass holds about a dozen of them
    with LiveBytes(model) as live:
        for calibrated in walk.walk(model, ids, twin):
            for reading in calibrated.readings():
                gptq.prepare(reading.moments().hessian, 32)
    kept = states  # o_proj's inputs, or down_proj's
    lasting = (1 + twin) * (states + kept + block + hessian) + twin * hessian  # a twin: drifts, two more such matrices
    weights = 2 * 4 * ids.numel()
    # While the Hessian is factored, there are up to four more such matrices: a turned copy, the factor, and its inverse
    # twice.
    bound = lasting + 4 * hessian + weights + 12 * batch
    assert bound < lasting + min(states, 11 * block)  # a second copy of the states or blocks would exceed the bound
    assert lasting < live.peak + 2 * batch and live.peak < bound

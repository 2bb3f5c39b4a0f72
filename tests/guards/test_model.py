"""Unusual models: each is quantized correctly, or refused before any work with a message that names the problem."""

import copy
import re

import pytest
import torch
import torch.nn.utils.prune
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import qtutor
from qtutor import QtutorError, evaluate
from qtutor.guards.model import decoder_of
from qtutor.guards.running import in_eval
from qtutor.report import what_is_lost
from qtutor.runtime.linear import QuantLinear
from tests.gguf.small_tokenizers import letters
from tests.models import FAMILIES, groups_of, some_ids, tiny

RECIPE = qtutor.Recipe(group_size=32)


class Lora(nn.Module):
    """A module like the one with which peft replaces a layer."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.base_layer = layer
        self.lora_A = nn.ModuleDict({"default": nn.Linear(layer.in_features, 4, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(4, layer.out_features, bias=False)})

    def forward(self, x):
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


class PeftModel(nn.Module):
    """A module like the one that peft puts around a model."""

    def __init__(self, model):
        super().__init__()
        self.base_model, self.config = model, model.config

    def merge_and_unload(self):
        return self.base_model


class Linear4bit(nn.Linear):
    """A layer that another tool packed: from outside, it looks like a layer of bitsandbytes."""

    def __init__(self, layer: nn.Linear):
        super().__init__(layer.in_features, layer.out_features, bias=False)
        packed = torch.zeros(layer.weight.numel() // 2, 1, dtype=torch.uint8)
        self.weight = nn.Parameter(packed, requires_grad=False)


def edited(edit, **options):
    """A small decoder, changed by ``edit``."""
    model = tiny(**options)
    with torch.no_grad():
        edit(model)
    return model


def made_with(**values):
    """A new decoder from a changed config, so that config and weights fit."""
    return AutoModelForCausalLM.from_config(edited(set_config(**values)).config)


def set_layer(make, name="model.layers.1.mlp.up_proj"):
    return lambda model: model.set_submodule(name, make(model.get_submodule(name)))


def set_parameter(make, name="model.layers.1.mlp.up_proj", kind="weight"):
    def edit(model):
        module = model.get_submodule(name)
        setattr(module, kind, nn.Parameter(make(module.weight), requires_grad=False))

    return edit


def share(*names):
    """The modules ``names`` become the first of them."""

    def edit(model):
        for name in names[1:]:
            model.set_submodule(name, model.get_submodule(names[0]))

    return edit


def share_weight(first, second):
    return lambda model: setattr(model.get_submodule(second), "weight", model.get_submodule(first).weight)


def set_config(**values):
    return lambda model: [setattr(model.config, name, value) for name, value in values.items()]


def compile_a_block(model):
    model.model.layers[1] = torch.compile(model.model.layers[1], backend="eager")


def leave_out_a_block(model):
    model.model.layers = model.model.layers[:1]


def add_a_buffer(model):
    model.model.layers[0].mlp.up_proj.register_buffer("weight_scale", torch.ones(1))


def twice_the_first_block(model):
    model.model.layers = nn.ModuleList([model.model.layers[0], model.model.layers[0]])


Q0, Q1 = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"
PARAMETRIZE = nn.utils.parametrize.register_parametrization
# label -> a function that makes the model, what the error says
REFUSED = {
    "a tuple": (lambda: (tiny(), None), r"a tuple of 2: the model is its first part, model\[0\]"),
    "a path": (lambda: "path/to/llama", r"model is a str \('path/to/llama'\).*qtutor.load"),
    "nothing": (lambda: None, "model is a NoneType"),
    "a recipe": (lambda: RECIPE, "model is a Recipe"),
    "the base model": (lambda: tiny().model, r"LlamaModel, which has no 'model.layers'.*model, not model.model"),
    "a classifier": (
        lambda: AutoModelForSequenceClassification.from_config(tiny().config),
        "LlamaForSequenceClassification, which has no 'lm_head'",
    ),
    "a PeftModel": (lambda: PeftModel(tiny()), r"PeftModel: its adapters.*merge_and_unload\(\) first"),
    "a LoRA layer": (
        lambda: edited(set_layer(Lora)),
        r"layers\.1\.mlp\.up_proj is a .*Lora; .*merge_and_unload\(\) first",
    ),
    "an adapter beside": (
        lambda: edited(lambda m: setattr(m.model.layers[0].mlp, "adapter", nn.Linear(4, 4, bias=False))),
        r"model\.layers\.0\.mlp\.adapter\.weight is \[4, 4\], and the model's config \(LlamaConfig\) says not there",
    ),
    "a packed layer": (lambda: edited(set_layer(Linear4bit)), r"up_proj is a .*Linear4bit; a plain torch.nn.Linear"),
    "scales of another tool": (lambda: edited(add_a_buffer), "weight_scale is .*Another tool quantized the model"),
    "another tool's config": (
        lambda: edited(set_config(quantization_config={"quant_method": "gptq"})),
        "quantized already, by gptq",
    ),
    "float8": (lambda: edited(set_parameter(lambda w: w.to(torch.float8_e4m3fn))), "up_proj.weight is torch.float8"),
    "integers": (lambda: edited(set_parameter(lambda w: w.to(torch.int8))), "up_proj.weight is torch.int8"),
    "complex": (lambda: edited(set_parameter(lambda w: w.to(torch.complex64))), "up_proj.weight is torch.complex64"),
    "float8 norm": (
        lambda: edited(set_parameter(lambda w: w.to(torch.float8_e4m3fn), "model.norm")),
        "model.norm.weight is torch.float8",
    ),
    "no values": (lambda: tiny().to("meta"), "model.embed_tokens.weight has a shape and no values"),
    "one without values": (
        lambda: edited(set_parameter(lambda w: w.to("meta"))),
        r"layers\.1\.mlp\.up_proj\.weight has a shape and no values .*Load the model whole",
    ),
    "a compiled block": (lambda: edited(compile_a_block), "_orig_mod.*compile it afterwards"),
    "parametrization": (
        lambda: edited(lambda m: PARAMETRIZE(m.model.layers[0].mlp.up_proj, "weight", nn.Identity())),
        r"layers\.0\.mlp\.up_proj is a .*ParametrizedLinear; .*remove_parametrizations",
    ),
    "weight norm": (
        lambda: edited(lambda m: nn.utils.parametrizations.weight_norm(m.model.layers[0].mlp.up_proj)),
        "ParametrizedLinear",
    ),
    "pruned": (
        lambda: edited(lambda m: nn.utils.prune.l1_unstructured(m.model.layers[0].mlp.up_proj, "weight", 0.5)),
        r"up_proj\.weight_(orig|mask) is .*prune.remove",
    ),
    "a block twice": (lambda: edited(twice_the_first_block), r"layers\.1\..* and model\.layers\.0\..* are one tensor"),
    "a layer twice": (lambda: edited(share(Q0, Q1)), r"layers\.1\.self_attn\.q_proj\.weight and model.layers.0.self"),
    "a norm twice": (
        lambda: edited(share("model.layers.0.input_layernorm", "model.layers.1.input_layernorm")),
        r"input_layernorm\.weight and .*copy\.deepcopy",
    ),
    "tied weights": (lambda: edited(share_weight(Q0, Q1)), "are one tensor"),
    "tied q and o": (
        lambda: edited(share_weight(Q0, Q0.replace("q_", "o_"))),
        r"are one tensor.*set_submodule\('model\.layers\.0\.self_attn\.o_proj'",
    ),
    "fewer blocks": (lambda: edited(leave_out_a_block), "model.layers has 1 decoder blocks, .*num_hidden_layers is 2"),
    "more blocks": (lambda: edited(set_config(num_hidden_layers=1)), "has 2 decoder blocks, .*num_hidden_layers is 1"),
    "vocabulary": (lambda: edited(set_config(vocab_size=300)), r"embed_tokens\.weight is \[256, 64\], .* \[300, 64\]"),
    "width": (lambda: edited(set_config(intermediate_size=96)), r"gate_proj\.weight is \[128, 64\].*\[96, 64\]"),
    "no blocks": (lambda: made_with(num_hidden_layers=0), r"model\.layers has no decoder block .*at least one"),
    "no width": (
        lambda: made_with(intermediate_size=0),
        r"layers\.0\.mlp\.gate_proj\.weight is \[0, 64\]: it holds no number.*sizes from 1",
    ),
    "emptied": (lambda: edited(set_parameter(lambda w: w[:0])), r"up_proj\.weight is \[0, 64\].* says \[128, 64\]"),
    "heads": (lambda: edited(set_config(num_key_value_heads=1)), r"k_proj\.weight is \[32, 64\].*\[16, 64\]"),
    "layer types": (
        lambda: edited(lambda m: (leave_out_a_block(m), set_config(num_hidden_layers=1)(m)), family="qwen3"),
        "no model can be built from the model's own config .*layer_types",
    ),
    "an epsilon": (
        lambda: edited(set_config(rms_norm_eps=1e-3)),
        r"layers\.0\.input_layernorm\.variance_epsilon is 1e-06, but .*0\.001: one of the two was changed",
    ),
    "an activation": (lambda: edited(set_config(hidden_act="gelu")), "mlp.act_fn is SiLU.* says GELU"),
    "angles": (
        lambda: edited(set_config(rope_parameters={"rope_type": "default", "rope_theta": 5e5})),
        r"rotary_emb\.inv_freq is 1, 0\.3162, 0\.1, .* says 1, 0\.1939",
    ),
    "angles without values": (lambda: edited(lambda m: m.model.rotary_emb.to("meta")), "inv_freq has a shape and no"),
    "a head of values": (lambda: edited(lambda m: setattr(m, "head", nn.Linear(4, 1))), r"head\.weight is \[1, 4\]"),
    "nonsense": (lambda: edited(set_config(hidden_act="magic")), "no model can be built from the model's own config"),
    "a bias": (
        lambda: edited(set_parameter(lambda w: w.new_zeros(len(w)), kind="bias")),
        r"up_proj\.bias is \[128\], and the model's config \(LlamaConfig\) says not there",
    ),
    "no layer": (lambda: edited(set_layer(lambda _: nn.Identity())), "up_proj is a .*Identity"),
    "a buffer as weight": (
        lambda: edited(set_parameter(lambda w: w.as_subclass(Split))),
        "up_proj.weight is a Split, not a plain tensor",
    ),
}


class Split(torch.Tensor):
    """A subclass of tensors, as in tools that pack or split tensors."""


@pytest.mark.parametrize("label", REFUSED)
@pytest.mark.parametrize("then", ["quantize", "gguf"])
def test_what_cannot_be_meant_is_refused_by_name(tmp_path, label, then):
    make, message = REFUSED[label]
    model = make()
    with pytest.raises(qtutor.QtutorError, match=message) as told:
        if then == "quantize":
            qtutor.quantize(model, RECIPE, progress=False)
        else:
            qtutor.export(model, tmp_path / "a.gguf", format="gguf", type="F32")
    assert "\n" not in str(told.value) and not list(tmp_path.iterdir())
    if isinstance(model, nn.Module):
        assert not any(isinstance(module, QuantLinear) for module in model.modules())


def comes_back(model, tmp_path, **recipe):
    """Quantize, export, load: the logits stay the same."""
    size = groups_of(recipe.get("method", "rtn"))
    qtutor.quantize(model, qtutor.Recipe(**size | recipe), some_ids(16, 32), progress=False)
    expected = model(some_ids()).logits
    qtutor.export(model, tmp_path / "out")
    again = qtutor.load_quantized(tmp_path / "out", device="cpu")
    assert torch.equal(again(some_ids()).logits, expected)
    return again


def as_view(weight):
    return torch.cat([weight, weight])[: len(weight)]


def transposed_in_memory(weight):
    return weight.t().contiguous().t()


def expanded(weight):
    return weight[:1].expand(*weight.shape)


def train(model):
    model.train()
    model.config.attention_dropout = 0.5
    for block in model.model.layers:
        block.self_attn.attention_dropout = 0.5


def checkpointing(model):
    model.gradient_checkpointing_enable()
    model.train()


def optimize(model):
    with torch.enable_grad():
        optimizer = torch.optim.Adam(model.parameters())
        model(some_ids(), labels=some_ids()).loss.backward()
        optimizer.step()


def accelerate_hooks(model):
    hooks = pytest.importorskip("accelerate.hooks")
    for module in model.modules():
        if list(module.parameters()):
            hooks.add_hook_to_module(module, hooks.AlignDevicesHook(execution_device="cpu", io_same_device=True))


def one_storage(model):
    """q, k and v are parts of one matrix, as in models from tools that join layers."""
    for block in model.model.layers:
        layers = [getattr(block.self_attn, f"{name}_proj") for name in "qkv"]
        joined = torch.cat([layer.weight for layer in layers])
        for layer, part in zip(layers, joined.split([len(layer.weight) for layer in layers])):
            layer.weight = nn.Parameter(part)


def overlapping(model):
    """Two parameters of the same shape at the same place in memory."""
    first, second = (block.mlp.up_proj for block in model.model.layers)
    first.weight = nn.Parameter(second.weight.data)


def hook_on_a_norm(model):
    model.model.norm.register_forward_hook(lambda module, given, made: None)


def hidden_states_were_asked_for(model):
    """Then transformers puts its own hooks on every block, and leaves them there."""
    model(some_ids(), output_hidden_states=True)
    assert model.model.layers[0]._forward_hooks


KEPT = {
    "views": set_parameter(as_view),
    "transposed in memory": set_parameter(transposed_in_memory),
    "expanded": set_parameter(expanded),
    "a view as norm": set_parameter(as_view, "model.norm"),
    "q, k and v of one storage": one_storage,
    "overlapping weights": overlapping,
    "train mode": train,
    "gradient checkpointing": checkpointing,
    "after training": optimize,
    "hooks of accelerate": accelerate_hooks,
    "a hook that stays": hook_on_a_norm,
    "hooks of transformers": hidden_states_were_asked_for,
}


@pytest.mark.parametrize("method", ["rtn", "awq+gptq"])
@pytest.mark.parametrize("label", KEPT)
def test_unusual_models_are_quantized_as_the_usual_ones_are(tmp_path, label, method):
    model = edited(KEPT[label])
    plain = tiny()
    plain.load_state_dict({name: tensor.clone() for name, tensor in model.state_dict().items()})
    training = {name for name, module in model.named_modules() if module.training}
    with in_eval(model):
        again = comes_back(model, tmp_path, method=method)
    comes_back(plain, tmp_path, method=method)
    assert torch.equal(again(some_ids()).logits, plain(some_ids()).logits)
    assert training <= {name for name, module in model.named_modules() if module.training}


def test_a_model_in_train_mode_is_calibrated_and_measured_without_dropout():
    model = edited(train)
    usual = tiny()
    assert qtutor.perplexity(model, some_ids()) == qtutor.perplexity(usual, some_ids())
    for one in (model, usual):
        one.report = qtutor.quantize(one, qtutor.Recipe("gptq", group_size=32), some_ids(16, 32), progress=False)
    assert [row.error for row in model.report.rows] == [row.error for row in usual.report.rows]
    assert model.training and model.model.layers[0].training and not usual.training


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", ["rtn", "gptq", "nf4", "int8"])
def test_dtypes(tmp_path, dtype, method):
    model = tiny(dtype=dtype)
    model.model.rotary_emb = type(model.model.rotary_emb)(
        model.config
    )  # tiny() casts the angles, too; in a model from a checkpoint they stay float32
    if dtype is not torch.float64:
        comes_back(model, tmp_path, method=method)
        return
    exact = model(some_ids()).logits
    qtutor.quantize(model, qtutor.Recipe(method, **groups_of(method)), some_ids(16, 32), progress=False)
    assert (model(some_ids()).logits - exact).norm() < 0.3 * exact.norm()
    with pytest.raises(qtutor.QtutorError, match=r"float64, which no checkpoint holds: call model\.float\(\) first"):
        qtutor.export(model, tmp_path / "out")
    qtutor.export(model.float(), tmp_path / "out")
    again = qtutor.load_quantized(tmp_path / "out", device="cpu")
    assert torch.equal(again(some_ids()).logits, model(some_ids()).logits)
    assert again.config.dtype == torch.float32


def test_mixed_dtypes_come_back(tmp_path):
    model = tiny(dtype=torch.bfloat16)
    model.lm_head = copy.deepcopy(model.lm_head).float()
    model.model.norm.float()
    qtutor.quantize(model, RECIPE, progress=False)
    qtutor.export(model, tmp_path / "out")
    again = qtutor.load_quantized(tmp_path / "out", device="cpu")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]) and tensor.dtype == again.state_dict()[name].dtype


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_a_compiled_model_is_quantized_and_written_under_its_own_names(tmp_path, method):
    model = tiny()
    compiled = torch.compile(model, backend="eager")
    compiled(some_ids())
    qtutor.quantize(compiled, qtutor.Recipe(method, group_size=32), some_ids(16, 32), progress=False)
    assert isinstance(model.model.layers[0].mlp.up_proj, QuantLinear)
    assert torch.allclose(compiled(some_ids()).logits, model(some_ids()).logits, atol=1e-5)
    qtutor.export(compiled, tmp_path / "out")
    again = qtutor.load_quantized(tmp_path / "out", device="cpu")
    assert torch.equal(again(some_ids()).logits, model(some_ids()).logits)
    assert decoder_of(nn.DataParallel(model)) is model


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("place", ["model.layers.1.mlp.up_proj", "model.layers.1.mlp"])
@pytest.mark.parametrize("before", [False, True])
def test_hooks_that_would_be_lost_are_named(place, calibrated, before):
    model = tiny()
    module = model.get_submodule(place)
    handle = (module.register_forward_pre_hook if before else module.register_forward_hook)(lambda *_: None)
    recipe = qtutor.Recipe("gptq" if calibrated else "rtn", group_size=32)
    if calibrated or place.endswith("proj"):
        with pytest.raises(qtutor.QtutorError, match=rf"{place} has a forward hook.*handle\.remove"):
            qtutor.quantize(model, recipe, some_ids(16, 32), progress=False)
        handle.remove()
    qtutor.quantize(model, recipe, some_ids(16, 32), progress=False)


def doubled(forward):
    return lambda *given, **named: 2 * forward(*given, **named)


@pytest.mark.parametrize("method", ["rtn", "gptq"])
@pytest.mark.parametrize("place", ["layers.1.mlp.up_proj", "layers.0.mlp", "layers.1", "norm", "embed_tokens"])
def test_a_forward_of_ones_own_is_named(tmp_path, place, method):
    """Calibration would see the results of this forward, but no written file could hold it."""
    model = tiny()
    patched = model.model.get_submodule(place)
    patched.forward = doubled(patched.forward)
    said = rf"model\.model\.{re.escape(place)} has a forward of its own.*del model\.model\.{re.escape(place)}\.forward"
    with pytest.raises(qtutor.QtutorError, match=said):
        qtutor.quantize(model, qtutor.Recipe(method, group_size=32), some_ids(16, 32), progress=False)
    with pytest.raises(qtutor.QtutorError, match=said):
        qtutor.export(model, tmp_path / "out.gguf", format="gguf", type="Q8_0")
    assert not list(tmp_path.iterdir())
    del patched.forward
    assert decoder_of(model) is model


def test_a_patch_behind_the_hook_of_accelerate_is_named():
    model = tiny()
    model.model.layers[0].mlp.forward = doubled(model.model.layers[0].mlp.forward)
    accelerate_hooks(model)
    with pytest.raises(qtutor.QtutorError, match=r"layers\.0\.mlp has a forward of its own"):
        decoder_of(model)


@pytest.mark.parametrize("place", ["", "model.layers.0.mlp"])
def test_a_forward_that_is_compiled_or_put_back_is_the_same(place):
    model = tiny()
    module = model.get_submodule(place)
    module.forward = torch.compile(module.forward, backend="eager")
    assert decoder_of(model) is model
    module.forward = type(module).forward.__get__(module)
    assert decoder_of(model) is model


def test_a_layer_that_the_family_does_not_have_is_named(monkeypatch):
    """Even if the config promises this layer, as for a family whose description is incomplete."""
    from dataclasses import replace

    from qtutor import families

    attention, mlp = families.LLAMA.halves
    part = replace(families.LLAMA, halves=(attention, replace(mlp, readers=("mlp.up_proj",))))
    monkeypatch.setitem(families.FAMILIES, "llama", part)
    with pytest.raises(qtutor.QtutorError, match=r"layers\.0\.mlp\.gate_proj is a linear layer that blocks of .*llama"):
        qtutor.quantize(tiny(), RECIPE, progress=False)


def test_the_recipe_is_a_recipe():
    with pytest.raises(qtutor.QtutorError, match=r"recipe is a str: pass a qtutor\.Recipe"):
        qtutor.quantize(tiny(), "gptq", progress=False)


@pytest.mark.parametrize("family", FAMILIES)
def test_biases_and_resized_vocabularies_come_back(tmp_path, family):
    model = tiny(family)
    model.resize_token_embeddings(272, mean_resizing=False)
    comes_back(model, tmp_path, method="gptq")
    if family == "llama":
        config = copy.deepcopy(tiny().config)
        config.attention_bias = config.mlp_bias = True
        model = type(model)(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        comes_back(model, tmp_path, method="awq+gptq")


def test_large_weights_name_their_layer():
    model = edited(set_parameter(lambda w: w * 1e9))
    with pytest.raises(qtutor.QtutorError, match=r"model\.layers\.1\.mlp\.up_proj: a range of .* more than float16"):
        qtutor.quantize(model, RECIPE, progress=False)
    with pytest.raises(qtutor.QtutorError, match=r"model\.layers\.1\.mlp\.\w+: (a range|1|.*finite)"):
        qtutor.quantize(model, qtutor.Recipe("gptq", group_size=32), some_ids(16, 32), progress=False)


@pytest.mark.filterwarnings("always")
@pytest.mark.parametrize("method", ["rtn", "gptq"])
@pytest.mark.parametrize("size", [1e-8, 1e-20])
def test_weights_that_are_too_small_for_their_scales_are_told(method, size):
    model = edited(set_parameter(lambda w: w * size / w.abs().max()))
    with pytest.warns(UserWarning, match=r"layers\.1\.mlp\.up_proj: .*256 of 256 groups became zero") as told:
        report = qtutor.quantize(model, qtutor.Recipe(method, group_size=32), some_ids(16, 32), progress=False)
    assert {one.filename for one in told} == {__file__}  # the line that called quantize
    (row,) = [row for row in report.rows if "became zero" in row.note]
    assert row.name == "model.layers.1.mlp.up_proj" and row.error == pytest.approx(1)
    assert "ATTENTION, model.layers.1.mlp.up_proj" in str(report)


def test_a_few_small_groups_are_told_and_zeros_are_not():
    def edit(model):
        weight = model.model.layers[1].mlp.up_proj.weight
        weight[3, :32] = 1e-9  # one group
        weight[4] = 0

    with pytest.warns(UserWarning, match="1 of 256 groups became zero"):
        report = qtutor.quantize(edited(edit), RECIPE, progress=False)
    assert len(report.notes) == 1


@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_errors_of_extreme_weights_are_computed_all_the_same(size):
    """NF4's scales have 32 bits, so they can hold such weights; but the squares of these weights do not fit float32."""
    usual, extreme = tiny(), edited(set_parameter(lambda w: w * size))
    recipe = qtutor.Recipe("nf4", group_size=32, double=False)
    errors = [qtutor.quantize(model, recipe, progress=False).rows[-2].error for model in (usual, extreme)]
    assert errors[1] == pytest.approx(errors[0], rel=1e-3) and errors[0] > 0.05


@pytest.mark.parametrize("layer", ["model.embed_tokens", "lm_head"])
def test_hooks_outside_of_the_blocks_are_named_where_they_would_be_lost(layer):
    model = tiny(tied=False)
    model.get_submodule(layer).register_forward_hook(lambda module, given, made: None)
    qtutor.quantize(copy.deepcopy(model), RECIPE, progress=False)
    with pytest.raises(qtutor.QtutorError, match=f"{layer} has a forward hook"):
        qtutor.quantize(model, qtutor.Recipe(group_size=32, embeddings=True, lm_head=True), progress=False)


def test_blocks_may_be_left_out_and_copied_where_the_config_says_so(tmp_path):
    model = tiny()
    model.model.layers.append(copy.deepcopy(model.model.layers[0]))
    model.model.layers[2].self_attn.layer_idx = model.config.num_hidden_layers = 2
    model.config.num_hidden_layers = 3
    comes_back(model, tmp_path, method="gptq")
    model = edited(lambda m: (leave_out_a_block(m), set_config(num_hidden_layers=1)(m)))
    comes_back(model, tmp_path, method="gptq")


@pytest.mark.parametrize("kind", ["llama3", "yarn", "linear", "dynamic"])
def test_scaled_positions_are_as_the_config_says(kind):
    config = tiny().config
    options = {"llama3": {"low_freq_factor": 1.0, "high_freq_factor": 4.0}}.get(kind, {})
    config.rope_parameters = {"rope_type": kind, "rope_theta": 1e4, "factor": 4.0} | options
    if kind in ("llama3", "yarn"):
        config.rope_parameters["original_max_position_embeddings"] = 16
    model = type(tiny())(config).eval()
    model(some_ids(1, 100))  # "dynamic" changes its angles for long texts
    assert decoder_of(model) is model
    assert decoder_of(model.bfloat16()) is model
    model.config.rope_parameters = {"rope_type": "default", "rope_theta": 2e4}
    with pytest.raises(qtutor.QtutorError, match="inv_freq is"):
        decoder_of(model)


def test_a_layer_that_makes_up_for_others_is_not_said_to_be_lost():
    """With propagation, a layer may change by more than its own size; this is not a loss."""
    weight, scales = torch.ones(2, 32), torch.ones(2, 1)
    assert what_is_lost(3 * weight, weight, scales, error=2.0) == ""
    assert "almost nothing is left of its weights" in what_is_lost(0.01 * weight, weight, scales, error=0.99)


def in_float8(model):
    model.to(torch.float8_e4m3fn)


def one_layer_in_int8(model):
    layer = model.model.layers[0].mlp.up_proj
    layer.weight = nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)


def one_block_elsewhere(model):
    model.model.layers[1].to("meta")


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (in_float8, r"embed_tokens\.weight is torch\.float8_e4m3fn, and Embedding cannot compute with this dtype"),
        (one_layer_in_int8, r"layers\.0\.mlp\.up_proj\.weight is torch\.int8, and Linear cannot compute with"),
        (one_block_elsewhere, r"layers\.1\.self_attn\.q_proj\.weight has a shape and no values"),
    ],
)
def test_what_does_not_compute_is_neither_measured_nor_asked(edit, words):
    model, tokenizer = edited(edit), letters()
    with pytest.raises(QtutorError, match=words):
        qtutor.perplexity(model, some_ids())
    with pytest.raises(QtutorError, match=words):
        qtutor.generate(model, tokenizer, "a")
    with pytest.raises(QtutorError, match=words):
        evaluate.compare(tiny(), model, some_ids())


def test_what_accelerate_brings_when_it_is_used_is_measured():
    hooks = pytest.importorskip("accelerate.hooks")
    model = tiny()
    expected = qtutor.perplexity(model, some_ids())
    for block in model.model.layers:
        kept = {key: tensor.clone() for key, tensor in block.state_dict().items()}
        for part, module in block.named_modules():
            own = {key.rpartition(".")[2]: kept[key] for key in kept if key.rpartition(".")[0] == part}
            if own:
                hook = hooks.AlignDevicesHook(execution_device="cpu", offload=True, weights_map=own)
                hooks.add_hook_to_module(module, hook)
    assert model.model.layers[0].mlp.up_proj.weight.is_meta
    assert qtutor.perplexity(model, some_ids()) == pytest.approx(expected, rel=1e-6)

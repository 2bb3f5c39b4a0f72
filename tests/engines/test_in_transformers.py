"""transformers loads our folders, and writes the same tokens as a float model that holds our decoded weights."""

import copy

import pytest
import torch
from torch import nn

import qtutor
from qtutor.runtime.linear import QuantLinear

PROMPTS, TOKENS = 16, 32
RECIPES = {
    "compressed-tensors": [
        {"bits": 4, "symmetric": True, "group_size": 32},
        {"bits": 4, "group_size": 32},
        {"bits": 3, "group_size": 64},
        {"bits": 8, "group_size": -1, "symmetric": True},
        {"bits": 4, "group_size": 32, "lm_head": True},
        {"bits": 4, "symmetric": True, "group_size": 32, "layers": {"*.down_proj": {"bits": 8}, "*.0.*": "float"}},
    ],
    "bitsandbytes": [{"method": "nf4"}, {"method": "nf4", "double": False, "group_size": 32}, {"method": "fp4"}],
}
BY_GPTQMODEL = {
    "gptq": [
        {"bits": 4, "symmetric": True, "group_size": 32},
        {"bits": 8, "symmetric": True, "group_size": -1},
        {"bits": 3, "symmetric": True, "group_size": 64},
        {"bits": 4, "group_size": 32},
    ],
    "awq": [{"bits": 4, "group_size": 64}, {"bits": 4, "group_size": 32, "symmetric": True}],
}
CASES = [(form, recipe) for form, recipes in RECIPES.items() for recipe in recipes]
ITS_CASES = [(form, recipe) for form, recipes in BY_GPTQMODEL.items() for recipe in recipes]


def prompts() -> torch.Tensor:
    from qtutor.decoder.text import calibration_tokens

    return calibration_tokens()[:PROMPTS, :24]


def greedy(model, ids: torch.Tensor) -> torch.Tensor:
    """The tokens that follow ``ids``, without regard to where a text ends."""
    with torch.inference_mode():
        return model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=TOKENS,
            do_sample=False,
            eos_token_id=-1,
            pad_token_id=0,
        )


def in_float(model, decoded: torch.dtype | None = None):
    """``model`` with plain linear layers that hold what the packed ones stand for, rounded to ``decoded`` first."""
    dense = copy.deepcopy(model)
    for name, layer in list(dense.named_modules()):
        if isinstance(layer, QuantLinear):
            plain = nn.Linear(layer.columns, layer.rows, bias=layer.bias is not None, dtype=model.dtype)
            plain.weight.data = layer.quantized().dequantize(decoded or model.dtype).to(model.dtype)
            if layer.bias is not None:
                plain.bias.data = layer.bias.to(model.dtype)
            dense.set_submodule(name, plain)
    return dense


@pytest.mark.parametrize(("form", "recipe"), CASES)
def test_greedy_tokens_are_equal(tmp_path, form, recipe):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    pytest.importorskip(form.replace("-", "_"))
    model, tokenizer = qtutor.load_decoder()
    qtutor.quantize(model, qtutor.Recipe(**recipe), progress=False)
    qtutor.export(model, tmp_path / "out", format=form, tokenizer=tokenizer)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32, device_map="cpu")
    if form == "bitsandbytes":
        theirs.train()  # else it computes in bfloat16 on CPUs that can, whatever it is told; there is no dropout
    ids = prompts()
    # Asymmetric compressed-tensors are decoded as they are loaded, in the dtype of the scales.
    decoded = torch.float16 if form == "compressed-tensors" and not recipe.get("symmetric") else None
    assert torch.equal(greedy(theirs, ids), greedy(in_float(model, decoded), ids))
    text = "def add(a, b):\n    return"
    assert AutoTokenizer.from_pretrained(tmp_path / "out")(text) == tokenizer(text)


@pytest.mark.parametrize(("form", "recipe"), ITS_CASES)
def test_gptqmodel_agrees_nearly_everywhere(tmp_path, form, recipe):
    """Teacher-forced: its layers compute in 16 bits, with kernels of their own, so near ties fall either way."""
    pytest.importorskip("gptqmodel")
    pytest.importorskip("optimum")
    from transformers import AutoModelForCausalLM

    model, tokenizer = qtutor.load_decoder()
    qtutor.quantize(model, qtutor.Recipe(**recipe), progress=False)
    qtutor.export(model, tmp_path / "out", format=form, tokenizer=tokenizer)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float16, device_map="cpu")
    packed = [module for module in theirs.modules() if type(module).__module__.startswith("gptqmodel")]
    assert len(packed) == 14, "transformers loaded no packed layers"
    assert agreeing(in_float(model).half(), theirs) >= 0.99


# Of next tokens. The embedded decoder was given outliers, so 8-bit inputs cost it much, however they are rounded.
LEAST = 0.95


def test_int8_of_bitsandbytes_agrees_nearly_everywhere(tmp_path):
    """Teacher-forced: its int8 kernel rounds 16-bit inputs, ours float32 ones."""
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM

    model, tokenizer = qtutor.load_decoder()
    qtutor.quantize(model, qtutor.Recipe("int8"), progress=False)
    qtutor.export(model, tmp_path / "out", format="bitsandbytes", tokenizer=tokenizer)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32, device_map="cpu")
    assert agreeing(model, theirs) >= LEAST
    layer = theirs.model.layers[0].mlp.up_proj
    assert apart(layer, model.model.layers[0].mlp.up_proj) < 5e-3  # its inputs have 16 bits


def test_int8_of_compressed_tensors_agrees_nearly_everywhere(tmp_path):
    """W8A8: as our int8 layers without a threshold, but for how a token's scale is rounded."""
    pytest.importorskip("compressed_tensors")
    from transformers import AutoModelForCausalLM

    model, tokenizer = qtutor.load_decoder()
    qtutor.quantize(model, qtutor.Recipe("int8"), progress=False)
    for layer in model.modules():
        if hasattr(layer, "threshold"):
            layer.threshold = None
    qtutor.export(model, tmp_path / "out", format="compressed-tensors", tokenizer=tokenizer)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32, device_map="cpu")
    assert agreeing(model, theirs) >= LEAST
    layer = theirs.model.layers[0].mlp.up_proj
    assert apart(layer, model.model.layers[0].mlp.up_proj) < 2e-2  # half a step of the inputs, now this way, now that


def apart(theirs, ours) -> float:
    """How far the outputs of two layers are from each other, as a share, on inputs without outliers."""
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        y = ours(x)
        return ((theirs(x) - y).norm() / y.norm()).item()


def agreeing(one, other) -> float:
    """The share of positions at which two models hold the same next token for the likeliest."""
    from qtutor.decoder.text import calibration_tokens

    ids = calibration_tokens()[:PROMPTS]
    with torch.inference_mode():
        likeliest = [model(ids).logits.argmax(-1) for model in (one, other)]
    return (likeliest[0] == likeliest[1]).double().mean().item()

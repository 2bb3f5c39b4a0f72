"""transformers loads our folders, and writes the same tokens as a float model that holds our decoded weights."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

import qtutor
from qtutor.runtime.linear import QuantLinear
from tests.reference.fp8_inputs import Fp8Inputs
from tests.reference.int8_inputs import RoundedInputs

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


def greedy(model, ids: torch.Tensor, tokens: int = TOKENS) -> torch.Tensor:
    """``ids`` and the tokens that the model writes greedily after them; the end of a text is ignored."""
    with torch.inference_mode():
        return model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=-1,
            pad_token_id=0,
        )


def in_float(model, decoded: torch.dtype | None = None, layer=None):
    """``model`` with plain linear layers: they hold the decoded weights of the packed ones, rounded to ``decoded``.

    layer: a function that makes a different layer from such a weight ``[out, in]`` (without a bias).
    """
    dense = copy.deepcopy(model)
    for name, packed in list(dense.named_modules()):
        if isinstance(packed, QuantLinear):
            weight = packed.quantized().dequantize(decoded or model.dtype).to(model.dtype)
            plain = nn.Linear(packed.columns, packed.rows, bias=packed.bias is not None, dtype=model.dtype)
            plain.weight.data = weight
            if packed.bias is not None:
                plain.bias.data = packed.bias.to(model.dtype)
            dense.set_submodule(name, plain if layer is None else layer(weight))
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
        theirs.train()  # otherwise always bfloat16 on CPUs that have it; the model has no dropout
    ids = prompts()
    # Asymmetric layers of compressed-tensors are decoded during loading, in the dtype of the scales.
    decoded = torch.float16 if form == "compressed-tensors" and not recipe.get("symmetric") else None
    assert torch.equal(greedy(theirs, ids), greedy(in_float(model, decoded), ids))
    text = "def add(a, b):\n    return"
    assert AutoTokenizer.from_pretrained(tmp_path / "out")(text) == tokenizer(text)


@pytest.mark.parametrize(("form", "recipe"), ITS_CASES)
def test_gptqmodel_agrees_nearly_everywhere(tmp_path, form, recipe):
    """Teacher-forced. Its layers compute in 16 bits with their own kernels, so near ties may go either way."""
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


# Engines also round the inputs of int8 layers, so the reference does the same. The embedded decoder has artificial
# outliers, which make this rounding coarse: if only the weights are rounded, the next token differs at 1 to 3 of 100
# positions. The differences that remain with rounded inputs are chance: a last bit of float32 may move an input across
# the middle between two codes, and the later layers make this difference larger.
LEAST = 0.99


def test_int8_of_bitsandbytes_rounds_inputs_as_we_say(tmp_path):
    """Teacher-forced. bitsandbytes rounds inputs to float16 first; our own int8 layers do not."""
    pytest.importorskip("bitsandbytes")
    model, theirs = int8_in(tmp_path, "bitsandbytes", threshold=6.0)
    ours = in_float(model, layer=lambda weight: RoundedInputs(weight, 127.0, torch.float16, 6.0))
    assert agreeing(ours, theirs) >= LEAST
    # It multiplies by 6.200124e-05 instead of 1 / 127 / 127, which is too large by a share of 1.8e-5. And if float16
    # puts an input in the middle between two codes, the order of the divisions decides: a few tokens get another code.
    assert apart(theirs, ours, with_outliers()).sort().values[:-4].max() < 3e-5
    assert 1e-3 < apart(theirs, model, with_outliers()).max() < 2e-2  # ours are not rounded to float16 first


def test_int8_of_compressed_tensors_rounds_inputs_as_we_say(tmp_path):
    """Teacher-forced, W8A8. The package divides a token's largest value by 127.5; vLLM and our layers by 127."""
    pytest.importorskip("compressed_tensors")
    model, theirs = int8_in(tmp_path, "compressed-tensors", threshold=None)
    ours = in_float(model, layer=lambda weight: RoundedInputs(weight, 127.5))
    assert agreeing(ours, theirs) >= LEAST
    assert apart(theirs, ours, plain_inputs()).max() < 1e-5  # sums of float32 in a different order
    assert 1e-3 < apart(theirs, model, plain_inputs()).max() < 3e-2  # the steps of the inputs differ


@pytest.mark.parametrize("method", ["mxfp4", "nvfp4"])
def test_floats_of_4_bits_are_decoded_to_our_weights_in_bfloat16(tmp_path, method):
    pytest.importorskip("compressed_tensors")
    from transformers import AutoModelForCausalLM

    model, tokenizer = qtutor.load_decoder()
    qtutor.quantize(model, qtutor.Recipe(method), progress=False)
    qtutor.export(model, tmp_path / "out", format="compressed-tensors", tokenizer=tokenizer)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.bfloat16, device_map="cpu")
    with torch.inference_mode():
        assert theirs(prompts()).logits.isfinite().all()  # the first forward pass decodes the weights
    for name, packed in model.named_modules():
        if isinstance(packed, QuantLinear):
            assert torch.equal(theirs.get_submodule(name).weight.float(), packed.dequantized().bfloat16().float())


@pytest.mark.parametrize(
    ("group_size", "recipe"),
    [(-1, {}), (0, {}), (128, {}), (128, {"lm_head": True}), (128, {"layers": {"*.1.*": "float"}})],
)
def test_fp8_rounds_inputs_as_our_layers_do(tmp_path, group_size, recipe):
    """Teacher-forced. If only the weights are rounded, the next token differs at 4 of 100 positions.

    With groups of 128, the inputs of each token are divided into groups of 128, and the weights have one scale for each
    block of 128 x 128.
    """
    pytest.importorskip("compressed_tensors")
    from transformers import AutoModelForCausalLM

    model, tokenizer = qtutor.load_decoder()
    qtutor.quantize(model, qtutor.Recipe("fp8", group_size=group_size, **recipe), progress=False)
    qtutor.export(model, tmp_path / "out", format="compressed-tensors", tokenizer=tokenizer)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32, device_map="cpu")
    slow = partial(Fp8Inputs, group=group_size if group_size > 0 else None)
    assert agreeing(in_float(model, layer=slow), theirs) >= LEAST and agreeing(model, theirs) >= LEAST
    for x in (plain_inputs(), with_outliers()):
        assert apart(theirs, model, x).max() < 1e-5  # sums of float32 in a different order
        assert apart(theirs, in_float(model), x).max() > 1e-3  # float layers do not round inputs


def int8_in(tmp_path, form: str, threshold: float | None):
    """The embedded decoder with int8 layers, and the model that transformers loads from its folder."""
    from transformers import AutoModelForCausalLM

    model, tokenizer = qtutor.load_decoder()
    qtutor.quantize(model, qtutor.Recipe("int8"), progress=False)
    for layer in model.modules():
        if hasattr(layer, "threshold"):
            layer.threshold = threshold
    qtutor.export(model, tmp_path / "out", format=form, tokenizer=tokenizer)
    return model, AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32, device_map="cpu")


def plain_inputs() -> torch.Tensor:
    """[1, tokens, in], without outliers."""
    return torch.randn(1, 64, 256, generator=torch.Generator().manual_seed(0))


def with_outliers() -> torch.Tensor:
    """[1, tokens, in]: two channels have values beyond the threshold in some tokens."""
    x = plain_inputs()
    x[0, ::3, 5] *= 20
    x[0, 7, 100] = 9.0
    return x


def apart(theirs, ours, x: torch.Tensor) -> torch.Tensor:
    """The relative difference between the outputs of one layer in two models, ``[tokens]``."""
    with torch.inference_mode():
        one, other = (model.model.layers[0].mlp.up_proj(x)[0].float() for model in (theirs, ours))
    return (one - other).norm(dim=-1) / other.norm(dim=-1)


def agreeing(one, other) -> float:
    """The share of positions at which the likeliest next token is the same in two models."""
    from qtutor.decoder.text import calibration_tokens

    ids = calibration_tokens()[:PROMPTS]
    with torch.inference_mode():
        likeliest = [model(ids).logits.argmax(-1) for model in (one, other)]
    return (likeliest[0] == likeliest[1]).double().mean().item()

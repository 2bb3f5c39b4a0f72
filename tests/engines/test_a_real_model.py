"""SmolLM2 in the formats that transformers loads: 32 greedy tokens after each of 16 beginnings, or layer by layer.

The embedded decoder is tested with more recipes (test_in_transformers.py). The grid of SmolLM2's file is Q4_1, so no
recipe here uses that grid (qtutor/formats/smollm2.py says why).
"""

import copy

import pytest
import torch
from safetensors.torch import load_file

import qtutor
from qtutor.formats import smollm2
from qtutor.measure.texts import text_of
from tests.engines.likeliest import check_likeliest, divergence, logits_of
from tests.engines.test_in_transformers import PROMPTS, greedy, in_float
from tests.reference.fp8_inputs import Fp8Inputs
from tests.reference.int8_inputs import RoundedInputs

pytestmark = pytest.mark.skipif(
    not smollm2.is_here(), reason=f"the real model is not installed here ({smollm2.INSTALL})"
)
PROMPT = 12
# The package that has to be installed, the format, the recipe. gptqmodel is not here: its layers compute in float16.
EXACT = [
    ("compressed_tensors", "compressed-tensors", {"bits": 4, "symmetric": True, "group_size": 64}),
    ("bitsandbytes", "bitsandbytes", {"method": "nf4"}),
]


def beginnings(tokenizer) -> torch.Tensor:
    """int64 ``[PROMPTS, PROMPT]``, of English and Python."""
    return text_of(tokenizer, window=PROMPT, tokens=PROMPTS * PROMPT).token_ids


@pytest.fixture(scope="module")
def original():
    """(model, tokenizer, :func:`beginnings`), in float32."""
    model, tokenizer = qtutor.load("smollm2", dtype=torch.float32, device="cpu")
    return model, tokenizer, beginnings(tokenizer)


def loaded(original, folder, form: str, recipe: dict, dtype: torch.dtype):
    """The packed model, the model that transformers loads from its folder, and the beginnings."""
    from transformers import AutoModelForCausalLM

    model, tokenizer, ids = original
    model = copy.deepcopy(model)
    qtutor.quantize(model, qtutor.Recipe(**recipe), progress=False)
    qtutor.export(model, folder, form, tokenizer)
    return model, AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map="cpu"), ids


@pytest.mark.parametrize(("package", "form", "recipe"), EXACT)
def test_greedy_tokens_are_equal(tmp_path, original, package, form, recipe):
    pytest.importorskip(package)
    model, theirs, ids = loaded(original, tmp_path / "out", form, recipe, torch.float32)
    theirs.train(form == "bitsandbytes")  # otherwise bfloat16 on CPUs that have it; the model has no dropout
    assert torch.equal(greedy(theirs, ids), greedy(in_float(model), ids))


@pytest.mark.parametrize("method", ["fp8", "int8"])
def test_every_layer_that_rounds_its_inputs_computes_what_we_say(tmp_path, original, method):
    """Each of our packed layers is compared on the engine's own inputs."""
    pytest.importorskip("compressed_tensors")
    model, theirs, _ = loaded(original, tmp_path / "out", "compressed-tensors", {"method": method}, torch.float32)
    if method == "int8":  # the package divides a token's largest value by 127.5; vLLM and our layers divide by 127
        model = in_float(model, layer=lambda weight: RoundedInputs(weight, 127.5))
    apart = {}

    def compare(name, inputs, output):
        ours = model.get_submodule(name)(inputs)
        apart[name] = ((ours - output).norm() / output.norm()).item()

    for name, module in theirs.named_modules():
        if name.endswith("_proj"):
            module.register_forward_hook(lambda _, given, made, name=name: compare(name, given[0], made))
    with torch.inference_mode():
        theirs(original[2])
    assert len(apart) == 210 and max(apart.values()) < 1e-5  # sums of float32 in a different order


IN_FLOAT32 = {
    "int8": lambda weight: RoundedInputs(weight, 127.5, sums=torch.float32),
    "fp8": lambda weight: Fp8Inputs(weight, sums=torch.float32),
}


def of_file(model, folder, method: str):
    """``model`` with float32 layers that round their inputs as compressed-tensors does, and the weights of ``folder``.

    A weight is a stored number times its scale. For int8, the result differs from our weights by a last bit or two of
    the scale.
    """
    reference, stored = in_float(model, layer=IN_FLOAT32[method]), load_file(folder / "model.safetensors")
    for name in [key.removesuffix("_scale") for key in stored if key.endswith(".weight_scale")]:
        layer = reference.get_submodule(name.removesuffix(".weight"))
        weight = stored[name].float() * stored[f"{name}_scale"]
        assert torch.allclose(weight, layer.weight, rtol=2.0**-22, atol=0)
        layer.weight = weight
    return reference


@pytest.mark.parametrize("method", IN_FLOAT32)
def test_the_likeliest_tokens_are_equal_where_inputs_are_rounded(tmp_path, original, method):
    """Teacher-forced, at all 512 places. The reference adds in float32 like the engine, so no bit differs.

    This is necessary: a last bit may move an input by a step, and thirty blocks make this difference larger. With sums
    in float64, other tokens are likeliest by the reference at 8 to 12 of 100 places. So the test even notices a wrong
    last bit in one layer's scales.
    """
    pytest.importorskip("compressed_tensors")
    model, theirs, _ = loaded(original, tmp_path / "out", "compressed-tensors", {"method": method}, torch.float32)
    ids = text_of(original[1], window=32, tokens=PROMPTS * 32).token_ids
    reference, found = of_file(model, tmp_path / "out", method), logits_of(theirs, ids)
    again = logits_of(reference, ids)
    assert (again.argmax(-1) == found.argmax(-1)).double().mean() >= 0.99
    assert divergence(found, again) < 1e-6
    layer, few, some = reference.model.layers[3].mlp.up_proj, ids[:4], found[: 4 * 32]
    right = layer.weight
    for wrong in (right * (1 + 2.0**-22), right + right.abs().amax(dim=1, keepdim=True) / 127):  # scales, zero points
        layer.weight = wrong
        again = logits_of(reference, few)
        assert (again.argmax(-1) == some.argmax(-1)).double().mean() < 0.99 and divergence(some, again) > 1e-3


@pytest.mark.parametrize(("form", "symmetric"), [("gptq", True), ("awq", False)])
def test_gptqmodel_finds_the_tokens_of_a_float_model_the_likeliest(tmp_path, original, form, symmetric):
    """One pass is enough: if these tokens are the likeliest, gptqmodel would write them, too.

    Writing takes minutes, since gptqmodel unpacks all weights for each token.
    """
    pytest.importorskip("gptqmodel")
    pytest.importorskip("optimum")
    recipe = {"bits": 4, "symmetric": symmetric, "group_size": 64}
    model, theirs, ids = loaded(original, tmp_path / "out", form, recipe, torch.float16)
    packed = [module for module in theirs.modules() if type(module).__module__.startswith("gptqmodel")]
    assert len(packed) == 210, "transformers loaded no packed layers"
    check_likeliest(theirs, ids, greedy(in_float(model), ids)[:, PROMPT:])

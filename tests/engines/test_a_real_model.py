"""SmolLM2 in the formats that transformers loads: 32 greedy tokens after 16 beginnings, or layer by layer.

The embedded decoder goes through more recipes (test_in_transformers.py). The file's grid is Q4_1, so no recipe here is
its own (qtutor/formats/smollm2.py says why).
"""

import copy

import pytest
import torch

import qtutor
from qtutor.formats import smollm2
from qtutor.measure.texts import text_of
from tests.engines.likeliest import check_likeliest
from tests.engines.test_in_transformers import PROMPTS, greedy, in_float
from tests.reference.int8_inputs import RoundedInputs

pytestmark = pytest.mark.skipif(
    not smollm2.is_here(), reason=f"the real model is not installed here ({smollm2.INSTALL})"
)
PROMPT = 12
# What has to be installed, the format, the recipe. gptqmodel's layers compute in float16.
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
    """The packed model, what transformers makes of its folder, and the beginnings."""
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
    theirs.train(form == "bitsandbytes")  # else it computes in bfloat16 on CPUs that can; there is no dropout
    assert torch.equal(greedy(theirs, ids), greedy(in_float(model), ids))


@pytest.mark.parametrize("method", ["fp8", "int8"])
def test_every_layer_that_rounds_its_inputs_computes_what_we_say(tmp_path, original, method):
    """On the engine's own inputs. Tokens say little: inputs are rounded, so a last bit of float32 may move one by a
    step, and over thirty blocks that grows to 8 % of the logits, as much as all rounding of inputs changes them. (Our
    own model of int8 layers, computed in float64, finds other tokens likeliest than in float32 at 9 of 100 places.)
    """
    pytest.importorskip("compressed_tensors")
    model, theirs, _ = loaded(original, tmp_path / "out", "compressed-tensors", {"method": method}, torch.float32)
    if method == "int8":  # the package divides a token's largest value by 127.5; vLLM and our layers do by 127
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
    assert len(apart) == 210 and max(apart.values()) < 1e-5  # sums of float32 in another order


@pytest.mark.parametrize(("form", "symmetric"), [("gptq", True), ("awq", False)])
def test_gptqmodel_finds_the_tokens_of_a_float_model_the_likeliest(tmp_path, original, form, symmetric):
    """In one pass: it would write these tokens, too. Writing takes minutes, as it unpacks all weights for each."""
    pytest.importorskip("gptqmodel")
    pytest.importorskip("optimum")
    recipe = {"bits": 4, "symmetric": symmetric, "group_size": 64}
    model, theirs, ids = loaded(original, tmp_path / "out", form, recipe, torch.float16)
    packed = [module for module in theirs.modules() if type(module).__module__.startswith("gptqmodel")]
    assert len(packed) == 210, "transformers loaded no packed layers"
    check_likeliest(theirs, ids, greedy(in_float(model), ids)[:, PROMPT:])

"""vLLM on a CPU loads our folders, and writes the same tokens as a float model with our decoded weights.

The reference is transformers in float32. vLLM's 4-bit kernels do not accept float32 here, so those cases run in
float16; its int8 kernel runs in float32. vLLM writes 32 tokens after each of 16 prompts. At each place of vLLM's text,
the reference computes the likeliest token: if all tokens agree, both would write the same text.

AMX is hidden from vLLM. Its kernels for AMX need bfloat16, whose 8 bits make many more ties. And a virtual CPU may
report AMX, but crash when AMX is used.
"""

import copy
import gc
import os
from collections import defaultdict
from importlib.util import find_spec

import pytest
import torch

import qtutor
from qtutor.decoder.text import calibration_tokens
from qtutor.formats import smollm2, targets, ways
from qtutor.measure.texts import text_of
from tests.engines.likeliest import check_likeliest, divergence, is_sure, likeliest, logits_of, noise
from tests.engines.test_in_transformers import in_float, prompts
from tests.engines.test_mistakes import one_more, turned
from tests.formats.foreign_folders import edit_tensors
from tests.reference.fp8_inputs import Fp8Inputs
from tests.reference.int8_inputs import RoundedInputs

if find_spec("vllm") is None:
    pytest.skip("vLLM is not installed in this environment", allow_module_level=True)

# Set before vLLM is imported: one process, one thread, no network.
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "VLLM_CPU_INT4_W4A8": "0",  # otherwise it rounds the inputs of 4-bit layers, too
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
torch.cpu._is_amx_tile_supported = lambda: False

# The tests are skipped one by one. If the whole module were skipped, pytest would report a run without tests.
pytestmark = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX512", reason="vLLM's kernels for CPUs need AVX-512"
)

TOKENS = 32
TAKEN = [
    ("compressed-tensors", {"bits": 4, "symmetric": True, "group_size": 32}),
    ("compressed-tensors", {"bits": 4, "group_size": 32}),
    ("gptq", {"bits": 4, "symmetric": True, "group_size": 32}),
    ("awq", {"bits": 4, "group_size": 32}),
]
REFUSED = [
    ("compressed-tensors", {"bits": 3, "symmetric": True, "group_size": 32}, "WNA16 linear layer"),
    # vLLM merges the scales of q, k and v into one, and this build has no function for that.
    ("compressed-tensors", {"method": "fp8", "group_size": 0}, "static_scaled_fp8_quant"),
    ("gptq", {"bits": 4, "group_size": 32}, "bits=4, sym=False"),
    ("gptq", {"bits": 8, "symmetric": True, "group_size": 32}, "weight_bits = uint8b128"),
    ("bitsandbytes", {"method": "nf4"}, "Unknown quantization method: bitsandbytes"),
]


@pytest.fixture
def running():
    """A function that starts vLLM for a folder and a dtype. After the test, vLLM is removed from memory."""
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    def run(folder, dtype: str):
        return LLM(model=str(folder), enforce_eager=True, max_model_len=256, dtype=dtype)

    yield run
    cleanup_dist_env_and_memory()
    gc.collect()


def exported(folder, form: str, recipe: dict, source: str = "embedded"):
    """A quantized model and its tokenizer; the model is also written to ``folder``."""
    model, tokenizer = qtutor.load(source, dtype=torch.float32, device="cpu")
    qtutor.quantize(model, qtutor.Recipe(**recipe), progress=False)
    for layer in model.modules():
        if hasattr(layer, "threshold"):
            layer.threshold = None  # vLLM rounds the inputs of every channel
    qtutor.export(model, folder, format=form, tokenizer=tokenizer)
    return model, tokenizer


def written_by(llm, ids: torch.Tensor) -> torch.Tensor:
    """The tokens that vLLM writes after ``ids``, int64 ``[prompts, TOKENS]``; the end of a text is ignored."""
    from vllm import SamplingParams

    greedily = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True, detokenize=False)
    prompts = [{"prompt_token_ids": row.tolist()} for row in ids]
    found = llm.generate(prompts, greedily, use_tqdm=False)
    return torch.tensor([one.outputs[0].token_ids for one in found])


def takes(form: str, recipe: dict, model) -> bool:
    """Whether qtutor says that vLLM on a CPU accepts a recipe in a format."""
    own = qtutor.Recipe(**recipe)
    shapes = {name: (layer.rows, layer.columns) for name, layer in model.named_modules() if hasattr(layer, "quantized")}
    own_ways = [way for way in ways.WAYS["vllm-cpu"] if way.format == form]
    return any(not targets.misfits(way, shapes, own.of_layers(shapes)) for way in own_ways)


@pytest.mark.parametrize(("form", "recipe"), TAKEN)
def test_vllm_writes_the_likeliest_tokens(tmp_path, running, form, recipe):
    model = exported(tmp_path / "out", form, recipe)[0]
    assert takes(form, recipe, model)
    ids = prompts()
    written = written_by(running(tmp_path / "out", "float16"), ids)
    check_likeliest(in_float(model), ids, written)


ROUNDING = {"int8": lambda weight: RoundedInputs(weight, 127.0), "fp8": Fp8Inputs}


@pytest.mark.parametrize("method", ROUNDING)
def test_vllm_rounds_inputs_as_we_do(tmp_path, running, method):
    """W8A8 and FP8, in float32: a token's largest value becomes the code 127, or the value 448."""
    model = exported(tmp_path / "out", "compressed-tensors", {"method": method})[0]
    assert takes("compressed-tensors", {"method": method}, model)
    ids = prompts()
    written = written_by(running(tmp_path / "out", "float32"), ids)
    # Ties of a last bit are not enough here: an input that gets another code can move logits by more than that.
    reference = in_float(model, layer=ROUNDING[method])
    assert (likeliest(reference, ids, written)[1] == written).double().mean() >= 0.99


def test_fp8_of_modelopt_is_the_one_of_compressed_tensors(tmp_path, running):
    """FP8_PER_CHANNEL_PER_TOKEN: vLLM writes the same tokens from both formats.

    A float reference is no use here: vLLM does not accept float32 for this scheme, and in 16 bits its inputs differ
    from ours.
    """
    from vllm.distributed import cleanup_dist_env_and_memory

    found = []
    for form in ("compressed-tensors", "modelopt"):
        model = exported(tmp_path / form, form, {"method": "fp8"})[0]
        assert takes(form, {"method": "fp8"}, model)
        found.append(written_by(running(tmp_path / form, "float16"), prompts()))
        cleanup_dist_env_and_memory()
    assert torch.equal(*found)


@pytest.mark.skipif(not smollm2.is_here(), reason=f"the real model is not installed here ({smollm2.INSTALL})")
@pytest.mark.parametrize(("form", "symmetric"), [("compressed-tensors", True), ("gptq", True), ("awq", False)])
def test_a_real_model(tmp_path, running, form, symmetric):
    """SmolLM2, on grids that differ from the grid of its file."""
    recipe = {"bits": 4, "symmetric": symmetric, "group_size": 64}
    model, tokenizer = exported(tmp_path / "out", form, recipe, "smollm2")
    assert takes(form, recipe, model)
    ids = beginnings(tokenizer)
    check_likeliest(in_float(model), ids, written_by(running(tmp_path / "out", "float16"), ids))


# vLLM merges these layers into one.
PARTS = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


def teacher_forced(llm, ids: torch.Tensor, model) -> tuple[torch.Tensor, torch.Tensor]:
    """vLLM's logits at all places of ``ids``, float32 ``[places, vocabulary]``, one text after the other.

    The second result is ``[layers, places]``: the relative difference between the output of each layer of vLLM and that
    of ``model``, on vLLM's own inputs.
    """
    from vllm import SamplingParams

    made, apart = [], defaultdict(list)

    def compare(name: str, x: torch.Tensor, output: torch.Tensor) -> None:
        within, _, last = name.rpartition(".")
        layers = [model.get_submodule(f"{within}.{part}") for part in PARTS.get(last, (last,))]
        ours = torch.cat([layer(x) for layer in layers], dim=-1)
        apart[name].append((ours - output).norm(dim=-1) / output.norm(dim=-1))

    def listen(theirs) -> None:
        theirs.logits_processor.register_forward_hook(lambda _, given, output: made.append(output.float().clone()))
        for name, layer in theirs.named_modules():
            if name.endswith("_proj"):
                layer.register_forward_hook(lambda _, given, output, name=name: compare(name, given[0], output[0]))

    llm.apply_model(listen)
    asked, found = SamplingParams(max_tokens=1, prompt_logprobs=1, detokenize=False), []
    for row in ids:
        llm.generate([{"prompt_token_ids": row.tolist()}], asked, use_tqdm=False)
        last, before = made  # the logits for the next token come first, then those for the prompt
        found += [before, last]
        made.clear()
    return torch.cat(found), torch.stack([torch.cat(places) for places in apart.values()])


@pytest.mark.skipif(not smollm2.is_here(), reason=f"the real model is not installed here ({smollm2.INSTALL})")
def test_a_real_model_whose_inputs_are_rounded(tmp_path, running):
    """W8A8, teacher-forced at 1,024 places, and layer by layer.

    A last bit of float32 may move an input by a step, and thirty blocks make this difference larger: in float64, other
    tokens are likeliest by the reference itself, at 10 of 100 places. So tokens are compared only where the reference
    is sure (45 of 100 places). And vLLM may differ from the float64 reference up to twice as much as the float32
    reference does. FP8 takes vLLM over 8 minutes on a CPU, and is left out.
    """
    model, tokenizer = exported(tmp_path / "out", "compressed-tensors", {"method": "int8"}, "smollm2")
    assert takes("compressed-tensors", {"method": "int8"}, model)
    ids = text_of(tokenizer, window=64, tokens=16 * 64).token_ids
    found, apart = teacher_forced(running(tmp_path / "out", "float32"), ids, model)
    # Sums of float32 in a different order. About one of a million inputs is so near the middle between two codes that
    # the order of the divisions decides which code it gets. This changes the output of a layer for one token in 1,500.
    assert apart.shape == (120, ids.numel()) and apart.max() < 1e-2 and (apart > 1e-5).double().mean() < 2e-3
    reference = in_float(model, layer=ROUNDING["int8"])
    again, wrong = logits_of(reference, ids), logits_of(with_wrong_scales(reference), ids)
    exact = logits_of(reference.double(), ids)
    sure, by_chance = is_sure(exact, noise(exact, again)), divergence(exact, again)
    assert sure.double().mean() > 0.4

    def agreeing(logits: torch.Tensor) -> float:
        return (logits.argmax(-1) == exact.argmax(-1))[sure].double().mean().item()

    assert agreeing(found) >= 0.99 and divergence(exact, found) < 2 * by_chance  # measured: 0.998 and 1.2 times
    # The negative control: one of the 210 layers is wrong.
    assert agreeing(wrong) < 0.99 and divergence(exact, wrong) > 2 * by_chance


def with_wrong_scales(model):
    """``model`` with one layer whose scales are twice what they should be."""
    wrong = copy.deepcopy(model)
    wrong.model.layers[15].mlp.down_proj.weight *= 2
    return wrong


def beginnings(tokenizer) -> torch.Tensor:
    """Token ids ``[16, 24]`` of Python code."""
    texts = [qtutor.load_decoder()[1].decode(row) for row in calibration_tokens()[:16]]
    return torch.stack([tokenizer(text, return_tensors="pt").input_ids[0, :24] for text in texts])


@pytest.mark.parametrize("mistake", ["zero points", "order of nibbles"])
def test_wrong_words_are_seen(tmp_path, running, mistake):
    """A negative control: vLLM uses zero points and the order of nibbles, so it writes different tokens."""
    model = exported(tmp_path / "out", "awq", {"bits": 4, "group_size": 32})[0]
    which, change = {"zero points": ("qzeros", one_more), "order of nibbles": ("qweight", turned)}[mistake]
    edit_tensors(tmp_path / "out", lambda tensors: tensors.update(
        {name: change(words) for name, words in tensors.items() if name.endswith(which)}
    ))  # fmt: skip
    ids = prompts()
    written = written_by(running(tmp_path / "out", "float16"), ids)
    with pytest.raises(AssertionError):
        check_likeliest(in_float(model), ids, written)


@pytest.mark.parametrize(("form", "recipe", "why"), REFUSED)
def test_vllm_refuses_what_we_say_it_refuses(tmp_path, running, form, recipe, why):
    model = exported(tmp_path / "out", form, recipe)[0]
    assert not takes(form, recipe, model)
    with pytest.raises(Exception) as caught:  # each part of vLLM raises a different class
        running(tmp_path / "out", "float16")
    assert why in str(caught.value)

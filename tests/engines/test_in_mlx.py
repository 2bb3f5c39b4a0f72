"""mlx-lm loads our folders, and writes the same tokens as a float model that holds our decoded weights.

The tests use the wheel mlx[cpu], on a CPU; Apple's own kernels do not run here.
"""

import pytest
import torch

import qtutor
from qtutor.formats import smollm2
from tests.engines.test_a_real_model import beginnings
from tests.engines.test_in_transformers import TOKENS, greedy, in_float, prompts
from tests.engines.test_mistakes import turned

RECIPES = [
    {"bits": 4, "group_size": 64},
    {"bits": 4, "group_size": 32, "symmetric": True},
    {"bits": 3, "group_size": 64, "layers": {"*.down_proj": {"bits": 8, "group_size": 32}, "*.0.*": "float"}},
]


def written_by(model, ids: torch.Tensor, tokens: int) -> torch.Tensor:
    """``ids`` and the tokens that mlx-lm writes greedily after them, int64 ``[prompts, ids and tokens]``.

    The end of a text is ignored.
    """
    core, cache = pytest.importorskip("mlx.core"), pytest.importorskip("mlx_lm.models.cache")

    kept, found = cache.make_prompt_cache(model), ids
    for _ in range(tokens):
        logits = model(core.array((ids if found is ids else found[:, -1:]).numpy()), kept)
        found = torch.cat([found, torch.tensor(logits[:, -1].argmax(-1, keepdims=True).tolist())], dim=1)
    return found


def loaded(model, tokenizer, folder):
    """The model that mlx-lm loads from the folder of a quantized model; the same layers are packed in both."""
    utils = pytest.importorskip("mlx_lm.utils")

    theirs = utils.load_model(qtutor.export(model, folder, "mlx", tokenizer))[0]
    packed = [name for name, layer in theirs.named_modules() if "scales" in layer]
    assert sorted(packed) == sorted(name for name, layer in model.named_modules() if hasattr(layer, "packed"))
    return theirs


@pytest.mark.parametrize("recipe", RECIPES)
def test_greedy_tokens_are_equal(tmp_path, recipe):
    model, tokenizer = qtutor.load_decoder()
    qtutor.quantize(model, qtutor.Recipe(**recipe), progress=False)
    theirs = loaded(model, tokenizer, tmp_path / "out")
    ids = prompts()
    assert torch.equal(written_by(theirs, ids, TOKENS), greedy(in_float(model), ids, TOKENS))


@pytest.mark.skipif(not smollm2.is_here(), reason=f"the real model is not installed here ({smollm2.INSTALL})")
def test_a_real_model(tmp_path):
    """Its rotary positions use a base different from the usual 10000."""
    model, tokenizer = qtutor.load("smollm2", dtype=torch.float32, device="cpu")
    qtutor.quantize(model, qtutor.Recipe(bits=4, group_size=64), progress=False)
    theirs = loaded(model, tokenizer, tmp_path / "out")
    ids = beginnings(tokenizer)[:4]  # on a CPU, each token takes seconds
    assert torch.equal(written_by(theirs, ids, TOKENS), greedy(in_float(model), ids, TOKENS))


@pytest.mark.parametrize("mistake", ["zero points", "order of nibbles"])
def test_wrong_words_are_seen(tmp_path, mistake):
    """A negative control: mlx-lm uses both, so it writes different tokens."""
    model, tokenizer = qtutor.load_decoder()
    qtutor.quantize(model, qtutor.Recipe(bits=4, group_size=32), progress=False)
    theirs = loaded(model, tokenizer, tmp_path / "out")
    core = pytest.importorskip("mlx.core")
    for _, layer in theirs.named_modules():
        if "scales" in layer and mistake == "zero points":
            layer["biases"] = layer["biases"] + layer["scales"]
        elif "scales" in layer:
            words = torch.tensor(layer["weight"].tolist()).to(torch.uint32).view(torch.int32)
            layer["weight"] = core.array(turned(words).numpy().view("uint32"))
    ids = prompts()
    assert not torch.equal(written_by(theirs, ids, 8), greedy(in_float(model), ids, 8))

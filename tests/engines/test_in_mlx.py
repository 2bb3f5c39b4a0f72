"""mlx-lm loads our folders, and writes the same tokens as a float model that holds our decoded weights.

On a CPU, by the wheel mlx[cpu]; Apple's own kernels do not run here.
"""

import pytest
import torch

import qtutor
from tests.engines.test_in_transformers import greedy, in_float, prompts

RECIPES = [
    {"bits": 4, "group_size": 64},
    {"bits": 4, "group_size": 32, "symmetric": True},
    {"bits": 3, "group_size": 64, "layers": {"*.down_proj": {"bits": 8, "group_size": 32}, "*.0.*": "float"}},
]


@pytest.mark.parametrize("recipe", RECIPES)
def test_greedy_tokens_are_equal(tmp_path, recipe):
    core, utils = pytest.importorskip("mlx.core"), pytest.importorskip("mlx_lm.utils")

    model, tokenizer = qtutor.load_decoder()
    qtutor.quantize(model, qtutor.Recipe(**recipe), progress=False)
    folder = qtutor.export(model, tmp_path / "out", "mlx", tokenizer)
    theirs = utils.load_model(folder)[0]
    packed = [name for name, layer in theirs.named_modules() if "scales" in layer]
    assert sorted(packed) == sorted(name for name, layer in model.named_modules() if hasattr(layer, "packed"))
    ids, tokens = prompts()[:4], 32  # all of it is computed again for every token
    written = core.array(ids.numpy())
    for _ in range(tokens):
        following = theirs(written)[:, -1].argmax(-1, keepdims=True)
        written = core.concatenate([written, following.astype(written.dtype)], axis=1)
    assert torch.equal(torch.tensor(written.tolist()), greedy(in_float(model), ids, tokens))

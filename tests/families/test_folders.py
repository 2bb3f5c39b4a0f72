"""Checkpoints and tokenizers as users have them, each built as a folder."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import qtutor
from qtutor.decoder import EMBEDDED
from qtutor.errors import QtutorError
from tests.families import small

TEMPLATE = "{% for m in messages %}<|endoftext|>{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
MESSAGES = [{"role": "user", "content": "1 + 1"}, {"role": "assistant", "content": "2"}]


@pytest.fixture
def folder(tmp_path):
    """The embedded decoder's checkpoint, to be changed."""
    return Path(shutil.copytree(EMBEDDED, tmp_path / "checkpoint"))


def logits(model) -> torch.Tensor:
    with torch.inference_mode():
        return model(small.unseen()[:2, :32]).logits


def add_tokens(folder: Path, tokens: list[str]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(tokens)
    tokenizer.save_pretrained(folder)


# Tokens


def test_tokens_beyond_the_embedding_are_told_at_load_and_refused_in_a_text(folder, tmp_path):
    add_tokens(folder, ["<|user|>", "<|call|>"])
    with pytest.warns(UserWarning) as told:
        model, tokenizer = qtutor.load(folder, device="cpu")
    text = next(str(one.message) for one in told if "embeds" in str(one.message))
    assert "embeds 1,024 tokens, 0 to 1023" in text and "2 beyond: '<|user|>' (1024), '<|call|>' (1025)." in text
    assert qtutor.generate(model, tokenizer, "def f(", 4).startswith("def f(")  # everything else works
    with pytest.raises(QtutorError, match=r"the token '<\|call\|>', number 1025, and the model embeds 1024"):
        qtutor.generate(model, tokenizer, "<|call|>def", 4)
    with pytest.raises(QtutorError, match=r"token ids run from .* to 1024, but the model's vocabulary has 1024"):
        qtutor.perplexity(model, tokenizer("<|user|>def f(x):\n    return x", return_tensors="pt")["input_ids"])
    with pytest.raises(QtutorError, match=r"calibration text: token ids run from .* to 1024"):
        qtutor.quantize(model, qtutor.Recipe("gptq"), "<|user|>def f(x): return x\n" * 99, tokenizer=tokenizer)
    qtutor.quantize(model, qtutor.Recipe("rtn", group_size=64), progress=False)
    qtutor.export(model, tmp_path / "out", tokenizer=tokenizer)
    with pytest.warns(UserWarning, match=r"2 beyond: '<\|user\|>' \(1024\)"):
        again, _ = qtutor.load(tmp_path / "out", device="cpu")
    assert torch.equal(logits(again), logits(model))


def test_tokens_that_the_embedding_has_are_added_in_silence(folder):
    """The embedding is resized, as users do it. It is also larger than the tokenizer needs, like Qwen's."""
    add_tokens(folder, ["<|user|>", "<|call|>"])
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(1088, mean_resizing=False)
    model.save_pretrained(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, tokenizer = qtutor.load(folder, device="cpu")
    assert tokenizer("<|call|>")["input_ids"] == [1025] and model.config.vocab_size == 1088
    assert qtutor.generate(model, tokenizer, "<|call|>def", 4).startswith("<|call|>def")


def test_a_token_with_a_number_beyond_a_gap(folder):
    """There are no more tokens than rows, but the number of one token is beyond the last row."""
    values = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = values["model"]["vocab"]
    last = max(vocabulary, key=vocabulary.get)
    vocabulary[last] = 5000
    (folder / "tokenizer.json").write_text(json.dumps(values))
    with pytest.warns(UserWarning, match=rf"1 beyond: '{last}' \(5000\)\. A text"):
        qtutor.load(folder, device="cpu")


@pytest.mark.parametrize("where", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_chat_template_as_a_file_and_in_the_config(folder, tmp_path, where):
    if where.endswith(".json"):
        values = json.loads((folder / where).read_text())
        (folder / where).write_text(json.dumps(values | {"chat_template": TEMPLATE}))
    else:
        (folder / where).write_text(TEMPLATE)
    model, tokenizer = qtutor.load(folder, device="cpu")
    expected = "<|endoftext|>user: 1 + 1\n<|endoftext|>assistant: 2\n"
    assert tokenizer.apply_chat_template(MESSAGES, tokenize=False) == expected
    qtutor.quantize(model, qtutor.Recipe("rtn", group_size=64), progress=False)
    qtutor.export(model, tmp_path / "out", tokenizer=tokenizer)
    again = qtutor.load(tmp_path / "out", device="cpu")[1]
    assert again.apply_chat_template(MESSAGES, tokenize=False) == expected
    assert again.apply_chat_template(MESSAGES) == tokenizer.apply_chat_template(MESSAGES)


# Weights


@pytest.mark.parametrize("family", small.FAMILIES)
def test_sixteen_bits_with_norms_in_thirty_two(tmp_path, family):
    """The config names the dtype for computing; norms in a different dtype are converted to it, as in transformers."""
    model = small.random(family).bfloat16()
    model.save_pretrained(tmp_path)
    small.put_tokenizer(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    for name in tensors:
        if "norm" in name:
            tensors[name] = tensors[name].float() + 1e-4  # bfloat16 cannot hold this number
    save_file(tensors, path)
    ours, theirs = qtutor.load(tmp_path, device="cpu")[0], AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.bfloat16}
    assert torch.equal(logits(ours), logits(theirs))
    wide = qtutor.load(tmp_path, dtype="float32", device="cpu")[0]
    assert torch.equal(wide.model.norm.weight, tensors["model.norm.weight"])  # nothing was rounded while loading
    qtutor.quantize(ours, qtutor.Recipe("gptq", 4, 32), small.calibration()[:8], progress=False)
    qtutor.export(ours, tmp_path / "out")
    assert torch.equal(logits(qtutor.load_quantized(tmp_path / "out", device="cpu")), logits(ours))


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "granite", "smollm3", "phi3"])
def test_tied_matrices_with_a_stray_output_matrix(tmp_path, family):
    """Some trainers write the output matrix although it is tied to the embedding.

    If both are equal, the checkpoint is loaded. If they differ, it is refused.
    """
    model = small.random(family)
    model.save_pretrained(tmp_path)
    small.put_tokenizer(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    assert "lm_head.weight" not in tensors
    table = tensors["model.embed_tokens.weight"]
    save_file(tensors | {"lm_head.weight": table.clone()}, path)
    again = qtutor.load(tmp_path, device="cpu")[0]
    assert again.lm_head.weight is again.model.embed_tokens.weight
    assert torch.equal(logits(again), logits(model))
    save_file(tensors | {"lm_head.weight": table + 1}, path)
    with pytest.raises(QtutorError, match=r"the same as model\.embed_tokens\.weight \(tie_word_embeddings\)"):
        qtutor.load(tmp_path, device="cpu")

"""All objects that can be understood as text are accepted; others are refused, and the message says what to pass."""

import numpy as np
import pytest
import torch
from transformers import BatchEncoding

import qtutor
from qtutor.gguf import imatrix
from qtutor.guards.ids import ids_of, samples_of
from qtutor.methods import scaling
from tests.models import some_ids, tiny

IDS = some_ids(16, 32)
GPTQ = qtutor.Recipe("gptq", group_size=32)


def letters(text, verbose=True):
    """A tokenizer of bytes that puts one token before every text."""
    return {"input_ids": [255, *text.encode()]}


MEANT = {
    "a tensor": IDS,
    "int32": IDS.int(),
    "an array": IDS.numpy(),
    "an array of few bits": IDS.numpy().astype(np.uint16),
    "backwards in memory": np.ascontiguousarray(IDS.numpy()[:, ::-1])[:, ::-1],
    "lists": IDS.tolist(),
    "a tuple of lists": tuple(IDS.tolist()),
    "numbers of numpy": [[np.int32(number) for number in row] for row in IDS.tolist()],
    "a list of tensors": list(IDS),
    "a list of batches": list(IDS.split(1)),
    "a list of arrays": list(IDS.numpy()),
    "what a tokenizer returns": BatchEncoding({"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}),
    "the same in lists": {"input_ids": IDS.tolist(), "attention_mask": torch.ones_like(IDS).tolist()},
    "a list of those": [{"input_ids": row, "attention_mask": [1] * len(row)} for row in IDS.tolist()],
    "a list of those in batches": [BatchEncoding({"input_ids": row}) for row in IDS.split(1)],
}


@pytest.mark.parametrize("label", MEANT)
def test_ids_in_any_form(label):
    found = samples_of(MEANT[label])
    assert torch.equal(found.long(), IDS) and found.dtype in (torch.int64, torch.int32)


def test_quantize_and_perplexity_take_them():
    errors = {}
    for label in ("a tensor", "a list of those", "an array of few bits"):
        report = qtutor.quantize(tiny(), GPTQ, MEANT[label], progress=False)
        errors[label] = [row.output_error for row in report.rows]
    assert errors["a tensor"] == errors["a list of those"] == errors["an array of few bits"]
    expected = qtutor.perplexity(tiny(), IDS[0])
    assert qtutor.perplexity(tiny(), IDS[0].tolist()) == qtutor.perplexity(tiny(), IDS[0].numpy()) == expected


def test_texts_are_joined_and_cut():
    texts = ["abc" * 30, "", "def" * 40]
    joined = [255, *b"abc" * 30, 255, 255, *b"def" * 40]
    found = samples_of(texts, letters, context=64)
    assert found.tolist() == [joined[:64], joined[64:128], joined[128:192]]
    assert samples_of(np.array(texts), letters, 64).tolist() == found.tolist()
    assert samples_of("abc" * 300, letters).shape == (3, 256)
    many = samples_of(["x" * 64 * 1000], letters, 64)
    assert many.shape == (128, 64) and many.dtype == torch.int64
    report = qtutor.quantize(tiny(), GPTQ, ["some text of letters, " * 30], False, letters)
    assert len(report.rows) == 14


class Texts:
    """An object of an unknown class that holds texts."""


REFUSED = {
    "texts": (["def f():", "x = 1"], r"a list of str with 2 entries: texts need .*tokenizer=tokenizer"),
    "a text": ("def f():", r"a str \('def f\(\):'\): texts need the model's tokenizer"),
    "nothing": ([], "a list with 0 entries"),
    "a set": ({1, 2}, "a set of int with 2 entries"),
    "an object": (Texts(), "a Texts"),
    "rows of texts": ([{"text": "def"}], "a mapping of 'text'; 'input_ids' is needed"),
    "texts and ids": (["def", 3], "a list of str with 2 entries"),
    "floats": ([[0.5, 1.5]], r"a float \('0.5'\)"),
    "None in it": ([[1, None]], "a list of int with 2 entries"),
    "too large": ([[2**70, 1]], "a list of int"),
    "an array of floats": (np.zeros((2, 3)), "a ndarray"),
    "a tensor of floats": (torch.zeros(2, 3), "torch.float32 of shape"),
    "one text's ids": (IDS[0], r"int64 of shape \[32\]"),
    "one text's ids in a list": (IDS[0].tolist(), r"int64 of shape \[32\]"),
    "three dimensions": (IDS[None], r"shape \[1, 16, 32\]"),
    "different lengths": ([[1, 2, 3], [1, 2]], "samples of 2 to 3 tokens"),
    "padding": (BatchEncoding({"input_ids": IDS, "attention_mask": torch.arange(32).expand(16, 32)}), "padded"),
    "empty samples": ([[], []], "a list with 0 entries"),
    "another vocabulary": ([[1, 2, 300]], "run from 1 to 300"),
    "below zero": (np.array([[1, -100]]), "run from -100 to 1"),
    "too long": (some_ids(2, 65), "samples of 65 tokens, but the model reads 64 at most"),
}


@pytest.mark.parametrize("label", REFUSED)
def test_what_holds_no_ids_is_refused(label):
    given, message = REFUSED[label]
    model = tiny()
    with pytest.raises(qtutor.QtutorError, match=message) as told:
        qtutor.quantize(model, GPTQ, given, progress=False)
    assert "\n" not in str(told.value)


def test_texts_that_are_too_short_and_tokenizers_that_are_none():
    with pytest.raises(qtutor.QtutorError, match=r"1 texts with 9 tokens in all; a sample takes 64.*not its name"):
        qtutor.quantize(tiny(), GPTQ, "text.txt", progress=False, tokenizer=letters)
    with pytest.raises(qtutor.QtutorError, match="tokenizer is a str"):
        qtutor.quantize(tiny(), GPTQ, ["text"], progress=False, tokenizer="llama")
    with pytest.raises(qtutor.QtutorError, match=r"a str \('def'\)"):
        qtutor.perplexity(tiny(), "def")
    assert ids_of(IDS) is IDS


def test_methods_that_look_at_no_inputs_ignore_it():
    qtutor.quantize(tiny(), qtutor.Recipe(group_size=32), "anything", progress=False)


def test_folding_and_importance_have_the_same_doors():
    for given in (tiny().model, (tiny(), None), tiny().to("meta")):
        with pytest.raises(qtutor.QtutorError, match=r"model|meta"):
            scaling.fold_model(given, IDS)
        with pytest.raises(qtutor.QtutorError, match=r"model|meta"):
            imatrix.importance(given, IDS)
    with pytest.raises(qtutor.QtutorError, match="texts need the model"):
        scaling.fold_model(tiny(), ["text"])
    with pytest.raises(qtutor.QtutorError, match="texts need the model"):
        imatrix.importance(tiny(), ["text"])
    expected, model = imatrix.importance(tiny(), IDS), tiny().train()
    model.config.attention_dropout = 0.5
    for block in model.model.layers:
        block.self_attn.attention_dropout = 0.5
    found = imatrix.importance(model, IDS.tolist())
    assert all(np.array_equal(found.entries[name].sums, entry.sums) for name, entry in expected.entries.items())
    folded = scaling.fold_model(model, IDS.tolist())
    assert folded is model and model.training
    assert torch.allclose(tiny()(IDS).logits, folded.eval()(IDS).logits, atol=1e-4)

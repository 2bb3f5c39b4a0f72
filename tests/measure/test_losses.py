"""Every measure against a slow version, or in a case with a known answer."""

import ast
import copy
import math

import pytest
import torch

import qtutor
from qtutor import evaluate
from qtutor.decoder import corpus, tasks
from qtutor.measure import generation
from tests.models import VOCABULARY, some_ids, tiny


def slow_nll(model, row):
    """Negative log-likelihoods of row[1:]: for each token, a new forward pass over all tokens before it."""
    result = []
    for i in range(1, len(row)):
        logits = model(row[None, :i]).logits[0, -1].double()
        result.append((torch.logsumexp(logits, 0) - logits[row[i]]).item())
    return result


@torch.inference_mode()
def test_perplexity_equals_one_token_at_a_time():
    model, ids = tiny(), some_ids(rows=1, length=45)[0]
    windows = [ids[:20], ids[20:40], ids[40:]]
    losses = [nll for window in windows for nll in slow_nll(model, window)]
    assert evaluate.perplexity(model, ids, window=20) == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-4)
    rows = some_ids(rows=3, length=9)
    losses = [nll for row in rows for nll in slow_nll(model, row)]
    assert evaluate.perplexity(model, rows) == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-4)


def test_perplexity_of_a_model_that_knows_nothing_is_the_vocabulary():
    model = tiny()
    with torch.no_grad():
        model.model.norm.weight.zero_()  # all logits zero
    assert evaluate.perplexity(model, some_ids()) == pytest.approx(VOCABULARY, rel=1e-4)


@torch.inference_mode()
def test_compare_equals_the_definitions():
    reference, model, ids = tiny(), tiny(seed=1), some_ids()
    result = evaluate.compare(model, reference, ids)
    ours = model(ids).logits[:, :-1].double().softmax(-1)
    theirs = reference(ids).logits[:, :-1].double().softmax(-1)
    kl = (theirs * (theirs.log() - ours.log())).sum(-1).mean().item()
    assert result.kl == pytest.approx(kl, rel=1e-3)
    assert result.flips == pytest.approx((ours.argmax(-1) != theirs.argmax(-1)).double().mean().item())
    assert result.perplexity == pytest.approx(evaluate.perplexity(model, ids), rel=1e-5)
    assert result.reference_perplexity == pytest.approx(evaluate.perplexity(reference, ids), rel=1e-5)
    same = evaluate.compare(reference, copy.deepcopy(reference), ids)
    assert same.kl == pytest.approx(0, abs=1e-6) and same.flips == 0 and same.loss_percent == 0


def test_bad_tokens():
    model = tiny()
    with pytest.raises(qtutor.QtutorError, match=r"0 to 256, but the model's vocabulary has 256"):
        evaluate.perplexity(model, torch.tensor([0, 256]))
    with pytest.raises(qtutor.QtutorError, match="1 tokens: at least 2"):
        evaluate.perplexity(model, torch.tensor([0]))
    with pytest.raises(qtutor.QtutorError, match="float32"):
        evaluate.perplexity(model, torch.zeros(4))
    for given in (some_ids().to("meta"), some_ids().to_sparse()):
        with pytest.raises(qtutor.QtutorError, match=r"meta|sparse"):
            evaluate.perplexity(model, given)
        with pytest.raises(qtutor.QtutorError, match=r"meta|sparse"):
            qtutor.quantize(model, qtutor.Recipe("gptq", group_size=32), given, progress=False)
    for window in (16.0, "16"):
        with pytest.raises(qtutor.QtutorError, match=r"window = .*16.*: a whole number of tokens"):
            evaluate.perplexity(model, some_ids(), window=window)


def test_answers_are_judged_as_greedy_decoding_would_print_them():
    model, tokenizer = qtutor.load_decoder(device="cpu")
    kinds = ("product", "sum", "reversed")
    shares = evaluate.task_accuracy(model, tokenizer, kinds, count=8)
    for kind in kinds:
        right = 0
        for expression, answer in tasks.questions(kind, 8):
            prompt = f"{tasks.PROMPT}{expression}\n"
            written = evaluate.generate(model, tokenizer, prompt, max_new_tokens=16)
            right += written[len(prompt) :].startswith(answer + "\n")
        assert shares[kind] == right / 8


@pytest.mark.parametrize(
    ("continuation", "body"),
    [
        ("    return 1\nx = 2\n", "    return 1\n"),
        ("\n    return 1\n\ndef g():\n", "\n    return 1\n\n"),
        ("    a = 1\n    b = (", "    a = 1\n"),
        ("    ret", "    ret"),
        ("    if x:\n        y\nelse", "    if x:\n        y\n"),
        ("    a = 1\n    if x:\n        y = (", "    a = 1\n"),
        ("x = 1\n", ""),
        ("", ""),
    ],
)
def test_a_function_is_cut_at_its_first_dedent(continuation, body):
    assert evaluate.first_body("def f(\n    a\n):\n", continuation) == "def f(\n    a\n):\n" + body


def test_validity_counts_bodies_that_parse(monkeypatch):
    beginnings = ('def f():\n    """F."""\n', 'def g():\n    """G."""\n', 'def h():\n    """H."""\n')
    bodies = ("    return 1\nx", "    return (\nx", "x = 1\n")  # right, wrong, no body at all
    monkeypatch.setattr(corpus, "held_out_functions", lambda: beginnings)
    monkeypatch.setattr(generation, "generate_batch", lambda _m, _t, texts, _n: [a + b for a, b in zip(texts, bodies)])
    assert evaluate.ast_validity(None, None) == 1 / 3


def test_is_python():
    assert evaluate.is_python("def f():\n    return 1\n")
    assert not evaluate.is_python("def f():\n    return (1\n")
    assert not evaluate.is_python("x = '\0'")


def test_batched_generation_equals_one_at_a_time():
    model, tokenizer = qtutor.load_decoder(device="cpu")
    prompts = ["def add(a, b):\n", "import os\n\n\nclass Path:\n    def __init__(self", ">>> 3 + 4\n"]
    together = evaluate.generate_batch(model, tokenizer, prompts, 12)
    assert together == [evaluate.generate(model, tokenizer, prompt, 12) for prompt in prompts]


def test_a_prompt_that_fills_the_context():
    model, tokenizer = qtutor.load_decoder(device="cpu")
    with pytest.raises(qtutor.QtutorError, match="no room in the model's context"):
        evaluate.generate(model, tokenizer, "x = 1\n" * 300)


def test_bytes_count_tied_tensors_once():
    tied, untied = tiny(tied=True), tiny(tied=False)
    assert evaluate.model_bytes(untied) - evaluate.model_bytes(tied) == VOCABULARY * 64 * 4


def test_held_out_functions_begin_functions_of_held_out_modules():
    beginnings = corpus.held_out_functions()
    assert len(beginnings) >= 50
    for beginning in beginnings:
        (node,) = ast.parse(beginning).body  # a signature and a docstring parse as a function
        assert len(node.body) == 1 and ast.get_docstring(node)
        assert node.name in corpus.held_out_code()


@pytest.mark.filterwarnings("always")
def test_windows_end_where_the_context_does():
    model, other, ids = tiny(), tiny(seed=1), some_ids(1, 200)[0]  # both read 64 tokens
    expected = evaluate.perplexity(model, ids, window=64)
    with pytest.warns(UserWarning, match=r"reads 64 tokens at most .*windows have 64 tokens, not 200") as told:
        assert evaluate.perplexity(model, ids) == expected
    assert len(told) == 1 and told[0].filename == __file__
    with pytest.warns(UserWarning, match="not 200"):
        assert evaluate.compare(other, model, ids).reference_perplexity == pytest.approx(expected, rel=1e-5)
    rows = some_ids(3, 129)  # every sample is cut by itself: two windows, and a single token that is left out
    pieces = torch.cat([rows[:, :64], rows[:, 64:128]])
    with pytest.warns(UserWarning, match="not 129"):
        assert evaluate.perplexity(model, rows) == pytest.approx(evaluate.perplexity(model, pieces), rel=1e-5)


def test_bad_windows_and_references():
    model = tiny()
    for window, ids in [(1, some_ids()[0]), (0, some_ids()[0]), (512, some_ids(3, 1)), (512, some_ids()[None])]:
        with pytest.raises(qtutor.QtutorError, match=r"token ids of shape .* in windows of"):
            evaluate.perplexity(model, ids, window=window)
    for wrong in (None, (model, None), model.model, torch.nn.Linear(2, 2)):
        with pytest.raises(qtutor.QtutorError, match=r"model is a \w+.*model of transformers|has no output matrix"):
            evaluate.perplexity(wrong, some_ids())
        with pytest.raises(qtutor.QtutorError, match=r"model is a \w+.*model of transformers|has no output matrix"):
            evaluate.compare(model, wrong, some_ids())
    other = tiny()
    other.resize_token_embeddings(272, mean_resizing=False)
    with pytest.raises(qtutor.QtutorError, match="vocabulary has 272 tokens, the reference's 256"):
        evaluate.compare(other, model, some_ids())

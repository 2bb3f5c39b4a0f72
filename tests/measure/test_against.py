"""Comparisons and their standard errors, against definitions in numpy, the bootstrap, and simulated texts."""

import copy
import itertools

import numpy as np
import pytest
import torch

import qtutor
from qtutor import evaluate
from qtutor.errors import QtutorError
from qtutor.measure import against
from qtutor.measure.losses import mean_and_error
from tests.models import some_ids, tiny


def definitions(model, reference, rows: torch.Tensor) -> np.ndarray:
    """Per position, float64 ``[rows, tokens, 4]``: both losses, KL divergence, whether the likeliest token differs."""
    with torch.inference_mode():
        ours, theirs = (one(rows).logits[:, :-1].double().numpy() for one in (model, reference))
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (theirs, ours))
    at = rows[:, 1:].numpy()[..., None]
    losses = [-np.log(np.take_along_axis(x, at, -1)[..., 0]) for x in (q, p)]
    kl = (p * (np.log(p) - np.log(q))).sum(-1)
    return np.stack([*losses, kl, p.argmax(-1) != q.argmax(-1)], -1)


def test_means_and_errors_equal_the_definitions():
    reference, model, rows = tiny(), tiny(seed=1), some_ids(9, 24)
    found = evaluate.compare(model, reference, rows)
    values = definitions(model, reference, rows).mean(1)  # a mean for each window
    mean, error = values.mean(0), values.std(0, ddof=1) / 3  # 3 is the root of nine windows
    assert (found.tokens, found.windows) == (9 * 23, 9)
    assert found.perplexity == pytest.approx(np.exp(mean[0]), rel=1e-5)
    assert found.reference_perplexity == pytest.approx(np.exp(mean[1]), rel=1e-5)
    assert (found.kl, found.flips) == pytest.approx(mean[2:], rel=1e-5)
    assert (found.kl_error, found.flips_error) == pytest.approx(error[2:], rel=1e-4)
    assert found.perplexity_error == pytest.approx(np.exp(mean[0]) * error[0], rel=1e-4)
    assert found.reference_perplexity_error == pytest.approx(np.exp(mean[1]) * error[1], rel=1e-4)
    rise = values[:, 0] - values[:, 1]
    expected = 100 * np.exp(rise.mean()) * rise.std(ddof=1) / 3
    assert found.loss_percent_error == pytest.approx(expected, rel=1e-4)


def test_a_window_is_cut_into_rows_without_a_trace(monkeypatch):
    reference, model, rows = tiny(), tiny(seed=1), some_ids(3, 24)
    whole = evaluate.compare(model, reference, rows)
    monkeypatch.setattr(against, "ROWS", 256 * 5)  # five positions at a time, then the last three
    cut = evaluate.compare(model, reference, rows)
    # Sums in a different order differ in the last bits of float32, and errors are small differences of sums.
    assert (cut.kl, cut.kl_error, cut.flips) == pytest.approx((whole.kl, whole.kl_error, whole.flips), rel=1e-4)


def test_the_same_model_loses_nothing_with_certainty():
    model = tiny()
    found = evaluate.compare(copy.deepcopy(model), model, some_ids(4))
    assert found.kl == pytest.approx(0, abs=1e-7) and found.flips == 0 == found.flips_error
    assert found.loss_percent == 0 == found.loss_percent_error
    assert found.perplexity_error > 0  # the error from the choice of the text stays


def test_a_single_window_has_no_error():
    found = evaluate.compare(tiny(seed=1), tiny(), some_ids(1))
    assert {found.kl_error, found.flips_error, found.perplexity_error, found.loss_percent_error} == {None}
    assert evaluate.perplexity_with_error(tiny(), some_ids(1)).error is None


def test_measure_is_perplexity_with_an_error():
    model, ids = tiny(), some_ids(1, 210)[0]
    found = evaluate.perplexity_with_error(model, ids, window=20)
    assert found.perplexity == pytest.approx(evaluate.perplexity(model, ids, window=20), rel=1e-6)
    assert (found.windows, found.tokens) == (11, 10 * 19 + 9)  # the last window is shorter
    assert found.error == pytest.approx(evaluate.compare(model, model, ids, window=20).perplexity_error, rel=1e-5)


def test_the_error_of_uneven_windows_is_that_of_the_bootstrap():
    rng = np.random.default_rng(0)
    counts = rng.integers(50, 500, 40)
    sums = counts * (2 + 0.3 * rng.standard_normal(40)) + rng.standard_normal(40)
    _, error = mean_and_error(torch.tensor(sums), torch.tensor(counts))
    drawn = rng.integers(0, 40, (20_000, 40))
    bootstrap = (sums[drawn].sum(1) / counts[drawn].sum(1)).std()
    assert error == pytest.approx(bootstrap, rel=0.05)  # both are estimates from forty windows


def test_an_error_over_windows_covers_the_truth_where_tokens_depend_on_each_other():
    """Losses of neighbouring tokens are alike. Two standard errors over windows contain the true mean often enough.

    Two standard errors over tokens do not.
    """
    rng = np.random.default_rng(1)
    inside = {"windows": 0, "tokens": 0}
    for _ in range(400):
        passages = rng.standard_normal((30, 8)).repeat(16, axis=1)  # sixteen tokens in a row are equally easy
        losses = passages + 0.2 * rng.standard_normal((30, 128))
        mean, error = mean_and_error(torch.tensor(losses.sum(1)), torch.full((30,), 128))
        inside["windows"] += abs(mean) < 2 * error
        inside["tokens"] += abs(mean) < 2 * losses.std() / losses.size**0.5
    assert inside["windows"] > 0.92 * 400 and inside["tokens"] < 0.5 * 400


def test_models_that_cannot_be_compared():
    model, larger = tiny(), tiny()
    larger.resize_token_embeddings(300)
    with pytest.raises(QtutorError, match="vocabulary has 300 tokens, the reference's 256: compare a model with the"):
        evaluate.compare(larger, model, some_ids())


def test_what_is_large_is_read_in_smaller_batches(monkeypatch):
    model, seen = tiny(), []
    model.register_forward_pre_hook(
        lambda _, args, kw: seen.append(len((args or list(kw.values()))[0])), with_kwargs=True
    )
    expected = evaluate.perplexity(model, some_ids(20, 16))
    monkeypatch.setattr("qtutor.measure.losses.LOGITS", 3 * 16 * 256)
    assert evaluate.perplexity(model, some_ids(20, 16)) == pytest.approx(expected, rel=1e-6)
    assert seen == [8, 8, 4] + [3] * 6 + [2]


def test_bits_count_every_weight_once():
    model = tiny(tied=True)
    total = sum(parameter.numel() for parameter in model.parameters())
    assert evaluate.model_weights(model) == total and evaluate.bits_per_weight(model) == 32
    report = qtutor.quantize(model, qtutor.Recipe(bits=3, group_size=32), progress=False)
    assert evaluate.model_weights(model) == total
    packed = sum(row.bytes_after for row in report.rows)
    kept = 4 * (total - sum(row.shape[0] * row.shape[1] for row in report.rows))
    assert evaluate.bits_per_weight(model) == pytest.approx(8 * (packed + kept) / total, rel=1e-9)
    assert evaluate.bits_per_weight(model, total) == 8


def test_biases_and_packed_embeddings_are_weights_too():
    model = tiny("qwen2", tied=True)
    total = sum(parameter.numel() for parameter in model.parameters())
    head = model.lm_head.weight.numel()
    qtutor.quantize(model, qtutor.Recipe(group_size=32, embeddings=True, lm_head=True), progress=False)
    assert evaluate.model_weights(model) == total + head  # they are no longer tied


def test_speed_is_the_median_step(monkeypatch):
    model, clock = tiny(), itertools.accumulate(100 if number % 37 == 0 else 1 for number in itertools.count(1))
    monkeypatch.setattr(
        "qtutor.measure.speed.time.perf_counter", lambda: 0.25 * next(clock)
    )  # a few steps take much longer
    assert evaluate.tokens_per_second(model) == 4
    seen = []
    model.register_forward_pre_hook(lambda _, args, kw: seen.append(args[0].shape[1]), with_kwargs=True)
    assert evaluate.tokens_per_second(model, torch.arange(200), tokens=40) == 4
    assert seen[0] + len(seen) - 1 <= 64 and set(seen[1:]) == {1}  # the context is 64

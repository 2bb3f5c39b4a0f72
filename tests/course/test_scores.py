"""The closing table of the chapters on methods."""

import pytest

import qtutor
from qtutor import evaluate
from qtutor.course import scores


@pytest.fixture(scope="module")
def measured():
    model, tokenizer = qtutor.load_decoder()
    recipes = {"float": None, "RTN": qtutor.Recipe(bits=3), "RTN again": qtutor.Recipe(bits=3)}
    return scores.scores(model, tokenizer, recipes, tokens=600, questions=3), model, tokenizer


def test_scores_are_what_the_measures_say(measured):
    found, model, tokenizer = measured
    text = evaluate.held_out_tokens(tokenizer, limit=600)
    assert found["float"].comparison.kl == 0 and found["float"].bits == 16
    assert found["float"].comparison.perplexity == pytest.approx(qtutor.perplexity(model, text))
    assert found["RTN"].bits == pytest.approx(3 + (16 + 3) / 64, abs=0.1)
    assert found["RTN"].comparison.kl > 0
    assert 0 <= found["RTN"].arithmetic <= 1


def test_the_table_says_how_much_was_recovered(measured, monkeypatch):
    shown = []
    monkeypatch.setattr(scores, "display", lambda markdown: shown.append(markdown.data))
    scores.scores_table(measured[0], {"RTN again": "RTN"})
    lines = shown[0].splitlines()
    assert lines[0].endswith("| recovered |")
    assert lines[-1].startswith("| RTN again |") and lines[-1].endswith("| 0% |")
    assert lines[-2].endswith("|  |")

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


def test_the_table_has_a_row_for_each_recipe(measured, monkeypatch):
    shown, found = [], measured[0]
    monkeypatch.setattr(scores, "display", lambda markdown: shown.append(markdown.data))
    scores.scores_table(found)
    header, _, *rows = shown[0].splitlines()
    assert header.startswith("| weights | true bits | perplexity |") and len(rows) == len(found)
    rtn = found["RTN"]
    assert rows[1].startswith(f"| RTN | {rtn.bits:.2f} | {rtn.comparison.perplexity:.2f} |")
    assert rows[1].endswith(f"| {rtn.arithmetic:.0%} | {rtn.others:.0%} |")
    assert rows[2] == rows[1].replace("RTN", "RTN again")

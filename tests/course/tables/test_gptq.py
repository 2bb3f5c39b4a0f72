"""Tables of chapter 06: they say what was computed."""

from types import SimpleNamespace

import pytest
import torch

from qtutor.course.tables import gptq as tables
from qtutor.plots import gptq as pictures
from tests.course.tables.conftest import cells


def score(kl, answers=0.5):
    comparison = SimpleNamespace(kl=kl, perplexity=10 + kl, loss_percent=kl, flips=kl)
    return SimpleNamespace(comparison=comparison, bits=4.3, arithmetic=answers, others=answers)


MEASURED = {
    "float": score(0.0),
    "RTN 4": score(0.8),
    "RTN clipped 4": score(0.6),
    "GPTQ 4": score(0.2, 0.46),
    "GPTQ, no propagation 4": score(0.4),
    "AWQ+GPTQ 4": score(0.216),
}


def test_two_weights(shown):
    points = [(torch.tensor([0.0, y]), error) for y, error in ((0.0, 9.75), (0.8, 0.3), (1.0, 0.75))]
    tables.slides({"alike": points})
    assert cells(shown[0])[1] == ["alike", "[0, 0]", "9.750", "0.800", "0.300", "[0, 1]", "0.750"]


def test_slips(shown):
    tables.slips([("alike", 3, torch.tensor(0.25), [0.5, 1.5, 0.75])])
    assert cells(shown[0])[1] == ["alike", "3", "25%", "0.50", "1.50", "0.75"]


def test_how_much_inputs_have_to_do_with_each_other(shown):
    hessian = torch.tensor([[4.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    tables.correlations({"q": hessian})
    # One pair of three is correlated, with -1/2. Both keep 1 - 1/4 of their squared error, and the third keeps all.
    assert cells(shown[0])[1] == ["q", "3", "0.17", "0.50", "2.0", "75%"]


@pytest.mark.parametrize(("usual", "words"), [(0.4, "more text helps more"), (0.6, "damping helped as much")])
def test_dampings(shown, usual, words):
    few, many = {"own": [0.3, 0.4], "other": [1.2, 0.5]}, {"own": [0.3, 0.4], "other": [usual, 0.9]}
    tables.dampings([0.01, 1.0], few, many)
    assert cells(shown[0])[2] == ["128 tokens", "other", "1.20", "0.50"]
    assert "1.20 times RTN's with the worst damping, and 0.50 times with the best" in shown[1] and words in shown[1]
    left, right = pictures.dampings(["0.01", "1"], few, many).axes
    assert left.get_ylim() == right.get_ylim() == pytest.approx((0, 1.26))
    assert [line.get_ydata().tolist() for line in left.lines] == list(few.values())


def test_orders(shown):
    tables.orders(
        ["q_proj"], [("left to right", True, "none", [0.5, 0.6], 1.0), ("groups", False, "output", [1, 1], 2)]
    )
    header, first, second = cells(shown[0])
    assert header[3:5] == ["q_proj, 3 bits", "q_proj, 2 bits"]
    assert first[:4] == ["left to right", "beforehand (static)", "whole", "0.50"] and second[1:3] == [
        "when reached",
        "clipped",
    ]
    assert "over RTN's" in shown[1]


def test_what_propagation_takes_back(shown):
    tables.compensated({("q", 512): ([0.2, 0.1, 0.4, 0.5, 0.3], 0.25), ("q", 2048): ([0.2, 0.1, 0.4, 0.2, 0.4], 0.5)})
    assert cells(shown[0])[1] == ["q", "512", "20.0%", "10.0%", "40.0%", "50.0%", "30.0%", "25%"]
    assert shown[1].splitlines()[-1] == "- q: +25% (-25%) with 512 tokens, -50% (+0%) with 2048 tokens."


def test_each_row_is_compared_with_rtn_at_as_many_bits(shown):
    tables.beside_nearest(MEASURED)
    assert [row[2] for row in cells(shown[0])[1:]] == ["", "", "25%", "75%", "50%", "73%"]


def test_what_gptq_recovers(shown):
    tables.what_it_recovers(MEASURED, [4], questions=25)
    lines = shown[0].splitlines()
    assert lines[0] == "- GPTQ, with propagation, recovers 75% at 4 bits."
    assert lines[1].endswith("recovers 25% at 4 bits.")
    assert lines[2].endswith("by itself recovers 50%. Propagation: better (+25.0% of RTN's KL).")
    assert lines[3].endswith("about the same (within 6% of RTN's KL).")
    assert "at 4 bits GPTQ is more than 3.5 points (one standard deviation) below RTN" in lines[4]
    assert "up to 5.8% for arithmetic and 4.5%" in lines[5]
    tables.what_it_recovers({**MEASURED, "GPTQ 4": score(0.2, 0.47)}, [4], questions=25)
    assert "GPTQ is at no number of bits more than 3.5 points" in shown[1]


def test_right_answers_are_counted_by_kind():
    three, five = SimpleNamespace(arithmetic=1.0, others=0.0), SimpleNamespace(arithmetic=0.0, others=1.0)
    assert tables.right(three) == 3 / 8 and tables.right(five) == 5 / 8


@pytest.mark.parametrize(
    ("kl", "words"),
    [
        (0.7, "comes from **Python**, and the highest from **sessions**. That is even higher than without any text."),
        (0.51, "comes from **Python**, and the highest from **no text and sessions (about the same)**."),
        (0.49, "comes from **Python**, and the highest from **no text and sessions (about the same)**."),
        (0.3, "comes from **Python**, and the highest from **no text**."),
        (0.195, "comes from **Python and sessions (about the same)**, and the highest from **no text**."),
    ],
)
def test_which_text(shown, kl, words):
    found = {"no text": score(0.5), "Python": score(0.2), "sessions": score(kl)}
    tables.by_text(found, without="no text")
    assert cells(shown[0])[2] == ["Python", "10.20", "0.200"]
    assert shown[1].endswith(words)


def test_right_answers_by_text(shown):
    tables.right_by_text({"no text": score(0.5), "Python": score(0.2, 0.93)}, questions=25)
    assert cells(shown[0])[2] == ["Python", "93%", "93%"] and shown[1].endswith("at most 5.8%.")

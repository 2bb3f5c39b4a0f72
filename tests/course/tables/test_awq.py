"""Tables of chapter 05: they say what was computed."""

from types import SimpleNamespace

import pytest
import torch

from qtutor.course.tables import awq as tables
from qtutor.methods.awq import Search
from qtutor.plots import awq as pictures
from tests.course.tables.conftest import cells


def search(ratio, *errors):
    return Search(torch.tensor([0.5, 2.0]), ratio, errors)


MEAN_ABS = torch.tensor([1.0, 2.0, 8.0])
FOUND = {
    ("0: a", "plain"): (search(0.2, 4.0, 3.8), MEAN_ABS),
    ("0: b", "plain"): (search(0.2, 4.0, 2.0), MEAN_ABS),
    ("0: a", "put in"): (search(0.9, 4.0, 2.0), MEAN_ABS),
    ("0: b", "put in"): (search(0.9, 4.0, 2.2), MEAN_ABS),
}


def scored(**kls):
    """Scores by label. In a keyword, two underscores stand for a comma and a space, one stands for a space."""
    rows = {}
    for label, kl in kls.items():
        comparison = SimpleNamespace(kl=kl, perplexity=10 + kl, loss_percent=kl, flips=kl)
        rows[label.replace("__", ", ").replace("_", " ")] = SimpleNamespace(
            comparison=comparison, bits=4.3, arithmetic=0.5, others=0.5
        )
    return rows


SCORED = scored(rtn__4_bits=0.8, awq__4_bits=0.4, awq__4_bits__propagation=0.2, awq__4_bits__scales_alone=0.6)


def test_one_column_larger(shown):
    change = torch.tensor([0.3, 0.0, 0.4])
    tried = {2: (torch.tensor([1.0, 4.0, 1.0]), torch.tensor([0.0, 0.5]), torch.tensor([1.0, 1.9, 1.0]), change)}
    tables.one_column_larger(torch.tensor([1.0, 2.0, 1.0]), tried, loud=1)
    assert cells(shown[0])[0][2] == "2.00 · s"
    assert cells(shown[0])[1] == ["2", "0.500", "4.00", "1.9000", "0.000", "0.500", "0.500"]


def test_the_best_factor_is_that_of_the_smallest_sum(shown):
    loud, quiet = {1: 3.0, 2: 1.0, 4: 0.5}, {1: 1.0, 2: 1.5, 4: 9.0}
    grown = {s: torch.tensor([1.0, 2.0 if s > 1 else 1.0]) for s in loud}
    tables.loud_and_others(loud, quiet, grown)
    assert cells(shown[0])[2] == ["2", "50%", "1.500", "0.750", "1.00", "1.50", "62%"]
    assert "**s = 2**" in shown[1]
    (axes,) = pictures.loud_and_others(loud, quiet).axes
    assert [line.get_ydata().tolist() for line in axes.lines] == [[3.0, 1.0], [1.0, 1.5], [4.0, 2.5]]  # without s = 4


def test_one_factor_against_keeping(shown):
    measured = {"plain": (10.0, [40.0, 20.0], 10.0, 0.25), "put in": (10.0, [40.0, 39.9], 10.0, 0.2)}
    tables.one_factor([1, 2], measured)
    assert cells(shown[0])[1] == ["plain", "10.00", "40.00", "20.00", "10.00", "25%"]
    first, second = shown[1].splitlines()
    assert first.endswith("gives at best 50% of this gain, with s = 2 (in log perplexity).")
    assert second.endswith("gives less than a tenth of it (in log perplexity).")
    left, _ = pictures.one_factor([1, 2], measured).axes
    assert [line.get_ydata().tolist() for line in left.lines] == [[40.0, 20.0], [10.0, 10.0]]


def test_searches_in_both_decoders(shown):
    tables.searches(FOUND)
    assert cells(shown[0])[1] == ["0: a", "plain", "0.20", "95%", "4.0", "4.0"]
    tables.with_and_without_outliers(FOUND, torch.tensor([1.0, 2.0, 8.0]), "0: a")
    assert "leaves 72% of" in shown[1] and "and 52% put in" in shown[1]
    assert 'differ most in "0: a", and elsewhere by 5.0 points' in shown[1]
    assert "correlation is 1.00" in shown[1] and "chose ratio 0.90 there. So the scales undo nearly all" in shown[1]


def test_judges_and_tokens(shown):
    tables.judges({("0: a", "plain"): [(0.0, 1.0), (0.25, 0.64), (0.4, 0.5)]})
    assert cells(shown[0])[1] == ["0: a", "plain", "0.00: 100%", "0.25: 64%", "0.40: 50%"]
    tables.tokens_counted("gate", {"alike": search(0.1, 2.0, 1.0)}, torch.tensor([0.5, 1.5]))
    assert cells(shown[2])[1] == ["alike", "0.10", "50%"] and "between 0.500 and 1.50 times" in shown[3]


@pytest.mark.parametrize(
    ("by_weights", "words"),
    [
        (0.2, "the output gets **worse** than with whole ranges at 3 bits."),
        (0.104, "do not harm the output. At 3 bits both are about the same."),
        (0.096, "do not harm the output. At 3 bits both are about the same."),
        (0.05, "do not harm the output."),
    ],
)
def test_ranges(shown, by_weights, words):
    tables.ranges({3: ([0.1, by_weights, 0.08, 0.06], [0.9, 0.8, 0.85])})
    assert cells(shown[0])[1] == ["3", "10.0%", f"{by_weights:.1%}", "8.0%", "6.0%", "90% / 80% / 85%"]
    assert shown[1].endswith(words)


@pytest.mark.parametrize(("last", "words"), [(10.1, "about as good as"), (9.0, "better than"), (11.0, "worse than")])
def test_one_ratio_for_all(shown, last, words):
    tables.one_ratio([0.0, 0.5, 1.0], {"plain": [10.0, 8.0, last]})
    assert cells(shown[0])[1] == ["plain", "10.00", "8.00", f"{last:.2f}"]
    assert shown[1] == f"- **plain**: lowest at ratio 0.5; ratio 1 is {words} doing nothing."


def test_each_row_is_compared_with_nearest_at_as_many_bits(shown):
    tables.beside_nearest(SCORED)
    assert [row[2] for row in cells(shown[0])[1:]] == ["", "50%", "75%", "25%"]
    assert tables.recovered(SCORED, "awq, 4 bits, scales alone") == pytest.approx(0.25)


def test_propagation_is_told_apart_from_awq(shown):
    tables.parts_of_the_gain({"As trained": SCORED})
    assert "**As trained**, AWQ by itself recovers 50% at 4 bits. At 4 bits, 25% come from the scales" in shown[0]
    assert "25% from clipping, so the scales are 50% of its gain" in shown[0]
    assert shown[0].endswith("Propagation, which is not a part of AWQ, adds 25%.")


@pytest.mark.parametrize(
    ("kl", "words"), [(0.41, "all of the harm of the outliers."), (0.44, "outliers, but not all.")]
)
def test_what_outliers_cost(shown, kl, words):
    tables.what_outliers_cost(SCORED, scored(awq__4_bits=kl))
    assert f"{kl / 0.8:.0%} of the KL of plain rounding" in shown[0] and shown[0].endswith(words)


def test_where_it_loses(shown):
    worse = scored(rtn__4_bits=0.5, awq__4_bits=0.53)
    tables.where_it_loses({"plain": SCORED, "put in": worse}, FOUND, questions=25)
    assert "worse than plain rounding, by more than 5%**: put in, awq, 4 bits (in KL)." in shown[0]
    assert "1 of 2 inputs plain and 0 of 2 inputs put in" in shown[0] and "arithmetic is at most 6%" in shown[0]


def test_a_loss_that_another_cpu_may_not_have_is_not_told(shown):
    worse = scored(rtn__4_bits=0.5, awq__4_bits=0.52)
    worse["awq, 4 bits"].comparison.perplexity = 1.04 * worse["rtn, 4 bits"].comparison.perplexity
    tables.where_it_loses({"plain": worse}, FOUND, questions=25)
    assert shown[0].startswith("In no row is AWQ worse than plain rounding by more than 5%")

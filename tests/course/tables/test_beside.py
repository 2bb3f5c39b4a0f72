"""The two tables of scores of chapters 05 and 06, and groups of values that are about the same."""

from types import SimpleNamespace

from qtutor.course import tables
from qtutor.course.tables import beside
from tests.course.tables.conftest import cells


def score(kl):
    comparison = SimpleNamespace(kl=kl, perplexity=20 + kl, loss_percent=kl, flips=kl)
    return SimpleNamespace(comparison=comparison, bits=4.3125, arithmetic=0.75, others=0.5)


MEASURED = {"RTN": score(0.5), "GPTQ": score(0.125)}


def test_what_moves_little_is_in_the_first_table(shown):
    beside.on_text(MEASURED)
    header, rtn, gptq = cells(shown[0])
    assert header == ["weights", "true bits", "perplexity", "KL", "flips"]
    assert rtn == ["RTN", "4.31", "20.50", "0.5000", "50.0%"] and gptq[3] == "0.1250"


def test_what_is_computed_from_differences_is_in_the_second(shown):
    beside.beside_nearest(MEASURED, {"GPTQ": "RTN"})
    header, rtn, gptq = cells(shown[0])
    assert header == ["weights", "rise of perplexity", "recovered", "arithmetic right", "other answers right"]
    assert rtn == ["RTN", "+0.5 %", "", "75%", "50%"] and gptq == ["GPTQ", "+0.1 %", "75%", "75%", "50%"]


def test_values_about_the_same_are_one_group_in_the_given_order():
    assert tables.alike({"c": 1.04, "a": 2.0, "b": 1.0}) == [["c", "b"], ["a"]]
    assert tables.alike({"c": 1.04, "a": 2.0, "b": 1.05}) == [["c", "b"], ["a"]]
    assert tables.alike({"c": 1.06, "b": 1.0}) == [["b"], ["c"]]
    assert tables.named(["b"]) == "b" and tables.named(["c", "b"]) == "c and b (about the same)"

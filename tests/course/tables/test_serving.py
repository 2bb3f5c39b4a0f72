"""Tables of chapter 10: they say what was computed."""

from qtutor.course.serving import load
from qtutor.course.serving.costs import Cost
from qtutor.course.serving.load import Pace
from qtutor.course.serving.sizes import PUBLISHED
from qtutor.course.tables import serving as tables
from tests.course.tables.conftest import cells


def test_the_costs_of_a_token(shown):
    tables.token_costs([PUBLISHED["Llama 3.1 8B"], PUBLISHED["Llama 2 7B"]])
    _, eight, seven = cells(shown[0])
    assert eight[:6] == ["Llama 3.1 8B", "8.03", "32", "32 / 8", "128", "131,072"]
    assert seven[5] == "524,288"
    assert int(eight[6].replace(",", "")) > 2 * int(eight[7].replace(",", ""))


def test_used_places(shown):
    tables.used_places({"static": [["A", ".", "C", ""]], "continuous": [["A", "C"]]})
    assert cells(shown[0])[1:] == [["static", "4", "50%"], ["continuous", "2", "100%"]]
    assert shown[1] == "The same texts take 2 times as many steps with static batching."


def test_paces(shown):
    tables.paces([Pace(1, 0.004, 0.002, 400.0), Pace(8, 0.012, 0.004, 1600.0)])
    assert cells(shown[0])[2] == ["8", "12.0", "4.0", "1600"]
    assert "about 4.0 times the tokens of 1" in shown[1] and "about 2.0 times as long for a further" in shown[1]
    assert shown[1].endswith("and 3.0 times as long for its first.")


NAMES = ("int4, keys only, keys per token", "int4, keys only, keys per token, rotated")
OTHERS = ("int4, keys only, keys per channel", "int4, values only")
COSTS = dict(zip((*NAMES, *OTHERS), (Cost(0.04, 0), Cost(0.039, 0), Cost(0.01, 0), Cost(0.008, 0))))


def test_costs(shown):
    tables.costs(COSTS, COSTS | {"int4, values only": Cost(0.005, 0)})
    assert cells(shown[0])[4] == ["int4, values only", "0.0080", "0.0050"]


def test_verdicts(shown):
    tables.verdicts(COSTS, "A decoder")
    assert shown[0].split("\n\n") == [
        "**A decoder.** 4-bit keys per token cost about 5.0 times as much as 4-bit values.",
        "Keys per channel cost about 25% of keys per token.",
        "Rotated, keys per token cost about as much as those without rotation.",
    ]


def test_users_that_fit(shown):
    tables.users_that_fit({(16, 16): 4, (4, 8): 20})
    assert cells(shown[0])[1:] == [["16", "16", "4", "1.0"], ["4", "8", "20", "5.0"]]


def test_what_vllm_reaches(shown):
    found = load.in_vllm()
    tables.in_vllm(found)
    header, *rows = cells(shown[0])
    assert [row[0] for row in rows] == 2 * ["the embedded decoder"] + 2 * ["a random decoder"]
    assert header[3:] == [f"tokens/s, {n} at once" for n in (1, 8, 32)]
    plain, packed = (found["rows"][i]["tokens a second"] for i in (2, 3))
    assert f"has {packed[0] / plain[0]:.0%} of the tokens a second with 1 request" in shown[1]
    assert f"and {packed[2] / plain[2]:.0%} with 32." in shown[1]
    assert "`python benchmarks/vllm_serving.py`; 2" in shown[1]

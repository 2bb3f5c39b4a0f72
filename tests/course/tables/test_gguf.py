"""Tables of chapter 07: they say what was computed."""

from types import SimpleNamespace

import numpy as np
import pytest

import qtutor
from qtutor.course.tables import gguf as tables
from qtutor.plots import gguf as pictures
from tests.course.tables.conftest import cells


def measured(bits, kl, perplexity=10.0):
    comparison = SimpleNamespace(kl=kl, perplexity=perplexity, loss_percent=1.5, flips=0.25)
    return bits, "1,000", comparison, (0.9, 0.8)


FOUND = {
    "float": measured(16.0, 0.0),
    "Q6_K": measured(6.5, 0.01),
    "Q4_0": measured(4.5, 0.1),
    "Q2_K": measured(2.6, 0.5, 20.0),
    "Q2_K, importance": measured(2.6, 0.25, 19.0),
    "RTN 4": measured(4.3, 0.2),
    "RTN 3": measured(3.3, 0.4),
    "RTN 2": measured(2.3, 2.0),
}
KLS = {
    ("plain", "nothing", "Q4_0"): 0.2,
    ("plain", "nothing", "Q4_1"): 0.1,
    ("plain", "importance", "Q4_0"): 0.1,
    ("plain", "importance", "Q4_1"): 0.1,
    ("plain", "AWQ", "Q4_0"): 0.15,
    ("plain", "AWQ", "Q4_1"): 0.1,
    ("plain", "AWQ and importance", "Q4_0"): 0.104,
    ("plain", "AWQ and importance", "Q4_1"): 0.11,
} | {
    ("put in", label, kind): kl
    for label, kls in (("nothing", (0.4, 0.8)), ("importance", (0.3, 0.2)), ("AWQ", (0.1, 0.2)))
    for kind, kl in zip(("Q4_0", "Q4_1"), kls)
}
KLS |= {("put in", "AWQ and importance", kind): 0.05 for kind in ("Q4_0", "Q4_1")}


def test_a_block_by_hand(shown):
    weights = np.linspace(-1, 0.9375, 32, dtype=np.float32)
    block = bytes(qtutor.gguf.encode(weights[None], "Q4_0")[0])
    tables.block_by_hand(weights, 0.125, block, shown=1)
    assert shown[0] == "d = 0.125000, in 16 bits 0.125000"
    back = qtutor.gguf.decode(np.frombuffer(block, np.uint8)[None], "Q4_0")[0]
    first, second = cells(shown[1])[1:]
    assert first == ["2", f"{block[2]:02x}", "0", "-1.00", "0", f"{back[0]:.4f}"]
    assert second == ["2", f"{block[2]:02x}", "16", "0.00", "8", "0.0000"]


def test_the_best_of_all_tries(shown):
    tables.tries(np.array([14.0, 15.0, 16.0]), np.array([3.0, 2.0, 1.5]), np.array([1.0, 0.5, 0.7]), whole=1)
    assert [row[1:] for row in cells(shown[0])[1:]] == [["15", "2.00000"], ["15", "0.50000"], ["15.0", "0.50000"]]


def test_a_super_block(shown):
    tables.super_block(0.5, 0.25, np.array([2, 3]), np.array([4, 0]))
    assert cells(shown[0])[3:] == [["step", "1.0000", "1.5000"], ["lowest level", "-1.000", "-0.000"]]
    assert shown[1] == "d = 0.500000, dmin = 0.250000"


def test_what_importance_wins(shown):
    tables.what_importance_wins({"Q2_K": [0.3, 0.31, 0.4, 0.3], "Q4_K": [0.1, 0.1, 0.1, 0.11]})
    assert cells(shown[0])[1:] == [
        ["Q2_K", "30.00%", "31.00%", "40.00%", "30.00%", "+25%"],
        ["Q4_K", "10.00%", "10.00%", "10.00%", "11.00%", "-10%"],
    ]
    assert shown[1] == "Importance helps most in **Q2_K**: it removes 25% of the output's error."


def test_what_types_are_worth(shown):
    errors = {"Q4_0": 2**-4.0, "Q4_K": 2**-4.2, "Q5_0": 2**-5.05, "Q4_1": 2**-4.0, "F32": 0.0}
    points = {"a": {name: (qtutor.gguf.TYPES[name].bits_per_weight, errors[name]) for name in errors if name != "F32"}}
    tables.all_types(errors, points, "Q4_0")
    rows = {row[0]: row for row in cells(shown[0])[1:]}
    assert list(rows) == ["Q4_K", "Q4_0", "Q4_1", "Q5_0", "F32"]  # by bits, then by error
    assert rows["Q4_1"] == ["Q4_1", "32", "20", "5", "0.0625", "4.00", "-1.00"]
    assert rows["F32"][-2:] == ["exact", ""]
    assert "a bit higher than for Q4_0: Q4_K; over a tenth lower: Q4_1." in shown[1] and shown[1].endswith(
        "Exact: F32."
    )


def test_crowded_types_are_named_in_the_inset_alone():
    points = {
        "a": {"Q4_0": (4.5, 0.09), "Q8_0": (8.5, 0.006)},
        "b": {"IQ4_XS": (4.25, 0.08)},
        "c": {"TQ1_0": (1.7, 0.8)},
    }
    (axes,) = pictures.types_against_bits(points, "error", "Q4_0").axes
    (inset,) = axes.child_axes
    names = [{text.get_text() for text in ax.texts if text.get_text()} for ax in (axes, inset)]
    assert names == [{"Q8_0", "TQ1_0"}, {"Q4_0", "IQ4_XS"}]


def test_tensors_by_type(shown):
    def info(kind, *shape):
        return SimpleNamespace(type=SimpleNamespace(name=kind), shape=shape, rows=shape[0])

    tensors = {"token_embd.weight": info("Q6_K", 10, 8), "a.weight": info("Q4_K", 30, 8), "norm.weight": info("F32", 8)}
    tables.tensors_by_type(SimpleNamespace(tensors=tensors))
    assert cells(shown[0])[1:] == [["Q6_K", "token_embd"], ["Q4_K", "a"], ["F32", "norm"]]
    assert "token_embd holds 25% of" in shown[1]


def test_mixes(shown):
    tables.mixes({"Q4_0": FOUND["Q4_0"]})
    assert cells(shown[0])[1] == ["Q4_0", "4.50", "1,000", "10.00", "+1.5 %", "0.1000", "25.0%", "90%", "80%"]
    (axes,) = pictures.mixes_against_bits(FOUND, ("Q6_K", "Q4_0", "Q2_K")).axes
    points = {line.get_label(): [*zip(*line.get_data())] for line in axes.lines}
    assert points["with importance"] == [(2.6, 0.25)]
    assert points["RTN, groups of 64"] == [(4.3, 0.2), (3.3, 0.4), (2.3, 2.0)]


@pytest.mark.parametrize(
    ("kl", "words"), [(0.1, "closer to the"), (0.3, "farther from the"), (0.196, "about as close to the")]
)
def test_which_mix(shown, kl, words):
    found = FOUND | {"Q4_0": measured(4.5, kl)}
    tables.which_mix(found, ("Q6_K", "Q4_0", "Q2_K"), ("Q2_K",), questions=25)
    lines = shown[0].splitlines()
    smallest = "Q4_0" if kl < 0.19 else "Q6_K"
    assert f"**RTN 4** (4.30 bits, KL 0.200) is **{smallest}**" in lines[0]
    assert "**RTN 2** (2.30 bits, KL 2.000) is **Q2_K**, with 2.60 bits and KL 0.500" in lines[2]
    assert f"Q4_0, which does not search, is {words} float model" in lines[3]
    assert lines[4:6] == [
        "- Importance removes 50% of the KL of Q2_K.",
        "- Importance lowers perplexity by more than 1 % in: Q2_K.",
    ]
    assert "share is at most 6%" in lines[6]


@pytest.mark.parametrize(
    ("kl", "words"),
    [
        (0.37, "**Q4_0**, with 4.50 bits"),  # more than 5 % below RTN 3's KL
        (0.39, "**Q6_K**, with 6.50 bits and KL 0.010. Smaller, and about as close as RTN 3: Q4_0."),
        (0.41, "**Q6_K**, with 6.50 bits and KL 0.010. Smaller, and about as close as RTN 3: Q4_0."),
        (0.43, "**Q6_K**, with 6.50 bits and KL 0.010."),
    ],
)
def test_a_mix_that_is_closer_by_less_than_cpus_differ_is_about_as_close(shown, kl, words):
    found = FOUND | {"Q4_0": measured(4.5, kl)}
    tables.which_mix(found, ("Q6_K", "Q4_0", "Q2_K"), ("Q2_K",), questions=25)
    assert (shown[0].splitlines()[1] + "\n").partition(" is ")[2].partition(" is ")[2].startswith(words)
    assert ("about as close as RTN 3" in shown[0]) == ("about as close as RTN 3" in words)


def test_mixes_about_as_good_are_told_together(shown):
    tables.what_helps(KLS | {("put in", "nothing", "Q4_1"): 0.41})
    assert shown[0].splitlines()[0].endswith("from best to worst: Q4_0 and Q4_1 (about the same).")


def test_what_helps(shown):
    tables.helps(KLS)
    assert cells(shown[0])[1] == ["plain", "nothing", "0.2000", "0.1000"] and len(cells(shown[0])) == 9
    tables.what_helps(KLS)
    lines = shown[1].splitlines()
    assert lines[0].endswith("from best to worst: Q4_0, Q4_1.")
    assert lines[1].endswith("importance removes this much of the KL: 25% (Q4_0), 75% (Q4_1).")
    assert lines[2].endswith("AWQ removes this much of the KL: 75% (Q4_0), 75% (Q4_1).")
    assert "removes 25% (Q4_0), 0% (Q4_1)." in lines[3]
    assert lines[4].endswith("in 3 of 4 cases.")  # 0.104 is within 5 % of 0.1, 0.11 is not


def test_tiny_columns(shown):
    tables.tiny_columns("gate_proj", np.array([True, False, True]), {"Q4_0": 1.0, "Q4_1": 1.44})
    assert shown[0].startswith("- Columns of gate_proj divided by 16 or more: 2.")
    assert "1.0 times (Q4_0), 1.4 times (Q4_1) their own size" in shown[0]


def test_metadata(shown):
    values = {"qtutor.config": "{}", "list": ["a", "b"], "array": np.zeros(1200, np.int32), "one": np.uint32(7)}
    tables.metadata(SimpleNamespace(metadata=values))
    assert cells(shown[0])[1:] == [
        ["`one`", "`7`", "uint32"],
        ["`list`", "2 values", "array of str"],
        ["`array`", "1,200 values", "array of int32"],
    ]


def test_flips_of_bits(shown):
    fraction = [1e-8 * 4.0**place for place in range(10)]
    tables.bit_flips({"kl": [*fraction, 0.5, 0.1], "text_of": [0] * 9 + [1, 2, 1]})
    assert "9 of the 12 flips leave the text as it is" in shown[0] and "75%" in shown[0]
    assert "KL grows 4.0 times" in shown[0]

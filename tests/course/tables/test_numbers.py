"""Tables of chapter 01: they say what was computed."""

import numpy as np
import torch

from qtutor.core.numbers import E2M1, E4M3, E5M2, FP16
from qtutor.course.tables import numbers as tables
from qtutor.course.tables import say
from tests.course.tables.conftest import cells


def test_sentences_are_paragraphs_and_dashes_one_list(shown):
    say("One.", "- two", "- three", "Four.")
    assert shown == ["One.\n\n- two\n- three\n\nFour."]


def test_rounded_numbers_with_their_fields(shown):
    tables.rounded([(3.14159, E4M3), (70000.0, FP16)])
    assert cells(shown[0])[1:] == [
        ["1", "3.14159", "fp8 e4m3", "`0 1000 101`", "3.25", "3.45%"],
        ["2", "70000", "fp16", "`0 11111 0000000000`", "inf", "inf%"],
    ]


def test_ranges_are_those_of_the_formats(shown):
    tables.ranges([E5M2, E2M1])
    assert cells(shown[0])[1:] == [
        ["fp8 e5m2", "57344", "6.1e-05", "1.53e-05", "1/4", "8 of 256"],
        ["fp4 e2m1", "6", "1", "0.5", "1/2", "0 of 16"],
    ]


def test_decibels_a_bit_are_slopes_at_few_and_at_many_bits(shown):
    widths = list(range(1, 15))
    tables.decibels_by_bits({"steady": [6 * b for b in widths], "clipped": [min(6 * b, 36) for b in widths]}, widths)
    steady, clipped = cells(shown[0])[1:]
    assert steady == ["steady", "12.0", "24.0", "48.0", "72.0", "6.00", "6.00"]
    assert clipped[-2] == "6.00" and abs(float(clipped[-1])) == 0


def test_infinite_numbers_are_named(shown):
    tables.decibels_by_size({"a": [1.0, 2.0, float("nan")]}, powers=[-1, 0, 1], shown=[0, 1])
    assert cells(shown[0]) == [["format", "2^0", "2^1"], ["a", "2.0", "infinite numbers"]]


def test_noise_averages_out_from_afar(shown):
    picture = np.full((8, 8, 3), 0.5)
    noise = np.where(np.indices((8, 8)).sum(axis=0)[..., None] % 2, 0.1, -0.1)
    tables.near_and_from_afar(picture, {"shifted": (picture + 0.1, 2.0), "noisy": (picture + noise + 0.001, 2.5)})
    shifted, noisy = cells(shown[0])[1:]
    assert shifted == ["shifted", "2.0", "20.0", "20.0"]
    assert noisy == ["noisy", "2.5", "20.0", "60.0"]


def test_a_model_of_so_many_parameters_weighs(shown):
    tables.costs(2_000_000_000, [("MXFP4", 4.25, "there")])
    assert cells(shown[0])[0][3] == "2 billion parameters"
    assert cells(shown[0])[1] == ["MXFP4", "4.25", "0.53125", "1.1 GB", "there"]


def test_rows_of_weights_count_what_changed_and_what_became_zero(shown):
    row = tables.row_of_weights(
        "x", torch.tensor([1.0, 2.0, 0.0, 0.1]), torch.tensor([1.0, 2.5, 0.0, 0.0]), 9.0, 12, 10
    )
    assert row == ["x", "50.00%", "25.00%", "9.0", "12", "+20.00 %"]
    tables.weights_in(10.0, [row])
    assert cells(shown[0])[1][4] == "10" and cells(shown[0])[2] == row


def test_near_values_are_about_the_same(shown):
    eight = {"fp8 e4m3": 30.0, "fp8 e5m2": 25.0, "fp8 e4m3, scaled": 31.0, "int8, scaled": 33.0}
    for four, said in ((1.5, "**fp4 e2m1, scaled** costs less"), (1.98, "about the same perplexity")):
        tables.best_formats(torch.ones(4), eight, {"fp4 e2m1, scaled": 1 + (four - 1), "int4, scaled": 2.0}, 1.0)
        assert "**int8, scaled** is the most exact (33.0 dB), fp8 e5m2 the least" in shown[-1]
        assert said in shown[-1]

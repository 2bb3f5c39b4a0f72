"""Tables of chapter 00: they say what was computed."""

import pytest

from qtutor.course.tables import start as tables
from qtutor.course.widgets import speed_limits
from tests.course.tables.conftest import cells


def test_bytes_of_parts(shown):
    tables.bytes_of_parts({"16 bits": {"MLP": 1500, "rest": 500}, "4 bits": {"MLP": 400, "rest": 500}})
    header, first, second = cells(shown[0])
    assert header == ["weights", "MLP", "rest", "together", "of 16 bits"]
    assert first == ["16 bits", "1,500", "500", "2,000", "100%"] and second[-2:] == ["900", "45%"]


def test_product_times(shown):
    tables.product_times([1, 4], [2.0, 6.0], weights=10**9, size=4 * 10**9)
    assert cells(shown[0])[2] == ["4", "6.0", "1.50", "666.7", "1333"]
    assert shown[1] == "4 tokens are 4 times the work and took 3 times as long."


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (2.0, "Here it was **2.0 times slower**"),
        (1.1, "Here it was about as fast"),
        (0.7, "Here it was 1.4 times faster, less than that: the arithmetic"),
        (0.52, "Here it was 1.9 times faster, about as much as that: only the bytes"),
        (0.4, "Here it was 2.5 times faster, more than that: its routine"),
    ],
)
def test_whether_fewer_bytes_were_faster(shown, seconds, words):
    tables.fewer_bytes({"float32": 4_000_000, "bfloat16": 2_000_000}, {"float32": 1.0, "bfloat16": seconds})
    assert cells(shown[0])[1] == ["float32", "4", "1000.00", "0", "1.0"]
    assert shown[1].startswith("- **bfloat16**: 2.0 times fewer bytes. " + words)


def test_published_speeds(shown):
    tables.published_speeds({"F16": (16.0, 10.0), "Q4": (4.0, 25.0)})
    assert cells(shown[0])[2] == ["Q4", "4.0", "25.0", "100", "4.0 times", "2.5 times"]


def test_the_price_of_fewer_bits(shown):
    lost = {16: (20.0, 1.0, 0.9), 4: (21.0, 0.9, 0.8), 3: (30.0, 0.6, 0.5), 2: (200.0, 0.1, 0.2)}
    tables.price({16: 2000, 4: 800, 3: 700, 2: 600}, lost)
    assert cells(shown[0])[2] == ["4", "800", "21.00", "90%", "80%"]
    assert "rises by **5.0 %**, while the whole model shrinks to 40% of its bytes" in shown[1]
    assert "100% were right with 16 bits, and 90% are right with 4" in shown[1]
    assert (
        "At 3 bits perplexity rises by 50 %, at 2 by 900 %. With 2 bits, 10% of the answers in arithmetic are right"
        in shown[1]
    )


def test_the_limit_of_speed_says_its_numbers_to_those_who_cannot_see_it():
    still = speed_limits(lambda billions, bits: (billions * bits / 8, {"a": 100 / billions, "b": 12.3456})).still
    assert "for 8 billion weights of 16 bits, 16.0 GB: 12.5 on a, 12.3 on b." in still
    assert "for 70 billion weights of 2 bits" in still
    assert "<table" not in still  # the numbers stand on the bars

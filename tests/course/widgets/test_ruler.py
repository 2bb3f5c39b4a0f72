"""The breathing ruler: its script rounds as torch casts, its ticks are levels, and its lines are the worst errors."""

import json
import math
import re

import numpy as np
import pytest
import torch

from qtutor.core.numbers import BF16, E2M1, E4M3, E5M2, FP16, FP32, IntFormat
from qtutor.course.widgets.ruler import described, ruler, worst_errors
from qtutor.errors import QtutorError
from tests.course.widgets.scripts import evaluate, needs_node

INT8 = IntFormat(8, scale=1 / 16)
FORMATS = (FP32, BF16, FP16, E5M2, E4M3, INT8)
CASTS = {
    FP32.name: torch.float32,
    BF16.name: torch.bfloat16,
    FP16.name: torch.float16,
    E5M2.name: torch.float8_e5m2,
    E4M3.name: torch.float8_e4m3fn,
}


def numbers() -> torch.Tensor:
    """Positive float64 numbers from 2^-30 to 2^20: of every size, powers of two, ties, and at the ends of ranges.

    A tie lies halfway between two levels. Numbers just beside ties and powers of two are included, too.
    """
    random = torch.Generator().manual_seed(0)
    powers = 2.0 ** (torch.rand(2000, generator=random, dtype=torch.float64) * 50 - 30)
    whole = 2.0 ** torch.arange(-30.0, 21.0, dtype=torch.float64)
    ties = [(levels[1:] + levels[:-1]) / 2 for levels in (E4M3.levels(1e-9, 448), E5M2.levels(1e-9, 57344))]
    near = torch.cat([whole, *ties, INT8.levels(0.01, 8) + 1 / 32])
    edges = torch.tensor(
        [448.0, 463.9, 464.0, 480.0, 57344.0, 61439.0, 61440.0, 65504.0, 65519.0, 65520.0, 7.9375, 7.97]
    )
    return torch.cat([powers, near, near * (1 + 1e-12), near * (1 - 1e-12), edges.double()])


@needs_node
def test_the_script_rounds_as_torch_casts():
    x = numbers()
    for fmt in FORMATS:
        found = evaluate("ruler", "numbers.map((x) => roundTo(format, x))", numbers=x.tolist(), format=described(fmt))
        found = torch.tensor([float(value) for value in found], dtype=torch.float64)
        assert torch.equal(found, fmt.round(x)), fmt.name
        if fmt.name in CASTS:
            # torch casts float64 through float32, so a number next to a tie may be rounded twice.
            kept = x == x.float().double()
            assert kept.sum() > 200 and torch.equal(found[kept], x[kept].to(CASTS[fmt.name]).double()), fmt.name
        else:
            assert torch.equal(found, (x * 16).round().clamp(max=127) / 16)


@needs_node
def test_its_ticks_are_the_levels_of_the_format():
    windows = [(0.0, 4.0), (0.9, 1.1), (3.999, 4.001), (440.0, 500.0), (0.0, 2.0**-15), (7.0, 9.0), (2.0**14, 2.0**17)]
    for fmt in FORMATS:
        script = "windows.map(([low, high]) => levelsIn(format, low, high, 300))"
        for (low, high), found in zip(windows, evaluate("ruler", script, windows=windows, format=described(fmt))):
            expected = fmt.levels(low, high, limit=300)
            if expected is None or found is None:
                count = math.inf if expected is None else len(expected)
                assert found is None and count > 290, (fmt.name, low, high)
            else:
                assert found == expected.tolist(), (fmt.name, low, high)


@needs_node
def test_its_errors_are_those_of_the_package():
    powers = np.arange(-30, 20, 1 / 16) + 1 / 32
    x = torch.from_numpy(2.0**powers)
    for fmt in FORMATS:
        script = "numbers.map((x) => [worstAt(format, x), errorAt(format, x)])"
        found = evaluate("ruler", script, numbers=x.tolist(), format=described(fmt))
        worst, own = torch.tensor([[float(value) for value in row] for row in found], dtype=torch.float64).T
        torch.testing.assert_close(own, (fmt.round(x) - x).abs() / x, rtol=1e-12, atol=0)
        expected = torch.from_numpy(worst_errors(fmt, powers)).nan_to_num(nan=math.inf)
        torch.testing.assert_close(worst, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)
def test_the_worst_error_is_never_passed_and_nearly_reached(fmt):
    """In each of eight octaves, 20,000 numbers are tried one by one."""
    for low in (-26, -14, -8, -1, 2, 5, 10, 17):
        x = 2.0 ** (low + (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000)
        errors = (fmt.round(x) - x).abs() / x
        worst = torch.from_numpy(worst_errors(fmt, np.log2(x.numpy()))).nan_to_num(nan=math.inf)
        assert (errors <= worst * (1 + 1e-9)).all()
        assert (errors / worst).nan_to_num(nan=1).max() > 0.99


def stored(html: str) -> dict:
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', html, re.DOTALL)[1])


def test_what_is_stored_describes_the_formats_and_asks_no_other_machine():
    html = ruler(FORMATS)._repr_mimebundle_()["text/html"]
    formats = stored(html)["formats"]
    assert [fmt["name"] for fmt in formats] == [*(fmt.name for fmt in FORMATS[:5]), "int8 × 0.0625"]
    assert [fmt["largest"] for fmt in formats] == [fmt.largest for fmt in FORMATS]
    assert [fmt.get("infinite") for fmt in formats] == [True, True, True, True, False, None]
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|src=\"(?!data:)|@import|url\(", html)
    assert re.search(r'<img alt="[^"]{40}', html) and len(html) < 60_000


def test_no_format_and_seven_are_refused():
    for formats in ((), (*FORMATS, E2M1)):
        with pytest.raises(QtutorError, match="1 to 6"):
            ruler(formats)

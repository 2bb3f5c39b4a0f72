"""Four formats over a block: the script rounds as the package does, and each block is what its name says."""

import json
import math
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qtutor import bnb, rtn
from qtutor.core.float_grid import MXFP4, NVFP4
from qtutor.core.grid import IntGrid
from qtutor.course.widgets import block_levels, levels_over_block
from qtutor.course.widgets.sampling import sample_rows
from qtutor.errors import QtutorError
from tests.course.widgets.scripts import evaluate, needs_node
from tests.reference import float_blocks


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.1


LAYERS = {"first": noise(64, 128), "second": noise(32, 64, seed=1) ** 3}
EDGES = torch.stack([
    torch.zeros(32), torch.full((32,), 0.3), torch.full((32,), -0.3), -noise(32, seed=2).abs(),
    torch.tensor([0.0] * 31 + [1.0]), torch.cat([noise(31, seed=7), torch.tensor([-40.0])]),
    torch.cat([torch.zeros(16), noise(16, seed=3)]), noise(32, seed=4) * 1e-5,
    torch.tensor([7.0, 6.9, 5.0, 3.5, 1.75, -7.0] + [0.1] * 26) / 4, torch.tensor([1.75] * 2 + [0.2] * 30),
])  # fmt: skip


def broken(number: float) -> torch.Tensor:
    """A layer in which one weight is ``number`` (NaN or infinite)."""
    weight = LAYERS["first"].clone()
    weight[50, 3] = number
    return weight


def error(back: torch.Tensor, weights: torch.Tensor) -> float:
    return ((back - weights).norm() / weights.norm().clamp(min=1e-30)).item()


@needs_node
@pytest.mark.parametrize("weights", [*EDGES, *noise(12, 32, seed=5), *(noise(6, 32, seed=6) ** 3)])
def test_the_script_makes_what_the_package_makes(weights):
    unit = block_levels.unit_of(torch.cat([weights[None], EDGES]))
    made = block_levels.made_of(weights, unit)
    given = {"nf4": sorted(bnb.NF4.values), "unit": unit}
    script = "Object.keys(FITS).map((name) => [name, madeOf(name, weights, given)])"
    found = dict(evaluate("block_levels", script, weights=weights.tolist(), given=given))
    assert list(found) == list(made)
    for name, quantized in made.items():
        theirs, back = found[name], quantized.dequantize()[0]
        assert theirs["error"] == pytest.approx(error(back, weights), rel=2e-4, abs=1e-6), name
        levels = block_levels.levels_of(quantized)
        for fit, own, scale in zip(theirs["fits"], levels, quantized.scales[0], strict=True):
            assert sorted(set(fit["levels"])) == pytest.approx(own.tolist(), rel=1e-5, abs=1e-9), name
            if weights.any():
                assert fit["scale"] == pytest.approx(scale.item(), rel=1e-5), name


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 999), power=st.integers(-6, 6))
def test_what_is_compared_is_each_formats_own_rounding(seed, power):
    weights = noise(32, seed=seed) * 2.0**power
    unit = block_levels.unit_of(weights[None])
    made = block_levels.made_of(weights, unit)
    assert torch.equal(made["int4"].codes, rtn.quantize(weights[None], IntGrid(4), 32).codes)
    assert torch.equal(made["NF4"].codes, bnb.quantize(weights[None], bnb.NF4, 32).codes)
    scale, codes = float_blocks.mxfp4(weights.tolist())
    assert made["MXFP4"].codes[0].tolist() == codes and made["MXFP4"].scales.item() == scale
    for half in (0, 1):
        own = slice(16 * half, 16 * half + 16)
        scale, codes = float_blocks.nvfp4(weights[own].tolist(), unit)
        assert made["NVFP4"].codes[0, own].tolist() == codes and made["NVFP4"].scales[0, half].item() == scale


@pytest.mark.parametrize("sample", [2**16, 2**11])
def test_the_blocks_are_what_they_are_called(monkeypatch, sample):
    """If a layer has more weights than the sample, the sample is a set of whole rows."""
    monkeypatch.setattr(block_levels, "SAMPLE", sample)
    for name, weight in LAYERS.items():
        told = {block.what: block for block in block_levels.told_blocks(name, weight)}
        assert len(told) == 4
        for block in told.values():
            assert torch.equal(block.weights, weight[block.row, block.first : block.first + 32])
        blocks = weight[sample_rows(weight, sample)].reshape(-1, 32)
        peaks = blocks.abs().amax(dim=1) / blocks.square().mean(dim=1).sqrt()
        own = [(b.abs().max() / b.square().mean().sqrt()).item() for b in (one.weights for one in told.values())]
        assert own[1] == pytest.approx(peaks.max().item(), rel=1e-5)
        assert (peaks < own[0] * 0.9999).sum() == pytest.approx(len(peaks) / 2, abs=2)
        unit, six = block_levels.unit_of(weight), replace(NVFP4, wider=())
        gains = [
            error(rtn.quantize(b[None], replace(six, unit=unit, settled=True), 16).dequantize()[0], b)
            - error(block_levels.made_of(b, unit)["NVFP4"].dequantize()[0], b)
            for b in blocks
        ]
        best = told["4 beats 6 by most"].weights
        assert torch.equal(blocks[max(range(len(gains)), key=gains.__getitem__)], best) and max(gains) > 0.01
        costs = [
            error(rtn.quantize(b[None], MXFP4, 32).dequantize()[0], b)
            / error(bnb.quantize(b[None], bnb.NF4, 32, double=False).dequantize()[0], b)
            for b in blocks
        ]
        worst = told["a power of two costs most"].weights
        assert torch.equal(blocks[max(range(len(costs)), key=costs.__getitem__)], worst)


def test_what_is_stored_needs_no_kernel_and_no_other_machine():
    html = levels_over_block(LAYERS, "second")._repr_mimebundle_()["text/html"]
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|src=\"(?!data:)|@import|url\(", html)
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', html, re.DOTALL)[1])
    assert list(data["layers"]) == ["second", "first"]
    assert data["bits"] == {"int4": 4.625, "NF4": pytest.approx(4.25, abs=0.05), "MXFP4": 4.25, "NVFP4": 4.516}
    for name, stored in data["layers"].items():
        assert stored["largest"] == LAYERS[name].abs().max() and stored["unit"] == block_levels.unit_of(LAYERS[name])
        for block in stored["blocks"]:
            own = LAYERS[name][block["row"], block["first"] : block["first"] + 32]
            assert block["weights"] == pytest.approx(own.tolist(), rel=1e-5)
    before = html[: html.index('<script type="application/json">')]
    assert re.search(r'<img alt="[^"]{40}', before) and "relative error" in before and "still picture" in before


def test_a_layer_of_zeros_and_of_16_bits_is_shown():
    levels_over_block({"zeros": torch.zeros(4, 64), "half": noise(4, 64).bfloat16()})


@pytest.mark.parametrize(
    ("layers", "layer", "said"),
    [
        (LAYERS, "third", "there is no layer 'third'; the layers are first, second"),
        ({"narrow": noise(4, 48)}, None, "narrow of shape .4, 48. cannot be divided into blocks of 32"),
        ({"one": noise(64)}, None, "cannot be divided into blocks of 32"),
        ({}, None, "no layer to show"),
        ({"bad": broken(math.nan)}, None, r"^bad: 1 of 8192 weights are NaN or infinite, the first at \[50, 3\] .nan"),
        (
            {"bad": broken(-math.inf)},
            None,
            r"^bad: 1 of 8192 weights are NaN or infinite, the first at \[50, 3\] .-inf",
        ),
    ],
)
def test_what_does_not_fit_is_refused(layers, layer, said):
    with pytest.raises(QtutorError, match=said):
        levels_over_block(layers, layer)

"""The game Beat NF4: its few points give the error of any levels, no levels beat its best, and its script agrees."""

import itertools
import json
import re

import pytest
import torch

from qtutor import bnb, rtn
from qtutor.core.codebooks import Codebook
from qtutor.core.grid import IntGrid
from qtutor.course.widgets import levels as game
from qtutor.course.widgets.levels import BINS, LEVELS, beat_nf4, best_levels, error_of, lloyd_step, points_of
from qtutor.errors import QtutorError
from tests.course.widgets.scripts import evaluate, needs_node


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# bfloat16: many quotients of such numbers are simple fractions, and these are borders between levels of int4.
WEIGHTS = {
    "bell": noise(1024, 64),
    "bfloat16": noise(512, 128, seed=1).bfloat16(),
    "heavy tails": noise(512, 128, seed=2) ** 3,
}
SETS = LEVELS | {"three": (-0.5, 0.0, 0.7), "learned": tuple(noise(16, seed=3).tanh().sort().values.tolist())}


@pytest.fixture(params=WEIGHTS, scope="module")
def weight(request):
    return WEIGHTS[request.param]


@pytest.fixture(scope="module")
def points(weight):
    return points_of(*game.normalised([weight]))


def test_the_points_keep_the_sums_of_the_weights(weight, points):
    x, c = game.normalised([weight])
    c = c / (c * x.square()).sum()
    for power in (0, 1, 2):
        kept = (points["c"] * points["x"] ** power).sum()
        assert kept.item() == pytest.approx((c * x**power).sum().item(), rel=1e-9, abs=1e-12)
    assert points["share"].sum().item() == pytest.approx(1) and len(points["x"]) <= 2 * BINS
    assert (points["x"].diff() >= 0).all()


@pytest.mark.parametrize("levels", SETS.values(), ids=SETS)
def test_the_error_is_that_of_the_weights_themselves(weight, points, levels):
    levels = torch.tensor(levels, dtype=torch.float64)
    x, c = game.normalised([weight])
    off = (x[:, None] - levels).abs().amin(dim=1)
    direct = ((c * off.square()).sum() / (c * x.square()).sum()).sqrt().item()
    assert error_of(points, levels) == pytest.approx(direct, rel=5e-4)  # within 0.05 %, as the chapter says


def test_the_error_is_what_the_package_computes(weight, points):
    weight = weight.float()
    rounded = {
        "NF4": bnb.quantize(weight, bnb.NF4, 64, double=False),
        "FP4": bnb.quantize(weight, bnb.FP4, 64, double=False),
        "int4": rtn.quantize(weight, IntGrid(4, symmetric=True), 64),  # its scales are rounded to 16 bits
    }
    for name, quantized in rounded.items():
        error = ((quantized.dequantize() - weight).norm() / weight.norm()).item()
        assert error_of(points, torch.tensor(LEVELS[name])) == pytest.approx(error, rel=1e-3), name


def test_a_lloyd_step_never_makes_it_worse(points):
    levels = torch.tensor(LEVELS["int4"], dtype=torch.float64)
    for _ in range(30):
        after = lloyd_step(points, levels)
        assert error_of(points, after) <= error_of(points, levels) + 1e-12
        levels = after
    assert error_of(points, levels) < 0.97 * error_of(points, torch.tensor(LEVELS["int4"]))


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_best_levels_are_those_of_all_ways_to_cut(zero, count):
    x = torch.tensor([-0.9, -0.55, -0.5, -0.1, 0.05, 0.4, 0.62, 0.7, 1.0], dtype=torch.float64)
    c = torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0, 1.0, 1.5, 0.5, 1.0], dtype=torch.float64)
    points = {"x": x, "c": c, "share": c / c.sum()}
    least = torch.inf
    for cuts in itertools.combinations(range(1, len(x)), count - 1):
        runs = list(itertools.pairwise((0, *cuts, len(x))))
        means = [(c[i:j] * x[i:j]).sum() / c[i:j].sum() for i, j in runs]
        for at in range(count) if zero else [None]:
            levels = [0.0 if i == at else float(mean) for i, mean in enumerate(means)]
            least = min(least, error_of(points, torch.tensor(sorted(levels), dtype=torch.float64)))
    found = best_levels(points, count)[zero]
    assert len(found) == count and (found.diff() > 0).all()
    assert (found == 0).any() == zero
    assert error_of(points, found) == pytest.approx(least, rel=1e-9)


def test_the_best_levels_beat_nf4_and_stay_where_lloyds_steps_leave_them(points):
    best, with_zero = best_levels(points).values()
    assert error_of(points, best) < 0.98 * error_of(points, torch.tensor(LEVELS["NF4"]))
    assert (lloyd_step(points, best) - best).abs().max() < 1e-9
    assert error_of(points, best) <= error_of(points, with_zero) + 1e-12


def test_the_levels_are_the_packages():
    assert Codebook("int4", LEVELS["int4"]).values[8] == 0
    steps = IntGrid(4, symmetric=True)
    assert [level * 7.5 + 8 for level in LEVELS["int4"]] == pytest.approx(list(range(steps.largest_code + 1)))
    assert LEVELS["NF4"] == tuple(sorted(bnb.NF4.values)) and LEVELS["FP4"] == tuple(sorted(bnb.FP4.values))


def stored(html: str) -> dict:
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', html, re.DOTALL)[1])


@needs_node
def test_the_script_computes_the_same(weight, points):
    data = stored(beat_nf4({"weights": [weight]}).html)["sources"]["weights"]
    sets = {name: sorted(levels) for name, levels in SETS.items()}
    script = "Object.values(sets).map((levels) => [errorOf(points, levels), perLevel(points, levels), "
    script += "lloydStep(points, levels), lloydStep(points, levels, 1)])"
    for levels, (error, parts, step, kept) in zip(
        sets.values(), evaluate("levels", script, points=data["points"], sets=sets)
    ):
        exact = torch.tensor(levels, dtype=torch.float64)
        assert error == pytest.approx(error_of(points, exact), rel=1e-4)
        places = game.nearest(points["x"], exact)
        shares = torch.zeros(len(levels), dtype=torch.float64).index_add(0, places, points["share"])
        assert [part["share"] for part in parts] == pytest.approx(shares.tolist(), abs=1e-4)
        assert step == pytest.approx(lloyd_step(points, exact).tolist(), abs=1e-4)
        assert kept[1] == levels[1] and kept[2:] == step[2:] and kept[0] == step[0]
    assert data["nf4"] == pytest.approx(error_of(points, torch.tensor(LEVELS["NF4"])), abs=1e-6)
    assert data["best"] <= data["best_with_zero"] < data["nf4"]
    asked = [data["nf4"] + 0.01, data["nf4"], (data["nf4"] + data["best"]) / 2, data["best"]]
    script = f"errors.map((error) => scoreOf(error, {data['nf4']}, {data['best']}))"
    assert evaluate("levels", script, errors=asked) == [0, 0, 50, 100]


def test_what_is_stored_needs_no_kernel_and_no_other_machine():
    shown = beat_nf4({"some": [noise(32, 64)], "others": [noise(8, 128, seed=4), noise(8, 64, seed=5)]})
    bundle = shown._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "text/html"}
    html = bundle["text/html"]
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|src=\"(?!data:)|@import|url\(", html)
    assert list(stored(html)["sources"]) == ["some", "others"]
    before = html[: html.index('<script type="application/json">')]
    assert re.search(r'<img alt="[^"]{40}', before) and "NF4" in before and "still picture" in before


@pytest.mark.parametrize(
    ("sources", "said"),
    [
        ({}, "no weights"),
        ({"a": []}, "no weights"),
        ({"a": [noise(4, 65)]}, "blocks of 64"),
        ({"a": [noise(64)]}, "64"),
    ],
)
def test_what_is_no_matrix_in_blocks_is_refused(sources, said):
    with pytest.raises(QtutorError, match=said):
        beat_nf4(sources)

"""The errors of each kind of scale agree with a slow version, and the costs are those of the recipes themselves."""

import copy
import math

import pytest
import torch

import qtutor
from qtutor.core.float_grid import NVFP4
from qtutor.course import float_blocks
from qtutor.measure.against import compare
from qtutor.methods import rtn
from tests.models import some_ids, tiny
from tests.reference import float_blocks as slow


def some(seed: int) -> torch.Tensor:
    return torch.randn(8, 64, generator=torch.Generator().manual_seed(seed)) * 0.05


LAYERS = {"a": some(0), "b": some(1) ** 3}


def slow_error(weight: torch.Tensor, kind: str, block: int) -> float:
    """The relative error, computed block by block in plain Python."""
    off = all_squares = 0.0
    unit = NVFP4.for_tensor(weight).unit
    for some_weights in weight.reshape(-1, block).tolist():
        largest = max(map(abs, some_weights))
        scales = {
            "any number": [largest / 6],
            "E4M3": [slow.rounded_scale(largest / 6 / unit) * unit],
            "E4M3, four over six": [slow.rounded_scale(largest / top / unit) * unit for top in (6, 4)],
            "a power of two": [slow.mxfp4(some_weights)[0]],
        }[kind]
        tried = []
        for scale in scales:
            codes = [slow.code_of(w, scale) for w in some_weights]
            tried.append(sum((slow.value_of(code, scale) - w) ** 2 for code, w in zip(codes, some_weights)))
        off += min(tried)
        all_squares += sum(w * w for w in some_weights)
    return math.sqrt(off / all_squares)


@pytest.mark.parametrize("kind", float_blocks.SCALES)
def test_errors_by_scale(kind):
    found = float_blocks.errors_by_scale(LAYERS, (16, 32))[kind]
    for block, error in zip((16, 32), found, strict=True):
        each = [slow_error(weight, kind, block) for weight in LAYERS.values()]
        assert error == pytest.approx(math.sqrt(sum(e * e for e in each) / len(each)), rel=1e-4)


def test_fours_are_counted():
    six = torch.tensor([6.0, 4.0, 3.0, 2.0] * 4)  # if the largest becomes 6, all are levels
    five = torch.tensor([6.0, 5.0, 5.0, 5.0] * 4)
    weight = torch.stack([torch.cat([six, five]), torch.cat([five, six])])
    assert float_blocks.fours({"one": weight}) == 0.5
    assert float_blocks.fours({"one": weight, "all on levels": torch.cat([six, six])[None]}) == pytest.approx(2 / 6)


def test_costs_are_those_of_the_recipes():
    model, ids = tiny(), some_ids(1, 64)[0]
    found = float_blocks.costs(model, ids)
    assert list(found) == list(float_blocks.RECIPES)
    for label, recipe in float_blocks.RECIPES.items():
        rounded = copy.deepcopy(model)
        report = qtutor.quantize(rounded, recipe, progress=False)
        assert found[label].kl == pytest.approx(compare(rounded, model, ids).kl)
        assert found[label].error == pytest.approx(math.sqrt(sum(r.error**2 for r in report.rows) / len(report.rows)))
        own = [rtn.quantize(model.get_submodule(r.name).weight.detach(), recipe.grid, recipe.group_size) for r in
               report.rows]  # fmt: skip
        weights = sum(q.codes.numel() for q in own)
        if not label.startswith("NF4"):  # NF4 stores its scales in 8 bits
            assert found[label].bits == pytest.approx(8 * sum(q.nbytes for q in own) / weights)
    assert 4.2 < found["MXFP4, blocks of 32"].bits < found["NVFP4, blocks of 16"].bits < 4.6

"""A new method, added as CONTRIBUTING.md says: a rounder, a transform, and one entry in METHODS."""

from dataclasses import dataclass

import pytest
import torch

import qtutor
from qtutor import Recipe, rtn
from qtutor.methods.rounders import LayerInputs, Nearest, Rounder
from qtutor.methods.transforms import Transform
from qtutor.recipe import METHODS
from qtutor.recipe.methods import Method
from tests.models import some_ids, tiny

GROUP = 32


@dataclass(frozen=True)
class Halved(Rounder):
    """Round half of every weight, or all of it if the recipe is symmetric; inputs are needed."""

    factor: float = 1.0

    calibrated = True

    @classmethod
    def of(cls, recipe: Recipe) -> "Halved":
        return cls(1.0 if recipe.symmetric else 0.5)

    def round(self, weight, grid, group_size, inputs: LayerInputs):
        assert inputs.hessian.shape == (weight.shape[1],) * 2 and inputs.hessian.diagonal().min() > 0
        return rtn.quantize(weight * self.factor, grid, group_size)


@dataclass(frozen=True)
class Doubled(Transform):
    """Double what v_proj makes, and halve what o_proj does with it: the block's output stays the same to the bit."""

    def apply(self, block, rounding_of):
        attention = block.module.self_attn
        assert rounding_of(("self_attn.v_proj",)).group_size == GROUP
        attention.v_proj.weight.mul_(2)
        attention.o_proj.weight.div_(2)
        return {}


@pytest.fixture
def mine(monkeypatch):
    monkeypatch.setitem(METHODS, "mine", Method(Halved, (Doubled,)))


def values_of(model, place: str) -> torch.Tensor:
    return model.get_submodule(f"model.layers.1.{place}").quantized().dequantize()


@pytest.mark.parametrize(("symmetric", "factor"), [(True, 1.0), (False, 0.5)])
def test_a_new_method_is_what_quantizes(mine, symmetric, factor):
    recipe = Recipe("mine", 3, GROUP, symmetric=symmetric)
    assert recipe.needs_calibration and recipe.rounder == Halved(factor) and recipe.transforms == (Doubled(),)
    model, plain = tiny(), tiny()
    qtutor.quantize(model, recipe, some_ids(16, 32), progress=False)
    qtutor.quantize(plain, Recipe("rtn", 3, GROUP, symmetric=symmetric), progress=False)
    for place, by_transform in (("mlp.up_proj", 1.0), ("self_attn.v_proj", 2.0), ("self_attn.o_proj", 0.5)):
        found, expected = values_of(model, place), values_of(plain, place)
        assert torch.equal(found, expected * factor * by_transform)  # powers of two are exact


def test_a_new_method_without_text_is_refused_before_any_work(mine):
    with pytest.raises(qtutor.QtutorError, match="method 'mine'"):
        qtutor.quantize(tiny(), Recipe("mine"), progress=False)


@pytest.mark.parametrize("method", list(METHODS))
def test_the_rounder_of_every_method_is_the_one_in_the_table(method):
    recipe = Recipe(method)
    assert type(recipe.rounder) is METHODS[method].rounder
    assert tuple(map(type, recipe.transforms)) == METHODS[method].transforms
    assert recipe.needs_calibration == (recipe.rounder.reads_inputs or bool(recipe.transforms))


def test_a_rounder_needs_nothing_but_round(monkeypatch):
    class Own(Rounder):
        def round(self, weight, grid, group_size, inputs=None):
            return rtn.quantize(-weight, grid, group_size)

    monkeypatch.setitem(METHODS, "own", Method(Own))
    model, plain = tiny(), tiny()
    qtutor.quantize(model, Recipe("own", 4, GROUP, symmetric=True, lm_head=True), progress=False)
    qtutor.quantize(plain, Recipe("rtn", 4, GROUP, symmetric=True, lm_head=True), progress=False)
    assert Recipe("own").plain_rounder == Nearest()
    found, expected = values_of(model, "mlp.up_proj"), values_of(plain, "mlp.up_proj")
    assert not torch.equal(found, expected) and (found + expected).abs().max() < 0.2 * expected.abs().max()

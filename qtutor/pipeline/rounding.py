"""The layers of one calibrated block, rounded by their recipes, in the order in which the block runs them.

First, the recipe's transforms change the block; its output stays the same. Then layers with the same input are rounded
together, with the statistics of this input over the calibration text. The inputs of later layers are computed with the
rounded layers.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from qtutor.calibration.block import CalibratedBlock, Reading
from qtutor.calibration.moments import Moments
from qtutor.core.grid import for_tensor
from qtutor.core.quantized import PER_TENSOR, QuantizedTensor, check_weight, resolve_group_size
from qtutor.errors import naming, warn
from qtutor.methods.hessian import HessianError, Prepared, prepare
from qtutor.methods.propagation import propagated, strength
from qtutor.methods.rounders import LayerInputs
from qtutor.methods.transforms import Quantizer, Rounding
from qtutor.recipe import Recipe

ERROR_ROWS = 128


@dataclass(frozen=True)
class Rounded:
    """A rounded layer: its ``name`` in the model, the weight that ``quantized`` replaces, and the bias, both float32.

    columns: the layer multiplies its inputs by these, float32 ``[in]``; ``None``: it does not (all methods but SINQ).
    back: the result of :func:`dequantized`. output_error, note: see :class:`qtutor.report.LayerReport`.
    """

    name: str
    weight: torch.Tensor
    quantized: QuantizedTensor
    back: torch.Tensor
    bias: torch.Tensor | None = None
    output_error: float | None = None
    note: str = ""
    columns: torch.Tensor | None = None


def dequantized(quantized: QuantizedTensor, columns: torch.Tensor | None) -> torch.Tensor:
    """The float32 weights ``[out, in]`` of a layer that multiplies its inputs by ``columns [in]``."""
    return quantized.dequantize() if columns is None else quantized.dequantize() * columns


@dataclass(frozen=True)
class Changed:
    """A tensor of the model that stays in float, with its new value from a transform, in float32."""

    name: str
    value: torch.Tensor


def round_layers(block: CalibratedBlock, recipe: Recipe, recipes: dict[str, Recipe]) -> Iterator[Rounded | Changed]:
    """Apply the transforms of ``recipe`` to one block, then round its layers in the order in which they run."""
    linear = {name: m for name, m in block.module.named_modules() if isinstance(m, nn.Linear)}
    own = {name: recipes[f"{block.name}.{name}"] for name in linear if f"{block.name}.{name}" in recipes}
    for name, layer_recipe in own.items():  # before any search
        with naming(f"{block.name}.{name}"):
            check_weight(linear[name].weight)
            resolve_group_size(layer_recipe.group_size, linear[name].weight.shape[1])
    for transform in recipe.transforms:
        changed = transform.apply(block, lambda names: _rounding(names, own))
        for name in linear.keys() - own.keys():  # layers that stay in float are scaled, too
            changed |= {f"{name}.{kind}": value for kind, value in linear[name].named_parameters()}
        for name, value in changed.items():
            yield Changed(f"{block.name}.{name}", value)
    follows = block.twin is not None or any(layer_recipe.rounder.follows for layer_recipe in own.values())
    for reading in block.readings():
        for rounded in _reading(reading, own):
            yield rounded
            if follows:  # later layers read the output of the rounded layer
                block.module.get_submodule(rounded.name.removeprefix(f"{block.name}.")).weight.copy_(rounded.back)


def _rounding(names: tuple[str, ...], recipes: dict[str, Recipe]) -> Rounding | None:
    """How the layers ``names`` will be rounded: by the first recipe among them; ``None`` if all stay in float."""
    recipe = next((recipes[name] for name in names if name in recipes), None)
    if recipe is None:
        return None
    judge = _quantizer(recipe) if recipe.rounder.factors else None
    return Rounding(recipe.grid, recipe.group_size, recipe.rounder.clip != "none", judge)


def _quantizer(recipe: Recipe) -> Quantizer:
    """The final judge of AWQ's scales: the rounder that will really round the layers, which factors a Hessian."""

    def quantizer(weight: torch.Tensor, hessian: torch.Tensor) -> QuantizedTensor:
        inputs = LayerInputs(hessian, _factored(hessian, recipe)[0])
        return recipe.rounder.round(weight, recipe.grid, recipe.group_size, inputs)

    return quantizer


def _reading(reading: Reading, recipes: dict[str, Recipe]) -> Iterator[Rounded]:
    """The layers of ``reading``; those with the same recipe are rounded as one matrix."""
    alike: dict[Recipe, list[str]] = {}
    for name in reading.names:
        if name in recipes:
            alike.setdefault(recipes[name], []).append(name)
    moments = reading.moments() if any(recipe.needs_calibration for recipe in alike) else None
    for recipe, names in alike.items():
        yield from _alike(reading.block, names, moments, recipe)


def _alike(block: CalibratedBlock, names: list[str], moments: Moments | None, recipe: Recipe) -> Iterator[Rounded]:
    """Layers that read the same input, rounded by the same recipe."""
    prepared, note = None, ""
    if recipe.needs_calibration and (block.twin or recipe.rounder.factors):
        prepared, note = _prepared(moments.hessian, block.tokens, recipe, f"{block.name}.{names[0]}")
    layers = [block.module.get_submodule(name) for name in names]
    wanted = [layer.weight for layer in layers]
    if prepared is not None:
        share = strength(block.tokens, wanted[0].shape[1])
        wanted = [propagated(weight, moments, prepared, share) for weight in wanted]
    inputs = LayerInputs(moments.hessian, prepared, block.product_dtype) if moments is not None else None
    with naming(f"{block.name}.{names[0]}"):
        to_round, columns = zip(*(recipe.rounder.divided(weight) for weight in wanted))
        quantized = _round_together(list(to_round), inputs, recipe)
    hessian = None if moments is None else moments.hessian.float()
    for name, layer, before, after, times in zip(names, layers, wanted, quantized, columns):
        back = dequantized(after, times)
        error = None if hessian is None else _output_error(before, back, hessian)
        yield Rounded(f"{block.name}.{name}", layer.weight, after, back, layer.bias, error, note, times)


def _prepared(hessian: torch.Tensor, tokens: int, recipe: Recipe, name: str) -> tuple[Prepared | None, str]:
    """The Hessian ordered and factored, or ``None`` if it cannot be used; and a note about it for the report."""
    few = f"{tokens} tokens for a width of {len(hessian)}"
    prepared, error = _factored(hessian, recipe)
    if prepared is None:
        without = "rounded to nearest" if recipe.rounder.factors else "rounded without propagation"
        note = f"{without}, since its Hessian cannot be used ({few}). {error}"
        warn(f"{name}: {note}")
        return None, note
    notes = []
    if tokens < len(hessian):
        notes.append(f"{few}: too few to tell all inputs apart, so damping decides; calibrate with more text")
    if prepared.damping > recipe.damping:
        notes.append(f"damping raised from {recipe.damping:g} to {prepared.damping:g} to make the Hessian invertible")
    return prepared, "; ".join(notes)


def _factored(hessian: torch.Tensor, recipe: Recipe) -> tuple[Prepared | None, HessianError | None]:
    """The prepared Hessian, or the error that prevented one."""
    try:
        return prepare(hessian, recipe.group_size, act_order=recipe.act_order, damping=recipe.damping), None
    except HessianError as error:
        return None, error


def _round_together(weights: list[torch.Tensor], inputs: LayerInputs | None, recipe: Recipe) -> list[QuantizedTensor]:
    """Layers that read the same input, rounded as one matrix: rows are independent of each other."""
    rounder, grid, group_size = recipe.rounder, recipe.grid, recipe.group_size
    if group_size == PER_TENSOR or not rounder.reads_inputs:  # here rows may share scales, or scales of scales
        grid = for_tensor(grid, *weights)  # engines merge these layers into one
        return [rounder.round(weight, grid, group_size, inputs) for weight in weights]
    together = rounder.round(torch.cat(weights), grid, group_size, inputs)
    return together.split([len(weight) for weight in weights])


def _output_error(weight: torch.Tensor, back: torch.Tensor, hessian: torch.Tensor) -> float:
    """``|X (W - Q)^T| / |X W^T|`` for W, ``weight [out, in]``, and Q, ``back``, from the Hessian.

    ``|X D^T|^2 = trace(D H D^T)``. For a large layer, at least :data:`ERROR_ROWS` of its rows are used, evenly spread.
    """
    rows = slice(None, None, max(len(weight) // ERROR_ROWS, 1))
    weight = weight[rows]
    difference = back[rows] - weight
    squares = [((matrix @ hessian) * matrix).sum().clamp(min=0) for matrix in (difference, weight)]
    return (squares[0] / squares[1].clamp(min=torch.finfo(torch.float32).tiny)).sqrt().item()

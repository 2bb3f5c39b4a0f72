"""Finish every layer that a recipe quantizes, one after the other; :mod:`qtutor.pipeline` hands each to a sink.

Methods that look at inputs work on float32 copies of one block at a time (:mod:`~qtutor.calibration.walk`, which says
how much memory this takes); rounding to nearest reads the model's own weights.
"""

from collections.abc import Iterator

import torch
from torch import nn
from tqdm.auto import tqdm

from qtutor.calibration.mapped import Weights
from qtutor.calibration.walk import Start, walk
from qtutor.core.float_grid import BlockGrid
from qtutor.core.grid import Grid, for_tensor
from qtutor.errors import naming, warn
from qtutor.families import decoder_blocks, embedding_scale, family_of
from qtutor.pipeline.planning import outside_layers, propagates, recipes_of
from qtutor.pipeline.rounding import Changed, Rounded, dequantized, round_layers
from qtutor.pipeline.sinks import Arrived, Item, Packed
from qtutor.recipe import Recipe
from qtutor.report import LayerReport, weight_error, what_is_lost
from qtutor.runtime.kinds import layer_of
from qtutor.runtime.linear import QuantEmbedding


def finished(
    weights: Weights,
    recipe: Recipe,
    token_ids: torch.Tensor | None,
    progress: bool,
    start: Start | None = None,
) -> Iterator[Item]:
    """Every layer that ``recipe`` quantizes, as soon as it is packed; the model is only read.

    start: the block that an earlier run has reached; blocks before it are left out.
    """
    model, start = weights.model, start or Start()
    outside, recipes = outside_layers(model, recipe), recipes_of(model, recipe)
    blocks = len(decoder_blocks(model))
    bar = {"total": blocks, "initial": start.index, "unit": "block", "delay": 1, "disable": not progress}
    if start.index < blocks:
        made = _calibrated if recipe.needs_calibration else _plain
        for items in tqdm(made(weights, recipe, recipes, token_ids, start), "quantizing", **bar):
            yield from items
    yield Arrived(blocks)
    for name in outside:
        if name in recipes:
            yield _rounded(name, weights, recipes[name].plain_rounder, recipes[name])


def _calibrated(
    weights: Weights, recipe: Recipe, recipes: dict[str, Recipe], token_ids: torch.Tensor, start: Start
) -> Iterator[Iterator[Item]]:
    """The items of each block, by methods that look at the inputs of its layers."""
    propagate = propagates(weights.model, recipe, token_ids.numel())

    def items(block, index: int) -> Iterator[Item]:
        yield Arrived(index, tuple(stream.states for stream in (block, block.twin) if stream is not None))
        for item in round_layers(block, recipe, recipes):
            yield item if isinstance(item, Changed) else _packed(item, weights.model.get_submodule(item.name))

    blocks = walk(weights, token_ids, propagate, recipe.token_weights, recipe.wide, start)
    index = start.index
    for block in blocks:  # not enumerate(), which would keep the last block while the next one is loaded
        yield items(block, index)
        del block
        index += 1


def _plain(
    weights: Weights, recipe: Recipe, recipes: dict[str, Recipe], token_ids: None, start: Start
) -> Iterator[Iterator[Item]]:
    """The items of each block, by methods that look at weights alone."""
    family = family_of(weights.model)

    def items(index: int) -> Iterator[Item]:
        yield Arrived(index)
        block = f"{family.blocks}.{index}."
        grids = {}
        for names in family.shared:
            grids |= _grids(weights, {block + name: recipes[block + name] for name in names if block + name in recipes})
        for name, own in recipes.items():
            if name.startswith(block):
                yield _rounded(name, weights, own.rounder, own, grids.get(name))

    for index in range(start.index, len(decoder_blocks(weights.model))):
        yield items(index)


def _grids(weights: Weights, recipes: dict[str, Recipe]) -> dict[str, Grid]:
    """The grids of layers that read the same input.

    Layers with equal recipes share one grid, because engines merge them into one layer.
    """
    grids = {}
    for own in set(recipes.values()):
        if isinstance(own.grid, BlockGrid) and not own.grid.settled:
            names = [name for name in recipes if recipes[name] == own]
            tensors = [weights.tensor(f"{name}.weight") for name in names]
            grids |= dict.fromkeys(names, for_tensor(own.grid, *tensors))
            weights.release(tensors)
    return grids


def _rounded(name: str, weights: Weights, rounder, recipe: Recipe, grid: Grid | None = None) -> Packed:
    """The layer ``name``, rounded without looking at its inputs. grid: used in place of the recipe's."""
    place, weight = weights.model.get_submodule(name), weights.tensor(f"{name}.weight")
    with naming(name):
        to_round, columns = rounder.divided(weight)
        quantized = rounder.round(to_round, grid or recipe.grid, recipe.group_size)
    back = dequantized(quantized, columns)
    bias = None if getattr(place, "bias", None) is None else weights.tensor(f"{name}.bias")
    packed = _packed(Rounded(name, weight, quantized, back, bias, columns=columns), place)
    weights.release([weight])
    return packed


def _packed(rounded: Rounded, original: nn.Module) -> Packed:
    """The module that replaces ``original``, the model's own."""
    quantized, bias = rounded.quantized, rounded.bias
    if isinstance(original, nn.Embedding):
        module = QuantEmbedding.from_quantized(quantized, original.weight.dtype, embedding_scale(original))
    else:
        bias = None if bias is None else bias.to(original.bias.dtype)
        module = layer_of(quantized, bias, rounded.columns)
    exact = rounded.weight.float()
    error = weight_error(rounded.back, exact)
    lost = what_is_lost(rounded.back, exact, quantized.scales, error)
    if lost:
        warn(f"{rounded.name}: {lost}")
    nbytes = quantized.nbytes + (0 if rounded.columns is None else rounded.columns.nbytes)
    sizes = 8 * nbytes / quantized.codes.numel(), original.weight.nbytes, nbytes
    note = "; ".join(filter(None, [rounded.note, lost]))
    row = LayerReport(rounded.name, quantized.shape, error, *sizes, rounded.output_error, note)
    return Packed(rounded.name, module, row)

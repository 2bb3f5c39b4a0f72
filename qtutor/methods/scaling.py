"""AWQ's scales in the blocks of a decoder: after this transform, any rounder rounds better.

A recipe holds a :class:`Scaling`; the search and the folding are in :mod:`.awq`. Folding does not change the output of
a block, so the scales of one pair are folded in before those of the next pair are searched.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from qtutor.calibration.block import CalibratedBlock, Reading
from qtutor.calibration.precision import products
from qtutor.calibration.walk import walk
from qtutor.core.grid import Grid, IntGrid
from qtutor.errors import QtutorError
from qtutor.families import Pair
from qtutor.guards.ids import samples_of
from qtutor.guards.model import check_replaceable, decoder_of
from qtutor.methods import awq
from qtutor.methods.transforms import Quantizer, Rounding, RoundingOf, Transform

if TYPE_CHECKING:
    from qtutor.recipe import Recipe

RATIOS = (0.0, 0.2, 0.4, 0.6, 0.8)  # the error is a smooth curve, so a coarse search shows where to refine
CLOSER = 0.1  # on both sides of the best of these


@dataclass(frozen=True)
class Effort:
    """How many tokens, rows and ratios a search for scales uses.

    search_tokens: the parent module runs on this many tokens for each ratio. statistics_tokens: the tokens for mean |x|
    and for the Hessian that decides. rows: this many rows of every layer are rounded for each ratio; the others stay
    exact. first: the number of ratios that are tried first, see :func:`_best_scale`. Narrow models use all rows and
    ratios, and more tokens.
    """

    search_tokens: int
    statistics_tokens: int
    rows: int
    first: int


CHEAP = Effort(search_tokens=2048, statistics_tokens=16384, rows=sys.maxsize, first=len(RATIOS))
SPARING = Effort(search_tokens=1024, statistics_tokens=2048, rows=128, first=3)


@dataclass(frozen=True)
class Scaling(Transform):
    """AWQ's scales for every pair of a block. duo: see :func:`qtutor.methods.awq.search`."""

    duo: bool = False

    @classmethod
    def of(cls, recipe: "Recipe") -> "Scaling":
        return cls(recipe.duo)

    def apply(self, block: CalibratedBlock, rounding_of: RoundingOf) -> dict[str, torch.Tensor]:
        """Change the weights of ``block``; see :func:`scale_pairs`."""
        return scale_pairs(block, rounding_of, self.duo)


def scale_block(
    block: CalibratedBlock, grid: Grid, group_size: int, narrowed: bool = False, judge: Quantizer | None = None
) -> dict[str, torch.Tensor]:
    """Search scales for all pairs of ``block`` and fold them into its module (and its twin).

    narrowed: the ranges of groups will be narrowed, so the search narrows them, too (:func:`.awq.narrowed`): with wide
    ranges, large scales look better than they will be. judge: the quantizer of the layers, if it does more than round
    to nearest. A scale stays only if it also lowers the error of this quantizer.
    Returns the norm weights that changed, by name in the block. Raises :class:`QtutorError` if folding changes the
    output of the block.
    """
    return scale_pairs(block, lambda layers: Rounding(grid, group_size, narrowed, judge), duo=False)


def scale_pairs(block: CalibratedBlock, rounding_of: RoundingOf, duo: bool) -> dict[str, torch.Tensor]:
    """:func:`scale_block` with a rounding for each pair, by its layers' names; ``None`` leaves the pair alone."""
    module, changed = block.module, {}
    pairs = {pair.readers: pair for pair in block.family.pairs_of(module)}
    effort = CHEAP if block.states.shape[-1] <= awq.NARROW else SPARING
    unchanged = block.states[:1]
    before = module(unchanged, **block.arguments)
    # A scale is folded in before the next one is searched. Folding does not change the inputs of later layers.
    for reading in block.sample(effort.statistics_tokens).readings(ahead=True):
        pair, rounding = pairs.get(reading.names), rounding_of(reading.names)
        if pair is None or rounding is None:
            continue
        source = module.get_submodule(pair.source)
        scale = _scale_of_pair(reading, pair, rounding, effort, duo)
        awq.fold(source, reading.layers, scale, block.dtype, block.family.norm_offset)
        if source.weight.dim() == 1:
            changed[f"{pair.source}.weight"] = source.weight
    after = module(unchanged, **block.arguments)
    difference = ((after - before).norm() / before.norm()).item()
    if not difference < 1e-3:
        raise QtutorError(
            f"{block.name}: folding AWQ's scales changed the block's output by {difference:.2g} of its size; it should "
            "change nothing. Its norms or layers do something that is not known here: quantize it with method 'gptq'."
        )
    if block.twin is not None:  # its float inputs are divided, too: else they would differ by the scale
        block.twin.module.load_state_dict(module.state_dict())
    return changed


def _scale_of_pair(reading: Reading, pair: Pair, rounding: Rounding, effort: Effort, duo: bool) -> torch.Tensor:
    """The best scale ``[in]`` for the layers of ``reading``, on some tokens; all ones if no scale lowers the error."""
    block, layers, first = reading.block, reading.layers, reading.names[0]
    x, weights = (torch.cat(parts) for parts in zip(*block.weighted_inputs(first)))  # [samples, length, in or 1]
    mean_abs = x.abs().mean(dim=(0, 1))
    if pair.parent == block.family.halves[0].parent:  # attention mixes tokens, so it gets whole samples
        some = slice(max(effort.search_tokens // x.shape[1], 1))
    else:  # the others treat each token by itself: one token in ``every`` is enough
        every = max(2 * x[..., 0].numel() // effort.search_tokens, 1)
        some = slice(None), slice(None, None, every)
    inputs = [(x[some], weights[some].sqrt())]
    parent = _weighted(parent_of(block, pair.parent), block.states.shape[-1], block.wide)
    given = layers, inputs, mean_abs, parent, rounding.grid, rounding.group_size, duo
    hessian = block.hessian(first, True) if rounding.narrowed or rounding.judge else None
    rounded = None
    if rounding.narrowed:
        kind = rounding.grid, rounding.group_size
        rounded = awq.narrowed(hessian.float(), *kind, effort.rows, block.product_dtype)
    best = _best_scale(lambda ratios: awq.search(*given, ratios, rounded), effort.first)
    if rounding.judge is None or best.ratio == 0:
        return best.scale
    return _confirmed(layers, inputs, best.scale, parent, _rounded(rounding.judge, hessian))


def _best_scale(search: Callable[[Sequence[float]], awq.Search], first: int) -> awq.Search:
    """The best of :data:`RATIOS`, and of one or two ratios close to it.

    first: try this many ratios, and the others only if the last of these is the best: the error falls to one minimum
    and then rises. If fewer than all are tried first, and both neighbours of the best ratio have been tried, one more
    ratio is enough: the lowest point of the parabola through these three.
    """
    found = search(RATIOS[:first])
    errors, all_tried = found.errors, first == len(RATIOS)
    if not all_tried and found.ratio == RATIOS[first - 1]:
        further = search(RATIOS[first:])
        errors, found = errors + further.errors, _better(found, further)
    near = [found.ratio - CLOSER, found.ratio + CLOSER]
    if not all_tried and 0 < (best := RATIOS.index(found.ratio)) < len(errors) - 1:
        before, lowest, behind = errors[best - 1 : best + 2]
        near = [found.ratio + CLOSER * (before - behind) / (before - 2 * lowest + behind)]
    return _better(found, search([ratio for ratio in near if 0 < ratio < 1]))


def _better(first: awq.Search, second: awq.Search) -> awq.Search:
    return min(first, second, key=lambda found: min(found.errors))  # if equal, the first one, which scales less


def _rounded(quantizer: Quantizer, hessian: torch.Tensor) -> awq.Rounded:
    """How ``quantizer`` rounds weights times a scale, with the inputs of ``hessian`` divided by it."""

    def rounded(weights: list[torch.Tensor], scale: torch.Tensor) -> list[torch.Tensor]:
        divided = hessian / torch.outer(scale, scale)
        return [quantizer(weight * scale, divided).dequantize() / scale for weight in weights]

    return rounded


@torch.no_grad()
def _confirmed(
    layers: list[nn.Linear], inputs: list, scale: torch.Tensor, parent: Callable, rounded: awq.Rounded
) -> torch.Tensor:
    """``scale [in]`` or ones, the one that changes ``parent``'s output less once the layers are ``rounded``."""
    targets = [parent(x) for x in inputs]
    errors = {}
    for tried in (torch.ones_like(scale), scale):
        weights = rounded([layer.weight.data for layer in layers], tried)
        error = awq.squared_error(layers, weights, inputs, targets, parent)
        errors.setdefault(error, tried)  # if equal, the first stays: ones
    return errors[min(errors)]


def _weighted(
    parent: Callable, width: int, wide: int | None
) -> Callable[[tuple[torch.Tensor, torch.Tensor]], torch.Tensor]:
    """``parent``'s output times the roots of the token weights: a squared error then counts by its token's weight."""

    def weighted(given: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        with products(width, wide):
            return parent(given[0]) * given[1]

    return weighted


def parent_of(block: CalibratedBlock, name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """The module ``name`` of ``block`` as a function of its input alone."""
    module = block.module.get_submodule(name)
    if name == block.family.halves[0].parent:
        return lambda x: module(x, **block.arguments)[0]
    return module


@torch.no_grad()
def fold_model(
    model: nn.Module, calibration: torch.Tensor, grid: Grid | None = None, group_size: int = 32
) -> nn.Module:
    """Fold AWQ's scales into ``model`` and return it, in float32.

    The model changes in place, and nothing is rounded. Formats with their own grids then round better, too.

        model, tokenizer = qtutor.load_decoder()
        qtutor.methods.scaling.fold_model(model, token_ids)        # same outputs as before
        qtutor.export(model, "out.gguf", format="gguf", type="Q4_K_M", tokenizer=tokenizer)

    calibration: token ids, int64 ``[samples, length]``. grid: a replacement for the format's own grid, asymmetric 4
    bits if not given, in groups of ``group_size``: Q4_K, for instance, rounds groups of 32 asymmetrically to 4 bits.
    AWQ's clipping is left out, since encoders find ranges themselves. Raises :class:`QtutorError` as
    :func:`scale_block` and :func:`~qtutor.calibration.walk.walk` do; blocks before the one at fault are then already
    folded, and their outputs are the same as before.
    """
    model = decoder_of(model)
    check_replaceable(model, calibrated=True)
    calibration = samples_of(calibration)
    model.float()  # 16 bits would round the products of weights and scales
    for block in walk(model, calibration):
        scale_block(block, grid or IntGrid(bits=4, symmetric=False), group_size)
        model.get_submodule(block.name).load_state_dict(block.module.state_dict())
    return model

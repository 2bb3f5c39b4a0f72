"""AWQ: the inputs show which weights matter; scale their columns up before rounding, and the inputs down.

Lin et al. 2023 (arXiv 2306.00978, section 3.2; code: llm-awq's auto_scale.py and auto_clip.py). Multiplying column i of
W by s_i and dividing input i by s_i changes nothing, but the rounding error of the larger weight counts only 1/s_i as
much. This holds as long as the largest weight of its group, and so the grid, stays about the same. The division costs
nothing at run time: it is folded into the norm or the linear layer that computes the input.

There are two searches, and both include the choice "leave it as it is":

* :func:`search` tries s = mean|x|^ratio for some ratios and keeps the one that changes the output of the *parent*
  module (attention, MLP) least. Ratio 0 scales nothing.
* :func:`quantize` chooses the range of every group that changes the layer's output least.

:mod:`qtutor.methods.scaling` does this for the blocks of a decoder.

Left out: one scale for q, k, v through the keys (only norm -> q, k, v is scaled), and v -> o in grouped-query
attention, in which one channel of v feeds several of o.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn

from qtutor.core.float_scales import as_stored
from qtutor.core.grid import Grid, for_tensor
from qtutor.core.quantized import PER_TENSOR, QuantizedTensor, check_weight, resolve_group_size
from qtutor.methods import clip, rtn

# Weights and a scale -> the weights multiplied by the scale, rounded, and divided by it again.
Rounded = Callable[[list[torch.Tensor], torch.Tensor], list[torch.Tensor]]

RATIOS = 20  # 0, 1/20 ... 19/20
# Inputs of a layer: up to this number, the whole search is cheap; its last, finest round changes KL by at most 1 %.
NARROW = 512


@dataclass(frozen=True)
class Search:
    """The result of :func:`search`: the best ``scale [in]``, its ``ratio``, and the mean squared ``errors``.

    The errors are those of all ratios, in the order in which they were tried.
    """

    scale: torch.Tensor
    ratio: float
    errors: tuple[float, ...]


@torch.no_grad()
def search(
    layers: list[nn.Linear],
    inputs: Iterable[torch.Tensor],
    mean_abs: torch.Tensor,
    parent: Callable[[torch.Tensor], torch.Tensor],
    grid: Grid,
    group_size: int,
    duo: bool = False,
    ratios: Iterable[float] | None = None,
    rounded: Rounded | None = None,
) -> Search:
    """The scale per input channel for which rounding ``layers`` changes ``parent``'s output least.

    layers: all linear layers that read these inputs; their weights are restored at the end. inputs: batches
    ``[..., in]``; mean_abs: the mean |x| of the inputs, ``[in]``. duo: also divide by ``mean|w|^(1 - ratio)``
    (AutoAWQ), which favours columns of small weights. ratios: 0, 1/20 ... 19/20 if not given. rounded: how weights are
    rounded with a scale, by default :func:`nearest`.
    """
    inputs, rounded = list(inputs), rounded or nearest(grid, group_size)
    originals = [layer.weight.data for layer in layers]
    # Errors are compared in the parent's output: there, the errors of all the layers meet, and may cancel each other.
    targets = [parent(x) for x in inputs]
    best, errors = None, []
    for ratio in [step / RATIOS for step in range(RATIOS)] if ratios is None else ratios:
        # One ratio gives the scales of all channels: a search for each channel's own would have far too many tries.
        scale = scale_of(mean_abs, ratio, originals if duo else None, group_size)
        squares = squared_error(layers, rounded(originals, scale), inputs, targets, parent)
        errors.append(squares / sum(target.numel() for target in targets))  # a mean, for any number of tokens
        if best is None or errors[-1] < best.errors[0]:  # not <=: if equal, the first stays
            best = Search(scale, ratio, (errors[-1],))
    return Search(best.scale, best.ratio, tuple(errors))


def nearest(grid: Grid, group_size: int) -> Rounded:
    """Rounding to nearest, with the whole range of every group."""

    def rounded(weights: list[torch.Tensor], scale: torch.Tensor) -> list[torch.Tensor]:
        # The inputs are not divided here, so the weights are divided by the scale: only the change by rounding is left.
        return [rtn.quantize(weight * scale, grid, group_size).dequantize() / scale for weight in weights]

    return rounded


def narrowed(
    hessian: torch.Tensor, grid: Grid, group_size: int, most: int, dtype: torch.dtype = torch.float32
) -> Rounded:
    """Rounds some rows, with ranges close to those that :func:`quantize` will find; the other rows stay exact.

    hessian: ``X^T X [in, in]`` of the inputs before they are divided. most: at most this many rows of every layer are
    rounded. The errors of different rows add up in the layer's output, so a few evenly spread rows show which of two
    scales is better. dtype: see :func:`.clip.search_together`.
    """
    if group_size == PER_TENSOR:
        return nearest(grid, group_size)

    def rounded(weights: list[torch.Tensor], scale: torch.Tensor) -> list[torch.Tensor]:
        results = [weight.clone() for weight in weights]
        some = [result[:: -(-len(result) // most)] for result in results]
        stacked = torch.cat(some) * scale  # rows are independent, and one tall matrix takes less time
        grouped = stacked.reshape(len(stacked), -1, resolve_group_size(group_size, stacked.shape[1]))
        fitted = for_tensor(grid, stacked)
        found = clip.search_together(grouped, hessian / torch.outer(scale, scale), fitted, 0, dtype)
        errors = clip.rounding_errors(grouped, *found, fitted).flatten(1) / scale
        for rows, error in zip(some, errors.split([len(rows) for rows in some])):
            rows.add_(error)
        return results

    return rounded


def squared_error(
    layers: list[nn.Linear], weights: list[torch.Tensor], inputs: list, targets: list[torch.Tensor], parent: Callable
) -> float:
    """How far ``parent``'s outputs are from ``targets`` if ``layers`` have these weights; their own are restored."""
    originals = [layer.weight.data for layer in layers]
    try:
        for layer, weight in zip(layers, weights):  # replace their own: the parent calls its layers by itself
            layer.weight.data = weight
        return sum((parent(x) - target).square().sum().item() for x, target in zip(inputs, targets))
    finally:
        for layer, weight in zip(layers, originals):  # also after an error: the block is still used afterwards
            layer.weight.data = weight


def scale_of(
    mean_abs: torch.Tensor, ratio: float, weights: list[torch.Tensor] | None = None, group_size: int = -1
) -> torch.Tensor:
    """``mean_abs ** ratio``, ``[in]``, centred so that the largest times the smallest is 1; all ones for ratio 0.

    With weights (each ``[out, in]``), it is divided by ``m ** (1 - ratio)``: m is a column's mean of |w| relative to
    the largest |w| of the group.
    """
    if ratio == 0:
        return torch.ones_like(mean_abs, dtype=torch.float32)
    scale = mean_abs.double().clamp(min=1e-4) ** ratio
    if weights is not None:
        stacked = torch.cat(weights).abs()
        length = resolve_group_size(group_size, stacked.shape[1])
        grouped = stacked.reshape(len(stacked), -1, length)
        relative = grouped / grouped.amax(dim=-1, keepdim=True).clamp(min=1e-8)
        scale /= relative.reshape(stacked.shape).mean(dim=0).double().clamp(min=1e-4) ** (1 - ratio)
    return (scale / (scale.max() * scale.min()).sqrt()).float()


@torch.no_grad()
def fold(
    source: nn.Module,
    layers: list[nn.Linear],
    scale: torch.Tensor,
    dtype: torch.dtype = torch.float32,
    norm_offset: float = 0.0,
) -> None:
    """Divide the outputs of ``source`` (norm or linear) by ``scale``, and multiply the columns of ``layers`` by it.

    If the source is a linear layer, only its last outputs are divided: as many as there are scales. dtype: the norm's
    weight will be stored in it. The divided weight is rounded to this dtype first. Then the columns are multiplied by
    the factor that really applies, so folding is exact for bf16 models, too. norm_offset: the number that the norm adds
    to its weight before it multiplies.
    """
    weight, scale = source.weight, scale.to(source.weight.device)
    if weight.dim() == 1:
        gain = weight + norm_offset
        divided = (gain / scale - norm_offset).to(dtype).float() + norm_offset
        divided = torch.where((divided != 0) & torch.isfinite(divided), divided, gain)
        scale = torch.where(divided != 0, gain / divided, 1.0)
        weight.copy_(divided - norm_offset)
    else:
        weight[-len(scale) :].div_(scale[:, None])
    if getattr(source, "bias", None) is not None:
        source.bias[-len(scale) :].div_(scale)
    for layer in layers:  # all layers with this input, also those that are not rounded
        layer.weight.mul_(scale)


@torch.no_grad()
@rtn.nearest_if_empty
def quantize(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    grid: Grid,
    group_size: int,
    dtype: torch.dtype = torch.float32,
) -> QuantizedTensor:
    """Round ``weight [out, in]`` to nearest, with ranges that change the layer's output least: AWQ's clipping.

    hessian: ``X^T X [in, in]``. Others: as in :func:`qtutor.rtn.quantize`. With a group_size of 0 (one scale for the
    tensor), the range stays whole. dtype: see :func:`.clip.search_together`.
    """
    check_weight(weight)
    rows, columns = weight.shape
    if group_size == PER_TENSOR:
        return rtn.quantize(weight, grid, group_size)
    length = resolve_group_size(group_size, columns)
    grouped = weight.float().reshape(rows, columns // length, length)  # [out, groups, group_size]
    fitted = for_tensor(grid, weight)
    scale, zero = clip.search_together(grouped, hessian, fitted, len(clip.UNITS) - (columns > NARROW), dtype)
    codes = rtn.encode_groups(grouped, scale, zero, fitted).reshape(rows, columns)
    return QuantizedTensor(codes, as_stored(scale, fitted), None if grid.symmetric else zero, grid, group_size)

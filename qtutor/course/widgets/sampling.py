"""Which weights of a layer a widget rounds, and what the whole layer weighs.

Rows are rounded independently of one another (a group never leaves its row), so what is said of a row is exact however
few are taken; only statements about the whole layer then become estimates.
"""

from collections.abc import Mapping

import torch

from qtutor import pipeline
from qtutor.core.grid import IntGrid
from qtutor.core.quantized import PER_TENSOR, QuantizedTensor, resolve_group_size
from qtutor.errors import QtutorError, naming
from qtutor.methods import rtn


def named_layers(layers: torch.nn.Module | Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Matrices ``[out, in]`` by name: those of a mapping, or each ``nn.Linear`` of a decoder ("0.mlp.up_proj").

    Raises :class:`QtutorError` where there is none, as in a model that is quantized already.
    """
    if isinstance(layers, torch.nn.Module):
        layers = {
            f"{i}.{name}": module.weight.detach()
            for i, block in enumerate(pipeline.decoder_blocks(layers))
            for name, module in block.named_modules()
            if isinstance(module, torch.nn.Linear)
        }
    if not layers:
        raise QtutorError("there is no layer to show: pass a float decoder (not a quantized one) or {name: weight}.")
    return dict(layers)


def sample_rows(weight: torch.Tensor, limit: int) -> torch.Tensor:
    """Ascending indices of rows of ``weight [out, in]`` that hold about ``limit`` weights; all if these are fewer.

    Evenly spaced ones, and the two with the smallest and the largest weight, so that the range is the layer's own.
    """
    rows, columns = weight.shape
    if weight.numel() <= limit:
        return torch.arange(rows)
    evenly = torch.linspace(0, rows - 1, max(limit // columns, 1)).round().long()
    extremes = torch.stack([weight.amin(dim=1).argmin(), weight.amax(dim=1).argmax()]).cpu()
    return torch.cat([evenly, extremes]).unique()


def around_the_largest(weight: torch.Tensor, height: int, width: int) -> tuple[torch.Tensor, slice]:
    """The rows and columns of the block of ``height`` by ``width`` that holds the weight of largest size.

    Blocks are laid from the first row and column on, so groups are whole where their size divides ``width``.
    """
    row, column = divmod(int(weight.abs().argmax()), weight.shape[1])
    top, left = row - row % height, column - column % width
    return torch.arange(top, min(top + height, len(weight))), slice(left, min(left + width, weight.shape[1]))


def round_rows(
    weight: torch.Tensor, rows: torch.Tensor, grid: IntGrid, group_size: int, clip: str, layer: str
) -> tuple[QuantizedTensor, QuantizedTensor]:
    """``weight[rows]`` rounded to nearest, and the whole layer's representation without its data, for its true bytes.

    layer: what an error calls it. One scale a tensor (``group_size=0``) is that of the whole where ``rows`` hold its
    smallest and its largest weight.
    """
    with naming(layer):
        quantized = rtn.quantize(weight[rows], grid, group_size, clip)
    height, width = weight.shape
    groups = (1, 1) if group_size == PER_TENSOR else (height, width // resolve_group_size(group_size, width))

    def empty(shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")  # a shape and nothing else: nbytes needs no more

    zeros = None if grid.symmetric else empty(groups, torch.uint8)
    whole = QuantizedTensor(empty((height, width), torch.uint8), empty(groups, torch.float16), zeros, grid, group_size)
    return quantized, whole

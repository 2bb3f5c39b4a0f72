"""Choose the weights of a layer that a widget rounds, and compute the bytes of the whole layer.

Rows are rounded independently, because a group never leaves its row. So results for a row are exact even if few rows
are taken; only statements about the whole layer become estimates. One scale a tensor (``group_size=0``) is that of the
whole layer if the rows include its smallest and its largest weight.
"""

from collections.abc import Mapping

import torch

from qtutor.core.quantized import QuantizedTensor, nbytes_of
from qtutor.errors import QtutorError
from qtutor.families import family_of, linear_layers


def named_layers(layers: torch.nn.Module | Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Matrices ``[out, in]`` by name: those of a mapping, or each ``nn.Linear`` of a decoder ("0.mlp.up_proj").

    Raises :class:`QtutorError` if there is none, as in a model that is quantized already.
    """
    if isinstance(layers, torch.nn.Module):
        start = len(family_of(layers).blocks) + 1
        layers = {name[start:]: module.weight.detach() for name, module in linear_layers(layers).items()}
    if not layers:
        raise QtutorError("there is no layer to show: pass a float decoder (not a quantized one) or {name: weight}.")
    return dict(layers)


def sample_rows(weight: torch.Tensor, limit: int) -> torch.Tensor:
    """Ascending indices of rows of ``weight [out, in]`` with about ``limit`` weights together, or of all rows.

    The rows are evenly spaced. The two with the smallest and the largest weight are added, to keep the layer's range.
    """
    rows, columns = weight.shape
    if weight.numel() <= limit:
        return torch.arange(rows)
    evenly = torch.linspace(0, rows - 1, max(limit // columns, 1)).round().long()
    extremes = torch.stack([weight.amin(dim=1).argmin(), weight.amax(dim=1).argmax()]).cpu()
    return torch.cat([evenly, extremes]).unique()


def around_the_largest(weight: torch.Tensor, height: int, width: int) -> tuple[torch.Tensor, slice]:
    """The rows and columns of a tile of ``height`` by ``width`` weights that holds the weight of largest magnitude.

    Tiles are laid from the first row and column on, so groups are whole if their size divides ``width``.
    """
    row, column = divmod(int(weight.abs().argmax()), weight.shape[1])
    top, left = row - row % height, column - column % width
    return torch.arange(top, min(top + height, len(weight))), slice(left, min(left + width, weight.shape[1]))


def whole_bytes(shape: tuple[int, int], quantized: QuantizedTensor) -> tuple[int, float]:
    """The true bytes, and bits a weight, of a whole layer ``[out, in]``; ``quantized`` holds some of its rows."""
    size = nbytes_of(*shape, quantized.grid, quantized.group_size, type(quantized.stored_scales))
    return size, 8 * size / max(shape[0] * shape[1], 1)

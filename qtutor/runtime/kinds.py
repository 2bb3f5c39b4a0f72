"""The class of layer for each grid: most use :class:`QuantLinear`, and some classes round or multiply their inputs."""

import torch

from qtutor.core.codebooks import INT8
from qtutor.core.float_grid import FP8, FP8_TILES
from qtutor.core.grid import Grid
from qtutor.core.quantized import QuantizedTensor
from qtutor.runtime.fp8 import Fp8Linear
from qtutor.runtime.int8 import Int8Linear
from qtutor.runtime.linear import QuantLinear
from qtutor.runtime.scaled import ScaledLinear

KINDS = {INT8: Int8Linear, FP8: Fp8Linear, FP8_TILES: Fp8Linear}


def linear_for(grid: Grid) -> type[QuantLinear]:
    """The class of a linear layer whose weights are on ``grid``."""
    return KINDS.get(grid, QuantLinear)


def layer_of(
    quantized: QuantizedTensor, bias: torch.Tensor | None = None, columns: torch.Tensor | None = None
) -> QuantLinear:
    """A layer that computes with ``quantized``. columns: factors of its inputs, float32 ``[in]``, if any."""
    if columns is not None:
        return ScaledLinear.from_scaled(quantized, columns, bias)
    return linear_for(quantized.grid).from_quantized(quantized, bias)

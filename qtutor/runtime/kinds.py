"""Which layer computes with which grid: most are a :class:`QuantLinear`, and some round their inputs, too."""

from qtutor.core.codebooks import INT8
from qtutor.core.float_grid import FP8, FP8_TILES
from qtutor.core.grid import Grid
from qtutor.runtime.fp8 import Fp8Linear
from qtutor.runtime.int8 import Int8Linear
from qtutor.runtime.linear import QuantLinear

KINDS = {INT8: Int8Linear, FP8: Fp8Linear, FP8_TILES: Fp8Linear}


def linear_for(grid: Grid) -> type[QuantLinear]:
    """The class of a linear layer whose weights are on ``grid``."""
    return KINDS.get(grid, QuantLinear)

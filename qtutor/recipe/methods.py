"""The methods by name: each has a rounder, and may have transforms before it (AWQ's scales), or a fixed grid."""

from dataclasses import dataclass

from qtutor.core.codebooks import FP4, INT8, NF4
from qtutor.core.float_grid import FP8, FP8_TILES, MXFP4, NVFP4
from qtutor.core.grid import Grid
from qtutor.core.quantized import PER_CHANNEL, PER_TENSOR
from qtutor.methods.rounders import Gptq, Hqq, Listed, Nearest, Rounder, Sinq
from qtutor.methods.scaling import Scaling
from qtutor.methods.transforms import Transform


@dataclass(frozen=True)
class Method:
    """The parts of a method. transforms: these change each block before rounding. clip: what ``"auto"`` stands for.

    codebook: the grid of a method with fixed levels.
    """

    rounder: type[Rounder]
    transforms: tuple[type[Transform], ...] = ()
    clip: str = "none"
    codebook: Grid | None = None

    @property
    def calibrated(self) -> bool:
        return bool(self.transforms) or self.rounder.calibrated


METHODS = {
    "rtn": Method(Nearest),
    "hqq": Method(Hqq),
    "sinq": Method(Sinq),
    "awq": Method(Nearest, (Scaling,), clip="output"),
    "gptq": Method(Gptq, clip="output"),
    "awq+gptq": Method(Gptq, (Scaling,), clip="output"),
    "nf4": Method(Listed, codebook=NF4),
    "fp4": Method(Listed, codebook=FP4),
    "int8": Method(Listed, codebook=INT8),
    "fp8": Method(Nearest, codebook=FP8),
    "mxfp4": Method(Nearest, codebook=MXFP4),
    "nvfp4": Method(Nearest, codebook=NVFP4),
}
BITS, GROUP_SIZE = 4, 64  # the defaults, unless a method or levels have their own
LEVELS = {"integers": None, "fp8": FP8, "mxfp4": MXFP4, "nvfp4": NVFP4}  # for methods without fixed levels
# The group sizes of these grids; the first is the default.
OWN_SIZES = {
    **{INT8: (PER_CHANNEL,), FP8: (PER_CHANNEL, PER_TENSOR), FP8_TILES: (FP8_TILES.tile,)},
    **{grid: (grid.block,) for grid in (MXFP4, NVFP4)},
}
CALIBRATED = tuple(name for name, method in METHODS.items() if method.calibrated)

"""Float grids: the unevenly spaced values of a small float format, times a scale.

A code is the bit pattern of the float, so packed codes are exactly the bytes that engines multiply. Like the weights,
the levels are denser near zero. FP8 for neural networks is described in Micikevicius et al. 2022 (arXiv 2209.05433):
E4M3 for weights and inputs, with values up to 448; each row of weights has its own scale, as in llm-compressor's scheme
FP8_DYNAMIC.

A block of 128 x 128 weights may also share one scale (DeepSeek-V3, arXiv 2412.19437, section 3.3.2): :class:`TileGrid`.

With 4 bits (E2M1: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives) only a few weights share a scale, and the scale has 8
bits itself:

    MXFP4   blocks of 32, a scale is a power of two (E8M0)               4.25 bits a weight
    NVFP4   blocks of 16, a scale is an E4M3 times one number for all    4.5 bits a weight

MXFP4 is defined in OCP Microscaling Formats v1.0 (2023). By its rule for the scale, a block's largest weight is between
4 and 8 times the scale, and weights above 6 times the scale are cut off. Here the rule is that of compressed-tensors:
from 7 times on, the scale doubles.

For NVFP4, two scales are tried for each block, and the one with less squared error is used (Cook et al. 2025, "Four
Over Six", arXiv 2512.02010): the block's largest weight becomes level 6, or level 4. There is no level between 4 and 6,
so with the first scale, a weight of 5/6 of the largest is far from any level.

The one number for all is a power of two here, so formats that store it (ModelOpt) and formats that store its inverse
(compressed-tensors) hold exactly the same weights. Other tools use ``largest / (6 * 448)``, which uses up to one more
of the 18 powers of two in the range of E4M3.

Left out: stochastic rounding, rotations before rounding, and MXFP6 and MXFP8.
"""

import math
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch

from qtutor.core.numbers import E2M1, E4M3, FloatFormat
from qtutor.errors import QtutorError

CASTS = {E4M3: torch.float8_e4m3fn}  # formats that torch itself rounds to, in a fraction of the time


@dataclass(frozen=True)
class FloatGrid:
    """The values of a float format, times a scale.

    A code is a value's bit pattern, and the scale maps the largest weight to the largest value of the format. Scales
    are float32; 0.0 is a level, so no zero points are stored.
    """

    name: str
    format: FloatFormat
    symmetric = True
    scale_dtype = torch.float32
    middle = 0  # the code of 0

    @property
    def bits(self) -> int:
        return self.format.bits

    @cached_property
    def _values(self) -> torch.Tensor:
        """The value of each code, float32; NaN for the format's NaN codes."""
        return self.format.decode(torch.arange(2**self.bits)).float()

    def fit(self, low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale (float32) and zero (uint8, always 0) for ranges ``low ... high`` of the same shape.

        The scale is the largest |weight| divided by the largest value. A range of only zeros gets 1, as in IntGrid.
        """
        scale = torch.maximum(low.float().abs(), high.float().abs()) / self.format.largest
        scale = torch.where(scale == 0, torch.ones_like(scale), scale)
        return scale, torch.zeros(scale.shape, dtype=torch.uint8, device=scale.device)

    def encode(self, weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None = None) -> torch.Tensor:
        """The nearest code (uint8) for every weight, ties to the even one; weights are clamped to the largest value."""
        largest = self.format.largest
        relative = (weight.float() / scale.float()).clamp(-largest, largest)
        if self.format in CASTS:
            return relative.to(CASTS[self.format]).view(torch.uint8)
        return self.format.encode(relative).to(torch.uint8)

    def decode(self, code: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None = None) -> torch.Tensor:
        """``scale * value`` in float32."""
        return scale.float() * self.levels(code)

    def nearest(self, weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None = None) -> torch.Tensor:
        """Every weight rounded to its nearest level, float32."""
        return self.decode(self.encode(weight, scale), scale)

    def levels(self, code: torch.Tensor) -> torch.Tensor:
        """The values of codes without their scale, float32."""
        return self._values.to(code.device)[code.long()]

    def check_codes(self, codes: torch.Tensor) -> None:
        """Raise :class:`QtutorError` for codes from a file that mean NaN or infinity, not a weight."""
        wrong = ~self.levels(codes).isfinite()
        if wrong.any():
            raise QtutorError(
                f"{int(wrong.sum())} of {codes.numel()} codes are no numbers in {self.format.name} (the first is "
                f"{int(codes[wrong][0]):#04x}): the file is damaged, or holds another format of 8 bits. Copy or "
                "download it again."
            )


@dataclass(frozen=True)
class TileGrid(FloatGrid):
    """A float format with one scale for each tile of ``tile`` rows and ``tile`` columns.

    A group of a row has ``tile`` weights, and the groups of ``tile`` neighbouring rows, counted from the first row on,
    get the same scale.
    """

    tile: int = 128

    def fit(self, low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and zero for ranges ``low ... high [out, groups]``, equal in the rows of a tile."""
        largest = torch.maximum(low.float().abs(), high.float().abs())
        tiles = torch.stack([rows.amax(dim=0) for rows in largest.split(self.tile)])
        shared = tiles.repeat_interleave(self.tile, dim=0)[: len(largest)]
        return super().fit(-shared, shared)


@dataclass(frozen=True)
class BlockGrid(FloatGrid):
    """The values of a float of 4 bits, with scales that are themselves stored in 8 bits.

    Here, a block is the weights that share a scale, as in the specification of MXFP4. block: their number. scales:
    ``"e8m0"``, powers of two, or ``"e4m3"``, times :attr:`unit`. wider: other factors to try for the range of a block;
    one is kept if its squared error is less. unit: the number for the whole tensor. :meth:`for_tensor` finds it once;
    after that, or if there is no unit to find, the grid is ``settled``. Two grids that differ only in how scales are
    found are equal, because the same codes and scales give the same weights.
    """

    block: int = 0
    scales: str = "e8m0"
    wider: tuple[float, ...] = field(default=(), compare=False)
    unit: float = field(default=1.0, compare=False)
    settled: bool = field(default=False, compare=False)

    @cached_property
    def _borders(self) -> torch.Tensor:
        """The borders between neighbouring positive values, float32; a weight above a border gets the higher code."""
        values = self._values[: 2 ** (self.bits - 1)]
        middles = (values[:-1] + values[1:]) / 2
        below = torch.nextafter(middles, torch.zeros(()))  # a weight in the middle is then above, and rounds up
        odd = torch.arange(len(middles)) % 2 == 1  # the lower of the two codes is odd, so the higher one is even
        return torch.where(odd, below, middles)

    def for_tensor(self, *weights: torch.Tensor) -> "BlockGrid":
        """This grid with the :attr:`unit` for ``weights``.

        No scale is then more than 448 units, even if a block's largest weight becomes level 4. Several matrices get one
        common unit. A grid that is settled already stays unchanged.
        """
        if self.settled or not any(weight.numel() for weight in weights):
            return self
        largest = max(float(weight.detach().abs().max()) for weight in weights if weight.numel())
        mantissa, exponent = math.frexp(largest / (4 * E4M3.largest))
        exponent -= mantissa == 0.5  # the number is a power of two already
        return replace(self, unit=math.ldexp(1.0, max(exponent, -100)) if mantissa else 1.0, settled=True)

    def fit(self, low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale (float32, one that can be stored) and zero (uint8, always 0) for ranges ``low ... high``.

        A range of only zeros gets one ``unit``.
        """
        largest = torch.maximum(low.float().abs(), high.float().abs())
        if self.scales == "e8m0":
            scale = _power(largest, 1.75) / 4
        else:
            scale = largest / self.format.largest
        scale = self.round_scale(torch.where(largest == 0, self.unit, scale))
        return scale, torch.zeros(scale.shape, dtype=torch.uint8, device=scale.device)

    def round_scale(self, scale: torch.Tensor) -> torch.Tensor:
        """The nearest scales (float32) to ``scale`` that can be stored; never 0."""
        if self.scales == "e8m0":
            return _power(scale.float(), 1.5)
        smallest, largest = E4M3.smallest_subnormal, E4M3.largest
        return (scale.float() / self.unit).clamp(smallest, largest).to(torch.float8_e4m3fn).float() * self.unit

    def encode(self, weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None = None) -> torch.Tensor:
        """The nearest code (uint8) for every weight, ties to the even one; weights are clamped to the largest value."""
        relative = weight.float() / scale.float()
        code = torch.bucketize(relative.abs().contiguous(), self._borders.to(weight.device), out_int32=True)
        return (code + (torch.signbit(relative).int() << (self.bits - 1))).to(torch.uint8)

    def check_codes(self, codes: torch.Tensor) -> None:
        """Nothing to refuse: every code of E2M1 is a number."""


def _power(numbers: torch.Tensor, up: float) -> torch.Tensor:
    """Positive float32 ``numbers`` rounded to powers of two: up from ``up`` (1 to 2) times a power on, else down.

    The results are from 2^-126 to 2^127, and exact: the function writes the exponent field of a float32.
    """
    mantissa, exponent = torch.frexp(numbers)  # mantissa from 0.5 to 1
    exponent = exponent - 1 + (mantissa >= up / 2).int()
    return ((exponent.clamp(-126, 127) + 127) << 23).view(torch.float32)


FP8 = FloatGrid("fp8", E4M3)
FP8_TILES = TileGrid("fp8 tiles", E4M3)
MXFP4 = BlockGrid("mxfp4", E2M1, block=32, scales="e8m0", settled=True)
NVFP4 = BlockGrid("nvfp4", E2M1, block=16, scales="e4m3", wider=(1.5,))

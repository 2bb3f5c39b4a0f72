"""Grids: the numbers that codes can represent.

A code is a small unsigned integer. A grid gives it a value, and the scale turns the value into a weight:
``weight = scale * value``. Integer quantization in this form is Jacob et al. 2017 (arXiv 1712.05877, eq. 1),
``r = S (q - Z)``. Unevenly spaced values are listed in a :class:`Codebook` (:mod:`qtutor.core.codebooks` has those of
bitsandbytes), or they are the values of a small float, :class:`FloatGrid` (:mod:`qtutor.core.float_grid` has FP8,
MXFP4, NVFP4).

All kinds of grid have ``bits``, ``symmetric`` (no zero points are stored), ``scale_dtype``, ``fit``, ``encode``,
``decode`` and ``nearest``, and each can be used wherever a grid is needed.
"""

from dataclasses import dataclass

import torch

from qtutor.core.codebooks import Codebook
from qtutor.core.float_grid import BlockGrid, FloatGrid
from qtutor.errors import QtutorError

# Scales are stored in 16 bits, as in every checkpoint format. They are rounded *before* any weight is coded, so the
# codes fit the stored scale.
SCALE_DTYPE = torch.float16


@dataclass(frozen=True)
class IntGrid:
    """Evenly spaced levels: code ``0 ... 2**bits - 1`` stands for ``code - zero``.

    Symmetric: ``zero`` is always ``2**(bits - 1)`` and is not stored; 4 bits reach from -8 to 7. Asymmetric: every
    group has its own ``zero``. It is a code, so 0.0 is a level of the grid, and a one-sided range wastes no levels.
    Raises :class:`QtutorError` if ``bits`` is not in 2 ... 8.
    """

    bits: int
    symmetric: bool = False
    scale_dtype = SCALE_DTYPE

    def __post_init__(self):
        if self.bits not in range(2, 9):
            raise QtutorError(f"bits = {self.bits!r}: a whole number of bits from 2 to 8 is needed.")

    @property
    def largest_code(self) -> int:
        return 2**self.bits - 1

    @property
    def middle(self) -> int:
        """The zero point of a symmetric grid."""
        return 2 ** (self.bits - 1)

    def fit(self, low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale (float16) and zero (uint8) for ranges ``low ... high``; all tensors have the same shape.

        The range is widened to contain 0; the range 0 ... 0 gets scale 1. A symmetric scale is
        ``absmax / (2**bits / 2 - 0.5)``, as in GPTQ and llm-compressor. The largest weight is then half a step beyond
        the last positive level. So no weight of the range is further than half a step from a level, apart from the
        error of rounding the scale to 16 bits. Raises :class:`QtutorError` if a scale is too large for float16.
        """
        low, high = low.float().clamp(max=0), high.float().clamp(min=0)
        if self.symmetric:
            low, high = -torch.maximum(-low, high), torch.maximum(-low, high)
        # Divide first: high - low overflows float32 for the largest weights.
        exact = (high / self.largest_code) - (low / self.largest_code)
        scale = exact.to(SCALE_DTYPE)
        if not torch.isfinite(scale).all():
            raise QtutorError(
                f"a range of {(high - low).max():.3g} needs the scale {exact.max():.3g}, more than float16 holds "
                "(65504). Check the weights for broken values, or divide the whole tensor by a number first."
            )
        # If a scale rounds to zero, its weights are too small for 16 bits: they become exact zeros.
        scale = torch.where(scale == 0, torch.ones_like(scale), scale)
        if self.symmetric:
            return scale, torch.full(scale.shape, self.middle, dtype=torch.uint8, device=scale.device)
        zero = torch.round(-low / scale.float()).clamp(0, self.largest_code)
        return scale, zero.to(torch.uint8)

    def encode(self, weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        """The nearest code (uint8) for every weight; ``scale`` and ``zero`` broadcast against ``weight``.

        The zero point is added *before* the clamp, because the clamp limits codes.
        """
        code = torch.round(weight.float() / scale.float()) + zero.float()
        return code.clamp(0, self.largest_code).to(torch.uint8)

    def decode(self, code: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        """``scale * (code - zero)`` in float32."""
        return scale.float() * (code.float() - zero.float())

    def nearest(self, weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        """Every weight rounded to its nearest level, float32: equal to decode(encode(weight)), but without codes."""
        scale, zero = scale.float(), zero.float()
        # A clamp between two numbers takes a tenth of the time of one between two tensors, even if zero is added before
        # it and subtracted after it.
        return (weight.float() / scale).round_().add_(zero).clamp_(0, self.largest_code).sub_(zero).mul_(scale)


Grid = IntGrid | Codebook | FloatGrid


def for_tensor(grid: Grid, *weights: torch.Tensor) -> Grid:
    """``grid``, adjusted to all of ``weights`` before it fits scales; only a :class:`BlockGrid` needs this."""
    return grid.for_tensor(*weights) if isinstance(grid, BlockGrid) else grid


def wider_ranges(grid: Grid) -> tuple[float, ...]:
    """Factors for a range, besides 1, with which it may be rounded better; most grids have none."""
    return grid.wider if isinstance(grid, BlockGrid) else ()


def storable(scale: torch.Tensor, grid: Grid, smallest: float) -> torch.Tensor:
    """``scale`` rounded as it will be stored, since codes have to fit it; never 0. smallest: for plain numbers."""
    if isinstance(grid, BlockGrid):
        return grid.round_scale(scale)
    return scale.clamp(min=smallest).to(grid.scale_dtype)


def fit_groups(grouped: torch.Tensor, grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero ``[out, groups]`` from the extremes of each group of ``grouped [out, groups, group_size]``."""
    return grid.fit(grouped.amin(dim=-1), grouped.amax(dim=-1))


def encode_groups(grouped: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Codes (uint8), shaped like ``grouped``; each group uses its own scale and zero ``[out, groups]``."""
    return grid.encode(grouped, scale.unsqueeze(-1), zero.unsqueeze(-1))

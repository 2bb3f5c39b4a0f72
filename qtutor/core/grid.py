"""Grids: the numbers that a code can stand for.

A code is a small unsigned integer. A grid says what it means before the scale is applied: ``weight = scale * value``.
Integer quantization in this form is Jacob et al. 2017 (arXiv 1712.05877, eq. 1), ``r = S (q - Z)``. Where the values
lie otherwise than evenly, they are listed in a :class:`Codebook` (those of bitsandbytes are in :mod:`qtutor.bnb`).

Both kinds of grid have ``bits``, ``symmetric`` (no zero points are stored), ``scale_dtype``, ``fit``, ``encode``,
``decode`` and ``nearest``; whatever takes one takes the other.
"""

from dataclasses import dataclass

import torch

from qtutor.core.codebooks import Codebook
from qtutor.errors import QtutorError

# Scales are stored in 16 bits, as every checkpoint format does. They are rounded *before* any weight is coded, so that
# the codes fit the scale that will really be used.
SCALE_DTYPE = torch.float16


@dataclass(frozen=True)
class IntGrid:
    """Evenly spaced levels: code ``0 ... 2**bits - 1`` stands for ``code - zero``.

    Symmetric: ``zero`` is always ``2**(bits - 1)`` and is not stored; 4 bits reach from -8 to 7. Asymmetric: every
    group has a ``zero`` of its own, itself a code, so that 0.0 is met exactly and a one-sided range wastes nothing.
    Raises :class:`QtutorError` where ``bits`` is not in 2 ... 8.
    """

    bits: int
    symmetric: bool = False
    scale_dtype = SCALE_DTYPE

    def __post_init__(self):
        if self.bits not in range(2, 9):
            raise QtutorError(f"bits = {self.bits!r}: a grid takes a whole number of bits from 2 to 8.")

    @property
    def largest_code(self) -> int:
        return 2**self.bits - 1

    @property
    def middle(self) -> int:
        """The zero point of a symmetric grid."""
        return 2 ** (self.bits - 1)

    def fit(self, low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale (float16) and zero (uint8) for ranges ``low ... high``; all tensors of one shape.

        The range is widened to contain 0, and a range of nothing but zeros gets scale 1. A symmetric scale is
        ``absmax / (2**bits / 2 - 0.5)``: the largest weight then lies half a step beyond the last positive level, so no
        weight in the range is further than half a step from a level (as GPTQ and llm-compressor choose it), up to what
        rounding the scale to 16 bits adds. Raises :class:`QtutorError` where a scale leaves float16.
        """
        low, high = low.float().clamp(max=0), high.float().clamp(min=0)
        if self.symmetric:
            low, high = -torch.maximum(-low, high), torch.maximum(-low, high)
        # Halves first: high - low overflows float32 for the largest weights.
        exact = (high / self.largest_code) - (low / self.largest_code)
        scale = exact.to(SCALE_DTYPE)
        if not torch.isfinite(scale).all():
            raise QtutorError(
                f"a range of {(high - low).max():.3g} needs the scale {exact.max():.3g}, more than float16 holds "
                "(65504). Check the weights for broken values, or scale the tensor down first."
            )
        # A scale that rounds to zero belongs to weights too small for 16 bits: they become exact zeros.
        scale = torch.where(scale == 0, torch.ones_like(scale), scale)
        if self.symmetric:
            return scale, torch.full(scale.shape, self.middle, dtype=torch.uint8, device=scale.device)
        zero = torch.round(-low / scale.float()).clamp(0, self.largest_code)
        return scale, zero.to(torch.uint8)

    def encode(self, weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        """The nearest code (uint8) for every weight; ``scale`` and ``zero`` broadcast against ``weight``.

        The zero point is added *before* clamping: the clamp is on codes.
        """
        code = torch.round(weight.float() / scale.float()) + zero.float()
        return code.clamp(0, self.largest_code).to(torch.uint8)

    def decode(self, code: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        """``scale * (code - zero)`` in float32."""
        return scale.float() * (code.float() - zero.float())

    def nearest(self, weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        """What comes back of every weight, float32: decode(encode(weight)), bit by bit, without the way over codes."""
        scale, zero = scale.float(), zero.float()
        return (weight.float() / scale).round_().clamp_(-zero, self.largest_code - zero).mul_(scale)


Grid = IntGrid | Codebook


def fit_groups(grouped: torch.Tensor, grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero ``[out, groups]`` from the smallest and largest of ``grouped [out, groups, group_size]``."""
    return grid.fit(grouped.amin(dim=-1), grouped.amax(dim=-1))


def encode_groups(grouped: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Codes (uint8) shaped like ``grouped``, each with the scale and zero ``[out, groups]`` of its group."""
    return grid.encode(grouped, scale.unsqueeze(-1), zero.unsqueeze(-1))

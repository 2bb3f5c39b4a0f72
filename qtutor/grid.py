"""Grids: the numbers that a code can stand for.

A code is a small unsigned integer. A grid says what it means before the scale is applied: ``weight = scale * value``.
Integer quantization in this form is Jacob et al. 2017 (arXiv 1712.05877, eq. 1), ``r = S (q - Z)``. Where the values
lie otherwise than evenly, they are listed in a :class:`Codebook` (those of bitsandbytes are in :mod:`qtutor.bnb`).

Both kinds of grid have ``bits``, ``symmetric`` (no zero points are stored), ``scale_dtype``, ``fit``, ``encode``,
``decode`` and ``nearest``; whatever takes one takes the other.
"""

from dataclasses import dataclass
from functools import cached_property

import torch

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


@dataclass(frozen=True)
class Codebook:
    """Levels that are listed: code ``i`` stands for ``values[i]``, and the scale is the group's largest |weight|.

    values: 16 or 256 numbers (4 or 8 bits) from -1 to 1, 0 among them, in any order. Scales are float32, as
    bitsandbytes keeps them.
    """

    name: str
    values: tuple[float, ...]
    symmetric = True  # no zero points are stored
    scale_dtype = torch.float32

    @property
    def bits(self) -> int:
        return (len(self.values) - 1).bit_length()

    @property
    def middle(self) -> int:
        """The code of 0."""
        return self.values.index(0)

    @cached_property
    def _sorted(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The values by code, the codes in ascending order of value, and the borders between neighbours."""
        values = torch.tensor(self.values, dtype=torch.float32)
        order = values.argsort(stable=True)
        return values, order, (values[order][:-1] + values[order][1:]) / 2

    def fit(self, low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale (float32, the largest absolute value) and zero (uint8, always :attr:`middle`) for ``low ... high``."""
        scale = torch.maximum(low.float().abs(), high.float().abs())
        return scale, torch.full(scale.shape, self.middle, dtype=torch.uint8, device=scale.device)

    def encode(self, weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None = None) -> torch.Tensor:
        """The nearest code (uint8) for every weight; a weight on the border goes to the lower value."""
        _, order, borders = self._sorted
        # bitsandbytes multiplies by the reciprocal, which is not always the same float as the quotient.
        relative = weight.float() * (1 / scale.float().clamp(min=1e-38))
        found = torch.bucketize(relative.clamp(-1, 1).contiguous(), borders.to(weight.device))
        return order.to(weight.device)[found].to(torch.uint8)

    def decode(self, code: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None = None) -> torch.Tensor:
        """``scale * values[code]`` in float32."""
        return scale.float() * self._sorted[0].to(code.device)[code.long()]

    def nearest(self, weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None = None) -> torch.Tensor:
        """What comes back of every weight, float32."""
        return self.decode(self.encode(weight, scale, zero), scale, zero)


Grid = IntGrid | Codebook


def dynamic_map() -> Codebook:
    """The 8-bit map for scales: seven decades of both signs, each with twice as many levels as the one below it.

    Dettmers 2015 (arXiv 1511.04561, section 3.2), in float32 as bitsandbytes' ``create_dynamic_map`` computes it.
    """
    values = [0.0, 1.0]
    for decade in range(7):
        borders = torch.linspace(0.1, 1, 2**decade + 1)
        levels = 10 ** (decade - 6) * ((borders[:-1] + borders[1:]) / 2)
        values += [*levels.tolist(), *(-levels).tolist()]
    return Codebook("dynamic", tuple(sorted(values)))

"""Codebooks: grids that list their levels, because the levels are unevenly spaced.

These are bitsandbytes' codebooks: NF4 and FP4 (QLoRA, arXiv 2305.14314, section 3), int8 (LLM.int8, arXiv 2208.07339,
section 3), and the 8-bit map for scales (arXiv 1511.04561, section 3.2).
"""

from dataclasses import dataclass
from functools import cached_property

import torch

TINY = 1e-35  # 127 divided by less than this is infinite in float32


@dataclass(frozen=True)
class Codebook:
    """A list of levels: code ``i`` stands for ``values[i]``, and the scale is the largest |weight| of the group.

    values: 16 or 256 numbers (4 or 8 bits) from -1 to 1, in any order; one of them is 0. Scales are float32, as in
    bitsandbytes.
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
        """The values by code, the codes in ascending order of their values, and the borders between neighbours."""
        values = torch.tensor(self.values, dtype=torch.float32)
        order = values.argsort(stable=True)
        return values, order, (values[order][:-1] + values[order][1:]) / 2

    def fit(self, low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale (float32, the largest absolute value) and zero (uint8, always :attr:`middle`) for ``low ... high``."""
        scale = torch.maximum(low.float().abs(), high.float().abs())
        return scale, torch.full(scale.shape, self.middle, dtype=torch.uint8, device=scale.device)

    def encode(self, weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None = None) -> torch.Tensor:
        """The nearest code (uint8) for every weight; a weight on a border gets the lower value."""
        _, order, borders = self._sorted
        # bitsandbytes multiplies by the reciprocal, which does not always give the same float as a division.
        relative = weight.float() * (1 / scale.float().clamp(min=1e-38))
        found = torch.bucketize(relative.clamp(-1, 1).contiguous(), borders.to(weight.device))
        return order.to(weight.device)[found].to(torch.uint8)

    def decode(self, code: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None = None) -> torch.Tensor:
        """``scale * values[code]`` in float32."""
        return scale.float() * self._sorted[0].to(code.device)[code.long()]

    def nearest(self, weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None = None) -> torch.Tensor:
        """Every weight rounded to its nearest level, float32."""
        return self.decode(self.encode(weight, scale, zero), scale, zero)


# Normal quantiles at 8 probabilities from 0.9677083 down to 0.5 (0.5 itself is left out), the negative quantiles at 7
# probabilities, and 0; all divided by the largest. bitsandbytes computed them in float32, so its own numbers are used
# here (a test recomputes them to 2e-7).
NF4 = Codebook(
    "nf4",
    (
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ),
)
# One bit of sign, two of exponent, one of mantissa. The values are in the order of bitsandbytes' own bit patterns.
FP4 = Codebook("fp4", tuple(sign * value / 12 for sign in (1, -1) for value in (0, 0.0625, 8, 12, 4, 6, 2, 3)))


class EvenCodebook(Codebook):
    """-127/127 ... 127/127, stored as 1 ... 255 (0 is never used). Evenly spaced, so rounding finds the code."""

    def encode(self, weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None = None) -> torch.Tensor:
        """The nearest code (uint8); exact halves round to the even number, as in bitsandbytes."""
        code = torch.round(weight.float() * (127.0 / scale.float().clamp(min=TINY)))
        return (code.clamp(-127, 127) + self.middle).to(torch.uint8)


INT8 = EvenCodebook("int8", tuple((code - 128) / 127 for code in range(256)))


def dynamic_map() -> Codebook:
    """The 8-bit map for scales: seven decades of both signs, each with twice as many levels as the next smaller decade.

    Dettmers 2015 (arXiv 1511.04561, section 3.2), in float32 as bitsandbytes' ``create_dynamic_map`` computes it.
    """
    values = [0.0, 1.0]
    for decade in range(7):
        borders = torch.linspace(0.1, 1, 2**decade + 1)
        levels = 10 ** (decade - 6) * ((borders[:-1] + borders[1:]) / 2)
        values += [*levels.tolist(), *(-levels).tolist()]
    return Codebook("dynamic", tuple(sorted(values)))

"""Float grids: the values of a small float format, unevenly spaced, times a scale.

A code is the bit pattern of the float, so packed codes are the very bytes that engines multiply. The levels are denser
near zero, as the weights are. FP8 for neural networks is Micikevicius et al. 2022 (arXiv 2209.05433): E4M3 for weights
and inputs, values up to 448; each row of weights has a scale of its own, as in llm-compressor's scheme FP8_DYNAMIC.

Left out: formats of 4 bits with a scale for few weights (MXFP4, NVFP4), whose scales are stored in other ways; a
FloatGrid of E2M1 with classes of their own in :mod:`.scales` is meant to become those.
"""

from dataclasses import dataclass
from functools import cached_property

import torch

from qtutor.core.numbers import E4M3, FloatFormat
from qtutor.errors import QtutorError

CASTS = {E4M3: torch.float8_e4m3fn}  # formats that torch itself rounds to, in a fraction of the time


@dataclass(frozen=True)
class FloatGrid:
    """The values of a float format: a code is its bit pattern, and the scale maps the largest weight to the largest
    value of the format. Scales are float32; 0.0 is a level, so no zero points are stored.
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
        """The value of each code, float32; NaN where the format has it."""
        return self.format.decode(torch.arange(2**self.bits)).float()

    def fit(self, low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale (float32) and zero (uint8, always 0) for ranges ``low ... high`` of the same shape.

        The scale is the largest |weight| over the largest value. A range of nothing but zeros gets 1, as in IntGrid.
        """
        scale = torch.maximum(low.float().abs(), high.float().abs()) / self.format.largest
        scale = torch.where(scale == 0, torch.ones_like(scale), scale)
        return scale, torch.zeros(scale.shape, dtype=torch.uint8, device=scale.device)

    def encode(self, weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None = None) -> torch.Tensor:
        """The nearest code (uint8) for every weight, ties to the even one; beyond the largest value, its code."""
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
        """Raise :class:`QtutorError` for codes out of a file that stand for NaN or infinity, not for a weight."""
        wrong = ~self.levels(codes).isfinite()
        if wrong.any():
            raise QtutorError(
                f"{int(wrong.sum())} of {codes.numel()} codes are no numbers in {self.format.name} (the first is "
                f"{int(codes[wrong][0]):#04x}): the file is damaged, or holds another format of 8 bits. Copy or "
                "download it again."
            )


FP8 = FloatGrid("fp8", E4M3)

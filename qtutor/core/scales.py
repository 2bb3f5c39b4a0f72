"""Scales, and how they are stored."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from qtutor.core.codebooks import Codebook, dynamic_map


@dataclass
class NestedScales:
    """Scales that are quantized themselves ("double quantization", QLoRA, arXiv 2305.14314, section 3).

    codes: uint8 ``[out, groups]``, of a fixed 8-bit map; absmax: float32, one for :attr:`BLOCK` scales, row after row;
    offset: float32 ``[]``, the mean of all scales, from which the codes count.
    """

    codes: torch.Tensor
    absmax: torch.Tensor
    offset: torch.Tensor

    BLOCK: ClassVar[int] = 256
    GRID: ClassVar[Codebook] = dynamic_map()

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.absmax.nbytes + self.offset.nbytes

    def decode(self) -> torch.Tensor:
        """The scales, float32 ``[out, groups]``."""
        absmax = self.absmax.repeat_interleave(self.BLOCK)[: self.codes.numel()].reshape(self.codes.shape)
        return self.GRID.decode(self.codes, absmax) + self.offset

"""Transforms change the weights of a decoder block before its layers are rounded, but not the output of the block.

AWQ's scales are one (:mod:`.scaling`). A transform is told how the layers will be rounded, so that it can choose what
this rounding likes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from qtutor.calibration.block import CalibratedBlock
from qtutor.core.grid import Grid
from qtutor.core.quantized import QuantizedTensor

if TYPE_CHECKING:
    from qtutor.recipe import Recipe

Quantizer = Callable[[torch.Tensor, torch.Tensor], QuantizedTensor]  # weight and Hessian -> codes


@dataclass(frozen=True)
class Rounding:
    """How the layers of a pair will be rounded: to ``grid``, with ``group_size`` weights sharing a scale.

    narrowed: the ranges of groups will be narrowed. judge: the quantizer of the layers, if it does more than round to
    nearest.
    """

    grid: Grid
    group_size: int
    narrowed: bool
    judge: Quantizer | None = None


RoundingOf = Callable[[tuple[str, ...]], Rounding | None]  # names of layers in the block -> how they will be rounded


class Transform:
    """What all transforms have in common: each changes the weights of a decoder block, but not the block's output."""

    @classmethod
    def of(cls, recipe: "Recipe") -> "Transform":
        """The transform with its options from ``recipe``; by default, a transform has none."""
        return cls()

    def apply(self, block: CalibratedBlock, rounding_of: RoundingOf) -> dict[str, torch.Tensor]:
        """Change the weights of ``block`` before its layers are rounded.

        Returns the new values of all parameters that are changed and are not weights of layers to be rounded, by their
        names in the block.
        """
        raise NotImplementedError

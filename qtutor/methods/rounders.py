"""Rounders turn the weights of a layer into codes. Each method has one, with its own options.

All are called alike, ``rounder.round(weight, grid, group_size, inputs)``. The arithmetic is in the modules of the
methods. Their functions are looked up at every call, so a learner's function can replace them.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from qtutor.core.grid import Grid
from qtutor.core.quantized import QuantizedTensor
from qtutor.methods import awq, bnb, gptq, hqq, rtn, sinq
from qtutor.methods.hessian import Prepared

if TYPE_CHECKING:
    from qtutor.recipe import Recipe


@dataclass(frozen=True)
class LayerInputs:
    """What a rounder may know about a layer's inputs.

    hessian: ``X^T X``, float64 ``[in, in]``. prepared: the Hessian ordered and factored; ``None`` if no method needs
    it, or if it cannot be factored. dtype: products of errors may be computed in it (:func:`.clip.search_together`).
    """

    hessian: torch.Tensor
    prepared: Prepared | None = None
    dtype: torch.dtype = torch.float32


class Rounder:
    """What all rounders have in common. By default, a rounder ignores inputs, and rounds a layer's weights unchanged.

    calibrated: the rounder needs calibration text under all options. follows: later layers read the output of the
    rounded layer, and not that of the float layer. factors: the rounder needs a factored Hessian. finds_ranges: the
    rounder searches ranges of integers by itself, so recipes refuse ``clip`` and ``levels``. divides: :meth:`divided`
    changes weights, and the layer multiplies its inputs.
    """

    clip: str = "none"
    calibrated = False
    follows = False
    factors = False
    finds_ranges = False
    divides = False

    @classmethod
    def of(cls, recipe: "Recipe") -> "Rounder":
        """The rounder with its options from ``recipe``; by default, a rounder has none."""
        return cls()

    @property
    def reads_inputs(self) -> bool:
        """Whether :meth:`round` needs :class:`LayerInputs`."""
        return self.calibrated

    def round(
        self, weight: torch.Tensor, grid: Grid, group_size: int, inputs: LayerInputs | None = None
    ) -> QuantizedTensor:
        """Round ``weight [out, in]``, or the result of :meth:`divided`, to ``grid``."""
        raise NotImplementedError

    def divided(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The matrix to round in place of ``weight [out, in]``, and the numbers by which its columns were divided.

        These numbers are float32 ``[in]``, or ``None`` if the weight is unchanged.
        """
        return weight, None


@dataclass(frozen=True)
class Nearest(Rounder):
    """Round to nearest. clip: ``"none"``, ``"mse"``, or ``"output"``: ranges that change the layer's output least."""

    clip: str = "none"

    @classmethod
    def of(cls, recipe: "Recipe") -> "Nearest":
        return cls(recipe.own_clip)

    @property
    def reads_inputs(self) -> bool:
        return self.clip == "output"

    def round(
        self, weight: torch.Tensor, grid: Grid, group_size: int, inputs: LayerInputs | None = None
    ) -> QuantizedTensor:
        if self.clip == "output":
            return awq.quantize(weight, inputs.hessian, grid, group_size, inputs.dtype)
        return rtn.quantize(weight, grid, group_size, self.clip)


@dataclass(frozen=True)
class Gptq(Rounder):
    """GPTQ; for its options see :func:`qtutor.gptq.quantize`. Without a usable Hessian, it rounds to nearest."""

    clip: str = "output"
    static_groups: bool = False

    calibrated = True
    follows = True
    factors = True

    @classmethod
    def of(cls, recipe: "Recipe") -> "Gptq":
        return cls(recipe.own_clip, recipe.static_groups)

    def round(self, weight: torch.Tensor, grid: Grid, group_size: int, inputs: LayerInputs) -> QuantizedTensor:
        if inputs.prepared is None:
            return rtn.quantize(weight, grid, group_size, "none" if self.clip == "output" else self.clip)
        return gptq.round_columns(weight, inputs.prepared, grid, group_size, self.static_groups, clip=self.clip)


@dataclass(frozen=True)
class Listed(Rounder):
    """bitsandbytes' formats, whose levels are listed. double: quantize the scales, too."""

    double: bool

    @classmethod
    def of(cls, recipe: "Recipe") -> "Listed":
        return cls(recipe.double)

    def round(
        self, weight: torch.Tensor, grid: Grid, group_size: int, inputs: LayerInputs | None = None
    ) -> QuantizedTensor:
        return bnb.quantize(weight, grid, group_size, self.double)


@dataclass(frozen=True)
class Hqq(Rounder):
    """HQQ: scales and zero points of integers, searched without inputs."""

    finds_ranges = True

    def round(
        self, weight: torch.Tensor, grid: Grid, group_size: int, inputs: LayerInputs | None = None
    ) -> QuantizedTensor:
        return hqq.quantize(weight, grid, group_size)


@dataclass(frozen=True)
class Sinq(Rounder):
    """SINQ: the weights after :meth:`divided`, rounded to nearest; in return, the layer multiplies its inputs."""

    finds_ranges = True
    divides = True

    def divided(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        columns = sinq.columns_of(weight)
        return weight.float() / columns, columns

    def round(
        self, weight: torch.Tensor, grid: Grid, group_size: int, inputs: LayerInputs | None = None
    ) -> QuantizedTensor:
        return rtn.quantize(weight, grid, group_size)

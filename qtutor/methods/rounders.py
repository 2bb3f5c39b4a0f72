"""Rounders: what turns the weights of a layer into codes. Each method is one, with its own options.

All are called alike, ``rounder.round(weight, grid, group_size, inputs)``; the arithmetic is in the modules of the
methods, whose functions are looked up at every call, so that a learner's can take their place.
"""

from dataclasses import dataclass

import torch

from qtutor.core.grid import Grid
from qtutor.core.quantized import QuantizedTensor
from qtutor.methods import awq, bnb, gptq, hqq, rtn, sinq
from qtutor.methods.hessian import Plan


@dataclass(frozen=True)
class LayerInputs:
    """What a rounder may know of a layer's inputs.

    hessian: ``X^T X``, float64 ``[in, in]``. plan: that ordered and factored; ``None`` where it was not wanted, or
    nothing could factor it. dtype: what products of errors may be computed in (:func:`.clip.search_together`).
    """

    hessian: torch.Tensor
    plan: Plan | None = None
    dtype: torch.dtype = torch.float32


class Rounder:
    """What all rounders have. By itself one looks at no inputs, and rounds a layer's weights as they are.

    follows: the layers behind read what the rounded layer makes, and not what the float layer makes. factors: it needs
    a factored Hessian. reads_inputs: it needs :class:`LayerInputs`. divides: :meth:`divided` changes weights, and the
    layer multiplies its inputs.
    """

    clip: str = "none"
    follows = False
    factors = False
    reads_inputs = False
    divides = False

    def round(
        self, weight: torch.Tensor, grid: Grid, group_size: int, inputs: LayerInputs | None = None
    ) -> QuantizedTensor:
        """``weight [out, in]`` on ``grid``, or what :meth:`divided` has left of it."""
        raise NotImplementedError

    def divided(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What is to be rounded in place of ``weight [out, in]``, and by what its columns were divided.

        That is float32 ``[in]``, or ``None`` where the weight stays what it is.
        """
        return weight, None


@dataclass(frozen=True)
class Nearest(Rounder):
    """Round to nearest. clip: ``"none"``, ``"mse"``, or ``"output"``: ranges that change the layer's output least."""

    clip: str = "none"

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
    """GPTQ; see :func:`qtutor.methods.gptq.quantize` for its options. Where there is no plan, round to nearest."""

    clip: str = "output"
    static_groups: bool = False

    follows = True
    factors = True
    reads_inputs = True

    def round(self, weight: torch.Tensor, grid: Grid, group_size: int, inputs: LayerInputs) -> QuantizedTensor:
        if inputs.plan is None:
            return rtn.quantize(weight, grid, group_size, "none" if self.clip == "output" else self.clip)
        return gptq.round_columns(weight, inputs.plan, grid, group_size, self.static_groups, clip=self.clip)


@dataclass(frozen=True)
class Listed(Rounder):
    """bitsandbytes' formats, whose levels are listed. double: quantize the scales, too."""

    double: bool = True

    def round(
        self, weight: torch.Tensor, grid: Grid, group_size: int, inputs: LayerInputs | None = None
    ) -> QuantizedTensor:
        return bnb.quantize(weight, grid, group_size, self.double)


@dataclass(frozen=True)
class Hqq(Rounder):
    """HQQ: scales and zero points of integers, searched without inputs."""

    def round(
        self, weight: torch.Tensor, grid: Grid, group_size: int, inputs: LayerInputs | None = None
    ) -> QuantizedTensor:
        return hqq.quantize(weight, grid, group_size)


@dataclass(frozen=True)
class Sinq(Rounder):
    """SINQ: what :meth:`divided` leaves of the weights, rounded to nearest; the layer multiplies its inputs instead."""

    divides = True

    def divided(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        columns = sinq.columns_of(weight)
        return weight.float() / columns, columns

    def round(
        self, weight: torch.Tensor, grid: Grid, group_size: int, inputs: LayerInputs | None = None
    ) -> QuantizedTensor:
        return rtn.quantize(weight, grid, group_size)

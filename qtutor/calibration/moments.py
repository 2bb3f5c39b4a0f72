"""Sums over calibration tokens: all that GPTQ and similar methods need to know about a layer's inputs."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from qtutor.calibration.precision import bytes_of, in_float32, sums_bytes


class Factor:
    """``x [..., channels]``, float32 or bfloat16, as a factor of products; its bytes are computed once."""

    def __init__(self, x: torch.Tensor):
        self.x = x.flatten(0, -2)

    @functools.cached_property
    def bytes(self) -> tuple[torch.Tensor, torch.Tensor]:
        """See :func:`~.precision.bytes_of`."""
        return bytes_of(self.x)


class Gram:
    """A sum of ``left^T right`` over batches, in float64.

    symmetric: right is left. Then only the part on and above the diagonal has to be computed, in panels. rounded:
    factors may be rounded to bytes (:func:`~.precision.bytes_of`) if the CPU multiplies bytes four times as fast as
    float32. The sums of bytes are exact, so a symmetric sum stays positive semidefinite, as GPTQ needs it.
    """

    PANEL = 256

    def __init__(self, symmetric: bool, rounded: bool):
        self.symmetric, self.rounded, self.total = symmetric, rounded, None

    def add(self, left: Factor, right: Factor) -> None:
        """Add ``left [..., a]`` and ``right [..., b]``; their products are summed in float32, or exactly as bytes."""
        if self.total is None:
            size = left.x.shape[1], right.x.shape[1]
            self.total = torch.zeros(size, dtype=torch.float64, device=left.x.device)
        if self.rounded and left.x.device.type == "cpu" and sums_bytes():
            self._add_bytes(left, right)
            return
        with in_float32():
            for panel, behind in self._panels():  # rows of the sum, each from the diagonal on
                self.total[panel, behind] += left.x[:, panel].float().T @ right.x[:, behind].float()

    def _add_bytes(self, left: Factor, right: Factor) -> None:
        (rows, row_steps), (columns, steps) = left.bytes, right.bytes
        for panel, behind in self._panels():
            sums = torch._int_mm(rows[:, panel].T, columns[:, behind])  # int32: exact up to 133,000 tokens
            self.total[panel, behind] += (sums * row_steps[panel, None]).mul_(steps[behind])

    def result(self) -> torch.Tensor | None:
        """The sum, ``[a, b]``; ``None`` if nothing was added."""
        if self.symmetric and self.total is not None:
            for panel, behind in self._panels():  # the part below the diagonal is a mirror image
                self.total[behind, panel] = self.total[panel, behind].T.clone()
        return self.total

    def _panels(self) -> Iterator[tuple[slice, slice]]:
        for begin in range(0, len(self.total), self.PANEL):  # wide enough for fast products, with little computed twice
            yield slice(begin, begin + self.PANEL), slice(begin if self.symmetric else 0, None)


@dataclass(frozen=True)
class Moments:
    """Sums over tokens of products of a layer's inputs, float64 ``[in, in]``; each token counts by its weight w.

    hessian: the sum of ``w x x^T``; x is the layer's input. With a twin, there is also one of these two. drift: the sum
    of ``w (x' - x) x^T``; x' is the input if no earlier layer is rounded. target ``[out, in]``, for a layer that adds
    to the residual stream: the sum of ``w y x^T``; y is the output (without the bias) that would make the stream equal
    to that of the float decoder.
    """

    hessian: torch.Tensor
    drift: torch.Tensor | None = None
    target: torch.Tensor | None = None

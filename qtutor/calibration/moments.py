"""Sums over calibration tokens: all that GPTQ and its like need to know about a layer's inputs."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from qtutor.calibration.precision import bytes_of, in_float32, sums_bytes


class Factor:
    """``x [..., channels]``, float32 or bfloat16, as a factor of products; its bytes are made once, when asked for."""

    def __init__(self, x: torch.Tensor):
        self.x = x.flatten(0, -2)

    @functools.cached_property
    def bytes(self) -> tuple[torch.Tensor, torch.Tensor]:
        """See :func:`~.precision.bytes_of`."""
        return bytes_of(self.x)


class Gram:
    """A sum of ``left^T right`` over batches, in float64.

    symmetric: right is left. Then only what is on or above the diagonal has to be computed, in panels. rounded: factors
    may be rounded to bytes (:func:`~.precision.bytes_of`) where the CPU multiplies these four times as fast as float32.
    The sums of bytes are exact, so a symmetric one stays what it has to be for GPTQ: positive semidefinite.
    """

    PANEL = 256

    def __init__(self, symmetric: bool = True, rounded: bool = False):
        self.symmetric, self.rounded, self.total = symmetric, rounded, None

    def add(self, left: Factor, right: Factor) -> None:
        """Add ``left [..., a]`` and ``right [..., b]``; their products are summed in float32, or exactly, of bytes."""
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
        """The sum, ``[a, b]``; ``None`` where nothing was counted in."""
        if self.symmetric and self.total is not None:
            for panel, behind in self._panels():  # what lies below the diagonal is a mirror image
                self.total[behind, panel] = self.total[panel, behind].T.clone()
        return self.total

    def _panels(self) -> Iterator[tuple[slice, slice]]:
        for begin in range(0, len(self.total), self.PANEL):  # wide enough for a fast product, with little done twice
            yield slice(begin, begin + self.PANEL), slice(begin if self.symmetric else 0, None)


@dataclass(frozen=True)
class Moments:
    """Sums over tokens of products of a layer's inputs, float64 ``[in, in]``; each token counts by its weight w.

    hessian: the sum of ``w x x^T``, where x arrives at the layer. With a twin also one of these: drift, the sum of
    ``w (x' - x) x^T``, where x' would arrive if no layer before were rounded; target ``[out, in]``, for a layer that
    adds to the residual stream, the sum of ``w y x^T``, where y is what it would have to make (its bias left out) so
    that the stream becomes that of the float decoder.
    """

    hessian: torch.Tensor
    drift: torch.Tensor | None = None
    target: torch.Tensor | None = None

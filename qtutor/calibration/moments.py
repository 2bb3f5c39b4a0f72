"""Sums over calibration tokens: all that GPTQ and its like need to know about a layer's inputs."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch


class Gram:
    """A sum of ``left^T right`` over batches, in float64.

    symmetric: right is left, each token (row) by some weight, so that only what is on or above the diagonal needs to be
    computed, in panels.
    """

    PANEL = 256

    def __init__(self, symmetric: bool = True):
        self.symmetric, self.total = symmetric, None

    def add(self, left: torch.Tensor, right: torch.Tensor) -> None:
        """Count in ``left [..., a]`` and ``right [..., b]``; products of a batch are summed in their own precision."""
        left, right = left.flatten(0, -2), right.flatten(0, -2)
        if self.total is None:
            size = left.shape[1], right.shape[1]
            self.total = torch.zeros(size, dtype=torch.float64, device=left.device)
        for panel, behind in self._panels():
            self.total[panel, behind] += left[:, panel].T @ right[:, behind]

    def result(self) -> torch.Tensor | None:
        """The sum, ``[a, b]``; ``None`` where nothing was counted in."""
        if self.symmetric and self.total is not None:
            for panel, behind in self._panels():
                self.total[behind, panel] = self.total[panel, behind].T.clone()
        return self.total

    def _panels(self) -> Iterator[tuple[slice, slice]]:
        for begin in range(0, len(self.total), self.PANEL):
            yield slice(begin, begin + self.PANEL), slice(begin if self.symmetric else 0, None)


@dataclass(frozen=True)
class Moments:
    """Sums over tokens of products of a layer's inputs, float64 ``[in, in]``; each token by its weight w.

    hessian: of ``w x x^T``, x being what arrives. drift: of ``w (x' - x) x^T``, x' being what would arrive had nothing
    been rounded before; ``None`` without a twin. stream_drift ``[hidden, in]``: the same for the residual stream r that
    the layer's output is added to, ``w (r' - r) x^T``; only for layers in that output joins the stream.
    """

    hessian: torch.Tensor
    drift: torch.Tensor | None = None
    stream_drift: torch.Tensor | None = None

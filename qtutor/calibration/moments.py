"""Sums over calibration tokens: all that GPTQ and its like need to know about a layer's inputs."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from qtutor.calibration.precision import in_float32


class Gram:
    """A sum of ``left^T right`` over batches, in float64.

    symmetric: right is left, each token (row) times some weight. Then only what is on or above the diagonal has to be
    computed, in panels.
    """

    PANEL = 256

    def __init__(self, symmetric: bool = True):
        self.symmetric, self.total = symmetric, None

    def add(self, left: torch.Tensor, right: torch.Tensor) -> None:
        """Add ``left [..., a]`` and ``right [..., b]``; a batch's products are summed in their own precision."""
        left, right = left.flatten(0, -2), right.flatten(0, -2)
        if self.total is None:
            size = left.shape[1], right.shape[1]
            self.total = torch.zeros(size, dtype=torch.float64, device=left.device)
        with in_float32():
            for panel, behind in self._panels():  # rows of the sum, each from the diagonal on
                self.total[panel, behind] += left[:, panel].T @ right[:, behind]

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

    hessian: the sum of ``w x x^T``, where x arrives at the layer. drift: that of ``w (x' - x) x^T``, where x' would
    arrive if no layer before were rounded; ``None`` without a twin. stream_drift ``[hidden, in]``: that of
    ``w (r' - r) x^T``, where r is the residual stream that the layer adds to; ``None`` for layers that add nothing.
    """

    hessian: torch.Tensor
    drift: torch.Tensor | None = None
    stream_drift: torch.Tensor | None = None

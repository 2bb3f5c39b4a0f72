"""Products of one token by the layers of a block, from an array that stays in place into another.

A packed layer multiplies with what its kernel has prepared (:mod:`qtutor.runtime.kernels.cpu` and :mod:`.rounded`
there). Layers that read the same input share what is made of it first. Any other layer is called as a module, so that
float layers are torch's, and what only the reference takes stays with the reference.
"""

import numpy as np
import torch

from qtutor.runtime.kernels import cpu, rounded
from qtutor.runtime.kernels.tiles import ROWS
from qtutor.runtime.linear import QuantLinear
from qtutor.runtime.steps import loops
from qtutor.runtime.steps.anatomy import packed_kernel

NOTHING = np.empty(0, np.float32)


class NotFinite(Exception):
    """An input has infinities or NaN, which the fast products do not take."""


class Product:
    """A layer that multiplies ``x`` float32 ``[in]``, an array that stays in place, into ``y`` float32 ``[out]``."""

    y: np.ndarray

    def __call__(self) -> None:
        """Multiply what x holds now. Raises :class:`NotFinite`."""
        raise NotImplementedError

    def current(self) -> bool:
        """Whether the layer still is what it was when this was made."""
        return True


class Called(Product):
    """By the layer itself, in the model's dtype."""

    def __init__(self, layer, x: np.ndarray, dtype: torch.dtype):
        self.layer, self.dtype, self.x = layer, dtype, torch.from_numpy(x)[None, None]
        self.y = np.empty(layer.out_features, np.float32)
        self.out = torch.from_numpy(self.y)

    def __call__(self) -> None:
        self.out.copy_(self.layer(self.x.to(self.dtype)).flatten())


class Packed(Product):
    """By a kernel of the CPU, from what it has prepared."""

    def __init__(self, layer: QuantLinear, kernel, x: np.ndarray, half: bool, others: list["Packed"]):
        self.layer, self.kernel, self.x, self.half = layer, kernel, x.reshape(1, -1, 8), half
        self.state = layer.prepared(kernel)
        self.loan = layer._loan
        self.bias = NOTHING if layer.bias is None else layer.bias.to(torch.float32).numpy()
        tiles, groups, _ = self.state.scales.shape
        self.tiles, self.alone = tiles, tiles * ROWS * self.state.columns < 2 * cpu.SHARE
        kind = kernel, groups, self.state.bits, self.state.levels
        same = next((other for other in others if other.kind == kind), None)
        self.kind, self.first = kind, same is None
        self._choose_loop(*(same.inputs if same else self._places(groups)))
        self.padded = np.empty((1, tiles * ROWS), np.float32)
        state = self.state
        self.arguments = (*self.inputs, state.planes, state.scales, state.zeros, state.each, self.padded)
        self.y = self.padded[0, : layer.rows]

    def _places(self, groups: int) -> tuple[np.ndarray, ...]:
        """Arrays for what the kernel makes of x first."""
        sums = np.empty((1, groups), np.int32 if self.kernel is rounded else np.float32)
        if self.kernel is rounded:
            return np.empty(self.x.shape, np.int8), np.empty((1, groups), np.float32), sums
        return np.empty_like(self.x), sums

    def _choose_loop(self, *inputs: np.ndarray) -> None:
        """What reads x into ``inputs``, and the loop that multiplies them."""
        self.inputs, made = inputs, self.kernel._loops()
        if self.kernel is rounded:
            self.loop, self.reading, self.read = made.product, (self.x, *inputs), made.quantize
            return
        self.loop = made.many if self.state.levels else made.one
        factors = cpu._UNCHANGED if self.state.levels else cpu._FACTORS[self.state.bits]
        self.reading, self.read = (self.x, factors, *inputs), made.spread

    def __call__(self) -> None:
        if self.first and not self.read(*self.reading):
            raise NotFinite
        if self.alone:
            self.loop(*self.arguments, 0, self.tiles)
        else:
            cpu.shared_out(self.loop, self._share, self.tiles, self.state)
        if self.half or len(self.bias):
            loops.finished(self.y, self.bias, self.half)

    def _share(self, first: int, last: int) -> None:
        self.loop(*self.arguments, first, last)

    def current(self) -> bool:
        return self.layer._loan is self.loan and not self.loan.outdated()


def products(layers: list, x: np.ndarray, dtype: torch.dtype) -> list[Product]:
    """A product for each layer, in the order in which they have to be called; all of them read ``x``."""
    made, packed = [], []
    for layer in layers:
        kernel = packed_kernel(layer, dtype)
        if kernel is None:
            made.append(Called(layer, x, dtype))
        else:
            packed.append(Packed(layer, kernel, x, dtype == torch.bfloat16, packed))
            made.append(packed[-1])
    return made

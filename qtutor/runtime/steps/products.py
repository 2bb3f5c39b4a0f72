"""Products of one token and the layers of a block, from one fixed array into another.

A packed layer multiplies with the state that its kernel has prepared (:mod:`qtutor.runtime.kernels.cpu` and
:mod:`qtutor.runtime.kernels.rounded`). Layers that read the same input share the arrays that a kernel prepares from it.
Any other layer is called as a module, so that torch multiplies by float layers, and the reference by layers that no
other kernel supports.
"""

import numpy as np
import torch

from qtutor.runtime.kernels import cpu
from qtutor.runtime.kernels.tiles import ROWS
from qtutor.runtime.linear import QuantLinear
from qtutor.runtime.steps import loops
from qtutor.runtime.steps.anatomy import packed_kernel

NOTHING = np.empty(0, np.float32)


class NotFinite(Exception):
    """An input has infinities or NaN, which the fast products do not support."""


class Product:
    """A layer that multiplies ``x`` float32 ``[in]``, always the same array, into ``y`` float32 ``[out]``."""

    y: np.ndarray

    def __call__(self) -> None:
        """Multiply the current values of x. Raises :class:`NotFinite`."""
        raise NotImplementedError

    def current(self) -> bool:
        """Whether the layer has not changed since this product was made."""
        return True


class Called(Product):
    """A product by the layer itself, in the model's dtype."""

    def __init__(self, layer, x: np.ndarray, dtype: torch.dtype):
        self.layer, self.dtype, self.x = layer, dtype, torch.from_numpy(x)[None, None]
        self.y = np.empty(layer.out_features, np.float32)

    def __call__(self) -> None:
        self.y[:] = self.layer(self.x.to(self.dtype)).to(torch.float32).numpy().reshape(-1)


class Packed(Product):
    """A product by a kernel of the CPU, from its prepared state."""

    def __init__(self, layer: QuantLinear, kernel, x: np.ndarray, half: bool, others: list["Packed"]):
        self.layer, self.half = layer, half
        state = self.state = layer.prepared(kernel)
        self.loan = layer._loan
        self.bias = NOTHING if layer.bias is None else layer.bias.to(torch.float32).numpy()
        tiles, groups, _ = state.scales.shape
        self.tiles, self.alone = tiles, tiles * ROWS * state.columns < 2 * cpu.SHARE  # too few for two threads
        self.kind = kernel, groups, state.bits, state.levels
        same = next((other for other in others if other.kind == self.kind), None)
        self.reads = same is None
        self.read, self.inputs, self.loop = kernel.one_token(x.reshape(1, -1, 8), state, same and same.inputs)
        padded = np.empty((1, tiles * ROWS), np.float32)
        self.arguments = *self.inputs, state.planes, state.scales, state.zeros, state.each, padded
        self.y = padded[0, : layer.rows]

    def __call__(self) -> None:
        if self.reads and not self.read():
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

"""Layers that store packed bytes and compute with them; they replace ``nn.Linear`` and ``nn.Embedding``."""

from types import ModuleType

import torch

from qtutor.core.grid import Grid
from qtutor.core.packing import pack, unpack
from qtutor.core.quantized import QuantizedTensor, dequantize, scales_shape, shapes
from qtutor.core.scales import PlainScales, Scales, rows_of
from qtutor.runtime.kernels.choosing import choose
from qtutor.runtime.lending import Lending
from qtutor.runtime.packed import Packed


class QuantWeight(Packed):
    """One matrix ``[rows, columns]`` as buffers: packed codes, scales and packed zero points.

    scales_as: how scales are stored; it also names their buffers.
    """

    def __init__(self, rows: int, columns: int, grid: Grid, group_size: int, scales_as: type[Scales] = PlainScales):
        super().__init__()
        self.rows, self.columns, self.grid, self.group_size = rows, columns, grid, group_size
        self.scales_as = scales_as
        self.scales_shape = scales_shape(rows, columns, group_size)
        for name, (shape, dtype) in shapes(rows, columns, grid, group_size, scales_as).items():
            self.register_buffer(name, torch.empty(shape, dtype=dtype))
        if grid.symmetric:
            self.register_buffer("zeros", None)

    def fill(self, quantized: QuantizedTensor) -> None:
        """Pack the codes and zero points of ``quantized`` into the buffers, and store its scales."""
        self.packed = pack(quantized.codes, self.grid.bits)
        for name, tensor in quantized.stored_scales.tensors().items():
            setattr(self, name, tensor)
        if quantized.zeros is not None:
            self.zeros = pack(quantized.zeros, self.grid.bits)

    def _apply(self, fn, recurse=True):
        # model.to(bfloat16) would cast every floating-point buffer. But the codes were made for these very scales, so
        # only the device changes.
        kept = self.stored_scales.tensors()
        super()._apply(fn, recurse)
        for name, tensor in kept.items():
            self._buffers[name] = tensor.to(self.packed.device)
        return self

    @property
    def nbytes(self) -> int:
        """The bytes that these buffers really take."""
        return sum(buffer.nbytes for buffer in self.buffers())

    @property
    def stored_scales(self) -> Scales:
        """The scales in their stored form; :meth:`~.Scales.decode` turns them into numbers."""
        return self.scales_as.of(self._buffers)

    def unpacked_zeros(self, rows: slice | torch.Tensor = slice(None)) -> torch.Tensor | None:
        """The zero points of these ``rows``, uint8 ``[rows, groups]``; ``None`` for a symmetric grid."""
        return None if self.zeros is None else unpack(rows_of(self.zeros, rows), self.grid.bits, self.scales_shape[1])

    def quantized(self) -> QuantizedTensor:
        """The unpacked representation, for plots, metrics and exporters."""
        codes = unpack(self.packed, self.grid.bits, self.columns)
        return QuantizedTensor(codes, self.stored_scales, self.unpacked_zeros(), self.grid, self.group_size)

    def dequantized(self) -> torch.Tensor:
        """The weights ``[out, in]`` with which the layer computes, float32."""
        return self.quantized().dequantize()

    def extra_repr(self) -> str:
        kind = getattr(self.grid, "name", "symmetric" if self.grid.symmetric else "asymmetric")
        return f"{self.rows} x {self.columns}, {self.grid.bits} bits {kind}, group_size={self.group_size}"


class QuantLinear(Lending, QuantWeight):
    """``y = x @ weight.T + bias`` from packed bytes; x ``[..., in]`` in any float dtype.

    A kernel (:mod:`qtutor.runtime.kernels`) multiplies; once, before that, it prepares a state. The state does not
    belong to the layer: it is not saved, and a copy of the layer prepares its own. If a kernel needs the packed bytes
    in another order, the layer lends them to the kernel (:mod:`qtutor.runtime.lending`).
    """

    own: ModuleType | None = None  # the only kernel of a class that computes something else
    asked: str | None = None  # the kernel that was requested by name (:func:`qtutor.runtime.use`)
    _prepared: tuple | None = None  # kernel, stamp, the buffers that were stamped, the kernel's state

    def __init__(
        self,
        out_features: int,
        in_features: int,
        grid: Grid,
        group_size: int,
        bias: bool = False,
        scales_as: type[Scales] = PlainScales,
    ):
        super().__init__(out_features, in_features, grid, group_size, scales_as)
        self.out_features, self.in_features = out_features, in_features
        self.register_buffer("bias", torch.zeros(out_features) if bias else None)

    @classmethod
    def from_quantized(cls, quantized: QuantizedTensor, bias: torch.Tensor | None = None) -> "QuantLinear":
        """A layer that computes with ``quantized [out, in]``."""
        scales_as = type(quantized.stored_scales)
        layer = cls(*quantized.shape, quantized.grid, quantized.group_size, bias is not None, scales_as)
        layer.fill(quantized)
        if bias is not None:
            layer.bias = bias.detach()
        return layer

    def kernel(self, x: torch.Tensor):
        """The kernel that multiplies ``x``: :func:`qtutor.runtime.explain` says which, and why."""
        return self.own or choose(self, x.device, x.dtype)

    def prepared(self, kernel):
        """The state that ``kernel`` prepares from this layer; it is prepared again only if the layer has changed."""
        found = self._prepared  # read once: another thread may set it in the meantime
        if found is not None and found[0] is kernel and found[1] == self._stamp() and not self.loan_is_outdated():
            return found[-1]
        with self.settled():
            state = self.lend(kernel) if hasattr(kernel, "packed") else kernel.prepare(self)
            self._prepared = kernel, self._stamp(), self.held(), state
        return state

    def _stamp(self) -> tuple:
        """A value that differs after a buffer was replaced, or changed in place by torch.

        An id belongs to one tensor only as long as the tensor lives, so ``_prepared`` keeps the stamped buffers. Torch
        does not count changes of inference tensors. So their stamp never equals another, and every call prepares again.
        Lent bytes have no stamp: :meth:`loan_is_outdated` checks them.
        """
        return tuple((id(b), object() if b.is_inference() else b._version) for b in self.held())

    def _apply(self, fn, recurse=True):
        self._prepared = None  # otherwise it would keep the old buffers alive, on the old device, until the next call
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict:
        return super().__getstate__() | {"_prepared": None}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        product = _outside_of_graphs if torch.compiler.is_compiling() else _product
        y = product(self, x)
        return y if self.bias is None else y + self.bias.to(y.dtype)


def _product(layer: QuantLinear, x: torch.Tensor) -> torch.Tensor:
    """``x @ weight.T`` by the kernel that fits."""
    kernel = layer.kernel(x)
    return kernel.run(x, layer.prepared(kernel))


# Our kernels stay outside of torch.compile's graphs: a layer's prepared state would become a constant of a graph.
_outside_of_graphs = torch.compiler.disable(_product)


class QuantEmbedding(QuantWeight):
    """A packed table whose rows are looked up by token id and decoded; ``dtype`` is the one the model computes in.

    multiplier: the factor of all rows in the model's own embedding (:func:`qtutor.families.embedding_scale`).
    """

    multiplier = 1.0

    def __init__(
        self,
        rows: int,
        columns: int,
        grid: Grid,
        group_size: int,
        dtype: torch.dtype,
        scales_as: type[Scales] = PlainScales,
    ):
        super().__init__(rows, columns, grid, group_size, scales_as)
        self.dtype = dtype

    @classmethod
    def from_quantized(
        cls, quantized: QuantizedTensor, dtype: torch.dtype, multiplier: float = 1.0
    ) -> "QuantEmbedding":
        """A lookup table over ``quantized [vocabulary, width]``."""
        scales_as = type(quantized.stored_scales)
        table = cls(*quantized.shape, quantized.grid, quantized.group_size, dtype, scales_as)
        table.fill(quantized)
        table.multiplier = multiplier
        return table

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        rows = ids.flatten()
        codes = unpack(self.packed[rows], self.grid.bits, self.columns)
        weight = dequantize(codes, self.stored_scales.rows(rows), self.unpacked_zeros(rows), self.grid, self.dtype)
        rows = weight.reshape(*ids.shape, self.columns)
        # The multiplier is first rounded to the model's dtype, as in the model's own embedding.
        return rows if self.multiplier == 1 else rows * torch.tensor(self.multiplier, dtype=self.dtype)

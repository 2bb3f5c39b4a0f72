"""Modules that hold packed bytes and compute from them; they take the place of ``nn.Linear`` and ``nn.Embedding``."""

import torch
from torch import nn

from qtutor.core.grid import Grid
from qtutor.core.packing import pack, unpack
from qtutor.core.quantized import QuantizedTensor, dequantize, scales_shape, shapes
from qtutor.core.scales import PlainScales, Scales, rows_of
from qtutor.runtime import kernels


class QuantWeight(nn.Module):
    """Packed codes, scales and packed zero points of one matrix ``[rows, columns]``, as buffers.

    scales_as: how the scales are stored; the buffers have its names.
    """

    def __init__(self, rows: int, columns: int, grid: Grid, group_size: int, scales_as: type[Scales] = PlainScales):
        super().__init__()
        self.rows, self.columns, self.grid, self.group_size = rows, columns, grid, group_size
        self.scales_as = scales_as
        self.groups = scales_shape(rows, columns, group_size)[1]
        for name, (shape, dtype) in shapes(rows, columns, grid, group_size, scales_as).items():
            self.register_buffer(name, torch.empty(shape, dtype=dtype))
        if grid.symmetric:
            self.register_buffer("zeros", None)

    def fill(self, quantized: QuantizedTensor) -> None:
        """Take over the codes of ``quantized``, packed."""
        self.packed = pack(quantized.codes, self.grid.bits)
        for name, tensor in quantized.stored_scales.tensors().items():
            setattr(self, name, tensor)
        if quantized.zeros is not None:
            self.zeros = pack(quantized.zeros, self.grid.bits)

    def _apply(self, fn, recurse=True):
        # model.to(bfloat16) would cast every floating-point buffer, but scales must stay the values that the codes were
        # made for: only the device is followed.
        kept = self.stored_scales.tensors()
        super()._apply(fn, recurse)
        for name, tensor in kept.items():
            self._buffers[name] = tensor.to(self.packed.device)
        return self

    @property
    def nbytes(self) -> int:
        """Bytes that these buffers really take."""
        return sum(buffer.nbytes for buffer in self.buffers())

    @property
    def stored_scales(self) -> Scales:
        """The scales as they are stored; :meth:`~.Scales.decode` makes numbers of them."""
        return self.scales_as.of(self._buffers)

    def unpacked_zeros(self) -> torch.Tensor | None:
        """Zero points, uint8, shaped like the scales."""
        return None if self.zeros is None else unpack(self.zeros, self.grid.bits, self.groups)

    def quantized(self) -> QuantizedTensor:
        """The unpacked representation, for plots, metrics and exporters."""
        codes = unpack(self.packed, self.grid.bits, self.columns)
        return QuantizedTensor(codes, self.stored_scales, self.unpacked_zeros(), self.grid, self.group_size)

    def extra_repr(self) -> str:
        kind = getattr(self.grid, "name", "symmetric" if self.grid.symmetric else "asymmetric")
        return f"{self.rows} x {self.columns}, {self.grid.bits} bits {kind}, group_size={self.group_size}"


class QuantLinear(QuantWeight):
    """``y = x @ weight.T + bias`` from packed bytes; x ``[..., in]`` in any float dtype."""

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

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scales = self.stored_scales.decode()
        y = kernels.matmul(x, self.packed, scales, self.unpacked_zeros(), self.grid, self.columns)
        return y if self.bias is None else y + self.bias.to(y.dtype)


class QuantEmbedding(QuantWeight):
    """Rows of a packed table, looked up by token id and scaled; ``dtype`` is what the model computes in."""

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
    def from_quantized(cls, quantized: QuantizedTensor, dtype: torch.dtype) -> "QuantEmbedding":
        """A lookup table over ``quantized [vocabulary, width]``."""
        scales_as = type(quantized.stored_scales)
        table = cls(*quantized.shape, quantized.grid, quantized.group_size, dtype, scales_as)
        table.fill(quantized)
        return table

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        rows = ids.flatten()
        codes = unpack(self.packed[rows], self.grid.bits, self.columns)
        zeros = None if self.zeros is None else unpack(rows_of(self.zeros, rows), self.grid.bits, self.groups)
        weight = dequantize(codes, self.stored_scales.rows(rows), zeros, self.grid, self.dtype)
        return weight.reshape(*ids.shape, self.columns)

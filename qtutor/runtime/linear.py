"""Modules that hold packed bytes and compute from them; they take the place of ``nn.Linear`` and ``nn.Embedding``."""

import torch
from torch import nn

from qtutor.core.grid import Grid
from qtutor.core.packing import pack, packed_width, unpack
from qtutor.core.quantized import PER_TENSOR, QuantizedTensor, dequantize, resolve_group_size
from qtutor.core.scales import NestedScales
from qtutor.runtime import kernels


class QuantWeight(nn.Module):
    """Packed codes, scales and packed zero points of one matrix ``[rows, columns]``, as buffers.

    nested: the scales are stored quantized, in three buffers of their own.
    """

    SCALES = ("scales", "scale_absmax", "scale_offset")  # floating point, but not the model's dtype

    def __init__(self, rows: int, columns: int, grid: Grid, group_size: int, nested: bool = False):
        super().__init__()
        self.rows, self.columns, self.grid, self.group_size = rows, columns, grid, group_size
        length = resolve_group_size(group_size, columns)
        scales = (1, 1) if group_size == PER_TENSOR else (rows, columns // max(length, 1))
        self.groups = scales[1]
        self.register_buffer("packed", torch.empty(rows, packed_width(columns, grid.bits), dtype=torch.uint8))
        self.register_buffer("scales", None if nested else torch.empty(scales, dtype=grid.scale_dtype))
        self.nested = nested
        if nested:
            self.register_buffer("scale_codes", torch.empty(scales, dtype=torch.uint8))
            blocks = -(-scales[0] * scales[1] // NestedScales.BLOCK)
            self.register_buffer("scale_absmax", torch.empty(blocks, dtype=torch.float32))
            self.register_buffer("scale_offset", torch.empty((), dtype=torch.float32))
        zeros = None
        if not grid.symmetric:
            zeros = torch.empty(scales[0], packed_width(scales[1], grid.bits), dtype=torch.uint8)
        self.register_buffer("zeros", zeros)

    def fill(self, quantized: QuantizedTensor) -> None:
        """Take over the codes of ``quantized``, packed."""
        self.packed = pack(quantized.codes, self.grid.bits)
        if self.nested:
            nested = quantized.nested
            self.scale_codes, self.scale_absmax, self.scale_offset = nested.codes, nested.absmax, nested.offset
        else:
            self.scales = quantized.scales
        if quantized.zeros is not None:
            self.zeros = pack(quantized.zeros, self.grid.bits)

    def _apply(self, fn, recurse=True):
        # model.to(bfloat16) would cast every floating-point buffer, but scales must stay the values that the codes were
        # made for: only the device is followed.
        kept = {name: self._buffers[name] for name in self.SCALES if self._buffers.get(name) is not None}
        super()._apply(fn, recurse)
        for name, scales in kept.items():
            self._buffers[name] = scales.to(self.packed.device)
        return self

    @property
    def nbytes(self) -> int:
        """Bytes that these buffers really take."""
        return sum(buffer.nbytes for buffer in self.buffers())

    def unpacked_scales(self) -> torch.Tensor:
        """Scales, float16 or float32 ``[rows, groups]`` or ``[1, 1]``."""
        return self._nested_scales().decode() if self.nested else self.scales

    def _nested_scales(self) -> NestedScales | None:
        return NestedScales(self.scale_codes, self.scale_absmax, self.scale_offset) if self.nested else None

    def unpacked_zeros(self) -> torch.Tensor | None:
        """Zero points, uint8, shaped like ``scales``."""
        return None if self.zeros is None else unpack(self.zeros, self.grid.bits, self.groups)

    def quantized(self) -> QuantizedTensor:
        """The unpacked representation, for plots, metrics and exporters."""
        codes = unpack(self.packed, self.grid.bits, self.columns)
        scales, zeros = self.unpacked_scales(), self.unpacked_zeros()
        return QuantizedTensor(codes, scales, zeros, self.grid, self.group_size, self._nested_scales())

    def extra_repr(self) -> str:
        kind = getattr(self.grid, "name", "symmetric" if self.grid.symmetric else "asymmetric")
        return f"{self.rows} x {self.columns}, {self.grid.bits} bits {kind}, group_size={self.group_size}"


class QuantLinear(QuantWeight):
    """``y = x @ weight.T + bias`` from packed bytes; x ``[..., in]`` in any float dtype."""

    def __init__(
        self, out_features: int, in_features: int, grid: Grid, group_size: int, bias: bool = False, nested: bool = False
    ):
        super().__init__(out_features, in_features, grid, group_size, nested)
        self.out_features, self.in_features = out_features, in_features
        self.register_buffer("bias", torch.zeros(out_features) if bias else None)

    @classmethod
    def from_quantized(cls, quantized: QuantizedTensor, bias: torch.Tensor | None = None) -> "QuantLinear":
        """A layer that computes with ``quantized [out, in]``."""
        nested = quantized.nested is not None
        layer = cls(*quantized.shape, quantized.grid, quantized.group_size, bias is not None, nested)
        layer.fill(quantized)
        if bias is not None:
            layer.bias = bias.detach()
        return layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = kernels.matmul(x, self.packed, self.unpacked_scales(), self.unpacked_zeros(), self.grid, self.columns)
        return y if self.bias is None else y + self.bias.to(y.dtype)


class QuantEmbedding(QuantWeight):
    """Rows of a packed table, looked up by token id and scaled; ``dtype`` is what the model computes in."""

    def __init__(self, rows: int, columns: int, grid: Grid, group_size: int, dtype: torch.dtype, nested: bool = False):
        super().__init__(rows, columns, grid, group_size, nested)
        self.dtype = dtype

    @classmethod
    def from_quantized(cls, quantized: QuantizedTensor, dtype: torch.dtype) -> "QuantEmbedding":
        """A lookup table over ``quantized [vocabulary, width]``."""
        table = cls(*quantized.shape, quantized.grid, quantized.group_size, dtype, quantized.nested is not None)
        table.fill(quantized)
        return table

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        rows = ids.flatten()
        scales, zeros = self.unpacked_scales(), self.unpacked_zeros()
        shared = scales.shape[0] == 1
        scales = scales if shared else scales[rows]
        zeros = zeros if shared or zeros is None else zeros[rows]
        codes = unpack(self.packed[rows], self.grid.bits, self.columns)
        return dequantize(codes, scales, zeros, self.grid, self.dtype).reshape(*ids.shape, self.columns)

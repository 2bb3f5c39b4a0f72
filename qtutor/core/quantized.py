"""The one representation in the middle: every method makes a :class:`QuantizedTensor`, everything else starts from one.

``weight[o, i]  ≈  scales[o, i // group_size] * (codes[o, i] - zeros[o, i // group_size])``
"""

from dataclasses import dataclass

import torch

from qtutor.core.grid import Grid
from qtutor.core.packing import packed_width
from qtutor.core.scales import NestedScales
from qtutor.errors import QtutorError

PER_CHANNEL = -1  # one group a row
PER_TENSOR = 0  # one group for the whole matrix


def resolve_group_size(group_size: int, columns: int) -> int:
    """The group length that ``group_size`` means for rows of ``columns`` weights (see :data:`PER_CHANNEL`).

    Raises :class:`QtutorError` where the groups do not divide the row.
    """
    if group_size in (PER_CHANNEL, PER_TENSOR):
        return columns
    if group_size < 1 or columns % group_size:
        fits = [g for g in (16, 32, 64, 128, 256) if columns % g == 0]
        raise QtutorError(
            f"groups of {group_size} do not divide rows of {columns} weights. Choose "
            f"{', '.join(map(str, fits)) + ' or ' if fits else ''}-1 (one group a row)."
        )
    return group_size


def check_weight(weight: torch.Tensor) -> None:
    """Raise :class:`QtutorError` unless ``weight`` is a finite floating-point matrix ``[out, in]``."""
    if weight.dim() != 2 or not weight.is_floating_point():
        raise QtutorError(
            f"a weight is {weight.dtype} of shape {list(weight.shape)}; a floating-point matrix [out, in] is needed."
        )
    finite = torch.isfinite(weight)
    if not finite.all():
        row, column = (~finite).nonzero()[0].tolist()
        raise QtutorError(
            f"{int((~finite).sum())} of {weight.numel()} weights are NaN or infinite, the first at "
            f"[{row}, {column}] ({weight[row, column].item()}). Quantizing would spread it over its whole group: "
            "repair the checkpoint first."
        )


@dataclass
class QuantizedTensor:
    """A quantized matrix ``[out, in]``.

    codes: uint8 ``[out, in]``, one code a byte for ease of work (:attr:`nbytes` counts them packed).
    scales: ``[out, groups]``, or ``[1, 1]`` for one scale a tensor; float16 for an :class:`qtutor.IntGrid`, float32 for
    a codebook.
    zeros: uint8, shaped like ``scales``; ``None`` for a symmetric grid, whose zero point needs no storing.
    group_size: weights that share a scale: a number, or :data:`PER_CHANNEL`, or :data:`PER_TENSOR`.
    nested: how ``scales`` are stored where they are quantized themselves; ``scales`` are then what it decodes to.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None
    grid: Grid
    group_size: int
    nested: NestedScales | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return tuple(self.codes.shape)

    @property
    def nbytes(self) -> int:
        """True size in bytes: packed codes, scales, and packed zero points."""
        rows, columns = self.shape
        zeros = 0 if self.zeros is None else self.zeros.shape[0] * packed_width(self.zeros.shape[1], self.grid.bits)
        scales = (self.nested or self.scales).nbytes
        return rows * packed_width(columns, self.grid.bits) + scales + zeros

    @property
    def bits_per_weight(self) -> float:
        """True bits a weight, scales and zero points counted."""
        return 8 * self.nbytes / max(self.codes.numel(), 1)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The weights that the codes stand for, ``[out, in]``."""
        return dequantize(self.codes, self.scales, self.zeros, self.grid, dtype)

    def split(self, rows: list[int]) -> list["QuantizedTensor"]:
        """Matrices of so many rows each, in turn; not for one scale a tensor or nested scales, which rows share."""
        zeros = [None] * len(rows) if self.zeros is None else self.zeros.split(rows)
        parts = zip(self.codes.split(rows), self.scales.split(rows), zeros)
        return [QuantizedTensor(*part, self.grid, self.group_size) for part in parts]


def dequantize(
    codes: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    grid: Grid,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Codes ``[out, in]`` to weights ``[out, in]``; scales and zeros ``[out, groups]`` or ``[1, 1]``."""
    rows, columns = codes.shape
    zeros = torch.full_like(scales, grid.middle) if zeros is None else zeros
    grouped = codes.reshape(rows, scales.shape[1], columns // max(scales.shape[1], 1))  # [out, groups, group_size]
    weight = grid.decode(grouped, scales.unsqueeze(-1), zeros.unsqueeze(-1))
    return weight.reshape(rows, columns).to(dtype)

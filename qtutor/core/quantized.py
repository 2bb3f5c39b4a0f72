"""The common representation: every method returns a :class:`QuantizedTensor`, and all other parts start from it.

``weight[o, i]  ≈  scales[o, i // group_size] * (codes[o, i] - zeros[o, i // group_size])``
"""

import math
from dataclasses import dataclass, field

import torch

from qtutor.core.grid import Grid
from qtutor.core.packing import packed_width
from qtutor.core.scales import PlainScales, Scales
from qtutor.errors import QtutorError

PER_CHANNEL = -1  # one group per row
PER_TENSOR = 0  # one group for the whole matrix


def resolve_group_size(group_size: int, columns: int) -> int:
    """The length of a group in rows of ``columns`` weights; the whole row for :data:`PER_CHANNEL`, :data:`PER_TENSOR`.

    Raises :class:`QtutorError` if the groups do not divide the row.
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


def scales_shape(rows: int, columns: int, group_size: int) -> tuple[int, int]:
    """``(out, groups)``, or ``(1, 1)`` for one scale per tensor. Raises as :func:`resolve_group_size` does."""
    if group_size == PER_TENSOR:
        return 1, 1
    return rows, columns // max(resolve_group_size(group_size, columns), 1)


def shapes(
    rows: int, columns: int, grid: Grid, group_size: int, scales_as: type[Scales] = PlainScales
) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of every tensor that stores a packed matrix ``[rows, columns]``, by name.

    scales_as: the class that stores the scales. Raises :class:`QtutorError` if the groups do not divide the row.

    >>> shapes(64, 128, IntGrid(4), 32)
    {'packed': ((64, 64), torch.uint8), 'scales': ((64, 4), torch.float16), 'zeros': ((64, 2), torch.uint8)}
    """
    scales = scales_shape(rows, columns, group_size)
    stored = {"packed": ((rows, packed_width(columns, grid.bits)), torch.uint8), **scales_as.shapes(scales, grid)}
    if not grid.symmetric:
        stored["zeros"] = (scales[0], packed_width(scales[1], grid.bits)), torch.uint8
    return stored


def nbytes_of(rows: int, columns: int, grid: Grid, group_size: int, scales_as: type[Scales] = PlainScales) -> int:
    """True number of bytes of a packed matrix, from its shape alone. The arguments are those of :func:`shapes`."""
    stored = shapes(rows, columns, grid, group_size, scales_as)
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in stored.values())


def all_finite(tensor: torch.Tensor) -> bool:
    """Whether all numbers are finite. Only for floats of 8 bits, this needs memory of the tensor's size."""
    if not tensor.numel():
        return True
    numbers = tensor.detach()
    if numbers.dtype.itemsize == 1:  # torch cannot compare floats of 8 bits, and float16 holds them all
        numbers = numbers.half()
    return bool(torch.stack(torch.aminmax(numbers)).isfinite().all())


def check_weight(weight: torch.Tensor) -> None:
    """Raise :class:`QtutorError` unless ``weight`` is a finite floating-point matrix ``[out, in]``."""
    if weight.dim() != 2 or not weight.is_floating_point():
        raise QtutorError(
            f"the weight is {weight.dtype} of shape {list(weight.shape)}; a floating-point matrix [out, in] is needed."
        )
    if not all_finite(weight):
        finite = torch.isfinite(weight)
        row, column = (~finite).nonzero()[0].tolist()
        raise QtutorError(
            f"{int((~finite).sum())} of {weight.numel()} weights are NaN or infinite, the first at "
            f"[{row}, {column}] ({weight[row, column].item()}). Quantizing would spread it over its whole group. "
            "Repair the checkpoint first."
        )


@dataclass(frozen=True)
class QuantizedTensor:
    """A quantized matrix ``[out, in]``.

    codes: uint8 ``[out, in]``, one code per byte, which is easier to work with (:attr:`nbytes` counts packed codes).
    scales: ``[out, groups]``, or ``[1, 1]`` for one scale per tensor; float16 for an :class:`qtutor.IntGrid`, float32
    for a codebook. The constructor also accepts :class:`~.scales.Scales` that are stored in another way, and decodes
    them.
    zeros: uint8, shaped like ``scales``; ``None`` for a symmetric grid, which does not store its zero point.
    group_size: the number of weights that share a scale, or :data:`PER_CHANNEL`, or :data:`PER_TENSOR`.
    stored_scales: ``scales`` in the form in which they are stored; by default the numbers themselves.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None
    grid: Grid
    group_size: int
    stored_scales: Scales = field(init=False)

    def __post_init__(self):
        stored = self.scales if isinstance(self.scales, Scales) else PlainScales(self.scales)
        object.__setattr__(self, "stored_scales", stored)  # the class is frozen, so the two always agree
        object.__setattr__(self, "scales", stored.decode())

    @property
    def shape(self) -> tuple[int, int]:
        return tuple(self.codes.shape)

    @property
    def nbytes(self) -> int:
        """True size in bytes: packed codes, scales, and packed zero points."""
        rows, columns = self.shape
        zeros = 0 if self.zeros is None else self.zeros.shape[0] * packed_width(self.zeros.shape[1], self.grid.bits)
        return rows * packed_width(columns, self.grid.bits) + self.stored_scales.nbytes + zeros

    @property
    def bits_per_weight(self) -> float:
        """True bits per weight, including scales and zero points."""
        return 8 * self.nbytes / max(self.codes.numel(), 1)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The weights that the codes represent, ``[out, in]``."""
        return dequantize(self.codes, self.scales, self.zeros, self.grid, dtype)

    def split(self, rows: list[int]) -> list["QuantizedTensor"]:
        """Split by rows: part ``i`` has ``rows[i]`` rows. Raises :class:`QtutorError` for scales that rows share."""
        zeros = [None] * len(rows) if self.zeros is None else self.zeros.split(rows)
        parts = zip(self.codes.split(rows), self.stored_scales.split(rows), zeros)
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

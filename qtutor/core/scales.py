"""Scales, and the ways to store them.

A matrix has scales ``[out, groups]``, or one scale ``[1, 1]``. Each way to store them is a class that decodes them,
counts their bytes and names their tensors. Layers and file formats use only this class. The classes here are:

    PlainScales    the numbers themselves: "scales", in the dtype of the grid
    NestedScales   quantized once more: "scale_codes", "scale_absmax", "scale_offset"

:mod:`.float_scales` has the classes for small floats.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import ClassVar, Self

import torch

from qtutor.core.codebooks import Codebook, dynamic_map
from qtutor.core.grid import Grid
from qtutor.errors import QtutorError


class Scales(ABC):
    """One way to store scales ``[out, groups]`` or ``[1, 1]``; the fields of an instance are its tensors.

    NAMES: the names of the tensors in a layer and in a file, in the order of the fields.
    """

    NAMES: ClassVar[tuple[str, ...]]

    def decode(self) -> torch.Tensor:
        """The scales, float16 or float32 ``[out, groups]`` or ``[1, 1]``."""
        return self.rows(slice(None))

    @abstractmethod
    def rows(self, index: slice | torch.Tensor) -> torch.Tensor:
        """``decode()[index]``, without decoding the other rows; one scale ``[1, 1]`` is used for every row."""

    @abstractmethod
    def split(self, rows: list[int]) -> list[Self]:
        """Split by rows: part ``i`` has ``rows[i]`` rows. Raises :class:`QtutorError` if rows share stored numbers."""

    @classmethod
    @abstractmethod
    def shapes(cls, shape: tuple[int, int], grid: Grid) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of every stored tensor, by name, for scales of this ``shape`` and weights on ``grid``."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """The stored tensors by name."""
        return {name: getattr(self, field.name) for name, field in zip(self.NAMES, fields(self))}

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor]) -> Self:
        """The inverse of :meth:`tensors`; other tensors in the mapping are ignored."""
        return cls(*(tensors[name] for name in cls.NAMES))

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors().values())


def rows_of(tensor: torch.Tensor, index: slice | torch.Tensor) -> torch.Tensor:
    """Rows of ``tensor``, which has one row for every row of the matrix, or a single row for all of them."""
    return tensor if len(tensor) == 1 else tensor[index]


@dataclass(frozen=True)
class PlainScales(Scales):
    """Scales stored as plain numbers: ``[out, groups]`` or ``[1, 1]``, float16 or float32 as the grid says."""

    scales: torch.Tensor

    NAMES = ("scales",)

    def decode(self) -> torch.Tensor:
        return self.scales

    def rows(self, index: slice | torch.Tensor) -> torch.Tensor:
        return rows_of(self.scales, index)

    def split(self, rows: list[int]) -> list["PlainScales"]:
        if len(self.scales) != sum(rows):
            raise QtutorError(f"{sum(rows)} rows cannot be split: they share {len(self.scales)} row of scales.")
        return [PlainScales(part) for part in self.scales.split(rows)]

    @classmethod
    def shapes(cls, shape: tuple[int, int], grid: Grid) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        return {"scales": (shape, grid.scale_dtype)}


@dataclass(frozen=True)
class NestedScales(Scales):
    """Scales that are quantized themselves ("double quantization", QLoRA, arXiv 2305.14314, section 3).

    codes: uint8 ``[out, groups]``, codes of a fixed 8-bit map. absmax: float32, the largest magnitude of each run of
    :attr:`BLOCK` scales, row after row (bitsandbytes calls a run a block). offset: float32 ``[]``, the mean of all
    scales, subtracted before coding.
    """

    codes: torch.Tensor
    absmax: torch.Tensor
    offset: torch.Tensor

    NAMES = ("scale_codes", "scale_absmax", "scale_offset")
    BLOCK: ClassVar[int] = 256
    GRID: ClassVar[Codebook] = dynamic_map()

    def decode(self) -> torch.Tensor:
        """The scales, float32 ``[out, groups]``."""
        return self.rows(slice(None))

    def rows(self, index: slice | torch.Tensor) -> torch.Tensor:
        count, groups = self.codes.shape
        row = rows_of(torch.arange(count, device=self.codes.device), index)
        # Runs of scales continue from row to row, so a row may begin in the middle of a run.
        run = (row[:, None] * groups + torch.arange(groups, device=row.device)) // self.BLOCK
        return self.GRID.decode(rows_of(self.codes, index), self.absmax[run]) + self.offset

    def split(self, rows: list[int]) -> list["NestedScales"]:
        raise QtutorError("nested scales cannot be split by rows: their rows share largest values and the mean.")

    @classmethod
    def shapes(cls, shape: tuple[int, int], grid: Grid) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """The same for every grid: the grid has no influence on the dtypes."""
        runs = -(-shape[0] * shape[1] // cls.BLOCK)
        stored = (shape, torch.uint8), ((runs,), torch.float32), ((), torch.float32)
        return dict(zip(cls.NAMES, stored))

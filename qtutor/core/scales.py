"""Scales, and the ways to store them.

A matrix has scales ``[out, groups]``, or ``[1, 1]`` for the whole of it. Each way to store them is a class that decodes
them, counts their bytes and names their tensors; whoever holds packed tensors asks it and needs to know no more. Here:

    PlainScales    the numbers themselves: "scales", in the dtype of the grid
    NestedScales   quantized once more: "scale_codes", "scale_absmax", "scale_offset"

Two more would fit, both for codes of a float with 2 bits of exponent and 1 of mantissa (E2M1: 0, 0.5, 1 ... 4, 6):

    MXFP4   groups of 32; a scale is a power of two. It would hold "scales", uint8 ``[out, groups]``, the exponent plus
            127, and decode to ``2.0 ** (scales - 127)``. It can be split: no row shares anything with another.
    NVFP4   groups of 16. It would hold "scales", float8_e4m3fn ``[out, groups]``, and "scale_of_all", float32 ``[]``,
            and decode to the product of both. It can be split: every part takes the one for all with it.
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

    NAMES: what the tensors are called in a layer and in a file, in the order of the fields.
    """

    NAMES: ClassVar[tuple[str, ...]]

    @abstractmethod
    def decode(self) -> torch.Tensor:
        """The scales, float16 or float32 ``[out, groups]`` or ``[1, 1]``."""

    @abstractmethod
    def rows(self, index: slice | torch.Tensor) -> torch.Tensor:
        """``decode()[index]`` and no other row decoded; a scale for the whole matrix (``[1, 1]``) is every row's."""

    @abstractmethod
    def split(self, rows: list[int]) -> list[Self]:
        """Scales of so many rows each, in turn. Raises :class:`QtutorError` where rows share what is stored."""

    @classmethod
    @abstractmethod
    def shapes(cls, shape: tuple[int, int], grid: Grid) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of what is stored, by name, where the scales are ``shape`` and the weights on ``grid``."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """What is stored, by name."""
        return {name: getattr(self, field.name) for name, field in zip(self.NAMES, fields(self))}

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor]) -> Self:
        """The way back from :meth:`tensors`; there may be others among them."""
        return cls(*(tensors[name] for name in cls.NAMES))

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors().values())


def rows_of(tensor: torch.Tensor, index: slice | torch.Tensor) -> torch.Tensor:
    """Rows of a tensor that has one for every row of the matrix, or a single one that all of them share."""
    return tensor if len(tensor) == 1 else tensor[index]


@dataclass(frozen=True)
class PlainScales(Scales):
    """Scales stored as they are: ``[out, groups]`` or ``[1, 1]``, float16 or float32 as the grid says."""

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

    codes: uint8 ``[out, groups]``, of a fixed 8-bit map; absmax: float32, one for :attr:`BLOCK` scales, row after row;
    offset: float32 ``[]``, the mean of all scales, from which the codes count.
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
        # Blocks run on from row to row, so that a row may begin in the middle of one.
        block = (row[:, None] * groups + torch.arange(groups, device=row.device)) // self.BLOCK
        return self.GRID.decode(rows_of(self.codes, index), self.absmax[block]) + self.offset

    def split(self, rows: list[int]) -> list["NestedScales"]:
        raise QtutorError("nested scales cannot be split by rows: rows share their largest values and their mean.")

    @classmethod
    def shapes(cls, shape: tuple[int, int], grid: Grid) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """The dtypes are its own, whatever the grid."""
        blocks = -(-shape[0] * shape[1] // cls.BLOCK)
        stored = (shape, torch.uint8), ((blocks,), torch.float32), ((), torch.float32)
        return dict(zip(cls.NAMES, stored))

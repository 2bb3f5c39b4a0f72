"""Scales of small float grids, stored in 8 bits or shared by many rows; and the kind of scales for each grid.

PowerScales    powers of two (MXFP4): "scale_codes"
FloatScales    floats of 8 bits times one number for all (NVFP4): "scale_codes", "scale_of_all"
TileScales     plain numbers that 128 rows share (FP8 in blocks of 128 x 128): "scale_tiles"
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from qtutor.core.float_grid import FP8_TILES, BlockGrid, TileGrid
from qtutor.core.grid import Grid
from qtutor.core.scales import NestedScales, PlainScales, Scales, rows_of
from qtutor.errors import QtutorError


@dataclass(frozen=True)
class PowerScales(Scales):
    """Powers of two (E8M0, OCP Microscaling Formats v1.0): code c is ``2^(c - 127)``; 255 would be NaN.

    codes: uint8 ``[out, groups]`` or ``[1, 1]``. The code is the exponent field of a float32.
    """

    codes: torch.Tensor

    NAMES = ("scale_codes",)

    @classmethod
    def encode(cls, scales: torch.Tensor, unit: float = 1.0) -> "PowerScales":
        """Store ``scales``, float32 powers of two from 2^-126 on."""
        return cls((scales.contiguous().view(torch.int32) >> 23).to(torch.uint8))

    def rows(self, index: slice | torch.Tensor) -> torch.Tensor:
        codes = rows_of(self.codes, index)
        scales = (codes.int() << 23).view(torch.float32)
        return torch.where(codes == 0, 2.0**-127, scales)  # in a float32, the exponent field 0 means subnormal numbers

    def split(self, rows: list[int]) -> list["PowerScales"]:
        return [PowerScales(part.scales) for part in PlainScales(self.codes).split(rows)]

    @classmethod
    def shapes(cls, shape: tuple[int, int], grid: Grid) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        return {"scale_codes": (shape, torch.uint8)}


@dataclass(frozen=True)
class FloatScales(Scales):
    """Floats of 8 bits (E4M3) times one float32 for the matrix.

    codes: uint8 ``[out, groups]`` or ``[1, 1]``, the bits of E4M3. of_all: float32 ``[]``.
    """

    codes: torch.Tensor
    of_all: torch.Tensor

    NAMES = ("scale_codes", "scale_of_all")

    @classmethod
    def encode(cls, scales: torch.Tensor, unit: float = 1.0) -> "FloatScales":
        """Store ``scales``, float32, each of them a value of E4M3 times ``unit``."""
        codes = (scales / unit).to(torch.float8_e4m3fn).view(torch.uint8)
        return cls(codes, torch.tensor(unit, dtype=torch.float32, device=scales.device))

    def rows(self, index: slice | torch.Tensor) -> torch.Tensor:
        return rows_of(self.codes, index).view(torch.float8_e4m3fn).float() * self.of_all

    def split(self, rows: list[int]) -> list["FloatScales"]:
        return [FloatScales(part.scales, self.of_all.clone()) for part in PlainScales(self.codes).split(rows)]

    @classmethod
    def shapes(cls, shape: tuple[int, int], grid: Grid) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        return {"scale_codes": (shape, torch.uint8), "scale_of_all": ((), torch.float32)}


@dataclass(frozen=True)
class TileScales(Scales):
    """One float32 for :attr:`TILE` rows and a group of columns.

    tiles: float32 ``[out / TILE, groups]``, rounded up: the last tile may have fewer rows. count: the number of rows,
    which the tiles do not show.
    """

    tiles: torch.Tensor
    count: int

    NAMES = ("scale_tiles",)  # only tensors: the second field is not one
    TILE: ClassVar[int] = FP8_TILES.tile

    @classmethod
    def encode(cls, scales: torch.Tensor) -> "TileScales":
        """Store ``scales [out, groups]``, which are equal in the rows of a tile."""
        return cls(scales[:: cls.TILE].contiguous(), len(scales))

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor]) -> "TileScales":
        """The inverse of :meth:`tensors`; the packed codes beside the tiles show how many rows there are."""
        return cls(tensors["scale_tiles"], len(tensors["packed"]))

    def rows(self, index: slice | torch.Tensor) -> torch.Tensor:
        return self.tiles[torch.arange(self.count, device=self.tiles.device)[index] // self.TILE]

    def split(self, rows: list[int]) -> list["TileScales"]:
        if any(count % self.TILE for count in rows[:-1]):
            raise QtutorError(f"rows cannot be split into {rows}: {self.TILE} of them share a scale.")
        parts = self.tiles.split([-(-count // self.TILE) for count in rows])
        return [TileScales(part, count) for part, count in zip(parts, rows)]

    @classmethod
    def shapes(cls, shape: tuple[int, int], grid: Grid) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        return {"scale_tiles": ((-(-shape[0] // cls.TILE), shape[1]), torch.float32)}


def class_of_scales(grid: Grid, nested: bool = False) -> type[Scales]:
    """How the scales of ``grid`` are stored; nested: quantized once more, if a recipe says so."""
    if isinstance(grid, BlockGrid):
        return {"e8m0": PowerScales, "e4m3": FloatScales}[grid.scales]
    if isinstance(grid, TileGrid):
        return TileScales
    return NestedScales if nested else PlainScales


def as_stored(scales: torch.Tensor, grid: Grid) -> Scales:
    """``scales [out, groups]``, fitted by ``grid``, in the form in which they are stored."""
    if isinstance(grid, BlockGrid):
        return class_of_scales(grid).encode(scales, grid.unit)
    if isinstance(grid, TileGrid):
        return TileScales.encode(scales)
    return PlainScales(scales)

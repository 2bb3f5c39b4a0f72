"""Packed codes in tiles of 64 rows, ``[tile][columns / 8][row]``, as :mod:`.cpu` reads them; and back.

A word holds the eight codes of a row as :mod:`qtutor.core.packing` writes them, so nothing is packed again: bytes
only change places. 8 codes of 2, 3, 4 and 8 bits are 2, 3, 4 and 8 bytes:

    2 bits   int32 [tiles, columns / 16, 64], a word for 16 columns: in words of 16 bits LLVM converts every code twice
    3 bits   uint16 and uint8, both [tiles, columns / 8, 64]: the lower two bytes, and the third
    4 bits   int32 [tiles, columns / 8, 64]
    8 bits   uint32 [tiles, columns / 4, 64], two words for the eight columns of a row
    levels   as 4 bits, and float32 [16]: the levels of the codebook

The last tile is padded with zeros, and so is the last word of 2 bits: at most 63 rows and 8 columns. Apart from this
padding, the number of bytes stays the same.
"""

import functools
from dataclasses import dataclass

import numpy as np
import torch

from qtutor.core.codebooks import Codebook

ROWS = 64


@dataclass(frozen=True)
class Tiles:
    """A packed matrix ``[rows, columns]``.

    planes: the words, see above. scales: uint16 (the bits of a float16) or float32 ``[tiles, groups, ROWS]``. zeros:
    uint8, of the same shape, or ``[1, 1, ROWS]`` if one zero point serves all groups (0 for levels).
    """

    planes: np.ndarray | tuple[np.ndarray, ...]
    scales: np.ndarray
    zeros: np.ndarray
    rows: int
    columns: int
    bits: int

    @functools.cached_property
    def levels(self) -> bool:
        """Whether codes stand for the levels of a codebook."""
        return self.bits == 4 and isinstance(self.planes, tuple)

    @functools.cached_property
    def each(self) -> int:
        """1 if every group has its zero point, 0 if one serves all."""
        return int(self.zeros.shape == self.scales.shape)

    def packed(self) -> torch.Tensor:
        """The bytes of the layer's buffer, uint8 ``[rows, columns / 8 * bits]``."""
        planes = self.planes if isinstance(self.planes, tuple) else (self.planes,)
        planes = planes[:1] if self.levels else planes
        parts = [_from_tiles(plane, self.rows) for plane in planes]
        data = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
        data = data.reshape(self.rows, -1)[:, : self.columns // 8 * self.bits]
        padded = self.rows % ROWS or not data.flags.c_contiguous
        return torch.from_numpy(data.copy() if padded else data)  # a view would keep the padding alive


def tiles_of(layer) -> Tiles:
    """The tiles of a :class:`~qtutor.runtime.linear.QuantWeight` whose rows are whole words."""
    bits, grid = layer.grid.bits, layer.grid
    words = layer.packed.numpy().reshape(layer.rows, layer.columns // 8, bits)
    if bits == 3:
        planes = _to_tiles(words[..., :2], np.uint16), _to_tiles(words[..., 2:], np.uint8)
    elif bits == 8:
        planes = _to_tiles(words.reshape(layer.rows, -1, 4), np.uint32)
    elif bits == 2:
        pairs = np.pad(words, ((0, 0), (0, words.shape[1] % 2), (0, 0))) if words.shape[1] % 2 else words
        planes = (_to_tiles(pairs.reshape(layer.rows, -1, 4), np.int32),)
    else:
        planes = _to_tiles(words, np.int32)
    zeros = np.full((1, 1, ROWS), grid.middle, np.uint8)
    if isinstance(grid, Codebook):
        planes, zeros = (planes, np.array(grid.values, np.float32)), np.zeros((1, 1, ROWS), np.uint8)
    elif layer.zeros is not None:
        zeros = _by_groups(layer.unpacked_zeros().numpy(), layer)
    scales = layer.stored_scales.decode().detach()
    if scales.dtype != torch.float16 or not scales.isfinite().all():  # the loops' float16 knows no infinity
        scales = scales.float()
    scales = scales.numpy().view(np.uint16) if scales.dtype == torch.float16 else scales.numpy()
    return Tiles(planes, _by_groups(scales, layer), zeros, layer.rows, layer.columns, bits)


def _padded(array: np.ndarray) -> np.ndarray:
    """``[rows, ...]`` as ``[tiles, ROWS, ...]``; a copy only if rows are missing."""
    missing = -len(array) % ROWS
    if missing:
        array = np.concatenate([array, np.zeros((missing, *array.shape[1:]), array.dtype)])
    return array.reshape(-1, ROWS, *array.shape[1:])


def _to_tiles(data: np.ndarray, word: type) -> np.ndarray:
    """Bytes ``[rows, words of a row, bytes of a word]`` as words ``[tiles, words of a row, ROWS]``."""
    words = np.ascontiguousarray(data).view(word)[..., 0]
    return np.ascontiguousarray(_padded(words).transpose(0, 2, 1))


def _from_tiles(plane: np.ndarray, rows: int) -> np.ndarray:
    """The inverse: uint8 ``[rows, words of a row, bytes of a word]``."""
    words = np.ascontiguousarray(plane.transpose(0, 2, 1)).reshape(-1, plane.shape[1], 1)[:rows]
    return words.view(np.uint8)


def _by_groups(values: np.ndarray, layer) -> np.ndarray:
    """Scales or zero points ``[rows, groups]``, or ``[1, 1]`` for all rows, as ``[tiles, groups, ROWS]``."""
    values = np.broadcast_to(values, (layer.rows, values.shape[1]))
    return np.ascontiguousarray(_padded(values).transpose(0, 2, 1))

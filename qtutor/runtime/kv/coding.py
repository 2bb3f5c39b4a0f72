"""Codes of keys or values ``[..., tokens, head]``, and back: packed bytes, scales and zero points, unit by unit.

The leading axes are the caller's: batch and heads in :mod:`.cache`. A pool of blocks (:mod:`.pool`) passes the heads in
place of the tokens, because the codes of a token and head do not depend on their neighbours.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from qtutor.core.packing import pack, packed_width, unpack
from qtutor.core.quantized import all_finite
from qtutor.errors import QtutorError
from qtutor.runtime.kv.format import Coding
from qtutor.runtime.kv.rotation import rotate


@dataclass(frozen=True)
class Coded:
    """Codes. All tensors have the shape ``[..., units, numbers]``; :meth:`.Coding.shapes` has the last axis and dtypes.

    A unit is a token, or a window of tokens if keys are coded per channel. If ``grid`` is ``None``, the codes are the
    numbers themselves, and nothing else is stored.
    """

    codes: torch.Tensor
    scales: torch.Tensor | None
    zeros: torch.Tensor | None
    coding: Coding
    head: int

    @property
    def tokens(self) -> int:
        return self.codes.shape[-2] * self.coding.unit

    @property
    def tensors(self) -> list[torch.Tensor]:
        """What is stored."""
        return [one for one in (self.codes, self.scales, self.zeros) if one is not None]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)

    def with_all(self, change: Callable, *others: "Coded") -> "Coded":
        """Apply ``change`` to every tensor, together with the tensors of ``others`` that have the same name."""
        changed = (
            None if own is None else change(own, *(getattr(other, name) for other in others))
            for name, own in (("codes", self.codes), ("scales", self.scales), ("zeros", self.zeros))
        )
        return Coded(*changed, self.coding, self.head)


def encode(x: torch.Tensor, coding: Coding) -> Coded:
    """The codes of ``x [..., tokens, head]``; for keys per channel, ``tokens`` is a multiple of the window.

    Raises :class:`QtutorError` for numbers that are not finite, and if a scale is too large for 16 bits.
    """
    head, grid = x.shape[-1], coding.grid
    if grid is None:
        return Coded(x, None, None, coding, head)
    if not all_finite(x):
        raise QtutorError(
            f"{int((~x.isfinite()).sum())} of {x.numel()} numbers are NaN or infinite, which would spread over their "
            "groups. Compute in float32 or bfloat16 if the model overflows in float16; or use a cache of 16 bits."
        )
    numbers = rotate(x) if coding.rotated else x.float()
    if coding.channel:
        rows = numbers.unflatten(-2, (x.shape[-2] // coding.unit, coding.unit)).transpose(-1, -2)
    else:
        rows = numbers.unsqueeze(-2)
    length = rows.shape[-1]  # rows [..., units, head, window], or [..., units, 1, head]
    group = coding.group or length
    # The last group may be shorter. Zeros do not change its range, which contains 0 anyway; their codes are cut off.
    grouped = pad(rows, (0, -length % group)).unflatten(-1, (-1, group))  # [..., units, rows, groups, group]
    scales, zeros = grid.fit(grouped.amin(-1), grouped.amax(-1))
    codes = grid.encode(grouped, scales[..., None], zeros[..., None]).flatten(-2)[..., :length]
    packed, scales, zeros = _packed(codes, grid.bits).flatten(-2), scales.flatten(-2), zeros.flatten(-2)
    return Coded(packed, scales, None if grid.symmetric else _packed(zeros, grid.bits), coding, head)


def decode(coded: Coded, turn_back: bool = True) -> torch.Tensor:
    """The decoded numbers, ``[..., tokens, head]``, float32; numbers that were stored as they are stay unchanged.

    turn_back: undo the rotation. Instead, a caller may rotate queries and outputs (:func:`.rotate`): only one vector of
    each for all the keys and values.
    """
    coding, grid, head = coded.coding, coded.coding.grid, coded.head
    if grid is None:
        return coded.codes
    rows, length = (head, coding.unit) if coding.channel else (1, head)
    group = coding.group or length
    codes = _unpacked(coded.codes.unflatten(-1, (rows, packed_width(length, grid.bits))), grid.bits, length)
    grouped = pad(codes, (0, -length % group)).unflatten(-1, (-1, group))  # [..., units, rows, groups, group]
    scales, zeros = coded.scales.unflatten(-1, (rows, -1)).unsqueeze(-1), None
    if coded.zeros is not None:
        zeros = _unpacked(coded.zeros, grid.bits, coded.scales.shape[-1]).reshape(scales.shape)
    numbers = grid.decode(grouped, scales, zeros).flatten(-2)[..., :length]
    numbers = numbers.transpose(-1, -2).flatten(-3, -2) if coding.channel else numbers.squeeze(-2)
    return rotate(numbers) if coding.rotated and turn_back else numbers


def _packed(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """:func:`~qtutor.core.packing.pack` along the last axis."""
    *before, count = codes.shape
    return pack(codes.reshape(math.prod(before), count), bits).reshape(*before, packed_width(count, bits))


def _unpacked(data: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """:func:`~qtutor.core.packing.unpack` along the last axis."""
    *before, width = data.shape
    return unpack(data.reshape(math.prod(before), width), bits, count).reshape(*before, count)

"""A tensor of keys or values that grows token by token and is stored in codes, whole units at a time."""

import torch

from qtutor.runtime.kv.coding import Coded, decode, encode
from qtutor.runtime.kv.format import Coding


class Stored:
    """Keys or values ``[batch, heads, tokens, head]``.

    coded: the full units. newest: the tokens of the unit that is not full, in their original dtype; only keys per
    channel have such tokens. forgotten: how many tokens at the beginning are no longer read, but still stored.
    """

    def __init__(self, first: torch.Tensor, coding: Coding):
        self.coding, self.dtype = coding, first.dtype
        self.newest = first[..., :0, :]
        self.coded: Coded = encode(self.newest, coding)
        self.forgotten = 0

    def __len__(self) -> int:
        return self.coded.tokens + self.newest.shape[-2] - self.forgotten

    @property
    def nbytes(self) -> int:
        return self.coded.nbytes + self.newest.nbytes

    def append(self, x: torch.Tensor) -> None:
        """Add tokens ``x [batch, heads, new, head]``."""
        x = torch.cat([self.newest, x], dim=-2)
        full = x.shape[-2] // self.coding.unit * self.coding.unit
        if full:
            more = encode(x[..., :full, :], self.coding)
            self.coded = self.coded.with_all(lambda *parts: torch.cat(parts, dim=-2), more)
        # A copy: a view would keep the memory of all new tokens.
        self.newest = x[..., full:, :].clone()

    def read(self) -> torch.Tensor:
        """All tokens, in their original dtype."""
        numbers = decode(self.coded).to(self.dtype)
        if self.newest.shape[-2]:
            numbers = torch.cat([numbers, self.newest], dim=-2)
        return numbers[..., self.forgotten :, :]

    def forget(self, keep: int) -> None:
        """Forget the oldest tokens until ``keep`` are left; only whole units free memory."""
        self.forgotten += max(0, len(self) - keep)
        units, self.forgotten = divmod(self.forgotten, self.coding.unit)
        if units:
            self.coded = self.coded.with_all(lambda part: part[..., units:, :].clone())

    def crop(self, count: int) -> None:
        """Remove the newest ``count`` tokens. Others of their unit are no longer coded, but keep the rounded values."""
        left = self.coded.tokens + self.newest.shape[-2] - count
        units, rest = divmod(left, self.coding.unit)
        if left < self.coded.tokens:
            self.newest = decode(self._units(units, units + 1))[..., :rest, :].to(self.dtype)
            self.coded = self._units(0, units)
        else:
            self.newest = self.newest[..., :rest, :]

    def select(self, rows: torch.Tensor) -> None:
        """Reorder texts, some left out or repeated: row ``i`` becomes what row ``rows[i]`` was."""
        rows = rows.to(self.newest.device)
        self.coded = self.coded.with_all(lambda part: part[rows])
        self.newest = self.newest[rows]

    def _units(self, first: int, last: int) -> Coded:
        return self.coded.with_all(lambda part: part[..., first:last, :])

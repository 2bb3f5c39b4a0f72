"""Keys and values of many texts in blocks of 16 tokens: which text has which block, and the tensors of the blocks.

A text's cache grows by a token a step, and nobody knows how long it becomes. So it is kept like memory in an operating
system: a text has a table of blocks, which can be anywhere in memory, and gets one more when its last block is full.
This is PagedAttention (Kwon et al., arXiv 2309.06180, section 4). At most 15 places of each text stay empty.

Texts that begin alike share blocks. A full block is identified by a digest of the whole text up to its end, because
keys and values depend on all tokens before them. So equal digests mean equal contents. Only full blocks are shared, so
nobody writes into a shared block. An unused block keeps its contents until the block is needed, and can be found again
until then.

Left out: copying a block on its first write (beams need it), blocks on disk, and windows that let old blocks go.
"""

import hashlib
from array import array

import torch

from qtutor.runtime.kv.format import shape_of

BLOCK = 16  # tokens


class Blocks:
    """Which blocks are whose: numbers only. A table is a list of blocks, in the order of the text."""

    def __init__(self, count: int, size: int = BLOCK, sharing: bool = True):
        self.size = size
        self.sharing = sharing
        self.users = [0] * count  # how many tables have the block
        self.free = dict.fromkeys(range(count))  # an ordered set of the blocks without users, longest unused first
        self.digests: list[bytes | None] = [None] * count  # digests of the text up to the block's end; None: not full
        self.known: dict[bytes, int] = {}  # a block for each digest

    def needed(self, tokens: int) -> int:
        """How many blocks are needed for ``tokens`` tokens."""
        return -(-tokens // self.size)

    def table_for(self, tokens: list[int]) -> tuple[list[int], int] | None:
        """A table for a text, and how many of its tokens are in it already; ``None`` if too few blocks are free."""
        table = self._known_prefix(tokens)
        idle = sum(block in self.free for block in table)  # known blocks without users: no longer free when we use them
        if self.needed(len(tokens)) - len(table) > len(self.free) - idle:
            return None
        cached = len(table) * self.size
        for block in table:
            self._use(block)
        self.grow(table, len(tokens))
        return table, cached

    def grow(self, table: list[int], tokens: int) -> bool:
        """Add blocks until ``table`` holds ``tokens`` tokens. ``False``, and no change, if too few are free."""
        missing = self.needed(tokens) - len(table)
        if missing > len(self.free):
            return False
        for _ in range(missing):
            block = next(iter(self.free))
            self._forget(block)  # its contents will be overwritten
            self._use(block)
            table.append(block)
        return True

    def release(self, table: list[int]) -> None:
        """Give back a text's blocks, and empty its table.

        The end of a text is released first, so it is overwritten first: other texts may share the beginning.
        """
        for block in reversed(table):
            self.users[block] -= 1
            if self.users[block] == 0:
                self.free[block] = None
        table.clear()

    def remember(self, table: list[int], tokens: list[int], start: int, end: int) -> None:
        """Make the blocks known that become full when ``tokens[start:end]`` are written.

        Two texts may write the same block at the same time. Then the first stays known, and the other is only used.
        """
        if self.sharing:
            for index in range(start // self.size, end // self.size):
                before = self.digests[table[index - 1]] if index else b""
                digest = self.digests[table[index]] = self._digest(before, tokens, index)
                self.known.setdefault(digest, table[index])

    def forget_all(self) -> None:
        """Make all blocks unknown: after a failure, when nobody can say which ones were written."""
        self.known.clear()
        self.digests = [None] * len(self.digests)

    def _known_prefix(self, tokens: list[int]) -> list[int]:
        """The known blocks of a text's beginning. Its last token is never in them: a model has to read at least one."""
        found, digest = [], b""
        for index in range((len(tokens) - 1) // self.size if self.sharing else 0):
            digest = self._digest(digest, tokens, index)
            if digest not in self.known:
                break
            found.append(self.known[digest])
        return found

    def _digest(self, before: bytes, tokens: list[int], index: int) -> bytes:
        own = array("q", tokens[index * self.size : (index + 1) * self.size])
        return hashlib.sha256(before + own.tobytes()).digest()

    def _use(self, block: int) -> None:
        self.users[block] += 1
        self.free.pop(block, None)

    def _forget(self, block: int) -> None:
        digest = self.digests[block]
        if digest is not None and self.known.get(digest) == block:
            del self.known[digest]
        self.digests[block] = None


class Pool:
    """The keys and the values of all blocks: a row ``[kv heads * width]`` for each slot, which is block * size + place.

    The pool is allocated as a whole at the beginning, so it can never run out in the middle of a step. Attention calls
    only :meth:`write` and :meth:`read`, so a pool that stores codes and scales can replace this one. A slot is written
    once for a text, and read in the same step. Left out: a kernel that reads blocks where they are; torch needs them in
    a row.
    """

    def __init__(self, config, blocks: int, size: int, dtype: torch.dtype, device):
        layers, self.heads, self.width = shape_of(config)
        self.size, self.device = size, device
        # Zeros: places that were not written yet are read with a weight of zero, and 0 * NaN would be NaN.
        shape = layers, blocks * size, self.heads * self.width
        self.keys, self.values = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
        self._found = self.keys.new_empty(2, 0, size * shape[2])

    @property
    def nbytes(self) -> int:
        """The size of all keys and values, as in :func:`pool_bytes`; the copy of :meth:`read` needs more on top."""
        return self.keys.nbytes + self.values.nbytes

    def write(self, layer: int, slots: torch.Tensor, keys, values) -> None:
        """Store ``keys, values [tokens, kv heads, width]`` in their slots, int64 ``[tokens]``."""
        self.keys[layer].index_copy_(0, slots, keys.flatten(1))
        self.values[layer].index_copy_(0, slots, values.flatten(1))

    def read(self, layer: int, tables: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of whole tables, int64 ``[texts, blocks]``: ``[texts, kv heads, blocks * size, width]``.

        They are a copy that the next call overwrites.
        """
        blocks = tables.flatten()
        if len(blocks) > self._found.shape[1]:  # the copy is kept: new memory costs more than copying into it
            self._found = self._found.new_empty(2, 2 * len(blocks), self._found.shape[2])
        found = self._found[:, : len(blocks)]
        for store, copy in zip((self.keys[layer], self.values[layer]), found, strict=True):
            torch.index_select(store.view(-1, copy.shape[1]), 0, blocks, out=copy)  # twice as fast as store[blocks]
        shape = 2, len(tables), tables.shape[1] * self.size, self.heads, self.width
        return tuple(found.view(shape).transpose(2, 3))


def pool_bytes(config, tokens: int, dtype: torch.dtype) -> int:
    """The size of ``tokens`` tokens in the cache: a key and a value of each kv head in each layer.

    >>> pool_bytes(AutoConfig.for_model("llama", num_key_value_heads=8), 1, torch.bfloat16)  # 32 layers, width 128
    131072
    """
    layers, heads, width = shape_of(config)
    return 2 * layers * heads * width * dtype.itemsize * tokens

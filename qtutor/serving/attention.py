"""Attention over blocks, behind transformers' own decoder layers: the project writes no model code.

A transformers layer makes queries, keys and values, and hands them to the function that ``config._attn_implementation``
names, together with all keyword arguments of the model that it does not know itself. :func:`paged_attention` is such a
function, and :class:`Step` comes with the keyword ``step``: it says where keys and values are stored, and who reads
which. All tokens of a step stand behind one another in one row, ``[1, tokens]``; no place is padded. Positions are
each text's own, so the layers turn queries and keys as they always do.
"""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from qtutor.serving.cache import Pool
from qtutor.serving.scheduler import Piece

NAME = "qtutor_paged"  # transformers makes no mask for a name for which no mask function is registered


class Step:
    """The pieces that the model reads in one step, as tensors.

    ids, positions, blocks, places: int64 ``[tokens]``; a token's key and value lie in ``places`` of ``blocks``.
    ends: where each piece ends in the row, int64 ``[pieces]``.
    """

    def __init__(self, pool: Pool, pieces: list[Piece]):
        self.pool = pool
        self.device, size = pool.keys.device, pool.keys.shape[2]
        spans = [(piece, position) for piece in pieces for position in range(piece.start, piece.end)]
        self.ids = self._tensor([piece.request.tokens[position] for piece, position in spans])
        self.positions = self._tensor([position for _, position in spans])
        self.blocks = self._tensor([piece.request.table[position // size] for piece, position in spans])
        self.places = self.positions % size
        self.ends = self._tensor([piece.end - piece.start for piece in pieces]).cumsum(0) - 1
        self.groups = self._groups(pieces, size)

    def _groups(self, pieces: list[Piece], size: int) -> list["Group"]:
        """Pieces of one length together: all texts that are being written make one group, and one product."""
        starts, by_length = 0, defaultdict(list)
        for piece in pieces:
            length = piece.end - piece.start
            by_length[length].append((range(starts, starts + length), piece.request.table[: -(-piece.end // size)]))
            starts += length
        groups = []
        for members in by_length.values():
            rows = self._tensor([list(rows) for rows, _ in members])
            longest = max(len(table) for _, table in members)
            # Short tables are filled up with block 0: the positions behind a text's end are not visible.
            tables = self._tensor([table + [0] * (longest - len(table)) for _, table in members])
            groups.append(Group(rows, tables, self.positions[rows], size))
        return groups

    def _tensor(self, numbers: list) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.int64, device=self.device)


class Group:
    """Pieces with the same number of new tokens: rows, positions ``[texts, new]``, tables ``[texts, blocks]``."""

    def __init__(self, rows: torch.Tensor, tables: torch.Tensor, positions: torch.Tensor, size: int):
        self.rows, self.tables, self.positions = rows, tables, positions
        self.length = tables.shape[1] * size
        self._visible = {}

    def visible(self, window: int | None) -> torch.Tensor:
        """Which keys each new token sees, bool ``[texts, 1, new, length]``: itself and what stands before it.

        window: only so many, itself included. The same for all layers with that window, so it is made once a step.
        """
        if window not in self._visible:
            keys, own = torch.arange(self.length, device=self.rows.device), self.positions[..., None]
            seen = keys <= own
            if window is not None:
                seen &= keys > own - window
            self._visible[window] = seen[:, None]
        return self._visible[window]


def paged_attention(
    module, query, key, value, attention_mask, scaling, dropout=0.0, sliding_window=None, softcap=None, *, step, **_
):
    """What transformers' layers call: store the new keys and values, then let each text attend to its own blocks.

    query: ``[1, heads, tokens, width]``; key, value: ``[1, kv heads, tokens, width]``. Returns
    ``[1, tokens, heads, width]``, and ``None`` for the attention weights.
    """
    step.pool.write(module.layer_idx, step.blocks, step.places, key[0].transpose(0, 1), value[0].transpose(0, 1))
    out = torch.empty_like(query[0].transpose(0, 1))
    for group in step.groups:
        keys, values = step.pool.read(module.layer_idx, group.tables)
        asking = query[0][:, group.rows].transpose(0, 1)  # [texts, heads, new, width]
        found = attend(asking, keys, values, group.visible(sliding_window), scaling, softcap)
        out[group.rows] = found.transpose(1, 2)
    return out[None], None


def attend(query, keys, values, visible, scaling: float, softcap: float | None = None) -> torch.Tensor:
    """Attention of ``query [texts, heads, new, width]`` to ``keys, values [texts, kv heads, length, width]``.

    visible: bool ``[texts, 1, new, length]``. Heads that share keys ask as further rows of them, so no key is copied.
    """
    heads, ratio = keys.shape[1], query.shape[1] // keys.shape[1]
    rows = query.reshape(len(query), heads, ratio * query.shape[2], query.shape[3])
    visible = visible.repeat(1, 1, ratio, 1)
    if softcap is None:
        out = scaled_dot_product_attention(rows, keys, values, attn_mask=visible, scale=scaling)
    else:  # Gemma 2: torch's function has no soft cap
        scores = softcap * torch.tanh(rows @ keys.transpose(-1, -2) * scaling / softcap)
        scores = scores.masked_fill(~visible, float("-inf"))
        out = scores.softmax(-1, dtype=torch.float32).to(query.dtype) @ values
    return out.reshape(query.shape)


@contextmanager
def attending_over_blocks(model) -> Iterator[None]:
    """Inside, the model's layers call :func:`paged_attention`; afterwards what they called before."""
    before = model.config._attn_implementation
    model.config._attn_implementation = NAME
    try:
        yield
    finally:
        model.config._attn_implementation = before


ALL_ATTENTION_FUNCTIONS.register(NAME, paged_attention)

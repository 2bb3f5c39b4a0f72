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
from itertools import accumulate

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from qtutor.serving.cache import Pool
from qtutor.serving.scheduler import Piece

NAME = "qtutor_paged"  # transformers makes no mask for a name for which no mask function is registered


class Step:
    """The pieces that the model reads in one step, as tensors.

    ids, positions: int64 ``[tokens]``. slots: where in the pool each token's key and value belong, int64 ``[tokens]``.
    ends: where each piece ends in the row, int64 ``[pieces]``.
    """

    def __init__(self, pool: Pool, pieces: list[Piece]):
        self.pool = pool
        self.device, size = pool.keys.device, pool.size
        ids, positions, slots = [], [], []
        for piece in pieces:
            places = range(piece.start, piece.end)
            ids += piece.request.tokens[piece.start : piece.end]
            positions += places
            slots += [piece.request.table[place // size] * size + place % size for place in places]
        self.ids, self.positions, self.slots = self._tensor(ids), self._tensor(positions), self._tensor(slots)
        self.ends = self._tensor(list(accumulate(piece.end - piece.start for piece in pieces))) - 1
        self.groups = self._groups(pieces, size)

    def _groups(self, pieces: list[Piece], size: int) -> list["Group"]:
        """Pieces of one length whose tables are about as long: one product each, in which little is padded."""
        start, alike = 0, defaultdict(list)
        for piece in pieces:
            length, table = piece.end - piece.start, piece.request.table[: -(-piece.end // size)]
            alike[length, len(table).bit_length()].append((range(start, start + length), table))
            start += length
        groups = []
        for members in alike.values():
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
        self._masks = {}

    def mask(self, window: int | None, ratio: int, dtype: torch.dtype) -> torch.Tensor:
        """What is added to scores, ``[texts, 1, ratio * new, length]``: 0 for the token itself and what stands before.

        window: only so many, itself included; -inf for the rest. ratio: so many heads ask, one below the other. The
        same for all layers with that window, so it is made once a step.
        """
        if window not in self._masks:
            keys, own = torch.arange(self.length, device=self.rows.device), self.positions[..., None]
            hidden = keys > own
            if window is not None:
                hidden |= keys <= own - window
            mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, float("-inf"))
            self._masks[window] = mask.repeat(1, ratio, 1)[:, None]
        return self._masks[window]


def paged_attention(
    module, query, key, value, attention_mask, scaling, dropout=0.0, sliding_window=None, softcap=None, *, step, **_
):
    """What transformers' layers call: store the new keys and values, then let each text attend to its own blocks.

    query: ``[1, heads, tokens, width]``; key, value: ``[1, kv heads, tokens, width]``. Returns
    ``[1, tokens, heads, width]``, and ``None`` for the attention weights.
    """
    step.pool.write(module.layer_idx, step.slots, key[0].transpose(0, 1), value[0].transpose(0, 1))
    out = torch.empty_like(query[0].transpose(0, 1))
    for group in step.groups:
        keys, values = step.pool.read(module.layer_idx, group.tables)
        ratio = query.shape[1] // keys.shape[1]
        # Heads that share keys ask as further rows of them, so no key is copied: [texts, kv heads, ratio * new, width].
        asking = query[0][:, group.rows].transpose(0, 1)
        rows = asking.reshape(*keys.shape[:2], -1, keys.shape[3])
        found = attend(rows, keys, values, group.mask(sliding_window, ratio, query.dtype), scaling, softcap)
        out[group.rows] = found.view(asking.shape).transpose(1, 2)
    return out[None], None


def attend(query, keys, values, mask, scaling: float, softcap: float | None = None) -> torch.Tensor:
    """Attention of ``query [texts, heads, rows, width]`` to ``keys, values [texts, heads, length, width]``.

    mask: what is added to the scores, ``[texts, 1, rows, length]``.
    """
    if softcap is None:
        return scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scaling)
    # Gemma 2: torch's function has no soft cap.
    scores = softcap * torch.tanh(query @ keys.transpose(-1, -2) * scaling / softcap) + mask
    return scores.softmax(-1, dtype=torch.float32).to(query.dtype) @ values


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

"""Attention over blocks, behind transformers' own decoder layers: the project writes no model code.

A transformers layer computes queries, keys and values, and passes them to the function that
``config._attn_implementation`` names, with all keyword arguments that the model does not know itself.
:func:`paged_attention` is such a function. It gets a :class:`Step` as the keyword ``step``, which says where keys and
values are stored, and which text reads which of them. All tokens of a step are in one row, ``[1, tokens]``, one after
the other, without padding. Positions count within each text, so the layers rotate queries and keys as they always do.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from qtutor.serving.cache import Pool
from qtutor.serving.scheduler import Piece

NAME = "qtutor_paged"  # transformers makes no mask for a name for which no mask function is registered


class Step:
    """The pieces that the model reads in one step, as tensors. Pieces of similar shape are together in the row.

    ids, positions: int64 ``[1, tokens]``. slots: the place of each token's key and value in the pool, int64
    ``[tokens]``. ends: the last place of each piece in the row, in the order in which pieces were given, int64
    ``[pieces]``.
    """

    def __init__(self, pool: Pool, pieces: list[Piece]):
        self.pool = pool
        ids, positions, slots, ends, rows = [], [], [], {}, []
        for alike in (list(group) for _, group in groupby(sorted(pieces, key=_shape), _shape)):
            start = len(ids)
            for piece in alike:
                table, places = piece.request.table, range(piece.start, piece.end)
                ids += piece.request.tokens[piece.start : piece.end]
                positions += places
                slots += [table[place // pool.size] * pool.size + place % pool.size for place in places]
                ends[piece] = len(ids) - 1
            rows.append((alike, slice(start, len(ids))))
        self.ids, self.positions = (torch.tensor([numbers], device=pool.device) for numbers in (ids, positions))
        self.slots = torch.tensor(slots, device=pool.device)
        self.ends = torch.tensor([ends[piece] for piece in pieces], device=pool.device)
        self.groups = [Group(pool, alike, rows, self.positions[0, rows]) for alike, rows in rows]


def _shape(piece: Piece) -> tuple[int, int]:
    """Equal for pieces that go into one product: they have the same number of new tokens, and texts of similar length.

    The longest is less than twice as long as the shortest. Below 64 tokens, padding costs less than another product.
    """
    return piece.end - piece.start, (piece.end // 64).bit_length()


class Group:
    """Pieces with the same number of new tokens. rows: their place in the step's row.

    tables: int64 ``[texts, blocks]``. positions: of the new tokens, int64 ``[texts, new, 1]``.
    """

    def __init__(self, pool: Pool, pieces: list[Piece], rows: slice, positions: torch.Tensor):
        self.rows, self.positions = rows, positions.view(len(pieces), -1, 1)
        counts = [-(-piece.end // pool.size) for piece in pieces]
        # Short tables are filled up with block 0: the mask hides the positions behind a text's end.
        tables = [piece.request.table[:n] + [0] * (max(counts) - n) for piece, n in zip(pieces, counts, strict=True)]
        self.tables = torch.tensor(tables, device=pool.device)
        self.length = max(counts) * pool.size
        self._masks = {}

    def mask(self, window: int | None, ratio: int, dtype: torch.dtype) -> torch.Tensor:
        """The mask to add to the scores, ``[texts, 1, ratio * new, length]``: 0 for a token itself and all before it.

        window: only this many tokens, itself included; -inf for the rest. ratio: this many query heads share one key
        head, with their rows one below the other. The mask is the same for all layers with that window, so it is
        computed once a step.
        """
        if window not in self._masks:
            keys = torch.arange(self.length, device=self.tables.device)
            hidden = keys > self.positions
            if window is not None:
                hidden |= keys <= self.positions - window
            mask = torch.where(hidden, float("-inf"), 0.0).to(dtype)
            self._masks[window] = mask.repeat(1, ratio, 1)[:, None]
        return self._masks[window]


def paged_attention(
    module, query, key, value, attention_mask, scaling, dropout=0.0, sliding_window=None, softcap=None, *, step, **_
):
    """Attention for transformers' layers: store the new keys and values, then let each text attend to its own blocks.

    query: ``[1, heads, tokens, width]``; key, value: ``[1, kv heads, tokens, width]``. Returns
    ``[1, tokens, heads, width]``, and ``None`` for the attention weights.
    """
    step.pool.write(module.layer_idx, step.slots, key[0].transpose(0, 1), value[0].transpose(0, 1))
    ratio, found = query.shape[1] // key.shape[1], []
    for group in step.groups:
        keys, values = step.pool.read(module.layer_idx, group.tables)
        asking = query[0, :, group.rows].unflatten(1, (len(keys), -1)).transpose(0, 1)  # [texts, heads, new, width]
        # Query heads that share keys become further rows, so no key is copied: [texts, kv heads, ratio * new, width].
        rows = asking.reshape(*keys.shape[:2], -1, keys.shape[3])
        answer = attend(rows, keys, values, group.mask(sliding_window, ratio, query.dtype), scaling, softcap)
        found.append(answer.reshape(asking.shape).transpose(1, 2).flatten(0, 1))
    return torch.cat(found)[None], None


def attend(query, keys, values, mask, scaling: float, softcap: float | None = None) -> torch.Tensor:
    """Attention of ``query [texts, heads, rows, width]`` to ``keys, values [texts, heads, length, width]``.

    mask: added to the scores, ``[texts, 1, rows, length]``.
    """
    if softcap is None:
        return scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scaling)
    # For Gemma 2: torch's function has no soft cap.
    scores = softcap * torch.tanh(query @ keys.transpose(-1, -2) * scaling / softcap) + mask
    return scores.softmax(-1, dtype=torch.float32).to(query.dtype) @ values


@contextmanager
def attending_over_blocks(model) -> Iterator[None]:
    """Inside, the model's layers call :func:`paged_attention`; afterwards the same function as before."""
    before = model.config._attn_implementation
    model.config._attn_implementation = NAME
    try:
        yield
    finally:
        model.config._attn_implementation = before


ALL_ATTENTION_FUNCTIONS.register(NAME, paged_attention)

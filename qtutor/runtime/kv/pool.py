"""A pool of blocks for :class:`qtutor.serving.Engine` that stores codes: each token and head by itself.

The engine allocates storage once, so its bytes are known beforehand, and later another text overwrites a block. Keys
per channel are refused here, because they need all tokens of a window at once: a block fills token by token, and its
scales would have to change with each token.
"""

import torch

from qtutor.errors import QtutorError
from qtutor.runtime.kv.coding import Coded, decode, encode
from qtutor.runtime.kv.format import CHANNEL, Coding, KVFormat, shape_of


class QuantizedPool:
    """Keys and values of ``blocks`` blocks of ``size`` tokens in all layers.

    >>> Engine(model, tokenizer, pool=partial(QuantizedPool, form=KVFormat(8)))
    """

    def __init__(self, config, blocks: int, size: int, dtype: torch.dtype, device, form: KVFormat | None = None):
        self.form = KVFormat() if form is None else form
        if self.form.keys == CHANNEL:
            raise QtutorError(
                "keys = 'channel': the engine fills its blocks token by token, but scales per channel need whole "
                "windows of tokens. Use keys = 'token' here, or KVCache with generate."
            )
        layers, heads, self.head = shape_of(config)
        self.size, self.dtype, self.device = size, dtype, device
        # Zeros: places that were never written are read, too, and have to be finite; the mask hides them.
        self.stores = [
            {
                name: torch.zeros(layers, blocks * size, heads, count, dtype=of, device=device)
                for name, (count, of) in coding.shapes(self.head, dtype).items()
            }
            for coding in self.form.codings
        ]

    @property
    def nbytes(self) -> int:
        """The bytes of all keys and values."""
        return sum(tensor.nbytes for store in self.stores for tensor in store.values())

    def write(self, layer: int, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store ``keys, values [tokens, kv heads, head]`` in ``slots``, int64 ``[tokens]``: block * size + place."""
        for store, coding, new in zip(self.stores, self.form.codings, (keys, values), strict=True):
            coded = encode(new, coding)
            for name, tensor in store.items():
                tensor[layer, slots] = getattr(coded, name)

    def read(self, layer: int, blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of whole tables, int64 ``[texts, blocks]``: ``[texts, kv heads, blocks * size, head]``."""
        slots = (blocks[..., None] * self.size + torch.arange(self.size, device=blocks.device)).flatten(1)
        return tuple(self._read(layer, slots, *one) for one in zip(self.stores, self.form.codings, strict=True))

    def _read(self, layer: int, slots: torch.Tensor, store: dict, coding: Coding) -> torch.Tensor:
        found = {name: tensor[layer, slots].transpose(1, 2) for name, tensor in store.items()}
        coded = Coded(found["codes"], found.get("scales"), found.get("zeros"), coding, self.head)
        return decode(coded).to(self.dtype)

"""A cache for transformers' models that stores keys and values in codes: ``model.generate(past_key_values=...)``.

A layer hands its new keys (already rotated by rope) and values to the cache, and attends to the result: all stored keys
and values, decoded. So attention sees the new tokens, too, as it will see them in every later step. The code of a model
and its attention does not change. A Hadamard rotation is undone on the way; an engine with its own attention rotates
queries and outputs instead, which gives the same result and costs less.

Left out: speed, and moving the cache to other devices (transformers' offloading). Each step decodes the whole cache of
a layer, so it saves memory but no time; an engine's kernel decodes in registers.
"""

import torch
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from qtutor.errors import QtutorError, naming
from qtutor.families import family_of
from qtutor.guards.running import check_measurable
from qtutor.runtime.kv.format import KVFormat, windows
from qtutor.runtime.kv.stored import Stored


class KVLayer(DynamicLayer):
    """Keys and values of one layer."""

    def __init__(self, form: KVFormat, index: int, **window):
        super().__init__(**window)
        self.form, self.index = form, index
        self.stored: tuple[Stored, Stored] | None = None

    def update(self, key_states, value_states, *args, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
        """Store new keys and values ``[batch, kv heads, new, head]``, and return all stored ones, decoded."""
        if self.stored is None:
            self.lazy_initialization(key_states, value_states)
        for name, stored, new in zip(("keys", "values"), self.stored, (key_states, value_states)):
            with naming(f"the cache, {name} of layer {self.index}"):
                stored.append(new)
        return tuple(stored.read() for stored in self.stored)

    def lazy_initialization(self, key_states, value_states) -> None:
        """Begin with nothing stored; the name is transformers'."""
        super().lazy_initialization(key_states, value_states)
        self.keys = self.values = None  # transformers' own tensors
        first = zip((key_states, value_states), self.form.codings, strict=True)
        self.stored = tuple(Stored(states, coding) for states, coding in first)

    @property
    def nbytes(self) -> int:
        """The bytes of keys and values."""
        return sum(stored.nbytes for stored in self.stored or ())

    def get_seq_length(self) -> int:
        """How many tokens were stored."""
        return len(self.stored[0]) if self.stored else 0

    def reset(self) -> None:
        """Forget everything."""
        self.stored, self.is_initialized = None, False

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the newest tokens; their number is given as a negative number or 0, as in transformers."""
        held = len(self.stored[0]) if self.stored else 0
        if not -held <= tokens_to_remove <= 0:
            raise QtutorError(
                f"crop({tokens_to_remove}): pass -n to remove the n newest of the {held} tokens in the cache."
            )
        for stored in self.stored or ():
            stored.crop(-tokens_to_remove)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Row ``i`` becomes what row ``beam_idx[i]`` was: beam search."""
        for stored in self.stored or ():
            stored.select(beam_idx)

    batch_select_indices = reorder_cache

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row ``repeats`` times."""
        for stored in self.stored or ():
            stored.select(torch.arange(len(stored.newest)).repeat_interleave(repeats))


class SlidingKVLayer(KVLayer, DynamicSlidingWindowLayer):
    """A layer whose tokens see only the last ``sliding_window`` tokens; masks count them as in transformers' class."""

    def update(self, key_states, value_states, *args, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
        """As in :class:`KVLayer`; tokens that the next one does not see are forgotten."""
        found = super().update(key_states, value_states)
        new = key_states.shape[-2]
        self.cumulative_length += new
        if not self.record_past:  # transformers says beforehand if it may remove tokens again
            self._slide()
        return tuple(numbers[..., -(self.sliding_window - 1 + new) :, :] for numbers in found)

    def get_seq_length(self) -> int:
        """How many tokens were stored, forgotten ones included."""
        return self.cumulative_length

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.cumulative_length = 0

    def crop(self, tokens_to_remove: int) -> None:
        """As in :class:`KVLayer`, if no token is forgotten yet that would be needed again."""
        if tokens_to_remove and self.cumulative_length >= self.sliding_window and not self.record_past:
            raise QtutorError(
                f"crop({tokens_to_remove}): layer {self.index} has a sliding window of {self.sliding_window} tokens, "
                "and no longer holds earlier ones. Call cache.activate_past_recording() before you add the tokens."
            )
        super().crop(tokens_to_remove)
        self.cumulative_length += tokens_to_remove
        self._slide()

    def _slide(self) -> None:
        for stored in self.stored or ():
            stored.forget(self.sliding_window - 1)


class KVCache(Cache):
    """A cache for the decoders of known families, whose layers see all tokens or a sliding window.

    form: :class:`.KVFormat`. Pass the cache to ``model.generate`` or to the model itself as ``past_key_values=``, a new
    one for each batch of texts. Beams, speculation and ``copy.deepcopy`` of a prefix work as with transformers' own
    caches. Raises :class:`QtutorError` for an unknown family, and if a key or value is not finite.
    """

    def __init__(self, model, form: KVFormat | None = None):
        check_measurable(model)
        family_of(model)
        form = KVFormat() if form is None else form
        if not isinstance(form, KVFormat):
            raise QtutorError(f"the format of the cache is {form!r}; expected a KVFormat, such as KVFormat(bits=8).")
        self.form = form
        layers = [
            KVLayer(form, index) if window is None else SlidingKVLayer(form, index, sliding_window=window)
            for index, window in enumerate(windows(model.config))
        ]
        super().__init__(layers=layers)

    @property
    def nbytes(self) -> int:
        """The bytes of all keys and values, with scales and zero points; :func:`.cache_bytes` predicts them."""
        return sum(layer.nbytes for layer in self.layers)

"""A cache for transformers' models that stores keys and values in codes: ``model.generate(past_key_values=...)``.

A layer hands its new keys (turned by rope already) and values to the cache, and attends to what the cache gives back:
all that is stored, decoded. So attention sees what it will see in every later step, the new tokens included, and no
code of a model or of an attention is changed. A rotation is undone on the way; an engine with an attention of its own
turns queries and outputs instead, which is the same and costs less.

Left out: speed. Each step decodes the whole cache of a layer, so memory is saved and time is not; an engine's kernel
decodes in registers. And moving the cache to other devices (transformers' offloading).
"""

import torch
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from qtutor.errors import QtutorError, naming
from qtutor.families import family_of
from qtutor.guards.model import check_measurable
from qtutor.runtime.kv.format import KVFormat, windows
from qtutor.runtime.kv.stored import Stored


class KVLayer(DynamicLayer):
    """Keys and values of one layer."""

    def __init__(self, form: KVFormat, index: int, **window):
        super().__init__(**window)
        self.form, self.index = form, index
        self.stored: tuple[Stored, Stored] | None = None

    def update(self, key_states, value_states, *args, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
        """Store new keys and values ``[batch, kv heads, new, head]``, and give all of them back as they are stored."""
        if self.stored is None:
            self.lazy_initialization(key_states, value_states)
        for name, stored, new in zip(("keys", "values"), self.stored, (key_states, value_states)):
            with naming(f"the cache, {name} of layer {self.index}"):
                stored.append(new)
        return tuple(stored.read() for stored in self.stored)

    def lazy_initialization(self, key_states, value_states) -> None:
        """What transformers calls it: begin, with nothing stored."""
        super().lazy_initialization(key_states, value_states)
        self.keys = self.values = None  # transformers' own tensors
        first = zip((key_states, value_states), self.form.codings, strict=True)
        self.stored = tuple(Stored(states, coding) for states, coding in first)

    @property
    def nbytes(self) -> int:
        """What keys and values take."""
        return sum(stored.nbytes for stored in self.stored or ())

    def get_seq_length(self) -> int:
        """How many tokens were stored."""
        return len(self.stored[0]) if self.stored else 0

    def reset(self) -> None:
        """Forget everything."""
        self.stored, self.is_initialized = None, False

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the newest tokens; their number is negative or 0, as transformers wants it."""
        held = len(self.stored[0]) if self.stored else 0
        if not -held <= tokens_to_remove <= 0:
            raise QtutorError(
                f"crop({tokens_to_remove}): the cache takes -n, for the n newest of the {held} tokens that it holds."
            )
        for stored in self.stored or ():
            stored.crop(-tokens_to_remove)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Row ``i`` becomes what row ``beam_idx[i]`` was: beam search."""
        for stored in self.stored or ():
            stored.select(beam_idx)

    batch_select_indices = reorder_cache

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row so many times."""
        for stored in self.stored or ():
            stored.select(torch.arange(len(stored.newest)).repeat_interleave(repeats))


class SlidingKVLayer(KVLayer, DynamicSlidingWindowLayer):
    """One whose tokens see the last ``sliding_window`` alone; how its masks count them is transformers'."""

    def update(self, key_states, value_states, *args, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
        """As in :class:`KVLayer`; what the next token does not see is forgotten."""
        found = super().update(key_states, value_states)
        new = key_states.shape[-2]
        self.cumulative_length += new
        if not self.record_past:  # transformers says beforehand that it may take back what is read
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
        """As in :class:`KVLayer`, where nothing is forgotten yet that would have to come back."""
        if tokens_to_remove and self.cumulative_length >= self.sliding_window and not self.record_past:
            raise QtutorError(
                f"crop({tokens_to_remove}): layer {self.index} has a sliding window of {self.sliding_window} tokens, "
                "and has forgotten those before. Call cache.activate_past_recording() before the tokens come."
            )
        super().crop(tokens_to_remove)
        self.cumulative_length += tokens_to_remove
        self._slide()

    def _slide(self) -> None:
        for stored in self.stored or ():
            stored.forget(self.sliding_window - 1)


class KVCache(Cache):
    """A cache for one of the decoders that are known here, whose layers see all tokens or a sliding window.

    form: :class:`.KVFormat`. For ``past_key_values=`` of ``model.generate`` or of the model itself, a new one for each
    batch of texts. Beams, speculation and ``copy.deepcopy`` of a prefix work as with transformers' own. Raises
    :class:`QtutorError` for a family that is not known, and when a number comes that is not finite.
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
        """What all keys and values take, scales and zero points included; :func:`.cache_bytes` says it beforehand."""
        return sum(layer.nbytes for layer in self.layers)

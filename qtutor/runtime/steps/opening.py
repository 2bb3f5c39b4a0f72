"""The ``with`` block in which a decoder generates quickly."""

import contextlib
import functools
import threading
from collections.abc import Iterator

import torch

from qtutor.compiling import told_if_slow
from qtutor.runtime.steps.anatomy import reason_against, windows


class Steps:
    """The replacement of a model's forward. taken: how many steps ran without the model's own forward.

    against: why no step can, in words, or ``None``.
    """

    def __init__(self, model):
        self.model, self.own, self.against = model, model.forward, reason_against(model)
        self.taken, self._plan, self._lock = 0, None, threading.Lock()
        self._windows = [] if self.against else windows(model)

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, **more):
        """Run a quick step if the call allows one, and otherwise the model's own forward."""
        out = self._quick(input_ids, attention_mask, position_ids, past_key_values, more)
        if out is not None:
            return out
        given = {"attention_mask": attention_mask, "position_ids": position_ids, "past_key_values": past_key_values}
        return self.own(input_ids, **given, **more)

    def _quick(self, ids, mask, positions, cache, more: dict):
        """The output of a quick step, or ``None``."""
        from transformers.modeling_outputs import CausalLMOutputWithPast

        from qtutor.runtime.steps.asked import tokens_before
        from qtutor.runtime.steps.products import NotFinite

        if self.against or ids is None:
            return None
        count = tokens_before(self.model, self._windows, ids, cache, mask, positions, more)
        # The plan has one set of arrays, so only one thread at a time uses it.
        if count is None or not self._lock.acquire(blocking=False):
            return None
        try:
            positions = torch.tensor([[count]]) if positions is None else positions
            with contextlib.nullcontext() if self.taken else told_if_slow("a step of the decoder"):
                logits = self._current_plan().logits(ids, positions, cache, count)
        except NotFinite:
            return None
        finally:
            self._lock.release()
        self.taken += 1
        return CausalLMOutputWithPast(logits=logits, past_key_values=cache)

    def _current_plan(self):
        from qtutor.runtime.steps.plan import Plan

        if self._plan is None or not self._plan.current():
            self._plan = Plan(self.model)
        return self._plan


@contextlib.contextmanager
def quick_steps(model) -> Iterator[Steps]:
    """Inside, ``model`` generates one token after the other as quickly as its packed weights can be read.

    This works only for supported decoders (:func:`.anatomy.reason_against`), and for one text: every other call runs as
    usual. Inside, do not replace layers of the model, change their weights, add hooks to them, or copy the model. All
    memory besides the model's is released at the end.
    """
    steps = Steps(model)
    if steps.against:
        yield steps
        return

    @functools.wraps(steps.own)  # generate() looks at the signature
    def forward(*args, **more):
        return steps.forward(*args, **more)

    model.forward = forward
    try:
        yield steps
    finally:
        del model.forward

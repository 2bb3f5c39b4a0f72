"""One token after the other, with hardly any Python in between: for packed decoders on a CPU.

Packed weights are read in a few milliseconds. Then the rest of a step costs more than they do: a decoder of 30 blocks
starts over a thousand operations of torch, each from Python. Here a block is eleven compiled functions.

>>> with quick_steps(model):
...     model.generate(ids, max_new_tokens=64)

Inside, a call of the model with one new token of one text, behind a cache that is filled, runs :class:`.plan.Plan`. Any
other call runs the model's own forward, and so do all where anything unusual is asked for: :mod:`.asked` says what.
:mod:`.anatomy` says which decoders are known. Their own forward defines what is right: results differ from it by the
rounding of sums alone.

:mod:`.products` multiplies by a layer, :mod:`.loops` has the rest of a block, and :mod:`.growing` lets the cache of
transformers grow in place.
"""

from qtutor.runtime.steps.opening import quick_steps

__all__ = ["quick_steps"]

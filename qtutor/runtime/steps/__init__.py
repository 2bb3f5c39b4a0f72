"""One token after the other, with hardly any Python in between: for packed decoders on a CPU.

Reading packed weights takes a few milliseconds. Then the rest of a step takes longer: a decoder of 30 blocks starts
more than a thousand operations of torch, each from Python. Here a block runs eleven compiled functions.

>>> with quick_steps(model):
...     model.generate(ids, max_new_tokens=64)

Inside the ``with`` block, a call of the model with one new token of one text and a filled cache runs
:class:`.plan.Plan`. Any other call runs the model's own forward, and so does a call with unusual arguments:
:mod:`.asked` decides. :mod:`.anatomy` says which decoders are supported. Their own forward defines the right result;
quick steps differ from it only by the rounding of sums.

:mod:`.products` multiplies by a layer, :mod:`.loops` has the rest of a block, and :mod:`.growing` lets the cache of
transformers grow in place.
"""

from qtutor.runtime.steps.opening import quick_steps

__all__ = ["quick_steps"]

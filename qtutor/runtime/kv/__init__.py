"""Quantized caches of keys and values.

>>> cache = KVCache(model, KVFormat(bits=4, keys="channel"))
>>> model.generate(ids, past_key_values=cache)
>>> cache.nbytes

:mod:`.format` says what is stored and how many bytes it takes, :mod:`.coding` turns a tensor into codes and codes into
numbers, :mod:`.rotation` spreads outliers before that; none of them is specific to transformers. :mod:`.stored` grows a
tensor of codes token by token. transformers calls :mod:`.cache`, and the engine of :mod:`qtutor.serving` calls
:mod:`.pool`.
"""

from qtutor.runtime.kv.cache import KVCache
from qtutor.runtime.kv.format import KVFormat, cache_bytes
from qtutor.runtime.kv.pool import QuantizedPool

__all__ = ["KVCache", "KVFormat", "QuantizedPool", "cache_bytes"]

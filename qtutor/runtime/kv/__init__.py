"""Quantized caches of keys and values.

>>> cache = KVCache(model, KVFormat(bits=4, keys="channel"))
>>> model.generate(ids, past_key_values=cache)
>>> cache.nbytes

:mod:`.format` says what is stored and how many bytes it takes, :mod:`.coding` makes codes of a tensor and numbers of
codes, :mod:`.rotation` spreads outliers first; none of them knows transformers. :mod:`.stored` grows a tensor of codes
token by token, :mod:`.cache` is what transformers calls, and
:mod:`.pool` what the engine of :mod:`qtutor.serving` does.
"""

from qtutor.runtime.kv.cache import KVCache
from qtutor.runtime.kv.format import KVFormat, cache_bytes
from qtutor.runtime.kv.pool import QuantizedPool

__all__ = ["KVCache", "KVFormat", "QuantizedPool", "cache_bytes"]

"""The cost of rounded caches: measured on the decoder at hand; for SmolLM2, stored by ``benchmarks/kv_cache.py``.

The stored numbers are those of the last table in ``benchmarks/kv_cache.md``; a test compares the two.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from qtutor.measure.against import cost_of_cache
from qtutor.runtime.kv import KVFormat

STORED = Path(__file__).parents[1] / "stored" / "kv_cache.json"
PER_TOKEN, PER_CHANNEL = {"keys": "token"}, {"keys": "channel"}
# By the names in the benchmark's tables.
FORMATS = {
    "int8": KVFormat(8),
    "int8, rotated": KVFormat(8, rotate=True),
    "FP8": KVFormat("fp8"),
    "int4, keys only, keys per token": KVFormat(4, value_bits=16, **PER_TOKEN),
    "int4, keys only, keys per token, rotated": KVFormat(4, value_bits=16, rotate=True, **PER_TOKEN),
    "int4, keys only, keys per channel": KVFormat(4, value_bits=16, **PER_CHANNEL),
    "int4, keys only, keys per channel, rotated": KVFormat(4, value_bits=16, rotate=True, **PER_CHANNEL),
    "int4, values only": KVFormat(16, value_bits=4),
    "int4, values only, rotated": KVFormat(16, value_bits=4, rotate=True),
    "int4, keys per token": KVFormat(4, **PER_TOKEN),
    "int4, keys per channel": KVFormat(4, **PER_CHANNEL),
}


@dataclass(frozen=True)
class Cost:
    """KL divergence to the model without rounding, nats a token, and its standard error."""

    kl: float
    error: float


def measured(model, token_ids: torch.Tensor) -> dict[str, Cost]:
    """The cost of each format, by the names of :data:`FORMATS`. token_ids: int64 ``[tokens]``, cut into windows."""
    found = {name: cost_of_cache(model, form, token_ids) for name, form in FORMATS.items()}
    return {name: Cost(of.kl, of.kl_error or 0.0) for name, of in found.items()}


def stored() -> tuple[str, dict[str, Cost]]:
    """(how and when it was measured, the costs on SmolLM2 by name, including weights of 4 bits)."""
    document = json.loads(STORED.read_text(encoding="utf-8"))
    return document["how"], {name: Cost(*numbers) for name, numbers in document["smollm2"].items()}

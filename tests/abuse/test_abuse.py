"""A small part of the fuzzer, which takes seconds. To try more by hand: ``python -m tests.abuse.fuzz ours 1000``."""

import sys

import pytest

from tests.abuse import fuzz

# If a file asks for something different and nothing contradicts it, different logits are right.
# These edits may have that effect.
MEANT = (
    "tokenizer.",
    "attention.",
    "bytes of",
    "order",
    "threshold",
    "rms_norm_eps",
    "rope_",
    "hidden_act",
    "sliding_window",
    "layer_types",
    "numbers",
    "transposed",
)


@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of forked processes through /proc")
@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_damage_is_refused_in_a_paragraph_or_changes_nothing(tmp_path, kind):
    results = list(fuzz.results(kind, range(20), tmp_path))
    found = [(result, said, words) for result, said, words in results if result not in ("refused", "same")]
    assert [row for row in found if row[0] != "other" or not any(key in row[1] for key in MEANT)] == []
    assert {result for result, _, _ in results} >= {"refused", "same"}

"""The speed of generated text in words and numbers, and the bytes that are read for a token."""

import pytest
import torch

import qtutor
from qtutor.measure import speed
from tests.models import tiny

CPU = torch.device("cpu")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("packed", [False, True])
def test_a_token_reads_all_but_the_table(tied, packed):
    model = tiny(tied=tied)
    if packed:
        qtutor.quantize(model, qtutor.Recipe(bits=4, group_size=32, embeddings=True), progress=False)
    table = sum(tensor.nbytes for tensor in model.get_input_embeddings().state_dict().values())
    whole = qtutor.evaluate.model_bytes(model)
    shared = tied and not packed  # a packed tied matrix may be stored once or twice
    read = speed.bytes_of_a_token(model)
    if shared:
        assert read == whole
    elif not tied:
        assert read == whole - table + table // 256
    assert 0 < read <= whole


def test_copying_is_measured_by_the_clock_that_is_given():
    ticks = iter(range(100))
    # The clock is read before and after each copy, so a copy takes one tick. It reads a megabyte and writes one.
    assert speed.copy_bandwidth(lambda: next(ticks), megabytes=1, rounds=3) == 2 * 2**20


def test_the_pace_in_words(monkeypatch):
    monkeypatch.setattr(speed, "copy_bandwidth", lambda: 8e9)
    said = speed.pace(200_000_000, CPU, 1.0, [1.5, 1.6, 1.7, 1.8, 1.9])
    assert said == (
        "5 tokens, the first after 0.50 s, then 10.0 a second. A token reads 200.0 MB of weights, so 2.00 GB/s: 25% of "
        "the 8.0 GB/s with which this machine copies memory."
    )
    assert speed.pace(1, CPU, 1.0, [1.5]) == "1 token, the first after 0.50 s."
    assert speed.pace(10**9, torch.device("meta"), 0.0, [1.0, 2.0]).endswith("so 1.00 GB/s.")

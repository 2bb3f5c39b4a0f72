"""Bytes of published models: their weights as published, and the package's own count of a cache."""

import pytest
import torch

import qtutor
from qtutor.course.serving import sizes
from qtutor.serving.cache import pool_bytes


@pytest.mark.parametrize(
    ("name", "billions"),  # as the model cards have them
    [
        ("SmolLM2 135M", 0.1345),
        ("Qwen 3 0.6B", 0.596),
        ("Llama 2 7B", 6.74),
        ("Llama 3.1 8B", 8.03),
        ("Qwen 3 8B", 8.19),
        ("Llama 3.1 70B", 70.6),
    ],
)
def test_weights_are_as_many_as_published(name, billions):
    assert sizes.PUBLISHED[name].weights / 1e9 == pytest.approx(billions, rel=2e-3)


def test_bytes_of_a_token():
    llama = sizes.PUBLISHED["Llama 3.1 8B"]
    assert llama.token_bytes() == 131072 == pool_bytes(llama.config, 1, torch.bfloat16)
    assert llama.token_bytes(8) == 131072 / 2 + 2 * 32 * 8 * 3  # a scale and a zero point for each head
    assert llama.token_bytes(4) == 131072 / 4 * (4 + 20 / 32) / 4
    assert sizes.PUBLISHED["Llama 2 7B"].token_bytes() == 4 * 131072


def test_the_embedded_decoder_has_its_own_weights():
    model, _ = qtutor.load_decoder(device="cpu")
    shape = sizes.embedded(model.config)
    matrices = sum(parameter.numel() for parameter in model.parameters() if parameter.dim() == 2)
    assert shape.weights == matrices


def test_the_cache_outgrows_the_weights_at_the_first_token_that_makes_it_larger():
    shape = sizes.PUBLISHED["Llama 3.1 8B"]
    for weights, cache in ((16, 16), (4, 16), (4, 4)):
        tokens = sizes.outgrown(shape, weights, cache)
        assert (
            (tokens - 1) * shape.token_bytes(cache) <= shape.weight_bytes(weights) < tokens * shape.token_bytes(cache)
        )


def test_users_fill_the_memory_and_no_more():
    shape, memory = sizes.PUBLISHED["Llama 3.1 8B"], 24e9
    count = sizes.users(shape, memory, 4096, 4, 8)
    each = 4096 * shape.token_bytes(8)
    assert count * each <= 0.9 * memory - shape.weight_bytes(4) < (count + 1) * each
    assert sizes.users(shape, 12e9, 4096, 16, 16) == 0

"""Whether the output matrix is the embedding: the memory decides, and the names, the config and equal values do not."""

import pytest
import torch
from torch import nn

from qtutor.guards.promises import is_tied
from tests.models import tiny


def square(head) -> nn.Module:
    """A decoder with a square embedding, and with ``head(embedding)`` as the data of its output matrix."""
    model = tiny(tied=False)
    embedding = torch.randn(64, 64)
    model.model.embed_tokens.weight = nn.Parameter(embedding)
    model.lm_head.weight = nn.Parameter(head(embedding))
    return model


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (lambda embedding: embedding, True),  # another Parameter, the same numbers in the same places
        (lambda embedding: embedding.clone(), False),
        (lambda embedding: embedding.T, False),
        (lambda embedding: embedding[:32], False),
        (lambda embedding: torch.empty(0, 64), False),
    ],
    ids=("the same memory", "a copy", "transposed", "a part", "empty"),
)
def test_a_head_is_tied_if_it_has_the_numbers_of_the_embedding_in_its_places(head, expected):
    model = square(head)
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    assert is_tied(model) is expected


def test_tensors_without_memory_are_tied_if_they_are_one():
    """All tensors of the meta device have the address 0."""
    model = tiny(tied=False).to("meta")
    assert not is_tied(model)
    model.lm_head.weight = model.model.embed_tokens.weight
    assert is_tied(model)

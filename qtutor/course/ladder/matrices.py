"""Layers and decoders with the shapes of real ones and random weights: speed does not depend on values."""

import itertools
from collections.abc import Callable, Iterator

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from qtutor.core.grid import IntGrid
from qtutor.families import linear_layers
from qtutor.runtime.linear import QuantLinear

SHAPE = 4096, 4096  # a matrix of the attention in a Llama of 7 billion weights
GROUP = 64
CYCLED = 60e6  # bytes of matrices that a product uses in turn, so that they come from memory and not from a cache
BLOCKS = 22  # of TinyLlama, 1.1 billion weights
BLOCK = {  # its matrices
    "q_proj": (2048, 2048),
    "k_proj": (256, 2048),
    "v_proj": (256, 2048),
    "o_proj": (2048, 2048),
    "gate_proj": (5632, 2048),
    "up_proj": (5632, 2048),
    "down_proj": (2048, 5632),
}
HEAD = 32_000 * 2048  # weights of its output matrix


def random_layer(rows: int, columns: int, bits: int, group_size: int = GROUP) -> QuantLinear:
    """A packed layer with random bytes for codes and zero points, and small random scales."""
    layer = QuantLinear(rows, columns, IntGrid(bits), group_size)
    layer.packed = torch.randint(0, 256, layer.packed.shape, dtype=torch.uint8)
    layer.zeros = torch.randint(0, 256, layer.zeros.shape, dtype=torch.uint8)
    layer.scales = (torch.rand(layer.scales_shape) / 100).to(layer.scales.dtype)
    return layer


def in_turn(make: Callable[[], object], nbytes: int) -> Iterator:
    """Matrices of one kind in an endless cycle; there are enough of them that none is still in a cache."""
    return itertools.cycle([make() for _ in range(max(2, min(8, round(CYCLED / nbytes))))])


def tinyllama(blocks: int = 2, vocabulary: int = 1024) -> LlamaForCausalLM:
    """A decoder with some of TinyLlama's blocks, random weights in float32, and a small vocabulary."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=blocks,
        num_attention_heads=32,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        bos_token_id=0,
        eos_token_id=0,
        dtype=torch.float32,
    )
    return LlamaForCausalLM(config).eval()


@torch.no_grad()
def with_random_codes(model: LlamaForCausalLM, bits: int = 4) -> LlamaForCausalLM:
    """Replace every linear layer in the blocks of ``model`` by a :func:`random_layer`, and return ``model``."""
    for name in list(linear_layers(model)):  # names alone, so that each float layer is freed when it is replaced
        layer = model.get_submodule(name)
        model.set_submodule(name, random_layer(layer.out_features, layer.in_features, bits))
    return model

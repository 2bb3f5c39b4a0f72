"""Weights and caches of published models, from their shapes alone: bytes a token, and users that fit in a memory."""

from dataclasses import dataclass

import torch

from qtutor.families import head_dim
from qtutor.runtime.kv import KVFormat, cache_bytes

LONG = 1 << 15  # tokens of a cache; it is so long that its last window hardly counts
# Groups of 64 weights share a scale of 16 bits and a zero point, as everywhere in this course.
GROUP = 64
CACHES = {16: KVFormat(16), 8: KVFormat(8), 4: KVFormat(4)}


@dataclass(frozen=True)
class Shape:
    """A decoder of Llama's kind. tied: the output matrix is the embedding."""

    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head: int
    vocabulary: int
    tied: bool = False

    @property
    def in_blocks(self) -> int:
        """The weights of all blocks' matrices."""
        attention = 2 * self.hidden * self.head * (self.heads + self.kv_heads)  # queries and output, keys and values
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def weights(self) -> int:
        """All weights except those of norms, which are comparatively few."""
        return self.in_blocks + self.vocabulary * self.hidden * (1 if self.tied else 2)

    def weight_bytes(self, bits: int) -> float:
        """Blocks in ``bits`` (16, or fewer with scales and zero points), embedding and output matrix in 16."""
        true_bits = 16 if bits == 16 else bits + (16 + bits) / GROUP
        return self.in_blocks * true_bits / 8 + 2 * (self.weights - self.in_blocks)

    def token_bytes(self, bits: int = 16) -> float:
        """The bytes of one token in the cache: numbers of 16 bits, or of 8 or 4 with scales and zero points."""
        return cache_bytes(self.config, CACHES[bits], LONG, dtype=torch.bfloat16) / LONG

    @property
    def config(self):
        """A transformers config of this shape."""
        from transformers import LlamaConfig

        return LlamaConfig(
            num_hidden_layers=self.layers,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head,
            vocab_size=self.vocabulary,
            tie_word_embeddings=self.tied,
        )


# From the config.json of each model on the hub.
PUBLISHED = {
    shape.name: shape
    for shape in (
        Shape("SmolLM2 135M", 30, 576, 1536, 9, 3, 64, 49152, tied=True),
        Shape("Qwen 3 0.6B", 28, 1024, 3072, 16, 8, 128, 151936, tied=True),
        Shape("Llama 2 7B", 32, 4096, 11008, 32, 32, 128, 32000),
        Shape("Llama 3.1 8B", 32, 4096, 14336, 32, 8, 128, 128256),
        Shape("Qwen 3 8B", 36, 4096, 12288, 32, 8, 128, 151936),
        Shape("Llama 3.1 70B", 80, 8192, 28672, 64, 8, 128, 128256),
    )
}


def embedded(config) -> Shape:
    """The shape of the embedded decoder, from its config."""
    return Shape(
        "the embedded decoder",
        config.num_hidden_layers,
        config.hidden_size,
        config.intermediate_size,
        config.num_attention_heads,
        config.num_key_value_heads,
        head_dim(config),
        config.vocab_size,
        config.tie_word_embeddings,
    )


def outgrown(shape: Shape, weight_bits: int, cache_bits: int) -> int:
    """The number of tokens, of all users together, from which on the cache is larger than the weights."""
    return int(shape.weight_bytes(weight_bits) // shape.token_bytes(cache_bits)) + 1


def users(shape: Shape, memory: float, tokens: int, weight_bits: int, cache_bits: int, spare: float = 0.1) -> int:
    """How many texts of ``tokens`` tokens fit beside the weights into ``memory`` bytes.

    spare: the share of the memory that is left for everything else, such as activations.
    """
    left = memory * (1 - spare) - shape.weight_bytes(weight_bits)
    return max(0, int(left // (tokens * shape.token_bytes(cache_bits))))

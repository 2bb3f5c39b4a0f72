"""What a family of decoders is: the halves of its blocks, what AWQ can scale, and where the rest of the model is.

A block adds to the residual stream twice, and each half has the same parts::

    stream --> norm --> readers --> (attention or activation) --> last --> after --> x multiplier --> + stream

Llama's halves have neither ``after`` nor a multiplier. The instances are in :mod:`.known`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Half:
    """One of the two parts of a block that add to the residual stream; all names are those of modules in the block.

    parent: attention or MLP. norm: what reads the stream; ``None`` where the readers do. readers: the layers that read
    the norm, all the same tensor. last: the layer whose output joins the stream. after: the norm in between, or
    ``None``.
    """

    parent: str
    norm: str | None
    readers: tuple[str, ...]
    last: str
    after: str | None = None


@dataclass(frozen=True)
class Pair:
    """What AWQ can scale: ``source`` (a norm or a linear layer) makes the input that ``readers`` multiply.

    parent: the module whose output tells how good a scale is. parts: so many equal parts are the outputs of ``source``,
    and the last is what the readers read: 2 for gate and up in one matrix, 3 for q, k and v.
    """

    source: str
    readers: tuple[str, ...]
    parent: str
    parts: int = 1


@dataclass(frozen=True)
class Family:
    """What the decoders of one ``model_type`` (transformers' name) have in common.

    halves: attention and MLP, in the order in which a block runs them. pairs: what AWQ may scale, in the same order.
    norm_offset: what a norm adds to its weight before it multiplies. extra_norms: norms inside attention, by what they
    read. multiplier: the block's own name for the number by which it multiplies what a half adds; ``None``: it does
    not. blocks, embedding, norm, head: names in the model; these stay in float unless a recipe asks for them.
    """

    model_type: str
    halves: tuple[Half, Half]
    pairs: tuple[Pair, ...]
    norm_offset: float = 0.0
    extra_norms: tuple[str, ...] = ()
    multiplier: str | None = None
    blocks: str = "model.layers"
    embedding: str = "model.embed_tokens"
    norm: str = "model.norm"
    head: str = "lm_head"

    @property
    def shared(self) -> tuple[tuple[str, ...], ...]:
        """The linear layers of a block, in the order in which it runs them; those that read the same tensor together.

        >>> LLAMA.shared[0], LLAMA.shared[1]
        (('self_attn.q_proj', 'self_attn.k_proj', 'self_attn.v_proj'), ('self_attn.o_proj',))
        """
        return tuple(names for half in self.halves for names in (half.readers, (half.last,)))

    def pairs_of(self, block: nn.Module) -> Iterator[Pair]:
        """The pairs of ``block`` that fit: under grouped-query attention one channel of v feeds several of o."""
        for pair in self.pairs:
            made, read = block.get_submodule(pair.source).weight, block.get_submodule(pair.readers[0]).weight
            if made.shape[0] == pair.parts * read.shape[1]:
                yield pair


def embedding_scale(embedding: nn.Module) -> float:
    """What an embedding multiplies its rows by: the square root of the width in Gemma, 1 in most families."""
    return float(getattr(embedding, "scalar_embed_scale", 1.0))

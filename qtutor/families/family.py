"""The description of a family of decoders: the halves of its blocks, AWQ's pairs, and the names of the other parts.

A block adds to the residual stream twice, and both halves have the same parts::

    stream --> norm --> readers --> (attention or activation) --> last --> after --> x multiplier --> + stream

Llama's halves have neither ``after`` nor a multiplier. The instances are in :mod:`.known`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Half:
    """One of the two parts of a block that add to the residual stream; all names are those of modules in the block.

    parent: attention or MLP. norm: the norm that reads the stream; ``None`` if the readers read it directly. readers:
    the layers that read the norm's output, all the same tensor. last: the layer whose output is added to the stream.
    after: a norm between last and the stream, or ``None``.
    """

    parent: str
    norm: str | None
    readers: tuple[str, ...]
    last: str
    after: str | None = None


@dataclass(frozen=True)
class Pair:
    """A place for AWQ's scales: ``source`` (a norm or a linear layer) computes the input of ``readers``.

    parent: the module whose output shows how good a scale is. parts: the number of equal parts in the outputs of
    ``source``; the readers read the last part: 2 for gate and up in one matrix, 3 for q, k and v.
    """

    source: str
    readers: tuple[str, ...]
    parent: str
    parts: int = 1


@dataclass(frozen=True)
class Family:
    """The common parts of all decoders of one ``model_type`` (transformers' name).

    halves: attention and MLP, in the order in which a block runs them. pairs: the pairs that AWQ may scale, in the same
    order. norm_offset: the number that a norm adds to its weight before it multiplies. extra_norms: the names of norms
    inside attention. multiplier: the name, in the block, of the number by which the block multiplies the output of a
    half; ``None``: it does not. blocks, embedding, norm, head: names in the model; embedding and head stay in float
    unless a recipe includes them.
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
        """The linear layers of a block, in the order in which it runs them; layers with the same input are together.

        >>> LLAMA.shared[0], LLAMA.shared[1]
        (('self_attn.q_proj', 'self_attn.k_proj', 'self_attn.v_proj'), ('self_attn.o_proj',))
        """
        return tuple(names for half in self.halves for names in (half.readers, (half.last,)))

    def pairs_of(self, block: nn.Module) -> Iterator[Pair]:
        """The pairs of ``block`` that fit; in grouped-query attention, one channel of v feeds several of o."""
        for pair in self.pairs:
            made, read = block.get_submodule(pair.source).weight, block.get_submodule(pair.readers[0]).weight
            if made.shape[0] == pair.parts * read.shape[1]:
                yield pair


def embedding_scale(embedding: nn.Module) -> float:
    """The factor of an embedding's rows: the square root of the width in Gemma, 1 in most families."""
    return float(getattr(embedding, "scalar_embed_scale", 1.0))

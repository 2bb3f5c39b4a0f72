"""Families of decoders: where the blocks of one are, and what is in a block.

Everything that has to know a layer by its name asks a :class:`Family`: the walk over blocks, AWQ's pairs, the embedded
decoder's outliers, GGUF's names. A new family is a new instance here.

A block adds to the residual stream twice, and each half has the same parts::

    stream --> norm --> readers --> (attention or activation) --> last --> after --> + stream

Llama's halves have no ``after``. Gemma 2 and 3 have one in both, and their norms multiply by ``1 + weight``
(``norm_offset=1``). OLMo 2 has ``after`` and no ``norm``. Phi-3 has one reader a half, q, k and v in one matrix and
gate and up in one, so its pair ``gate_up_proj -> down_proj`` scales the last rows of its source.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import nn

from qtutor.errors import QtutorError, shown


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

    parent: the module whose output tells how good a scale is. Of a linear source the last rows are scaled, as many as
    the readers have inputs.
    """

    source: str
    readers: tuple[str, ...]
    parent: str


@dataclass(frozen=True)
class Family:
    """What the decoders of one ``model_type`` (transformers' name) have in common.

    halves: attention and MLP, in the order in which a block runs them. pairs: what AWQ may scale, in the same order.
    norm_offset: what a norm adds to its weight before it multiplies. extra_norms: norms inside attention, by what they
    read. blocks, embedding, norm, head: names in the model; these stay in float unless a recipe asks for them.
    """

    model_type: str
    halves: tuple[Half, Half]
    pairs: tuple[Pair, ...]
    norm_offset: float = 0.0
    extra_norms: tuple[str, ...] = ()
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
            if made.shape[0] >= read.shape[1]:
                yield pair


def _llama(model_type: str) -> Family:
    q, k, v = (f"self_attn.{name}_proj" for name in "qkv")
    attention = Half("self_attn", "input_layernorm", (q, k, v), "self_attn.o_proj")
    mlp = Half("mlp", "post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj")
    pairs = (
        Pair(attention.norm, attention.readers, attention.parent),
        Pair(v, (attention.last,), attention.last),
        Pair(mlp.norm, mlp.readers, mlp.parent),
        Pair("mlp.up_proj", (mlp.last,), mlp.last),
    )
    return Family(model_type, (attention, mlp), pairs)


LLAMA = _llama("llama")
MISTRAL = replace(LLAMA, model_type="mistral")
QWEN2 = replace(LLAMA, model_type="qwen2")  # with biases in q, k and v
QWEN3 = replace(LLAMA, model_type="qwen3", extra_norms=("self_attn.q_norm", "self_attn.k_norm"))

FAMILIES = {family.model_type: family for family in (LLAMA, MISTRAL, QWEN2, QWEN3)}


def family_of(model: nn.Module) -> Family:
    """The family of a decoder, by its config; :class:`QtutorError` for one that is not known here."""
    return family_called(getattr(getattr(model, "config", None), "model_type", type(model).__name__))


def family_called(model_type) -> Family:
    """The family of a ``model_type``, which may be anything: it can come out of a file."""
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise QtutorError(
            f"the model family {shown(model_type)} is not known here. Decoders of these families can be quantized: "
            f"{', '.join(FAMILIES)}. For another one, describe its blocks in qtutor/families.py."
        )
    return FAMILIES[model_type]


def decoder_blocks(model: nn.Module) -> nn.ModuleList:
    """The decoder blocks of a model; :class:`QtutorError` for a family that is not known here."""
    return model.get_submodule(family_of(model).blocks)


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Every ``nn.Linear`` inside the decoder blocks, by its full name, in the order in which the model holds them."""
    blocks = family_of(model).blocks
    return {
        f"{blocks}.{index}.{name}": module
        for index, block in enumerate(decoder_blocks(model))
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear)
    }

"""Families of decoders: where the blocks of a decoder are, and what is in a block.

All code that needs the names of layers asks a :class:`Family`: the walk over blocks, AWQ's pairs, the embedded
decoder's outliers, GGUF's names. A new family is a new instance in :mod:`.known`; :mod:`.refused` says what other
families would need.
"""

from collections.abc import Mapping

from torch import nn

from qtutor.errors import QtutorError, shown
from qtutor.families.family import Family, Half, Pair, embedding_scale  # noqa: F401 - imported from here
from qtutor.families.known import (  # noqa: F401
    FAMILIES,
    GEMMA2,
    GEMMA3,
    GRANITE,
    LLAMA,
    MISTRAL,
    OLMO2,
    PHI3,
    QWEN2,
    QWEN3,
    SMOLLM3,
)
from qtutor.families.refused import why_not


def head_dim(config) -> int:
    """The number of rows of a head; if the config leaves it out, the hidden size divided by the number of heads."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def family_of(model: nn.Module) -> Family:
    """The family of a decoder, by its config; raises :class:`QtutorError` for an unknown family."""
    config = getattr(model, "config", None)
    return family_called(getattr(config, "model_type", type(model).__name__), config)


def family_called(model_type, config=None) -> Family:
    """The family of a ``model_type``, which may be any value: it can come from a file.

    config: a config of transformers, or the values of a config.json; for an unknown family, it may show its kind.
    """
    look = config.get if isinstance(config, Mapping) else lambda key: getattr(config, key, None)
    if isinstance(model_type, str) and model_type in FAMILIES:
        if look("use_bidirectional_attention"):
            raise QtutorError(
                f"the model is a {model_type} that reads in both directions (use_bidirectional_attention): it sees the "
                "whole text at once and predicts no next token, so nothing here can measure it. Choose a decoder."
            )
        return FAMILIES[model_type]
    why = why_not(model_type, look) if isinstance(model_type, str) else ""
    raise QtutorError(
        f"the model family {shown(model_type)} is not known here. {why}Decoders of these families can be quantized: "
        f"{', '.join(FAMILIES)}."
        f"{'' if why else ' For another one, describe its blocks in qtutor/families/known.py.'}"
    )


def decoder_blocks(model: nn.Module) -> nn.ModuleList:
    """The decoder blocks of a model; raises :class:`QtutorError` for an unknown family."""
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

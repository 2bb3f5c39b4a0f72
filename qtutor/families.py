"""Which decoders are known here, and where their blocks are."""

from torch import nn

from qtutor.errors import QtutorError

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


def decoder_blocks(model: nn.Module) -> nn.ModuleList:
    """The decoder blocks of a Llama, Mistral or Qwen model; :class:`QtutorError` for any other."""
    family = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if family not in FAMILIES:
        raise QtutorError(
            f"the model family {family!r} is not known here. Decoders of these families can be quantized: "
            f"{', '.join(FAMILIES)}. For another one, add it to qtutor.families.FAMILIES once its blocks are checked."
        )
    return model.model.layers

"""Which decoders :mod:`.plan` supports: Llama's anatomy, whole and unchanged, on a CPU, with packed layers."""

from dataclasses import replace

import torch
from torch import nn
from torch.nn.modules import module as modules

from qtutor.families import FAMILIES, LLAMA, decoder_blocks
from qtutor.families.known import QK_NORMS
from qtutor.guards.running import has_hooks
from qtutor.runtime.kernels import cpu, rounded
from qtutor.runtime.linear import QuantLinear

ATTENTION, MLP = LLAMA.halves
KERNELS = cpu, rounded
DTYPES = (torch.float32, torch.bfloat16)
IMPLEMENTATIONS = ("sdpa", "eager")  # of attention; both compute the same


def packed_kernel(layer, dtype: torch.dtype):
    """The kernel of :data:`KERNELS` that multiplies one token of ``dtype`` by ``layer``, or ``None``."""
    if type(layer) is not QuantLinear:  # other classes compute something else, too
        return None
    kernel = layer.kernel(torch.empty(0, dtype=dtype))
    return kernel if kernel in KERNELS else None


def is_llama_like(model) -> bool:
    """Whether ``model`` is transformers' own decoder, with Llama's blocks, perhaps with norms on q and k."""
    family = FAMILIES.get(getattr(getattr(model, "config", None), "model_type", None))
    if family is None or replace(family, model_type="llama", extra_norms=(), multiplier=None) != LLAMA:
        return False
    if family.extra_norms not in ((), QK_NORMS) or not type(model).__name__.endswith("ForCausalLM"):
        return False
    home = f"transformers.models.{family.model_type}.modeling_{family.model_type}"
    return all(type(part).__module__ == home for part in (model, model.base_model, *decoder_blocks(model)))


def reason_against(model) -> str | None:
    """Why quick steps cannot run ``model``, in words that end a sentence, or ``None``."""
    if not is_llama_like(model):
        return "its blocks are not known to have Llama's anatomy"
    if model.device.type != "cpu":
        return "it is not on the CPU"
    embedding = model.get_input_embeddings()
    dtype = embedding.weight.dtype if isinstance(embedding, nn.Embedding) else embedding.dtype
    if dtype not in DTYPES:
        return f"it computes in {str(dtype)[6:]}"
    if any(norm.weight.dtype != dtype for norm in _norms(model)):
        return "its norms and its embedding have different dtypes"
    if not any(packed_kernel(layer, dtype) for layer in _block_layers(model)):
        return "no layer of its blocks has packed weights that a fast kernel supports"
    if not cpu.available():
        return "numba is not installed"
    return _changed(model)


def windows(model) -> list[int | None]:
    """How many tokens the attention of each block sees at most, the current one included; ``None`` for all."""
    blocks = decoder_blocks(model)[: model.config.num_hidden_layers]
    of_all = getattr(model.config, "sliding_window", None)  # Mistral's; others say it in each block
    return [getattr(block.get_submodule(ATTENTION.parent), "sliding_window", of_all) for block in blocks]


def _norms(model) -> list[nn.Module]:
    inside = [block.get_submodule(half.norm) for half in LLAMA.halves for block in decoder_blocks(model)]
    return [model.get_submodule(LLAMA.norm), *inside]


def _block_layers(model):
    for block in decoder_blocks(model):
        yield from (module for module in block.modules() if isinstance(module, QuantLinear))


def _changed(model) -> str | None:
    """What was added to the model, or replaced in it, that only its own forward would run; ``None`` for nothing."""
    from transformers.activations import ACT2FN

    if getattr(model.config, "_attn_implementation", None) not in IMPLEMENTATIONS:
        return "its attention is not torch's"
    halves = [block.get_submodule(MLP.parent) for block in decoder_blocks(model)]
    if not all(type(half.act_fn) is type(ACT2FN["silu"]) for half in halves):
        return "its activation is not SiLU"
    if modules._global_forward_hooks or modules._global_forward_pre_hooks:
        return "torch has hooks for all modules"
    for name, part in model.named_modules():
        if name and has_hooks(part):
            return f"{name} has a hook"
        if "forward" in vars(part):
            return f"{name or 'the model'} has a forward of its own"
    return None

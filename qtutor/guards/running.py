"""What a model needs so that it can be run and measured: an output matrix, and weights with values.

:mod:`.model` asks for much more. Here no family is looked up and no decoder is built, so measuring a model imports
little.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from qtutor.errors import QtutorError

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
CAPTURING = "transformers.utils.output_capturing"


def check_measurable(model) -> None:
    """Raise :class:`QtutorError` unless ``model`` is a transformers model that predicts tokens."""
    if not isinstance(model, nn.Module) or getattr(getattr(model, "config", None), "vocab_size", None) is None:
        raise QtutorError(
            f"model is a {type(model).__name__}; a model of transformers is needed. qtutor.load(name) returns it "
            "together with its tokenizer: model, tokenizer = qtutor.load(name)."
        )
    if getattr(model, "base_model", None) is model:
        raise QtutorError(
            f"the model is a {type(model).__name__}, which has no output matrix and predicts no tokens: pass the whole "
            "model (model, not model.model)."
        )
    for name, module in model.named_modules():
        _check_computes(name, module)


def has_hooks(module: nn.Module) -> bool:
    """Whether ``module`` itself has forward hooks, other than those of transformers.

    These stay on a model after ``output_hidden_states=True``; outside such a call, they do nothing.
    """
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return any(getattr(hook, "__module__", None) != CAPTURING for hook in hooks)


def _check_computes(name: str, module: nn.Module) -> None:
    """Refuse missing values, and values of another tool's format in a layer that computes with floats."""
    for key, parameter in module.named_parameters(recurse=False):
        full = f"{name}.{key}".lstrip(".")
        if parameter.is_meta and not hasattr(module, "_hf_hook"):  # accelerate's hooks load the values for use
            raise without_values(full)
        if type(module) in (nn.Linear, nn.Embedding) and parameter.dtype not in FLOATS:
            raise QtutorError(
                f"{full} is {parameter.dtype}, and {type(module).__name__} cannot compute with this dtype. Such "
                "weights are usually packed, with scales of their own: load the model with the library of its format."
            )


@contextmanager
def in_eval(model: nn.Module) -> Iterator[None]:
    """Inside, put ``model`` into eval mode (no dropout); afterwards every module has its former mode again."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def without_values(name: str) -> QtutorError:
    """The error for a tensor ``name`` that has no values."""
    return QtutorError(
        f"{name} has a shape and no values (device 'meta'): a device_map, or offloading, keeps them elsewhere. "
        "Load the model whole: from_pretrained(..., device_map=None)."
    )

"""One entrance for models: return the decoder that was meant, if it is whole and fits its config, or say what to do."""

from collections.abc import Iterable

import torch
from torch import nn

from qtutor.errors import QtutorError
from qtutor.families import Family, decoder_blocks, family_of
from qtutor.guards.promises import check_promised
from qtutor.guards.running import has_hooks, without_values

WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def decoder_of(given) -> nn.Module:
    """The transformers decoder ``given``, unwrapped if torch.compile or DataParallel wraps it.

    Raises :class:`QtutorError` for anything else: a tuple of model and tokenizer, a path, adapters, a model without its
    output matrix, tensors without values, layers that another tool quantized, tensors that do not fit the config, empty
    ones, weights that two layers share, and modules whose ``forward`` was replaced.
    """
    model = _unwrapped(given)
    family = family_of(model)
    _check_whole(model, family)
    _check_quantizer(model)
    _check_values(model)
    check_promised(model)
    _check_empty(model, family)
    _check_shared(model, family)
    _check_forwards(model)
    return model


def check_replaceable(model: nn.Module, calibrated: bool, outside: Iterable[str] = ()) -> None:
    """Raise :class:`QtutorError` if quantizing ``model`` would silently lose something.

    calibrated: the decoder blocks will be run, half by half, on one device. outside: names of the modules outside the
    blocks that will be replaced, too.
    """
    family = family_of(model)
    known = {name for names in family.shared for name in names}
    for index, block in enumerate(decoder_blocks(model)):
        for name, module in block.named_modules():
            full = f"{family.blocks}.{index}.{name}".rstrip(".")
            linear = isinstance(module, nn.Linear)
            if linear and name not in known:
                raise QtutorError(
                    f"{full} is a linear layer that blocks of the family {family.model_type!r} do not have. If it is "
                    "an adapter's, call model = model.merge_and_unload() first; if the family is new, describe it in "
                    "qtutor/families/known.py."
                )
            if linear or calibrated:
                _check_hooks(full, module)
    for name in outside:
        _check_hooks(name, model.get_submodule(name))
    devices = {parameter.device for parameter in model.parameters()}
    if calibrated and len(devices) > 1:
        raise QtutorError(
            f"the model is spread over {', '.join(sorted(map(str, devices)))}, but calibration runs on one device: "
            "load it without a device_map, or choose method 'rtn', which needs no inputs."
        )


def _check_hooks(name: str, module: nn.Module) -> None:
    """Refuse hooks on ``module``: if the module is replaced, or run outside its block, they are not called."""
    if has_hooks(module):
        raise QtutorError(
            f"{name} has a forward hook, which would not be called: remove it first (handle.remove()), and add it "
            "again afterwards."
        )


def _unwrapped(given) -> nn.Module:
    if isinstance(given, tuple | list) and given and isinstance(given[0], nn.Module):
        raise QtutorError(f"model is a {type(given).__name__} of {len(given)}: the model is its first part, model[0].")
    if not isinstance(given, nn.Module):
        raise QtutorError(
            f"model is a {type(given).__name__} ({str(given)[:60]!r}); a decoder of transformers is needed. "
            "model, tokenizer = qtutor.load(name) loads one from a folder or a hub id."
        )
    if type(given).__module__.partition(".")[0] == "peft" or hasattr(given, "merge_and_unload"):
        raise QtutorError(
            f"the model is a {type(given).__name__}: its adapters are not merged into its layers. Call "
            "model = model.merge_and_unload() first."
        )
    inside = given.module if isinstance(given, WRAPPERS) else given._modules.get("_orig_mod")  # of torch.compile
    return given if inside is None else _unwrapped(inside)


def _check_whole(model: nn.Module, family: Family) -> None:
    for name in (family.blocks, family.embedding, family.norm, family.head):
        try:
            model.get_submodule(name)
        except AttributeError:
            raise QtutorError(
                f"the model is a {type(model).__name__}, which has no {name!r}: pass the whole decoder with its "
                "output matrix (model, not model.model), as AutoModelForCausalLM or qtutor.load loads it."
            ) from None


def _check_quantizer(model: nn.Module) -> None:
    found = getattr(model.config, "quantization_config", None)
    if found is None and getattr(model, "hf_quantizer", None) is None:
        return
    method = found.get("quant_method") if isinstance(found, dict) else getattr(found, "quant_method", None)
    name = getattr(method, "value", method) or "another tool"
    raise QtutorError(
        f"the model is quantized already, by {name} (config.quantization_config): its weights are packed or rounded. "
        "Load the float checkpoint instead (or call model.dequantize(), if you want to round twice)."
    )


def _check_values(model: nn.Module) -> None:
    for name, parameter in (*model.named_parameters(), *model.named_buffers()):
        if parameter.is_meta:
            raise without_values(name)
        if type(parameter.data) is not torch.Tensor:
            raise QtutorError(
                f"{name} is a {type(parameter.data).__name__}, not a plain tensor: another tool packed or split it. "
                "Load the float checkpoint."
            )


def _check_empty(model: nn.Module, family: Family) -> None:
    if not len(decoder_blocks(model)):
        raise QtutorError(
            f"{family.blocks} has no decoder block (config.num_hidden_layers is 0): make the model with at least one."
        )
    for name, parameter in model.named_parameters():
        if not parameter.numel():
            raise QtutorError(
                f"{name} is {list(parameter.shape)}: it holds no number. A size in the model's config is 0 "
                "(hidden_size, intermediate_size, vocab_size ...): make the model with sizes from 1."
            )


def _check_shared(model: nn.Module, family: Family) -> None:
    """Refuse two layers that share a tensor: methods that look at inputs would give each layer different weights."""
    may_share = {f"{family.embedding}.weight", f"{family.head}.weight"}
    seen = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        first = seen.setdefault(id(parameter), name)
        if first != name and {first, name} != may_share:
            block, other = (".".join(part.split(".")[:3]) for part in (name, first))
            if block == other:  # a copy of the block would again contain the same layer twice
                block = name.rpartition(".")[0]
            raise QtutorError(
                f"{name} and {first} are one tensor (a layer or block that is used twice): each needs its own. "
                f"Copy it first, for instance model.set_submodule({block!r}, copy.deepcopy(model.get_submodule("
                f"{block!r})))."
            )


def _check_forwards(model: nn.Module) -> None:
    """Refuse a module with a patched forward: calibration would see its results, but no file could hold the patch."""
    for name, module in model.named_modules():
        forward = vars(module).get("forward")
        if hasattr(module, "_hf_hook"):  # accelerate's, which only moves tensors
            forward = vars(module).get("_old_forward")
        forward = getattr(forward, "_torchdynamo_orig_callable", forward)  # torch.compile changes no numbers
        if forward is not None and getattr(forward, "__func__", None) is not type(module).forward:
            here = f"model.{name}" if name else "model"
            raise QtutorError(
                f"{here} has a forward of its own, a patch of this one object. A saved model would not have it "
                f"and would compute something else: remove the patch first (del {here}.forward)."
            )

"""Check that a model is the decoder that its config promises.

The config's own decoder is built on the meta device, where it costs no memory. Then the two are compared: the name and
shape of every tensor, and the kind of every layer. The comparison finds adapters that were not merged, layers that
another tool packed, parametrizations, and a config that was changed by hand: each of them changes the tensors.
Without this check, such a model would be quantized silently, and written to a file that nobody can read.
"""

import copy

import torch
from torch import nn

from qtutor.errors import QtutorError, one_line
from qtutor.families import decoder_blocks, family_of
from qtutor.formats.transformers_files import angles_in, shapes_alone
from qtutor.guards.running import FLOATS
from qtutor.runtime.packed import Packed

NOT_COMPUTED = ("training", "layer_idx", "attention_dropout", "gradient_checkpointing")  # numbers that change no logits
OF_EMBEDDINGS = ("scalar_embed_scale", "embedding_multiplier")  # factors of embeddings, in Gemma and Granite
REMEDIES = {  # part of a tensor's name -> the tool that uses it, and what to do
    "lora": "It is an adapter's, not merged into its layer: call model = model.merge_and_unload() first.",
    "_orig_mod": "torch.compile wraps a part of the model: quantize the model as it was, and compile it afterwards.",
    "parametrizations": "Call torch.nn.utils.parametrize.remove_parametrizations(module, 'weight') first.",
    "weight_g": "Call torch.nn.utils.remove_weight_norm(module) first.",
    "weight_orig": "Call torch.nn.utils.prune.remove(module, 'weight') or remove_spectral_norm(module) first.",
    "scale": "Another tool quantized the model: load the float checkpoint.",
}
BY_HAND = (
    "Weights or config were changed by hand: make the config fit the weights (config.vocab_size, "
    "config.intermediate_size ...), remove what the family does not have, or load the checkpoint again."
)


def check_promised(model: nn.Module) -> None:
    """Raise :class:`QtutorError` if decoder blocks, layers or tensors differ from those of the config's own decoder."""
    family = family_of(model)
    blocks, wanted = len(decoder_blocks(model)), model.config.num_hidden_layers
    if blocks != wanted:
        raise QtutorError(
            f"{family.blocks} has {blocks} decoder blocks, and config.num_hidden_layers is {wanted}: set it to "
            f"{blocks} if blocks were added or removed on purpose."
        )
    try:
        model.config.validate()
        own = shapes_alone(model.config)
    except Exception as error:  # a config can be wrong in many ways, and transformers raises as many errors
        detail = one_line(" ".join(str(error).split()), 300)  # transformers names the problem in its second line
        raise QtutorError(
            f"no model can be built from the model's own config ({detail}): restore the config's values."
        ) from error
    _check_kinds(model, own)
    ours, theirs = shapes(model), shapes(own)
    extra = [name for name in ours if name not in theirs]
    why = next((remedy for remedy in map(_why, extra) if remedy), "")
    for name in (*extra, *theirs):  # unexpected tensors first: their names say best where they come from
        found, expected = ours.get(name), theirs.get(name)
        if found != expected:
            raise QtutorError(
                f"{name} is {_said(found)}, and the model's config ({type(model.config).__name__}) says "
                f"{_said(expected)}. {why or BY_HAND}"
            )
    for name, tensor in model.state_dict().items():
        if name in theirs and tensor.dtype not in FLOATS:
            raise QtutorError(
                f"{name} is {tensor.dtype}; float16, bfloat16, float32 or float64 is needed. Such weights are usually "
                "packed, with scales of their own: load the float checkpoint, or convert it with its own tool."
            )
    _check_numbers(model, own)
    _check_angles(model, own)


def _check_kinds(model: nn.Module, own: nn.Module) -> None:
    """Refuse a linear layer or embedding whose class is neither torch's own nor our packed one."""
    for name, expected in own.named_modules():
        if type(expected) not in (nn.Linear, nn.Embedding):
            continue
        try:
            module = model.get_submodule(name)
        except AttributeError:
            continue  # the check of tensors gives a better message
        if isinstance(module, Packed):
            continue
        found = type(module)
        if found is not type(expected):
            why = next((remedy for key, _ in module.named_parameters() if (remedy := _why(key))), "")
            raise QtutorError(
                f"{name} is a {found.__module__}.{found.__name__}; a plain torch.nn.{type(expected).__name__} is "
                f"needed. {why or 'Another tool has put it there: load the float checkpoint.'}"
            )


def _check_numbers(model: nn.Module, own: nn.Module) -> None:
    """Refuse modules whose values from the config (an epsilon, an activation) differ from those of the config now."""
    family = family_of(model)
    for name, expected in own.named_modules():
        inside = name.startswith((f"{family.blocks}.", family.norm)) and not isinstance(expected, nn.Linear)
        taken = [key for key in vars(expected) if key in OF_EMBEDDINGS or (inside and _is_taken(expected, key))]
        if not inside and not taken:
            continue
        module = model.get_submodule(name)
        if inside and not list(expected.parameters()) and type(module) is not type(expected):
            raise _changed(model, name, type(module).__name__, type(expected).__name__)
        for key in taken:
            value = getattr(expected, key)
            found = getattr(module, key, value)
            if found != value:
                raise _changed(model, f"{name}.{key}", found, value)


def _is_taken(module: nn.Module, key: str) -> bool:
    """Whether the attribute ``key`` of ``module`` is a value from the config with which the module computes."""
    return isinstance(getattr(module, key), float | int | str | None) and key not in NOT_COMPUTED and key[0] != "_"


def _check_angles(model: nn.Module, own: nn.Module) -> None:
    """Refuse angles of positions that do not fit the config. In a model cast to 16 bits they are off by up to 0.4 %."""
    for name, kind in own.named_modules():
        if not angles_in(kind):
            continue
        ours = angles_in(model.get_submodule(name))
        for key, expected in angles_in(type(kind)(model.config)).items():
            angles = ours[key].float().cpu()
            if angles.shape != expected.shape or not torch.allclose(angles, expected, rtol=1e-2):
                found, wanted = (", ".join(f"{x:.4g}" for x in part.tolist()[:4]) for part in (angles, expected))
                key = key.replace("original_", "")
                raise _changed(model, f"{name}.{key}", f"{found} ...", f"{wanted} ...")


def _changed(model: nn.Module, name: str, found, value) -> QtutorError:
    return QtutorError(
        f"{name} is {found}, but the model's config ({type(model.config).__name__}) says {value}: one of "
        "the two was changed after the model was made, and a saved model would compute something else. Load the model "
        "again with the right config: from_pretrained(folder, config=config)."
    )


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors in a checkpoint of ``model``, by name; packed layers have the shapes of float layers."""
    packed = {
        name: module for name, module in model.named_modules(remove_duplicate=False) if isinstance(module, Packed)
    }
    found = {f"{name}.weight": (module.rows, module.columns) for name, module in packed.items()}
    found |= {f"{n}.bias": tuple(m.bias.shape) for n, m in packed.items() if getattr(m, "bias", None) is not None}
    for name, tensor in model.state_dict().items():
        if name.rpartition(".")[0] not in packed:
            found[name] = tuple(tensor.shape)
    return found


def is_tied(model: nn.Module) -> bool:
    """Whether the output matrix is the embedding itself. The tensors decide, not the config."""
    family = family_of(model)
    embedding, head = (getattr(model.get_submodule(name), "weight", None) for name in (family.embedding, family.head))
    if embedding is None or head is None:  # packed
        return False
    same = head.data_ptr() == embedding.data_ptr() != 0 and head.stride() == embedding.stride()
    return bool(head is embedding or (same and head.shape == embedding.shape))


def config_to_write(model: nn.Module):
    """The config to write for ``model``: its own, with the tensors' dtype, and tied only if the tensors are."""
    config = copy.deepcopy(model.config)
    config.tie_word_embeddings = is_tied(model)
    config.dtype = model.get_submodule(family_of(model).norm).weight.dtype
    return config


def check_finite(model: nn.Module) -> None:
    """Raise :class:`QtutorError` if a tensor of ``model`` holds NaN or an infinity, and name the tensor."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.numel():
            low, high = torch.aminmax(tensor)  # both are NaN if any number is, and no copy is made
            if not (torch.isfinite(low) and torch.isfinite(high)):
                raise QtutorError(
                    f"{name}: {int((~torch.isfinite(tensor)).sum())} of {tensor.numel()} numbers are NaN or infinite. "
                    "The model would write nonsense: repair the checkpoint, or load it again."
                )


def _why(name: str) -> str:
    return next((remedy for part, remedy in REMEDIES.items() if part in name), "")


def _said(shape: tuple[int, ...] | None) -> str:
    return "not there" if shape is None else f"{list(shape)}"

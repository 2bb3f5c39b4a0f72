"""A quantized model as a whole folder for another engine, in any of the formats of :mod:`.foreign`.

    config.json                 the transformers config, with ``quantization_config``
    model.safetensors           or model-00001-of-0000N.safetensors and an index, at most 5 GB each
    generation_config.json      what the config does not say of how texts end, if anything
    tokenizer.json ...          with a tokenizer, its files and its chat template
    qtutor_files.json           for us: the names of all files, so that others are noticed before the next export
                                replaces them, and the recipe

What is written is read back by our importer, and its codes, scales and zero points are compared with the model's,
before the folder takes its name: written beside and renamed, so nobody ever sees half of one.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from qtutor.errors import QtutorError, naming
from qtutor.families import family_of
from qtutor.files import folder_written_beside, parents_made, told
from qtutor.files.target import checked
from qtutor.formats.checkpoint import CONFIG, GENERATION, INDEX, WEIGHTS
from qtutor.formats.endings import generation_settings
from qtutor.formats.foreign import Format, Layout, linear_names, packed_layers, resolved_zeros
from qtutor.formats.foreign_reading import opened
from qtutor.formats.readback import read_back
from qtutor.formats.shards import LARGEST
from qtutor.guards.promises import check_finite, config_to_write, is_tied
from qtutor.runtime.int8 import Int8Linear
from qtutor.runtime.linear import QuantLinear, QuantWeight

ABOUT = "qtutor_files.json"


def save(form: Format, model: nn.Module, folder: str | Path, tokenizer=None, beside=lambda settings: {}, **options):
    """Write a quantized ``model`` to ``folder`` in the format ``form``. Returns the folder.

    beside: more JSON files, by name, made of the settings. An earlier export of ours in ``folder`` is replaced, a
    folder that holds anything else is refused. Raises :class:`QtutorError` for that, for a model that is not quantized,
    for a layer that the format cannot hold, and where the folder cannot be written; the old one is then untouched.
    """
    layers = packed_layers(model)
    left = [name for name in linear_names(model) if name not in layers]
    settings = form.settings(layers, left, **options)
    layouts = form.layouts(settings, list(linear_names(model)), "quantization_config")
    config = config_to_write(model)
    if config.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise QtutorError(f"the model is in {config.dtype}, which no checkpoint holds: call model.float() first.")
    check_finite(model)
    parts = {name: (tensor.nbytes, partial(dict, {name: tensor})) for name, tensor in _floats(model).items()}
    parts |= {
        name: (layer.nbytes, partial(_encoded, form, name, layer, layouts[name])) for name, layer in layers.items()
    }
    place = target(folder, need=sum(size for size, _ in parts.values()))
    with told(place), parents_made(place), folder_written_beside(place) as new:
        _write_about(new, model, config, settings, tokenizer)
        for name, values in beside(settings).items():
            _write_json(new / name, values)
        _write_shards(new, parts)
        about = {"files": sorted([ABOUT, *(path.name for path in new.iterdir())])}
        _write_json(new / ABOUT, about | {"recipe": getattr(model, "qtutor_recipe", None)})
        read_back(place, lambda: _compare(new, form, model, layers))
        _refuse_others(place)  # something may have been put there in the meantime
    return Path(folder)


def target(folder: str | Path, sources: Iterable[str | Path] = (), need: int = 0) -> Path:
    """``folder`` with its links followed, if :func:`save` may write there (:func:`qtutor.files.target.checked`)."""
    if Path(folder).suffix == ".gguf":
        raise QtutorError(f"{folder} is the name of a GGUF file, and this format is a folder: choose another name.")
    place = checked(folder, folder=True, sources=sources, need=need)
    _refuse_others(place)
    return place


def _refuse_others(folder: Path) -> None:
    """Refuse a folder that holds files of others: an export replaces all of it."""
    found = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()] if folder.exists() else []
    names = sorted(path.relative_to(folder).as_posix() for path in found if path.name != ".DS_Store")
    ours = _written_by_us(folder) if names else set()
    if names and not ours:
        raise QtutorError(f"{folder} exists and is not an export of qtutor; choose another folder or remove it.")
    others = [name for name in names if name not in ours]
    if others:
        raise QtutorError(
            f"{folder} holds files besides the export that qtutor wrote there ({', '.join(others[:3])}), and the next "
            "one would replace all of it: move them elsewhere, or choose another folder."
        )


def _written_by_us(folder: Path) -> set[str]:
    """The names of the files of an earlier export, as it noted them itself; empty for anybody else's folder."""
    try:
        return {*json.loads((folder / ABOUT).read_text(encoding="utf-8"))["files"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return set()


def _floats(model: nn.Module) -> dict[str, torch.Tensor]:
    """What is not packed: the state dict without packed layers, except for their biases, and without a tied head."""
    family = family_of(model)
    packed = {name for name, module in model.named_modules() if isinstance(module, QuantWeight)}
    tied = f"{family.head}.weight" if is_tied(model) else None
    found = {}
    for name, tensor in model.state_dict().items():
        layer, _, kind = name.rpartition(".")
        if name != tied and (layer not in packed or kind == "bias"):
            found[name] = tensor.detach().contiguous()
    return found


def _encoded(form: Format, name: str, layer: QuantLinear, layout: Layout) -> dict[str, torch.Tensor]:
    with naming(name):
        tensors = form.encode(layer.quantized(), layout)
    return {f"{name}.{kind}": tensor.contiguous() for kind, tensor in tensors.items()}


def _write_about(new: Path, model: nn.Module, config, settings: dict, tokenizer) -> None:
    """Everything but the weights. Engines look for the class by its name in config.json."""
    config.architectures = [type(model).__name__]
    config.save_pretrained(new)
    values = json.loads((new / CONFIG).read_text(encoding="utf-8"))
    _write_json(new / CONFIG, values | {"quantization_config": settings})
    if ending := generation_settings(model):
        _write_json(new / GENERATION, ending)
    if tokenizer is not None:
        tokenizer.save_pretrained(new)


def _write_json(path: Path, values: Mapping) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _write_shards(new: Path, parts: dict[str, tuple[int, Callable]]) -> None:
    """The weights, a file after the other: parts are bytes, and a function that makes the tensors, by name."""
    files, size = [[]], 0
    for name, (nbytes, _) in parts.items():
        if size + nbytes > LARGEST and files[-1]:
            files.append([])
            size = 0
        files[-1].append(name)
        size += nbytes
    names = [f"model-{i + 1:05}-of-{len(files):05}.safetensors" for i in range(len(files))]
    names = names if len(files) > 1 else [WEIGHTS]
    where, total = {}, 0
    for file, own in zip(names, files):
        tensors, seen = {}, set()
        for name in own:
            for key, tensor in parts[name][1]().items():
                memory = tensor.untyped_storage().data_ptr()
                tensors[key] = tensor.clone() if memory in seen and tensor.numel() else tensor  # safetensors refuses it
                seen.add(memory)
        save_file(tensors, new / file, metadata={"format": "pt"})
        where |= dict.fromkeys(tensors, file)
        total += sum(tensor.nbytes for tensor in tensors.values())
    if len(files) > 1:
        _write_json(new / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))})


def _compare(new: Path, form: Format, model: nn.Module, layers: dict[str, QuantLinear]) -> None:
    """Raise :class:`QtutorError` where the folder holds other numbers than the model; layer by layer."""
    found = opened(new)
    with found.reading() as read:
        for name, tensor in _floats(model).items():
            if not torch.equal(read(name), tensor.cpu()):
                raise QtutorError(f"{name} came back with other numbers than were written.")
        for name, layer in layers.items():
            if name not in found.layouts:
                raise QtutorError(f"{name} came back as a float layer.")
            back, ours = found.decode(name, read), layer.quantized()
            ours_zeros, zeros = (resolved_zeros(one).cpu() for one in (ours, back))
            wrong = not torch.equal(back.codes, ours.codes.cpu()) or not torch.equal(zeros, ours_zeros)
            scales = back.scales.double(), ours.scales.double().cpu()
            if wrong or not torch.allclose(*scales, rtol=form.tolerance, atol=0):
                raise QtutorError(f"{name} came back with other codes, scales or zero points than were written.")
            if type(layer) is Int8Linear and found.layouts[name].grid != layer.grid:
                raise QtutorError(f"{name} came back on another grid than it was written.")

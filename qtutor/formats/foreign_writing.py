"""A quantized model as a whole folder for another engine, in any of the formats of :mod:`.foreign`.

    config.json                 the transformers config, with ``quantization_config``
    model.safetensors           or model-00001-of-0000N.safetensors and an index, at most 5 GB each
    generation_config.json      what the config does not say about how texts end, if anything
    tokenizer.json ...          with a tokenizer, its files and its chat template
    qtutor_files.json           for us: the names of all files, so that files of others are noticed before the next
                                export replaces them; and the recipe

The written folder is read back by our importer before it takes its name, and its codes, scales and zero points are
compared with the model's. The folder is written beside its target and renamed, so nobody ever sees half of one.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import nn

from qtutor.errors import QtutorError, naming
from qtutor.files import as_qtutor_error, folder_written_beside, parents_made
from qtutor.formats import folders
from qtutor.formats.checkpoint import CONFIG, GENERATION
from qtutor.formats.endings import generation_settings
from qtutor.formats.folders import check_dtype, files_in, kinds, refuse_others, stored_tensors
from qtutor.formats.foreign import Format, Layout, linear_names, packed_layers, resolved_zeros, stored_scales
from qtutor.formats.foreign_reading import opened
from qtutor.formats.readback import read_back
from qtutor.formats.shards import INDEX, LARGEST, ShardFile, Shards, index_text, laid_out
from qtutor.guards.promises import check_finite, config_to_write
from qtutor.runtime.int8 import Int8Linear
from qtutor.runtime.linear import QuantLinear, QuantWeight
from qtutor.runtime.scaled import ScaledLinear

ABOUT = "qtutor_files.json"


def save(form: Format, model: nn.Module, folder: str | Path, tokenizer=None, beside=lambda settings: {}, **options):
    """Write a quantized ``model`` to ``folder`` in the format ``form``. Returns the folder.

    beside: more JSON files, by name, computed from the settings. An earlier export of ours in ``folder`` is replaced; a
    folder that holds anything else is refused. Raises :class:`QtutorError` for such a folder, for a model that is not
    quantized, for a layer that the format cannot hold, and if the folder cannot be written; the old folder is then
    untouched.
    """
    layers = packed_layers(model)
    left = [name for name in linear_names(model) if name not in layers]
    settings = form.settings_for(layers, left, **options)
    layouts = form.layouts(settings, list(linear_names(model)), "quantization_config")
    config = config_to_write(model)
    check_dtype(config.dtype)
    check_finite(model)
    floats = _floats(model)
    shapes = kinds(floats)
    for name, layer in layers.items():  # encoded here for its shapes, and again when it is written
        shapes |= kinds(_encoded(form, name, layer, layouts[name]))
    files = laid_out(shapes, LARGEST)
    place = target(folder, need=sum(file.size for file in files))
    with as_qtutor_error(place), parents_made(place), folder_written_beside(place) as new:
        _write_about(new, model, config, form.in_config(settings), tokenizer)
        for name, values in beside(settings).items():
            _write_json(new / name, values)
        _write_weights(new, form, files, floats, layers, layouts)
        about = {"files": sorted([ABOUT, *files_in(new)])}
        _write_json(new / ABOUT, about | {"recipe": getattr(model, "qtutor_recipe", None)})
        read_back(place, lambda: _compare(new, form, model, layers))
        refuse_others(place, ABOUT)  # something may have been put there in the meantime
    return Path(folder)


def target(folder: str | Path, sources: Iterable[str | Path] = (), need: int = 0) -> Path:
    """``folder`` with its links followed, if :func:`save` may write there."""
    return folders.target(folder, ABOUT, sources, need)


def _floats(model: nn.Module) -> dict[str, torch.Tensor]:
    """The float tensors: all tensors of the model except packed layers, whose biases stay in float."""
    packed = {name for name, module in model.named_modules() if isinstance(module, QuantWeight)}
    found = {}
    for name, tensor in stored_tensors(model).items():
        layer, _, kind = name.rpartition(".")
        if layer not in packed or kind == "bias":
            found[name] = tensor
    return found


def _encoded(form: Format, name: str, layer: QuantLinear, layout: Layout) -> dict[str, torch.Tensor]:
    with naming(name):
        tensors = form.encode(layer.quantized(), layout)
    if isinstance(layer, ScaledLinear):
        tensors[form.input_scale] = stored_scales(layer.input_scale)
    return {f"{name}.{kind}": tensor.contiguous() for kind, tensor in tensors.items()}


def _write_about(new: Path, model: nn.Module, config, keys: dict, tokenizer) -> None:
    """Write everything but the weights. keys: more of config.json, where engines look for the class by its name."""
    config.architectures = [type(model).__name__]
    config.save_pretrained(new)
    values = json.loads((new / CONFIG).read_text(encoding="utf-8"))
    _write_json(new / CONFIG, values | _older_names(values) | keys)
    if ending := generation_settings(model):
        _write_json(new / GENERATION, ending)
    if tokenizer is not None:
        tokenizer.save_pretrained(new)


def _older_names(values: dict) -> dict:
    """The keys that held the values in ``rope_parameters`` before transformers 5.

    An engine that knows only these (mlx-lm) would otherwise turn positions by the usual 10000 without a warning.
    """
    rope = values.get("rope_parameters") or {}
    found = {name: rope[name] for name in ("rope_theta", "partial_rotary_factor") if name in rope}
    if rope.get("rope_type", "default") != "default":
        found["rope_scaling"] = {name: value for name, value in rope.items() if name not in found}
    return found


def _write_json(path: Path, values: Mapping) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _write_weights(new: Path, form: Format, files: list[ShardFile], floats: dict, layers: dict, layouts: dict) -> None:
    """Write the files with the weights, and their index. One layer at a time is encoded, written and then released."""
    with Shards(new, files) as shards:
        for name, tensor in floats.items():
            shards.write(name, tensor)
        for name, layer in layers.items():
            for key, tensor in _encoded(form, name, layer, layouts[name]).items():
                shards.write(key, tensor)
    if (index := index_text(files)) is not None:
        (new / INDEX).write_text(index, encoding="utf-8")


def _compare(new: Path, form: Format, model: nn.Module, layers: dict[str, QuantLinear]) -> None:
    """Raise :class:`QtutorError` if the folder holds other numbers than the model; compares layer by layer."""
    found = opened(new)
    with found.reading() as read:
        for name, tensor in _floats(model).items():
            if not torch.equal(read(name), tensor.cpu()):
                raise QtutorError(f"{name} came back with other numbers than were written.")
        for name, layer in layers.items():
            if name not in found.layouts:
                raise QtutorError(f"{name} came back as a float layer.")
            back, ours = found.decode(name, read), layer.quantized()
            used = ours.scales.cpu() != 0  # if a group has the scale 0, all of its weights are 0 for any zero point
            ours_zeros, zeros = (resolved_zeros(one).cpu() * used for one in (ours, back))
            wrong = not torch.equal(back.codes, ours.codes.cpu()) or not torch.equal(zeros, ours_zeros)
            scales = back.scales.double(), ours.scales.double().cpu()
            if wrong or not torch.allclose(*scales, rtol=form.tolerance, atol=0):
                raise QtutorError(f"{name} came back with other codes, scales or zero points than were written.")
            times, wanted = found.input_scale(name, read), getattr(layer, "input_scale", None)
            if (times is None) != (wanted is None) or (times is not None and not torch.equal(times, wanted.cpu())):
                raise QtutorError(f"{name} came back with other numbers for its inputs than were written.")
            if type(layer) is Int8Linear and found.layouts[name].grid != layer.grid:
                raise QtutorError(f"{name} came back on another grid than the one that was written.")

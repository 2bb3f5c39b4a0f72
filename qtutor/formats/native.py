"""Our own layout on disk: a folder with the packed tensors as they are in memory.

    model.safetensors   packed codes, scales, zeros, and every tensor that was not quantized; beyond 5 GB several files
                        model-00001-of-00003.safetensors ... and an index, as transformers has them
    qtutor.json         per quantized module its kind, shape, grid, bits, symmetric, group_size, nested scales or not,
                        bias or not; the threshold of an int8 linear (null: none); the recipe; and the names of all
                        files in the folder, so that files of others are noticed before the next export replaces it
    config.json         the transformers config; with a tokenizer, its files
    generation_config.json  what the config does not say about how texts end, if anything

The folder is written beside its target and renamed, so a reader never sees half of it. Safetensors only, no pickle, no
code from a checkpoint.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path

from torch import nn

from qtutor.core.scales import NestedScales
from qtutor.errors import QtutorError
from qtutor.files import as_qtutor_error, folder_written_beside, parents_made
from qtutor.formats import folders
from qtutor.formats.checkpoint import CONFIG, GENERATION
from qtutor.formats.endings import generation_settings
from qtutor.formats.folders import check_dtype, files_in, kinds, stored_tensors
from qtutor.formats.native_reading import ABOUT, LAYOUT, least_scale, load, opened  # noqa: F401 - the other half
from qtutor.formats.readback import read_back
from qtutor.formats.shards import INDEX, WEIGHTS, index_text, laid_out, save_file
from qtutor.guards.promises import check_finite, config_to_write
from qtutor.runtime.fp8 import Fp8Linear
from qtutor.runtime.int8 import Int8Linear
from qtutor.runtime.linear import QuantEmbedding, QuantLinear, QuantWeight
from qtutor.runtime.scaled import ScaledLinear

# The usual names in an export that does not list its files: one from before the names were stored, or a damaged one.
USUAL = {
    *(WEIGHTS, INDEX, ABOUT, CONFIG, GENERATION, "tokenizer.json", "tokenizer_config.json"),
    *(
        "special_tokens_map.json",
        "added_tokens.json",
        "chat_template.jinja",
        "vocab.json",
        "merges.txt",
        "tokenizer.model",
    ),
}
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")


def save(model: nn.Module, folder: str | Path, tokenizer=None) -> Path:
    """Write a quantized ``model`` to ``folder``; with ``tokenizer``, its files too. Returns the folder.

    An earlier export in ``folder`` is replaced; a folder that holds anything else is refused. Raises
    :class:`QtutorError` for such a folder, for a model that is not quantized, and if the folder cannot be written; the
    old folder is then untouched.
    """
    if not any(isinstance(module, QuantWeight) for module in model.modules()):
        raise QtutorError("the model is not quantized: call qtutor.quantize(model, recipe) before qtutor.export.")
    check_dtype(config_to_write(model).dtype)
    check_finite(model)
    _check_scales(model)
    tensors = stored_tensors(model)
    files = laid_out(kinds(tensors))
    place = target(folder, need=sum(file.size for file in files))
    with as_qtutor_error(place), parents_made(place), folder_written_beside(place) as new:
        for file in files:
            save_file({name: tensors[name] for name in file.places}, new / file.name)
        write_others(new, model, tokenizer, getattr(model, "qtutor_recipe", None), files)
        read_back(place, lambda: opened(new))
        refuse_others(place)  # something may have been put there in the meantime
    return Path(folder)


def _check_scales(model: nn.Module) -> None:
    """Refuse negative scales.

    Some tools give a group a negative scale, and their formats hold it, but a folder of ours with one would be refused
    when it is read.
    """
    for name, module in model.named_modules():
        if isinstance(module, QuantWeight) and (least := least_scale(module)) < 0:
            raise QtutorError(
                f"{name} has a scale of {least:.3g}. Some other tools write such scales, but our own format holds none "
                "below 0: leave the checkpoint in its format, or take compressed-tensors."
            )


def write_others(new: Path, model: nn.Module, tokenizer, recipe: dict | None, files: Iterable) -> None:
    """Write everything in the folder ``new`` except the tensors: settings, tokenizer, and how layers are packed.

    model: with packed layers; shapes are enough. recipe: the one that the model was quantized with, for readers of the
    files. files: the :class:`~.shards.ShardFile` with the tensors.
    """
    config, files = config_to_write(model), list(files)
    config.save_pretrained(new)
    if tokenizer is not None:
        tokenizer.save_pretrained(new)
    layers = {name: _describe(module) for name, module in model.named_modules() if isinstance(module, QuantWeight)}
    about = {"layout": LAYOUT, "dtype": str(config.dtype).removeprefix("torch."), "layers": layers, "recipe": recipe}
    if settings := generation_settings(model):
        (new / GENERATION).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    if (index := index_text(files)) is not None:
        (new / INDEX).write_text(index, encoding="utf-8")
    about["files"] = sorted({ABOUT, *(file.name for file in files), *files_in(new)})
    (new / ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def target(folder: str | Path, sources: Iterable[str | Path] = (), need: int = 0) -> Path:
    """``folder`` with its links followed, if :func:`save` may write there."""
    return folders.target(folder, ABOUT, sources, need, _is_usual)


def refuse_others(folder: Path) -> None:
    """Refuse a folder that holds files of others, since an export replaces all of it."""
    folders.refuse_others(folder, ABOUT, _is_usual)


def _is_usual(name: str) -> bool:
    return name in USUAL or SHARD.fullmatch(name) is not None


def _describe(module: QuantWeight) -> dict:
    kinds = {
        **{Int8Linear: "int8 linear", Fp8Linear: "fp8 linear", ScaledLinear: "scaled linear"},
        **{QuantEmbedding: "embedding", QuantLinear: "linear"},
    }
    return {
        "kind": kinds[type(module)],
        "shape": [module.rows, module.columns],
        "grid": getattr(module.grid, "name", "integers"),
        "bits": module.grid.bits,
        "symmetric": module.grid.symmetric,
        "group_size": module.group_size,
        "nested": module.scales_as is NestedScales,
        "bias": getattr(module, "bias", None) is not None,
        **({"threshold": module.threshold} if isinstance(module, Int8Linear) else {}),
    }

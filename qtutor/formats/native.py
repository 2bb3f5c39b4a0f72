"""Our own layout on disk: a folder with the packed tensors as they are in memory.

    model.safetensors   packed codes, scales, zeros, and every tensor that was not quantized
    qtutor.json         per quantized module its kind, shape, grid, bits, symmetric, group_size, nested scales or not,
                        bias or not; the threshold of an int8 linear (null: none); and the recipe
    config.json         the transformers config; with a tokenizer, its files

Written beside and renamed, so a reader never sees half a folder. Safetensors only, no pickle, no code from a
checkpoint.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from qtutor.core.scales import NestedScales, PlainScales
from qtutor.errors import QtutorError
from qtutor.formats.native_reading import ABOUT, LAYOUT, load  # noqa: F401 - the other half of the format
from qtutor.runtime.int8 import Int8Linear
from qtutor.runtime.linear import QuantEmbedding, QuantLinear, QuantWeight


def save(model: nn.Module, folder: str | Path, tokenizer=None) -> Path:
    """Write a quantized ``model`` to ``folder``; with ``tokenizer``, its files too. Returns the folder.

    An earlier export in ``folder`` is replaced; a folder that holds anything else is refused. Raises
    :class:`QtutorError` for that, or a model that is not quantized.
    """
    folder = Path(folder)
    layers = {name: _describe(module) for name, module in model.named_modules() if isinstance(module, QuantWeight)}
    if not layers:
        raise QtutorError("the model is not quantized: call qtutor.quantize(model, recipe) before qtutor.export.")
    if folder.exists() and not (folder / ABOUT).is_file() and (folder.is_file() or any(folder.iterdir())):
        raise QtutorError(f"{folder} exists and is not an export of qtutor; choose another folder or remove it.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    outer = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
    try:
        # mkdtemp keeps others out; an export is as readable as any new folder.
        beside = outer / "new"
        beside.mkdir()
        save_file(_tensors(model), beside / "model.safetensors", metadata={"format": "pt"})
        about = {"layout": LAYOUT, "dtype": str(model.dtype).removeprefix("torch."), "layers": layers}
        about["recipe"] = getattr(model, "qtutor_recipe", None)  # what it was made with, for whoever reads the file
        (beside / ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        shutil.copymode(beside / ABOUT, beside / "model.safetensors")  # which save_file keeps from others, too
        model.config.save_pretrained(beside)
        if tokenizer is not None:
            tokenizer.save_pretrained(beside)
        _swap(beside, folder)
    finally:
        shutil.rmtree(outer, ignore_errors=True)
    return folder


def _swap(beside: Path, folder: Path) -> None:
    """Put ``beside`` in the place of ``folder``; a kill between the two renames leaves no folder, never half of one."""
    if not folder.exists():
        os.rename(beside, folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".old", dir=folder.parent))
    os.rename(folder, old / "old")
    os.rename(beside, folder)
    shutil.rmtree(old, ignore_errors=True)


def _describe(module: QuantWeight) -> dict:
    kinds = {Int8Linear: "int8 linear", QuantEmbedding: "embedding", QuantLinear: "linear"}
    return {
        "kind": kinds[type(module)],
        "shape": [module.rows, module.columns],
        "grid": getattr(module.grid, "name", "integers"),
        "bits": module.grid.bits,
        "symmetric": module.grid.symmetric,
        "group_size": module.group_size,
        "nested": {PlainScales: False, NestedScales: True}[module.scales_as],
        "bias": getattr(module, "bias", None) is not None,
        **({"threshold": module.threshold} if isinstance(module, Int8Linear) else {}),
    }


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict, each stored tensor once: safetensors refuses two names for one tensor."""
    tensors, seen = {}, set()
    for name, tensor in model.state_dict().items():
        if tensor.numel() and tensor.data_ptr() in seen:
            continue
        seen.add(tensor.data_ptr())
        tensors[name] = tensor.contiguous()
    return tensors

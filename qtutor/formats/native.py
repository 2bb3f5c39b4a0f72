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
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from qtutor.core.codebooks import FP4, INT8, NF4
from qtutor.core.grid import IntGrid
from qtutor.core.scales import NestedScales, PlainScales
from qtutor.errors import QtutorError
from qtutor.families import decoder_blocks, family_of
from qtutor.formats.readback import check_native
from qtutor.guards.promises import check_finite, config_of, is_tied
from qtutor.runtime.int8 import Int8Linear
from qtutor.runtime.linear import QuantEmbedding, QuantLinear, QuantWeight

LAYOUT = 1
ABOUT = "qtutor.json"
CODEBOOKS = {grid.name: grid for grid in (NF4, FP4, INT8)}


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
    config = config_of(model)
    if config.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise QtutorError(f"the model is in {config.dtype}, which no checkpoint holds: call model.float() first.")
    check_finite(model)
    folder.parent.mkdir(parents=True, exist_ok=True)
    outer = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
    try:
        # mkdtemp keeps others out; an export is as readable as any new folder.
        beside = outer / "new"
        beside.mkdir()
        save_file(_tensors(model), beside / "model.safetensors", metadata={"format": "pt"})
        check_native(beside / "model.safetensors", model, config)
        about = {"layout": LAYOUT, "dtype": str(model.dtype).removeprefix("torch."), "layers": layers}
        about["recipe"] = getattr(model, "qtutor_recipe", None)  # what it was made with, for whoever reads the file
        (beside / ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        shutil.copymode(beside / ABOUT, beside / "model.safetensors")  # which save_file keeps from others, too
        config.save_pretrained(beside)
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
    """The state dict without a tied output matrix; what else shares memory is copied, since safetensors refuses it."""
    tensors, seen, tied = {}, set(), f"{family_of(model).head}.weight" if is_tied(model) else None
    for name, tensor in model.state_dict().items():
        if name == tied:
            continue
        tensor = tensor.contiguous()
        storage = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if tensor.numel() and storage in seen else tensor
        seen.add(storage)
    return tensors


def load(folder: str | Path, device: str | None = None) -> nn.Module:
    """The model that :func:`save` wrote to ``folder``, on ``device`` (by itself: the GPU if there is one).

    Raises :class:`QtutorError` naming the file that is missing, truncated or does not fit.
    """
    folder = Path(folder)
    about = _read_about(folder)
    config = AutoConfig.from_pretrained(folder)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, about["dtype"]))
    decoder_blocks(model)
    for name, layer in about["layers"].items():
        model.set_submodule(name, _empty(layer, model.dtype))
    path = folder / "model.safetensors"
    tensors = read_tensors(path)
    missing, unexpected = model.load_state_dict(tensors, strict=False, assign=True)
    if config.tie_word_embeddings:
        model.tie_weights()
        missing = [name for name in missing if name != "lm_head.weight"]
    if missing or unexpected:
        raise QtutorError(
            f"{path}: {len(missing)} tensors are missing ({', '.join(missing[:3])}) and {len(unexpected)} are not "
            f"expected ({', '.join(unexpected[:3])}). The file does not belong to {folder / ABOUT}: export the "
            "model again."
        )
    model.qtutor_recipe = about.get("recipe")  # exports from before it was stored have none
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()


def _read_about(folder: Path) -> dict:
    path = folder / ABOUT
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        if about["layout"] != LAYOUT:
            raise QtutorError(f"{path}: layout {about['layout']}, but this version reads {LAYOUT}; update qtutor.")
        return about
    except FileNotFoundError:
        raise QtutorError(
            f"{path} does not exist: {folder} is not a folder that qtutor.export wrote. For a float checkpoint use "
            "qtutor.load_decoder."
        ) from None
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise QtutorError(f"{path} is damaged ({error!r}): export the model again.") from None


def _empty(layer: dict, dtype: torch.dtype) -> QuantWeight:
    grid = CODEBOOKS.get(layer["grid"]) or IntGrid(layer["bits"], layer["symmetric"])
    scales_as = NestedScales if layer["nested"] else PlainScales
    if layer["kind"] == "embedding":
        return QuantEmbedding(*layer["shape"], grid, layer["group_size"], dtype, scales_as)
    kind = Int8Linear if layer["kind"] == "int8 linear" else QuantLinear
    module = kind(*layer["shape"], grid, layer["group_size"], layer["bias"], scales_as)
    if "threshold" in layer:  # exports from before it was stored keep the class's own
        module.threshold = layer["threshold"]
    return module


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file; :class:`QtutorError` where it is missing or truncated."""
    if not path.is_file():
        raise QtutorError(f"{path} does not exist: the checkpoint is incomplete; copy or export it again.")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise QtutorError(
            f"{path} ({path.stat().st_size:,} bytes) is not a whole safetensors file: {error}. It was "
            "probably cut off while being copied; fetch or export it again."
        ) from None

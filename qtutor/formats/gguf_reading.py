"""Reading the GGUF files that :mod:`.gguf` wrote: its header and its config are compared before a tensor is decoded."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import PretrainedConfig

from qtutor.errors import QtutorError, shown
from qtutor.families import family_of
from qtutor.formats import documents
from qtutor.formats.comparing import check_finite
from qtutor.formats.endings import give_back
from qtutor.formats.transformers_files import config_of, empty_model, filled
from qtutor.gguf.architecture import from_file, tensor_name
from qtutor.gguf.hyperparameters import metadata, rope_factors
from qtutor.gguf.reader import GGUFFile, read
from qtutor.guards.promises import is_tied
from qtutor.runtime.linear import QuantWeight

ROPE = "rope_freqs.weight"  # a tensor without a parameter
GENERATION = "qtutor.generation_config"  # what transformers' config does not say of how texts end, if anything
CONFIG = "qtutor.config"  # a key of ours: transformers' config, which llama.cpp's keys do not give back whole
Source = tuple[tuple[int, ...], Callable[[], torch.Tensor]]  # shape, and a function that gives the values


@torch.no_grad()
def load(path: str | Path, device: str | None = None) -> nn.Module:
    """The decoder in a file that :func:`save` wrote, its blocks decoded to float32.

    Raises :class:`QtutorError` for a file that is damaged, that others wrote, or whose tensors do not fit its config.
    """
    file, config, model, wanted = opened(path)
    tensors = {}
    for name, (parameter, shape) in wanted.items():
        rows = from_file(name, file.weight(name).reshape(shape), config)
        tensors[parameter] = torch.from_numpy(np.ascontiguousarray(rows))
    check_finite(str(path), tensors)
    config.dtype = torch.float32
    model = filled(model, tensors, str(path), device)
    give_back(model, file.metadata.get(GENERATION), f"{path}: {GENERATION}")
    return model


def opened(path: str | Path) -> tuple[GGUFFile, PretrainedConfig, nn.Module, dict]:
    """What can be said without decoding a tensor: the file's header, its config, the model of shapes alone, and of each
    tensor's name the parameter and its shape. Raises as :func:`load` does.
    """
    file = read(path)
    config = _config(file)
    model = empty_model(config, str(path))  # nothing is allocated before it was found in the file
    wanted = {tensor_name(parameter, config): (parameter, shape) for parameter, (shape, _) in parameters(model)}
    found = {name: info.shape for name, info in file.tensors.items() if name != ROPE}
    for name in wanted | found:
        shape = wanted[name][1] if name in wanted else None
        if shape != found.get(name):
            raise QtutorError(
                f"{path}: tensor {shown(name)} is {found.get(name, 'not there')}, and its config says "
                f"{shape or 'that there is none'}. The file is damaged: fetch or export it again."
            )
    _compare_keys(file, config)
    return file, config, model, wanted


def _config(file: GGUFFile):
    """transformers' config out of a file; the number of blocks is checked, the sizes of tensors are not yet."""
    text = file.metadata.get(CONFIG)
    if not isinstance(text, str):
        raise QtutorError(
            f"{file.path}: {CONFIG} is {'missing' if text is None else 'damaged'}, so qtutor did not write this file. "
            "transformers loads others: AutoModelForCausalLM.from_pretrained(folder, gguf_file=name)."
        )
    where = f"{CONFIG} in {file.path}"
    values = documents.parse_json(text, where)
    blocks = len({name.split(".")[1] for name in file.tensors if name.startswith("blk.")})
    return config_of(values, where, blocks)


def _compare_keys(file: GGUFFile, config) -> None:
    """llama.cpp's keys and our config say the same, each in its own words."""
    try:
        expected, factors = metadata(config), rope_factors(config)
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:  # rope_parameters are free in what they hold
        if isinstance(error, QtutorError):
            raise
        raise QtutorError(
            f"{file.path}: rope_parameters in {CONFIG} are {shown(config.rope_parameters, 160)}, which say "
            "nothing whole of positions. The file is damaged: fetch or export it again."
        ) from error
    if factors is None and ROPE in file.tensors:
        raise QtutorError(
            f"{file.path}: tensor {ROPE!r} is there, and {CONFIG} has no use for it. Export the file again."
        )
    for key, value in expected.items():
        found = file.metadata.get(key, value)  # older exports have fewer
        if not _same(found, value):
            raise QtutorError(
                f"{file.path}: {key} is {shown(found)}, and by {CONFIG} it is {shown(value)}. The file is damaged: "
                "fetch or export it again."
            )


def _same(found, value) -> bool:
    if isinstance(value, str):
        return isinstance(found, str) and found == value
    found = found.item() if isinstance(found, np.number) else found  # whose differences may overflow
    return isinstance(found, int | float) and abs(found - value) <= 1e-6 * abs(value)


def parameters(model: nn.Module) -> Iterator[tuple[str, Source]]:
    """Every parameter under transformers' name, but for an output matrix that is the embedding itself."""
    tied = family_of(model).head if is_tied(model) else None
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, QuantWeight):
            yield f"{path}.weight", ((module.rows, module.columns), lambda m=module: m.quantized().dequantize())
            if getattr(module, "bias", None) is not None:
                yield f"{path}.bias", (tuple(module.bias.shape), lambda m=module: m.bias)
        elif path != tied:
            for name, parameter in module.named_parameters(recurse=False):
                yield f"{path}.{name}", (tuple(parameter.shape), lambda p=parameter: p)

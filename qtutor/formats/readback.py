"""What was written is read back before it gets its name: headers only, so that a file of any size takes a moment.

A model that is not as its config says is refused before (:mod:`qtutor.guards`). This is the net below: whatever a
writer lost or called by another name is found here, while the old file is still in its place, and not by who loads the
new one.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from qtutor.core import quantized
from qtutor.errors import QtutorError
from qtutor.families import family_of
from qtutor.gguf.reader import read
from qtutor.gguf.tokenizer_back import tokenizer_of
from qtutor.gguf.writer import Tensor
from qtutor.guards.promises import promised
from qtutor.runtime.linear import QuantWeight


def check_gguf(path: Path, tensors: Iterable[Tensor]) -> None:
    """Raise :class:`QtutorError` where the file ``path`` does not hold ``tensors``, or no tokenizer comes out of it."""
    file = read(path)
    found = {name: (info.shape, info.type.name) for name, info in file.tensors.items()}
    _compare(found, {tensor.name: (tuple(tensor.shape), tensor.type) for tensor in tensors})
    tokenizer_of(file.metadata)


def check_native(path: Path, model: nn.Module, config) -> None:
    """Raise :class:`QtutorError` where the safetensors file ``path`` does not hold what the decoder of ``config``
    wants, with layers packed as they are in ``model``.
    """
    kinds = {"U8": torch.uint8, "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
    with safe_open(path, "pt") as file:
        names = list(file.keys())
        slices = {name: file.get_slice(name) for name in names}
        found = {name: (tuple(part.get_shape()), kinds.get(part.get_dtype())) for name, part in slices.items()}
    packed = {name: module for name, module in model.named_modules() if isinstance(module, QuantWeight)}
    floats, family = dict(model.named_parameters(remove_duplicate=False)), family_of(model)
    wanted = {}
    for name, tensor in promised(config).state_dict().items():
        layer, _, kind = name.rpartition(".")
        if layer in packed:
            module = packed[layer]
            stored = quantized.shapes(module.rows, module.columns, module.grid, module.group_size, module.scales_as)
            wanted |= {f"{layer}.{part}": what for part, what in stored.items()}
            if kind == "bias":
                wanted[name] = tuple(tensor.shape), module.bias.dtype
        elif not (config.tie_word_embeddings and layer == family.head):
            wanted[name] = tuple(tensor.shape), floats[name].dtype
    _compare(found, wanted)


def _compare(found: dict, wanted: dict) -> None:
    for name in wanted | found:
        if wanted.get(name) != found.get(name):
            raise QtutorError(
                f"tensor {name!r} is written as {found.get(name, 'none')}, and would be looked for as "
                f"{wanted.get(name, 'none')}. Nothing was written: this model cannot be read back."
            )

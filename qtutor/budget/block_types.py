"""Choose the block type of each matrix of a GGUF file: the smallest loss that a given file size allows.

    types = choose(model, token_ids, tokenizer, target_size=90_000_000)
    qtutor.export(model, "out.gguf", format="gguf", tokenizer=tokenizer, types=types)

llama.cpp's mixes choose types by rules that were found by trying and are the same for all models. Here each matrix is
rounded to every type, and :mod:`.sensitivity` estimates what that costs this model. The embedding counts twice if it is
the output matrix, too.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from qtutor.budget.allocation import allocate
from qtutor.budget.sensitivity import Rounding, losses_of
from qtutor.errors import QtutorError
from qtutor.families import family_of
from qtutor.formats.gguf_contents import contents, importance_by_name
from qtutor.formats.gguf_reading import parameters
from qtutor.gguf.architecture import tensor_name
from qtutor.gguf.coding import decode, encode
from qtutor.gguf.container import ALIGNMENT, padded
from qtutor.gguf.mixes import fitting
from qtutor.gguf.writer import Tensor, size_of
from qtutor.guards.promises import is_tied

TYPES = ("Q2_K", "Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0")  # or a substitute, if rows are too narrow
ADVICE = "Allow more, or take a smaller model."


def choose(
    model: nn.Module,
    token_ids: torch.Tensor,
    tokenizer=None,
    *,
    target_size: int | None = None,
    bits: float | None = None,
    importance=None,
) -> dict[str, str]:
    """GGUF name -> block type of every matrix: the ``types`` that :func:`qtutor.formats.gguf.save` accepts.

    token_ids: int64 ``[samples, length]``; the model reads some of them. target_size: the bytes of the whole file, with
    this ``tokenizer``. bits, in place of it: the mean bits per weight of these matrices, scales included. importance:
    as in ``save``. Raises :class:`QtutorError` for a budget that is too small, naming the smallest possible one.
    """
    _check_budget(target_size, bits)
    keys, tensors = contents(model, tokenizer, guided=importance is not None)
    keys.pop("general.file_type")  # not written if types are given
    free = [tensor for tensor in tensors if tensor.type != "F32"]
    sizes = {tensor.name: {kind: _padded(tensor, kind) for kind in _types(tensor)} for tensor in free}
    rest = size_of(keys, tensors) - sum(_padded(tensor, tensor.type) for tensor in free)
    if target_size is None:
        weights = sum(int(np.prod(tensor.shape)) for tensor in free)
        budget, rest, unit = bits * weights / 8, 0, "bytes of matrices"
    else:
        budget, unit = target_size - rest, "bytes"
    costs = _losses(model, token_ids, sizes, importance_by_name(importance, sizes))
    return allocate(sizes, costs, budget, unit, rest, "its smallest block type", ADVICE)


def _check_budget(target_size, bits) -> None:
    if (target_size is None) == (bits is None):
        raise QtutorError(f"target_size = {target_size!r}, bits = {bits!r}: give one of the two.")
    if target_size is not None and (type(target_size) is not int or target_size < 1):
        raise QtutorError(f"target_size = {target_size!r}: a whole number of bytes is needed.")
    if bits is not None and (type(bits) not in (int, float) or not 2 <= bits <= 16):
        raise QtutorError(f"bits = {bits!r}: a number from 2 to 16 is needed, the mean per weight, scales included.")


def _types(tensor: Tensor) -> list[str]:
    """The block types that the rows of ``tensor`` can have, each once."""
    return list(dict.fromkeys(fitting(kind, tensor.shape[-1]) for kind in TYPES))


def _padded(tensor: Tensor, kind: str) -> int:
    return padded(replace(tensor, type=kind).nbytes, ALIGNMENT)


def _losses(model: nn.Module, token_ids: torch.Tensor, sizes: dict, of_column: Callable) -> dict[str, dict[str, float]]:
    """The cost of each matrix in each type, in nats per token, summed over the modules that use it."""
    modules = {module: name for module, name in _modules(model) if name in sizes}
    importance = {name: of_column(name, _width(model, module)) for module, name in modules.items()}
    roundings = {
        module: {kind: _rounding(kind, importance[name]) for kind in sizes[name]} for module, name in modules.items()
    }
    costs = {name: dict.fromkeys(row, 0.0) for name, row in sizes.items()}
    for module, row in losses_of(model, token_ids, roundings).items():
        for kind, loss in row.items():
            costs[modules[module]][kind] += loss
    return costs


def _modules(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Each module with a tensor in the file, and the tensor's name; a tied output matrix has the embedding's."""
    family = family_of(model)
    for parameter, _ in parameters(model):
        module, _, kind = parameter.rpartition(".")
        if kind == "weight":
            yield module, tensor_name(parameter, model.config)
    if is_tied(model):
        yield family.head, tensor_name(f"{family.embedding}.weight", model.config)


def _width(model: nn.Module, module: str) -> int:
    return model.get_submodule(module).weight.shape[1]


def _rounding(kind: str, importance: np.ndarray | None) -> Rounding:
    def rounded(rows: torch.Tensor) -> torch.Tensor:
        values = np.ascontiguousarray(rows.detach().to("cpu", torch.float32).numpy())
        return torch.from_numpy(decode(encode(values, kind, importance), kind)).to(rows.device)

    return rounded

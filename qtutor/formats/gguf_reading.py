"""Reading GGUF files from any tool: header and config are compared before a tensor is decoded.

Our own files contain their config (:data:`CONFIG`), and llama.cpp's keys have to say the same. For any other file, the
config is built from these keys (:mod:`qtutor.gguf.hyperparameters_back`). From there on, both kinds are read in the
same way: the decoder is built of shapes alone, the file has to hold each of its tensors in that shape, and no others.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from qtutor.errors import QtutorError, one_line, shown
from qtutor.families import family_of, head_dim
from qtutor.formats import documents
from qtutor.formats.comparing import blocks_in, check_finite, listed
from qtutor.formats.endings import give_back
from qtutor.formats.transformers_files import config_of, empty_model, filled
from qtutor.gguf import longrope
from qtutor.gguf.architecture import QKV, architecture_of, from_file, place_of
from qtutor.gguf.hyperparameters import metadata, rope_tensors
from qtutor.gguf.hyperparameters_back import config_values
from qtutor.gguf.layout import TYPES
from qtutor.gguf.llama3_rope import ROPE
from qtutor.gguf.parts import Whole, read_whole
from qtutor.gguf.reader import GGUFFile
from qtutor.gguf.tokenizer_back import text_ends
from qtutor.guards.promises import is_tied
from qtutor.runtime.linear import QuantWeight

GENERATION = "qtutor.generation_config"  # what transformers' config does not say about how texts end, if anything
CONFIG = "qtutor.config"  # a key of ours: transformers' config, which llama.cpp's keys do not describe completely
Source = tuple[tuple[int, ...], Callable[[], torch.Tensor]]  # shape, and a function that returns the values
Stored = tuple[tuple[int, ...], Callable[[], np.ndarray]]  # the same in a file: float32


def load(path: str | Path, device: str | None = None, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The decoder in a GGUF file, its blocks decoded to float32, and each tensor then stored as ``dtype``.

    Raises :class:`QtutorError` for a file that is damaged or misses a part, whose architecture or block types are
    unknown here, or whose tensors do not fit its config.
    """
    return decoded(opened(path), device, dtype)


@dataclass(frozen=True)
class Opened:
    """All that can be said about a file without decoding a tensor.

    file: its header. model: of shapes alone, with its config. wanted: by parameter, its tensor's name, its shape, and a
    function that decodes it.
    """

    file: GGUFFile | Whole
    model: nn.Module
    wanted: dict[str, tuple[str, tuple[int, ...], Callable[[], np.ndarray]]]


@torch.no_grad()
def decoded(opened: Opened, device: str | None = None, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The second half of :func:`load`."""
    file, model, where = opened.file, opened.model, str(opened.file.path)
    tensors = {parameter: decoded_one(opened, parameter).to(dtype) for parameter in opened.wanted}
    check_finite(where, tensors)
    model.config.dtype = dtype
    model = filled(model, tensors, where, device)
    take_ends(model, file)
    return model


def decoded_one(opened: Opened, parameter: str) -> torch.Tensor:
    """A parameter of the model, float32, decoded from the file."""
    name, shape, values = opened.wanted[parameter]
    return torch.from_numpy(np.ascontiguousarray(from_file(name, values().reshape(shape), opened.model.config)))


def take_ends(model: nn.Module, file: GGUFFile | Whole) -> None:
    """Take the settings of how texts end from the file."""
    where = str(file.path)
    if CONFIG in file.metadata:
        give_back(model, file.metadata.get(GENERATION), f"{where}: {GENERATION}")
    else:
        model.config.name_or_path = _name(file)
        ends = text_ends(file.metadata)
        model.generation_config.eos_token_id = ends[0] if len(ends) == 1 else ends or None


def _name(file: GGUFFile | Whole) -> str:
    """The model's name, kept for a later export: llama.cpp recognizes Phi-3's tokens by it."""
    name = file.metadata.get("general.name")
    return one_line(name.replace("/", "-"), 120) if isinstance(name, str) else ""


def opened(path: str | Path) -> Opened:
    """The first half of :func:`load`: nothing is allocated before it was found in the file. Raises the same errors."""
    file = read_whole(path)
    _check_types(file)
    ours = CONFIG in file.metadata
    config = _config(file) if ours else config_of(config_values(file), str(path), blocks_in(file.tensors, "blk"))
    model = empty_model(config, str(path))
    stored = tensors_in(file, config)
    wanted = {}
    for parameter, (shape, _) in parameters(model):
        name = place_of(parameter, config) or parameter
        if (
            parameter.endswith(".bias") and name not in stored and not ours
        ):  # llama.cpp leaves out biases that a model does not have
            stored[name] = (shape, partial(np.zeros, shape, np.float32))
        wanted[parameter] = (name, shape, stored.get(name, (None, None))[1])
    _compare(str(path), {name: shape for name, shape, _ in wanted.values()}, stored)
    if ours:
        _compare_keys(file, config)
    return Opened(file, model, wanted)


def _config(file: GGUFFile | Whole):
    """transformers' config from a file of ours; the number of blocks is checked, the sizes of tensors are not."""
    text = file.metadata[CONFIG]
    if not isinstance(text, str):
        raise QtutorError(f"{file.path}: {CONFIG} is damaged: it is {shown(text)}, expected a text. Export it again.")
    where = f"{CONFIG} in {file.path}"
    return config_of(documents.parse_json(text, where), where, blocks_in(file.tensors, "blk"))


def _check_types(file: GGUFFile | Whole) -> None:
    unknown = [info for info in file.tensors.values() if info.type.name not in TYPES]
    if unknown:
        types = ", ".join(sorted({info.type.name for info in unknown}))
        raise QtutorError(
            f"{file.path}: {len(unknown)} of its tensors are {types}, the first of them {shown(unknown[0].name)}, "
            f"which qtutor does not decode. It knows {', '.join(TYPES)}. Take the same model in one of these, or run "
            "it in llama.cpp."
        )


def tensors_in(file: GGUFFile | Whole, config) -> dict[str, Stored]:
    """The tensors of a file by name. One matrix for q, k and v becomes three if the family has three."""
    stored = {name: (info.shape, partial(file.weight, name)) for name, info in file.tensors.items()}
    for name in [name for name, info in file.tensors.items() if info.type.name == "NVFP4"]:
        stored |= _scaled(name, stored)
    architecture = architecture_of(config)
    for kind, names in (("llama3", (ROPE,)), (longrope.KIND, longrope.TENSORS)):
        for name in names if kind in architecture.scalings else ():
            stored.pop(name, None)  # the config says the same
    if architecture.halves[0].readers == QKV:
        for name in [name for name in stored if name.split(".")[-2:-1] == ["attn_qkv"]]:
            stored |= _three(name, *stored.pop(name), config)
    return stored


def _scaled(name: str, stored: dict[str, Stored]) -> dict[str, Stored]:
    """An NVFP4 matrix times the factor for all of it, if it has one: ``blk.0.attn_q.scale``, removed from ``stored``.

    The factor for inputs of 4 bits is removed as well, since inputs stay in float here.
    """
    stem, (shape, values) = name.removesuffix("weight"), stored[name]
    if stored.get(f"{stem}scale", (None,))[0] != (1,):
        return {}
    stored.pop(f"{stem}input_scale", None)
    _, of_all = stored.pop(f"{stem}scale")
    return {name: (shape, lambda: values() * of_all())}


def _three(name: str, shape: tuple[int, ...], values: Callable, config) -> dict[str, Stored]:
    """The rows of q, k and v in one tensor, under the names of three separate tensors."""
    dim = head_dim(config)
    kv = config.num_key_value_heads * dim
    ends = np.cumsum([0, config.num_attention_heads * dim, kv, kv]).tolist()
    if shape[0] != ends[-1]:
        return {name: (shape, values)}
    return {
        name.replace("attn_qkv", part): ((end - begin, *shape[1:]), lambda b=begin, e=end: values()[b:e])
        for part, begin, end in zip(QKV, ends, ends[1:])
    }


def _compare(where: str, wanted: dict[str, tuple[int, ...]], stored: dict[str, Stored]) -> None:
    """Raise :class:`QtutorError` listing the tensors that are missing, not expected, or of another shape."""
    missing = [name for name in wanted if name not in stored]
    unexpected = [name for name in stored if name not in wanted]
    misfits = [
        f"{name} ({list(stored[name][0])}, expected {list(shape)})"
        for name, shape in wanted.items()
        if name in stored and stored[name][0] != shape
    ]
    if missing or unexpected or misfits:
        raise QtutorError(
            f"{where}: {listed(missing, 'missing')}{listed(unexpected, 'not expected')}"
            f"{listed(misfits, 'of another shape')}Its config describes other tensors. The file is damaged: fetch, "
            "convert or export it again."
        )


def _compare_keys(file: GGUFFile | Whole, config) -> None:
    """Check that llama.cpp's keys and our config say the same, each in its own terms."""
    try:
        expected, factors = metadata(config), rope_tensors(config)
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:  # rope_parameters may hold anything
        if isinstance(error, QtutorError):
            raise
        raise QtutorError(
            f"{file.path}: rope_parameters in {CONFIG} are {shown(config.rope_parameters, 160)}, which do "
            "not describe positions completely. The file is damaged: fetch or export it again."
        ) from error
    for name in (ROPE, *longrope.TENSORS):
        if name in file.tensors and name not in factors:
            raise QtutorError(
                f"{file.path}: it holds the tensor {name!r}, but {CONFIG} has no use for it. Export the file again."
            )
    for key, value in expected.items():
        found = file.metadata.get(key, value)  # older exports have fewer
        if not _same(found, value):
            raise QtutorError(
                f"{file.path}: {key} is {shown(found)}, but by {CONFIG} it is {shown(value)}. The file is damaged: "
                "fetch or export it again."
            )


def _same(found, value) -> bool:
    if isinstance(value, str):
        return isinstance(found, str) and found == value
    found = found.item() if isinstance(found, np.number) else found  # differences of numpy numbers may overflow
    return isinstance(found, int | float) and abs(found - value) <= 1e-6 * abs(value)


def parameters(model: nn.Module) -> Iterator[tuple[str, Source]]:
    """Every parameter under transformers' name, except an output matrix that is the embedding itself."""
    tied = family_of(model).head if is_tied(model) else None
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, QuantWeight):
            yield f"{path}.weight", ((module.rows, module.columns), lambda m=module: m.dequantized())
            if getattr(module, "bias", None) is not None:
                yield f"{path}.bias", (tuple(module.bias.shape), lambda m=module: m.bias)
        elif path != tied:
            for name, parameter in module.named_parameters(recurse=False):
                yield f"{path}.{name}", (tuple(parameter.shape), lambda p=parameter: p)

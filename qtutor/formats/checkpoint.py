"""A float checkpoint: a folder with config.json and *.safetensors, the form in which nearly all decoders are published.

config.json and the headers of the weights decide everything: which tensors there are, and their shapes and dtypes. Only
then are weights mapped from their files, and converted if another dtype is requested. transformers' ``from_pretrained``
would fill missing tensors with random numbers.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from qtutor.core.quantized import all_finite
from qtutor.errors import QtutorError, shown
from qtutor.families import Family, family_called
from qtutor.formats.comparing import FLOATS, NAMES, blocks_of, check_finite, compare, tensors_of
from qtutor.formats.documents import AGAIN, file_in, read_json
from qtutor.formats.headers import Stored, read_header
from qtutor.formats.shards import INDEX, WEIGHTS
from qtutor.formats.tokenizers_files import tokenizer_in
from qtutor.formats.transformers_files import DTYPES, config_of, empty_model, family_in, filled, take_generation

CONFIG = "config.json"
GENERATION = "generation_config.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
STORED = (*FLOATS, "F64")  # dtypes of weights that are floats
OURS = ("packed", "scales", "zeros", "scale_codes", "scale_absmax", "scale_offset")  # ends of names in our folders


@dataclass(frozen=True)
class Described:
    """What config.json and the headers say about a checkpoint, compared with each other.

    model: of shapes alone. where: the config's file. names: by name in the model, the file of a tensor and its name
    there; one of two tied matrices may be missing. dtype: the dtype in which the model will be loaded. folder: of the
    checkpoint.
    """

    model: nn.Module
    where: str
    names: dict[str, tuple[Path, str]]
    dtype: torch.dtype
    folder: Path

    @property
    def files(self) -> list[Path]:
        return list(dict.fromkeys(path for path, _ in self.names.values()))

    def mapped(self) -> dict[str, torch.Tensor]:
        """All tensors by name in the model, mapped from their files, in the files' dtypes: nothing is read yet."""
        read = {path: tensors_of(path) for path in self.files}
        return {name: read[path][own] for name, (path, own) in self.names.items()}


def load(folder: Path, dtype: torch.dtype | str, device: str | None) -> nn.Module:
    """The decoder in ``folder``. dtype: ``"auto"`` for the config's dtype, or, if it has none, the first tensor's.

    Raises :class:`QtutorError` naming the file for anything that is missing, damaged, not expected, or not safetensors.
    """
    found = described(folder, dtype)
    read = found.mapped()
    check_finite(str(folder), read)
    values = {name: _converted(name, tensor, found) for name, tensor in read.items()}
    model = filled(found.model, values, found.where, device)
    take_settings(model, folder)
    return model


def _converted(name: str, tensor: torch.Tensor, found: Described) -> torch.Tensor:
    """``tensor`` in the requested dtype. Refuse a tensor with numbers beyond it: float16 would hold infinities."""
    value, largest = tensor.to(found.dtype), torch.finfo(found.dtype).max
    if torch.finfo(tensor.dtype).max > largest and not all_finite(value):
        raise QtutorError(
            f"{found.folder}: tensor {shown(name)} holds numbers beyond {largest:,.0f}, the largest of "
            f"{found.dtype}. Load it with dtype=torch.float32, or change dtype in {found.where}."
        )
    return value


def described(folder: Path, dtype: torch.dtype | str) -> Described:
    """The decoder in ``folder`` without the values of its weights. Arguments and errors are those of :func:`load`."""
    check_family(folder)
    stored = weights_in(folder)
    tensors = {name: (path, found) for path, header in stored.items() for name, found in header.items()}
    config, where = config_in(folder, tensors)
    model = empty_model(config, where)
    family = family_called(config.model_type)
    renamed = _with_prefix(tensors, family)
    tied = (f"{family.embedding}.weight", f"{family.head}.weight") if config.tie_word_embeddings else ()
    compare(str(folder), {name: found for name, (_, found) in renamed.items()}, model, tied, STORED)
    if dtype == "auto":
        first = next(found.dtype for _, found in renamed.values() if found.dtype in STORED)
        dtype = config.dtype or {name: dtype for dtype, name in NAMES.items()}[first]
    config.dtype = dtype_of(dtype)
    wanted = model.state_dict().keys()
    places = zip(renamed, tensors, (path for path, _ in tensors.values()))
    names = {name: (path, own) for name, own, path in places if name in wanted}
    return Described(model, where, names, config.dtype, folder)


def take_settings(model: nn.Module, folder: Path) -> None:
    """Take the settings of how texts end from the checkpoint's generation_config.json, if there is one."""
    generation = file_in(folder, GENERATION)
    if generation is not None:
        take_generation(model, read_json(generation), str(generation))


def tokenizer(folder: Path):
    """The tokenizer of a checkpoint without its weights."""
    names = [name for header in weights_in(folder).values() for name in header]
    return tokenizer_in(folder, config_in(folder, names)[0])


def check_family(folder: Path) -> None:
    """Refuse an unknown family by its config alone, before weights are checked or downloaded."""
    path = file_in(folder, CONFIG)
    if path is not None:
        family_in(read_json(path), str(path))


def config_in(folder: Path, names) -> tuple:
    """transformers' config for config.json, and the file's name for messages. names: of the checkpoint's tensors."""
    path = file_in(folder, CONFIG)
    if path is None:
        raise QtutorError(f"{folder / CONFIG} does not exist: the checkpoint is incomplete. {AGAIN}")
    values = read_json(path)
    family = family_in(values, str(path))
    config = config_of(values, str(path), blocks_of(family, list(names)))
    config.name_or_path = str(folder)
    return config, str(path)


def headers_in(folder: Path) -> dict[Path, dict[str, Stored]]:
    """The headers of the files that hold a checkpoint's weights, float or packed, by file; raises as :func:`load`."""
    if file_in(folder, "adapter_config.json"):
        raise QtutorError(
            f"{folder} holds an adapter (adapter_config.json), which changes the weights of a model. Merge the two "
            "first (peft: merge_and_unload, save_pretrained), or remove the adapter's files to load the model without."
        )
    single, index = file_in(folder, WEIGHTS), file_in(folder, INDEX)
    if single is not None:
        found = {single: read_header(single).tensors}
    elif index is not None:
        found = sharded(folder, index)
    else:
        raise QtutorError(_no_weights(folder))
    return found


def weights_in(folder: Path) -> dict[Path, dict[str, Stored]]:
    """Like :func:`headers_in`, for a float checkpoint: refuses our own packed layers."""
    found = headers_in(folder)
    for path, header in found.items():
        packed = [name for name in header if name.rpartition(".")[2] in OURS]
        if packed:
            raise QtutorError(
                f"{path} holds packed layers ({shown(packed[0])}): {folder} is an export of qtutor whose qtutor.json "
                "is missing, and without it nobody knows how they are packed. Copy the whole folder again."
            )
    return found


def sharded(folder: Path, index: Path) -> dict[Path, dict[str, Stored]]:
    """The headers of all files that an index names; both have to agree on which tensor is in which file."""
    mapped = read_json(index).get("weight_map")
    if not isinstance(mapped, dict) or not mapped or not all(isinstance(file, str) for file in mapped.values()):
        raise QtutorError(f"{index} is damaged: weight_map is {shown(mapped)}, expected files by tensor. {AGAIN}")
    found, where = {}, {}
    for name in sorted(set(mapped.values())):
        plain = name.endswith(".safetensors") and "/" not in name and "\\" not in name
        if not plain:
            raise QtutorError(
                f"{index} names {shown(name)}; expected .safetensors files in the same folder. qtutor reads nothing "
                "outside of it, and no pickle. Copy the files into the folder and correct their names."
            )
        path = file_in(folder, name)
        if path is None:
            raise QtutorError(f"{index} names {shown(name)}, which is not in the folder. {AGAIN}")
        found[path] = read_header(path).tensors
        for tensor in found[path]:
            if where.setdefault(tensor, name) != name:
                raise QtutorError(f"{folder}: tensor {shown(tensor)} is in {where[tensor]} and in {name}. {AGAIN}")
    for tensor, name in mapped.items():
        if where.get(tensor) != name:
            raise QtutorError(f"{index} says that {shown(tensor)} is in {shown(name)}, and it is not. {AGAIN}")
    return found


def _no_weights(folder: Path) -> str:
    """The message for a folder without a readable file of weights: what to do."""
    files = sorted(path.name for path in folder.iterdir())
    pickles = [path.name for kind in PICKLES for path in folder.glob(kind)]
    if pickles:
        return (
            f"{folder} holds its weights as pickles ({shown(pickles[0])}), which can run code when they are read, so "
            "qtutor reads none. Take a version with .safetensors files, or convert it where you trust it "
            "(transformers: save_pretrained)."
        )
    return (
        f"{folder / WEIGHTS} does not exist, nor {INDEX}: there are no weights to read. Found "
        f"{', '.join(shown(name) for name in files[:12]) or 'nothing'}. {AGAIN}"
    )


def _with_prefix(tensors: dict, family: Family) -> dict:
    """Names as in the whole model: a decoder that was saved without its head has names without ``model.``."""
    prefix = family.blocks.partition(".")[0]
    if any(name.startswith(f"{prefix}.") for name in tensors):
        return tensors
    head = f"{family.head}."
    return {name if name.startswith(head) else f"{prefix}.{name}": found for name, found in tensors.items()}


def dtype_of(dtype: torch.dtype | str) -> torch.dtype:
    """torch's dtype for a name."""
    found = DTYPES.get(dtype, dtype) if isinstance(dtype, str) else dtype
    if found not in (*DTYPES.values(), torch.float64):
        raise QtutorError(f"dtype = {shown(dtype)}: choose 'auto', or one of {', '.join(DTYPES)}.")
    return found

"""The places of tensors in safetensors files: fixed before there are any tensors, which are then written in any order.

A run that writes a checkpoint larger than memory knows every shape before its work. So the files are laid out first,
with their headers and their final size; each tensor is then written to its place when it is finished. A run that is
killed leaves the rest of a file empty, and later continues in the same file.

    files = laid_out({"lm_head.weight": (torch.bfloat16, (32000, 2048)), ...})     # names, headers, offsets
    with Shards(folder, files) as shards:
        shards.write("lm_head.weight", tensor)

Files are split as in transformers: one ``model.safetensors`` if it has at most 5 GB, otherwise
``model-00001-of-00003.safetensors`` and so on in the order of the tensors, with an index. Inside a file, the order is
that of the safetensors library: the widest dtype first, then by name, so that a file has the same bytes as the
library's.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
LARGEST = 5 * 10**9  # bytes of tensors in a file; a larger tensor has a file to itself
NAMES = {  # in the order of the safetensors library in a file
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int8: "I8",
    torch.uint8: "U8",
}
ORDER = tuple(NAMES)
CHUNK = 1 << 22  # numbers that are converted and written, or read, at a time

Kind = tuple[torch.dtype, tuple[int, ...]]  # dtype and shape


@dataclass(frozen=True)
class ShardFile:
    """A safetensors file to come. header: its first bytes. places: first byte of each tensor, counted from the file's
    beginning. size: bytes of the whole file.
    """

    name: str
    header: bytes
    places: dict[str, int]
    size: int


def laid_out(tensors: Mapping[str, Kind], largest: int = LARGEST) -> list[ShardFile]:
    """The files, of at most about ``largest`` bytes each, that hold ``tensors`` (by name: dtype and shape)."""
    parts, size = [{}], 0
    for name, kind in tensors.items():
        nbytes = bytes_of(kind)
        if parts[-1] and size + nbytes > largest:
            parts.append({})
            size = 0
        parts[-1][name] = kind
        size += nbytes
    if len(parts) == 1:
        return [_file(WEIGHTS, parts[0])]
    count = len(parts)
    return [_file(f"model-{number:05}-of-{count:05}.safetensors", part) for number, part in enumerate(parts, 1)]


def index_text(files: list[ShardFile]) -> str | None:
    """The content of the index that says which tensor is in which file; ``None`` for a single file."""
    if len(files) == 1:
        return None
    where = {name: file.name for file in files for name in file.places}
    total = sum(file.size - len(file.header) for file in files)
    return json.dumps({"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}, indent=2) + "\n"


def bytes_of(kind: Kind) -> int:
    """The bytes of a tensor of this dtype and shape."""
    dtype, shape = kind
    return math.prod(shape) * dtype.itemsize


def save_file(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write one file with all ``tensors``. Unlike the library's function of this name, it copies no tensor first."""
    file = _file(path.name, {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()})
    with Shards(path.parent, [file]) as shards:
        for name, tensor in tensors.items():
            shards.write(name, tensor)


class Shards:
    """Files that are laid out, open for tensors to be written to their places and read again.

    An existing file with the right header and size keeps its content; any other is begun anew.
    """

    def __init__(self, folder: Path, files: list[ShardFile]):
        self.folder, self.files = folder, files
        self._open: dict[str, tuple] = {}  # a tensor's name -> the open file, its first byte

    def __enter__(self) -> "Shards":
        with ExitStack() as closing:
            for file in self.files:
                path = self.folder / file.name
                kept = is_begun(path, file)
                opened = closing.enter_context(open(path, "r+b" if kept else "w+b"))
                if not kept:
                    opened.write(file.header)
                    opened.truncate(file.size)  # bytes that are not written yet take no room on most file systems
                self._open |= {name: (opened, begin) for name, begin in file.places.items()}
            self._closing = closing.pop_all()
        return self

    def __exit__(self, *_exception) -> None:
        self._closing.close()

    def write(self, name: str, tensor: torch.Tensor, dtype: torch.dtype | None = None) -> None:
        """Write ``tensor`` to its place, converted to ``dtype`` piece by piece if one is given."""
        file, begin = self._open[name]
        file.seek(begin)
        for part in tensor.detach().reshape(-1).split(CHUNK):
            part = part.to(device="cpu", dtype=dtype or part.dtype).contiguous()
            file.write(memoryview(part.view(torch.uint8).numpy()))

    def read(self, name: str, kind: Kind) -> torch.Tensor:
        """The tensor as it was written."""
        dtype, shape = kind
        file, begin = self._open[name]
        buffer = torch.empty(bytes_of(kind), dtype=torch.uint8)
        file.seek(begin)
        file.readinto(memoryview(buffer.numpy()))
        return buffer.view(dtype).reshape(shape)

    def digest(self, tensors: Mapping[str, Kind]) -> str:
        """SHA-256 of the bytes that ``tensors`` have in the files, in the order of their names."""
        found = hashlib.sha256()
        for name in sorted(tensors):
            file, begin = self._open[name]
            file.seek(begin)
            left = bytes_of(tensors[name])
            while left:
                data = file.read(min(left, CHUNK))
                if not data:
                    break
                found.update(data)
                left -= len(data)
        return found.hexdigest()

    def flush(self) -> Iterable[int]:
        """Hand all bytes to the system; returns the files' handles, for a caller that waits until they are on disk."""
        opened = {id(file): file for file, _ in self._open.values()}
        for file in opened.values():
            file.flush()
        return [file.fileno() for file in opened.values()]


def is_begun(path: Path, file: ShardFile) -> bool:
    """Whether ``path`` is ``file``, whole or in part: a plain file of its size that begins with its header."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size != file.size:
        return False
    with open(path, "rb") as opened:
        return opened.read(len(file.header)) == file.header


def _file(name: str, tensors: Mapping[str, Kind]) -> ShardFile:
    order = sorted(tensors, key=lambda tensor: (ORDER.index(tensors[tensor][0]), tensor))
    entries, end = {"__metadata__": {"format": "pt"}}, 0
    for tensor in order:
        dtype, shape = tensors[tensor]
        begin, end = end, end + bytes_of(tensors[tensor])
        entries[tensor] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # so that tensors begin at a multiple of 8
    header = len(text).to_bytes(8, "little") + text
    places = {tensor: len(header) + entries[tensor]["data_offsets"][0] for tensor in order}
    return ShardFile(name, header, places, len(header) + end)

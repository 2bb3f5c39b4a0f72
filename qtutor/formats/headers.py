"""The header of a safetensors file: the names, dtypes, shapes and places of its tensors; no tensor is read.

The file is the length of the header in 8 bytes, the header as JSON, and the bytes of the tensors. As in
:mod:`qtutor.gguf.reader`, nothing is trusted before it was compared with the file's size: the tensors have to fill it
exactly, without gaps and overlaps.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from qtutor.errors import QtutorError, shown
from qtutor.formats.documents import AGAIN, parse_json

BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}  # by their names in a header
LARGEST = 100_000_000  # bytes of a header; safetensors itself refuses longer ones
MOST_DIMENSIONS = 64


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: dtype by its name in the file, shape, bytes."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


@dataclass(frozen=True)
class Header:
    """tensors: by name, in the file's order. metadata: texts by name."""

    tensors: dict[str, Stored]
    metadata: dict[str, str]


def read_header(path: Path) -> Header:
    """Read a header. Raises :class:`QtutorError` naming the file and the entry if anything in it does not add up."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, LARGEST):
            raise QtutorError(
                f"{path} has {size:,} bytes and no readable safetensors header: it was cut off, or is another kind of "
                f"file. {AGAIN}"
            )
        text = file.read(length)
    entries = parse_json(text, f"{path} has no readable safetensors header: it")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _damaged(path, "__metadata__", metadata, "texts by name")
    tensors, spans = {}, []
    for name, entry in entries.items():
        tensors[name], span = _entry(path, name, entry)
        spans.append((*span, name))
    end = 0
    for start, stop, name in sorted(spans):
        if start != end:
            raise _damaged(path, name, [start, stop], f"to begin at byte {end}, where the tensor before it ends")
        end = stop
    expected = 8 + length + end
    if size != expected:
        raise QtutorError(
            f"{path} has {size:,} bytes, but its header describes {expected:,}: it is "
            f"{'truncated' if size < expected else 'longer than it should be'}. {AGAIN}"
        )
    return Header(tensors, metadata)


def _entry(path: Path, name: str, entry) -> tuple[Stored, tuple[int, int]]:
    """One tensor, its first byte, and the byte after its last."""
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise _damaged(path, name, entry, "dtype, shape and data_offsets")
    dtype, shape, span = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise _damaged(path, name, dtype, f"a dtype, one of {', '.join(BITS)}")
    if not _sizes(shape) or len(shape) > MOST_DIMENSIONS:
        raise _damaged(path, name, shape, "a shape, a list of sizes")
    if not _sizes(span) or len(span) != 2 or span[0] > span[1]:
        raise _damaged(path, name, span, "two offsets, the first not above the second")
    bits = math.prod(shape) * BITS[dtype]
    if bits != 8 * (span[1] - span[0]):
        raise _damaged(path, name, span, f"{bits // 8} bytes, as {dtype} {shown(shape)} takes")
    return Stored(dtype, tuple(shape), span[1] - span[0]), (span[0], span[1])


def _sizes(value) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 1 << 63 for size in value)


def _damaged(path: Path, name: str, found, wanted: str) -> QtutorError:
    return QtutorError(f"{path}: its header is damaged: {shown(name)} has {shown(found)}, expected {wanted}. {AGAIN}")

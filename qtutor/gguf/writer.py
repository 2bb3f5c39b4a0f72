"""The container around the blocks: header, metadata, tensor infos, aligned data; written beside the target and renamed.

The types of metadata values follow Python's types: ``str`` and ``bool``; numpy scalars keep their type; a Python
``int`` becomes uint32 (or the first of int32, uint64, int64 that holds it) and a ``float`` becomes float32, the types
of llama.cpp's keys. Lists of ``str`` and one-dimensional numpy arrays (or lists of numbers) become arrays.

Left out: names and metadata of architectures; this module writes the values that it gets.
"""

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qtutor.files import as_qtutor_error, written_beside
from qtutor.gguf.container import (
    ALIGNMENT,
    ARRAY,
    BOOL,
    LONGEST_KEY,
    LONGEST_NAME,
    MAGIC,
    MOST_DIMENSIONS,
    NUMBERS,
    STRING,
    VERSION,
    GGUFError,
    TensorInfo,
    padded,
)
from qtutor.gguf.layout import ALL_TYPES

_NUMBER_OF = {dtype: number for number, dtype in NUMBERS.items()}


@dataclass(frozen=True)
class Tensor:
    """A tensor to write: its block type's name, shape as torch has it, and its bytes, or a function that makes them.

    With a function only one tensor's bytes are in memory at a time.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    data: np.ndarray | Callable[[], np.ndarray]  # uint8, rows * bytes of a row in all

    @property
    def nbytes(self) -> int:
        """The size of its data in bytes, without the padding before the next tensor."""
        return TensorInfo(self.name, self.shape, ALL_TYPES[self.type], 0).nbytes


def write(
    path: str | Path,
    metadata: dict,
    tensors: Iterable[Tensor] = (),
    check: Callable[[Path], object] | None = None,
) -> int:
    """Write a GGUF file and return its size; an existing file stays as it is until the new one is complete.

    check: a function that looks at the new file, under a temporary name, and raises if the file must not get its final
    name. Raises :class:`GGUFError` for a key, value, name, shape or byte count that the format does not allow, and if
    the file cannot be written (no space, no permission).
    """
    path, tensors = Path(path), list(tensors)
    alignment = _alignment(metadata)
    infos = _place(tensors, alignment)
    head = _head(metadata, infos)
    with as_qtutor_error(path, GGUFError), written_beside(path) as new, open(new, "wb") as file:
        file.write(head + bytes(padded(len(head), alignment) - len(head)))
        for tensor, info in zip(tensors, infos):
            file.write(_bytes_of(tensor, info))
            file.write(bytes(padded(info.nbytes, alignment) - info.nbytes))
        size = file.tell()
        file.flush()
        if check is not None:
            check(new)
    return size


def size_of(metadata: dict, tensors: Iterable[Tensor]) -> int:
    """How many bytes :func:`write` would write; no tensor's bytes are computed. Raises like :func:`write`."""
    alignment = _alignment(metadata)
    infos = _place(list(tensors), alignment)
    return padded(len(_head(metadata, infos)), alignment) + sum(padded(info.nbytes, alignment) for info in infos)


def _alignment(metadata: dict) -> int:
    alignment = metadata.get("general.alignment", ALIGNMENT)
    whole = isinstance(alignment, int | np.integer) and not isinstance(alignment, bool)
    if not whole or not 0 < alignment <= 1 << 20 or int(alignment) & (int(alignment) - 1):
        raise GGUFError(f"general.alignment = {alignment!r}: it has to be a power of two up to {1 << 20}.")
    return int(alignment)


def _place(tensors: list[Tensor], alignment: int) -> list[TensorInfo]:
    """Tensor infos with offsets relative to the data section, one after the other."""
    infos, offset, names = [], 0, set()
    for tensor in tensors:
        name = tensor.name
        if not 1 <= len(_utf8(name)) <= LONGEST_NAME or name in names:
            raise GGUFError(f"tensor name {name!r}: it has to be new, and 1 to {LONGEST_NAME} bytes long.")
        if tensor.type not in ALL_TYPES:
            raise GGUFError(f"tensor {name!r}: type {tensor.type!r} is not one of {', '.join(ALL_TYPES)}.")
        block_type = ALL_TYPES[tensor.type]
        shape = tuple(int(size) for size in tensor.shape)
        if not 1 <= len(shape) <= MOST_DIMENSIONS or min(shape) < 1 or shape[-1] % block_type.values:
            raise GGUFError(
                f"tensor {name!r}: shape {list(shape)} cannot be stored as {tensor.type}. It takes 1 to "
                f"{MOST_DIMENSIONS} dimensions above 0, the last a multiple of {block_type.values}."
            )
        names.add(name)
        infos.append(TensorInfo(name, shape, block_type, offset))
        offset += padded(infos[-1].nbytes, alignment)
    return infos


def _bytes_of(tensor: Tensor, info: TensorInfo) -> memoryview:
    data = tensor.data() if callable(tensor.data) else tensor.data
    if data.dtype != np.uint8 or data.size != info.nbytes:
        raise GGUFError(
            f"tensor {info.name!r}: {data.size} values of {data.dtype} were given for {list(info.shape)} as "
            f"{info.type.name}, which takes {info.nbytes} bytes (uint8)."
        )
    return memoryview(np.ascontiguousarray(data)).cast("B")


def _head(metadata: dict, infos: list[TensorInfo]) -> bytes:
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(infos), len(metadata))]
    for key, value in metadata.items():
        if not isinstance(key, str) or not 1 <= len(_utf8(key)) <= LONGEST_KEY:
            raise GGUFError(f"metadata key {key!r}: keys are strings of 1 to {LONGEST_KEY} bytes.")
        kind, data = _value(np.uint32(value) if key == "general.alignment" else value, key)
        parts += [_string(key), struct.pack("<I", kind), data]
    for info in infos:
        sizes = tuple(reversed(info.shape))
        parts += [_string(info.name), struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)]
        parts.append(struct.pack("<IQ", info.type.number, info.offset))
    return b"".join(parts)


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise GGUFError(
            f"{text!r} holds half a surrogate pair, which UTF-8 cannot hold: give it whole characters."
        ) from None


def _string(text: str) -> bytes:
    data = _utf8(text)
    return struct.pack("<Q", len(data)) + data


def _value(value, key: str) -> tuple[int, bytes]:
    """A metadata value: the number of its type, and its bytes."""
    if isinstance(value, str):
        return STRING, _string(value)
    if isinstance(value, bool | np.bool_):
        return BOOL, struct.pack("<B", bool(value))
    if isinstance(value, np.generic) and value.dtype.newbyteorder("<") in _NUMBER_OF:
        dtype = value.dtype.newbyteorder("<")
        return _NUMBER_OF[dtype], value.astype(dtype).tobytes()
    if isinstance(value, int):
        return _value(_narrowest(value, key), key)
    if isinstance(value, float):
        return _value(np.float32(value), key)
    if isinstance(value, list | tuple | np.ndarray):
        return ARRAY, _array(value, key)
    raise GGUFError(
        f"metadata {key!r}: a {type(value).__name__} cannot be stored. GGUF holds strings, bools, numbers of 8 to 64 "
        "bits, and lists of one of these."
    )


def _narrowest(value: int, key: str) -> np.generic:
    for dtype in (np.uint32, np.int32, np.uint64, np.int64):
        if np.iinfo(dtype).min <= value <= np.iinfo(dtype).max:
            return dtype(value)
    raise GGUFError(f"metadata {key!r}: {value} does not fit into 64 bits.")


def _array(values: list | tuple | np.ndarray, key: str) -> bytes:
    if not isinstance(values, np.ndarray) and all(isinstance(value, str) for value in values):
        return struct.pack("<IQ", STRING, len(values)) + b"".join(map(_string, values))
    try:
        array = values if isinstance(values, np.ndarray) else _from_list(values)
    except (ValueError, OverflowError):  # ragged lists, or numbers that no type holds
        array = np.zeros((), object)
    dtype = array.dtype.newbyteorder("<")
    boolean = dtype.kind == "b"
    if array.ndim != 1 or not (boolean or dtype in _NUMBER_OF):
        raise GGUFError(
            f"metadata {key!r}: an array of {array.dtype} with {array.ndim} dimensions cannot be stored. GGUF holds "
            "lists of strings, of bools, or of numbers of one type (no lists of lists)."
        )
    kind = BOOL if boolean else _NUMBER_OF[dtype]
    return struct.pack("<IQ", kind, array.size) + array.astype(dtype).tobytes()


def _from_list(values: list | tuple) -> np.ndarray:
    """Numbers of a Python list as an array: int32 if they fit, float32 for floats."""
    array = np.array(values)
    if array.dtype == np.int64 and array.size and np.abs(array).max() < 2**31:
        return array.astype(np.int32)
    return array.astype(np.float32) if array.dtype == np.float64 else array

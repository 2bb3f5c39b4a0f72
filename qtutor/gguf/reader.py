"""A strict reader: it checks every count, length and offset against the file's size before it uses them.

Every count, length and offset is a number that somebody wrote, perhaps in bad faith. If a reader allocates as much as
these numbers say, a file of 100 bytes can make it hang or fill the memory. So a count is refused if not even the
smallest entries would fit into the rest of the file. Tensors have to follow each other in order, without gaps and
overlaps, as llama.cpp demands. The bytes of tensors stay on disk, mapped, until they are used.
"""

import mmap
import struct
from pathlib import Path

import numpy as np

from qtutor.errors import one_line, shown
from qtutor.gguf.coding import decode
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
    VALUE_TYPES,
    VERSION,
    GGUFError,
    TensorInfo,
    padded,
)
from qtutor.gguf.layout import BY_NUMBER, REMOVED, TYPES

SMALLEST_ENTRY = 8 + 1 + 4 + 1  # a key of one letter, its type, a value of one byte
SMALLEST_INFO = 8 + 1 + 4 + 8 + 4 + 8  # a name of one letter, one dimension
LARGEST_ALIGNMENT = 1 << 20


class GGUFFile:
    """An open GGUF file: ``metadata`` (key -> value), ``tensors`` (name -> :class:`TensorInfo`), and their bytes.

    Numbers keep their types as numpy scalars (``np.uint32(4096)``), and arrays are numpy arrays. Strings are ``str``,
    and arrays of strings are lists of ``str``. ``metadata_at`` says at which byte of the file each value begins.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.metadata, self.metadata_at, self.tensors = {}, {}, {}
        cursor = _Cursor(self.path)
        self._data = cursor.data
        tensor_count, entry_count = self._read_header(cursor)
        for number in range(entry_count):
            self._read_entry(cursor, number)
        self.alignment = self._check_alignment(cursor)
        infos = [_read_info(cursor, number) for number in range(tensor_count)]
        self._place_tensors(cursor, infos)

    def _read_header(self, cursor: "_Cursor") -> tuple[int, int]:
        if cursor.take(4, "magic") != MAGIC:
            cursor.fail("magic", f"{bytes(cursor.data[:4])!r}", "b'GGUF': this is no GGUF file", at=0)
        self.version = cursor.number("<I", "version")
        if self.version not in (2, VERSION):  # 2 and 3 differ only in big-endian files, which 3 allows
            kind = "a big-endian file" if self.version == VERSION << 24 else f"version {self.version}"
            cursor.fail("version", kind, f"{VERSION} (or 2), little-endian", at=4)
        tensor_count = cursor.count("number of tensors", SMALLEST_INFO)
        entry_count = cursor.count("number of metadata entries", SMALLEST_ENTRY)
        return tensor_count, entry_count

    def _read_entry(self, cursor: "_Cursor", number: int) -> None:
        start = cursor.at
        key = cursor.string(f"key of metadata entry {number}", LONGEST_KEY)
        if not key or key in self.metadata:
            cursor.fail(f"key of metadata entry {number}", repr(key), "a name that no other entry has", at=start)
        kind = cursor.number("<I", f"type of {key}")
        self.metadata_at[key] = cursor.at
        self.metadata[key] = cursor.value(kind, key)

    def _check_alignment(self, cursor: "_Cursor") -> int:
        alignment = self.metadata.get("general.alignment", np.uint32(ALIGNMENT))
        fine = isinstance(alignment, np.uint32) and 0 < alignment <= LARGEST_ALIGNMENT
        if not fine or int(alignment) & (int(alignment) - 1):
            at = self.metadata_at["general.alignment"]
            cursor.fail("general.alignment", repr(alignment), f"a uint32 power of two up to {LARGEST_ALIGNMENT}", at=at)
        return int(alignment)

    def _place_tensors(self, cursor: "_Cursor", infos: list[tuple[TensorInfo, int]]) -> None:
        """Check that every tensor begins where the one before it ended, and that the file holds them all."""
        start = padded(cursor.at, self.alignment)
        expected = 0
        for info, at in infos:
            if info.name in self.tensors:
                cursor.fail("tensor name", repr(info.name), "a name that no other tensor has", at=at)
            if info.offset != expected:
                wanted = f"{expected}, where the tensor before it ends (padded to {self.alignment})"
                cursor.fail(f"offset of tensor {info.name!r}", str(info.offset), wanted, at=at)
            if start + expected + info.nbytes > cursor.size:
                left = max(cursor.size - start - expected, 0)
                cursor.fail(f"data of tensor {info.name!r}", f"{left} bytes", f"{info.nbytes} bytes", start + expected)
            self.tensors[info.name] = TensorInfo(info.name, info.shape, info.type, start + expected)
            expected += padded(info.nbytes, self.alignment)

    def data(self, name: str) -> np.ndarray:
        """The bytes of a tensor as they are in the file: read-only uint8 ``[rows, bytes of a row]``, mapped."""
        if name not in self.tensors:
            some = one_line(", ".join(self.tensors), 2000)
            raise GGUFError(f"{self.path}: no tensor is called {shown(name)}. It has {some or 'none'}.")
        info = self.tensors[name]
        flat = np.frombuffer(self._data, np.uint8, info.nbytes, info.offset)
        return flat.reshape(info.rows, info.row_bytes)

    def weight(self, name: str) -> np.ndarray:
        """A tensor decoded to float32, in its shape. Raises :class:`GGUFError` for a type that qtutor cannot decode."""
        data, info = self.data(name), self.tensors[name]
        if info.type.name not in TYPES:
            raise GGUFError(
                f"{self.path}: tensor {name!r} is {info.type.name}, which qtutor does not decode. It knows "
                f"{', '.join(TYPES)}."
            )
        return decode(data, info.type.name).reshape(info.shape)


def read(path: str | Path) -> GGUFFile:
    """Open a GGUF file. Raises :class:`GGUFError` naming field and offset if anything in it is inconsistent."""
    return GGUFFile(path)


def _read_info(cursor: "_Cursor", number: int) -> tuple[TensorInfo, int]:
    """One tensor info, with its offset relative to the data, and the byte of the file where the info begins."""
    start = cursor.at
    name = cursor.string(f"name of tensor {number}", LONGEST_NAME)
    at = cursor.at
    dimensions = cursor.number("<I", f"number of dimensions of {name!r}")
    if not name or not 1 <= dimensions <= MOST_DIMENSIONS:
        cursor.fail(f"number of dimensions of {name!r}", str(dimensions), f"a name, and 1 to {MOST_DIMENSIONS}", at=at)
    at = cursor.at
    sizes = [cursor.number("<Q", f"dimension {i} of {name!r}") for i in range(dimensions)]
    kind = cursor.number("<I", f"type of tensor {name!r}")
    if kind in REMOVED:
        raise GGUFError(
            f"{cursor.path}: tensor {shown(name)} is {REMOVED[kind]}, a type that llama.cpp removed. Convert the model "
            "again, to Q4_0 for instance, which computes as fast today."
        )
    if kind not in BY_NUMBER:
        cursor.fail(f"type of tensor {name!r}", str(kind), f"one of {', '.join(map(str, BY_NUMBER))}", cursor.at - 4)
    block_type = BY_NUMBER[kind]
    if min(sizes) < 1 or sizes[0] % block_type.values:
        wanted = f"sizes above 0, the first a multiple of {block_type.values} ({block_type.name})"
        cursor.fail(f"dimensions of {name!r}", str(sizes), wanted, at=at)
    info = TensorInfo(name, tuple(reversed(sizes)), block_type, cursor.number("<Q", f"offset of {name!r}"))
    if info.nbytes > cursor.size:
        cursor.fail(
            f"dimensions of {name!r}", f"{sizes}, {info.nbytes} bytes", f"less than the file's {cursor.size}", at
        )
    return info, start


class _Cursor:
    """A place in the mapped file; all that it returns is known to be inside the file."""

    def __init__(self, path: Path):
        self.path, self.at = path, 0
        try:
            self.size = path.stat().st_size
            with open(path, "rb") as file:
                self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if self.size else b""
        except (OSError, ValueError) as error:
            raise GGUFError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error

    def fail(self, field: str, found: str, expected: str, at: int | None = None) -> None:
        at = self.at if at is None else at
        field, found = one_line(field, 160), one_line(found, 200)
        raise GGUFError(
            f"{self.path}: {field} at byte {at} is {found}, expected {expected}. The file is damaged, cut off or no "
            "GGUF file: fetch or write it again."
        )

    def take(self, size: int, field: str) -> bytes:
        if size > self.size - self.at:
            self.fail(field, f"cut off ({self.size - self.at} of {size} bytes)", f"{size} bytes")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, kind: str, field: str) -> int:
        return struct.unpack(kind, self.take(struct.calcsize(kind), field))[0]

    def count(self, field: str, smallest: int) -> int:
        """A number of things of at least ``smallest`` bytes each, if all of them fit into the rest of the file."""
        at = self.at
        count = self.number("<Q", field)
        if count > (self.size - self.at) // smallest:
            self.fail(field, str(count), f"at most {(self.size - self.at) // smallest}, which would fill the file", at)
        return count

    def string(self, field: str, longest: int | None = None) -> str:
        at = self.at
        length = self.count(f"length of {field}", 1)
        if longest is not None and length > longest:
            self.fail(f"length of {field}", str(length), f"at most {longest}", at)
        try:
            return self.take(length, field).decode()
        except UnicodeDecodeError as error:
            self.fail(field, f"no UTF-8 ({error.reason} at its byte {error.start})", "text in UTF-8", at)

    def value(self, kind: int, key: str):
        if kind in NUMBERS:
            dtype = NUMBERS[kind]
            return np.frombuffer(self.take(dtype.itemsize, key), dtype)[0]
        if kind == BOOL:
            return bool(self.bools(1, key)[0])
        if kind == STRING:
            return self.string(key)
        if kind == ARRAY:
            return self.array(key)
        self.fail(f"type of {key}", str(kind), f"one of 0 to {max(VALUE_TYPES)}", self.at - 4)

    def bools(self, count: int, key: str) -> np.ndarray:
        at = self.at
        values = np.frombuffer(self.take(count, key), np.uint8)
        if count and values.max() > 1:
            first = int(np.argmax(values > 1))
            self.fail(f"bool in {key}", str(values[first]), "0 or 1", at + first)
        return values.astype(bool)

    def array(self, key: str) -> np.ndarray | list[str]:
        at = self.at
        kind = self.number("<I", f"element type of {key}")
        if kind == STRING:
            count = self.count(f"length of {key}", 8)
            return [self.string(f"{key}[{i}]") for i in range(count)]
        if kind == BOOL:
            return self.bools(self.count(f"length of {key}", 1), key)
        if kind not in NUMBERS:
            self.fail(f"element type of {key}", str(kind), "a number, bool or string (no array of arrays)", at)
        dtype = NUMBERS[kind]
        count = self.count(f"length of {key}", dtype.itemsize)
        return np.frombuffer(self.take(count * dtype.itemsize, key), dtype)

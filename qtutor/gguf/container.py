"""The parts of a GGUF file around the blocks: the names and sizes that reader and writer share.

    "GGUF", version, number of tensors, number of metadata entries
    metadata: key, type of the value, value                              (:data:`VALUE_TYPES`)
    tensor infos: name, dimensions (fastest first), block type, offset
    padding, then the tensors' bytes, each padded to ``general.alignment``

Source: ggml's ``docs/gguf.md``, version 3, little-endian. Left out: version 1, big-endian files, and arrays of arrays,
which the specification allows and llama.cpp refuses.
"""

import math
from dataclasses import dataclass

import numpy as np

from qtutor.errors import QtutorError
from qtutor.gguf.layout import BlockType

MAGIC = b"GGUF"
VERSION = 3
ALIGNMENT = 32  # if the file has no general.alignment
MOST_DIMENSIONS = 4
LONGEST_NAME = 63  # bytes; llama.cpp keeps 64 with a closing zero
LONGEST_KEY = 65535

BOOL, STRING, ARRAY = 7, 8, 9
# The value types that numpy knows: their numbers in a file, and numpy's names for them.
NUMBERS = {
    0: np.dtype("<u1"), 1: np.dtype("<i1"), 2: np.dtype("<u2"), 3: np.dtype("<i2"), 4: np.dtype("<u4"),
    5: np.dtype("<i4"), 6: np.dtype("<f4"), 10: np.dtype("<u8"), 11: np.dtype("<i8"), 12: np.dtype("<f8"),
}  # fmt: skip
VALUE_TYPES = {
    0: "uint8", 1: "int8", 2: "uint16", 3: "int16", 4: "uint32", 5: "int32", 6: "float32", BOOL: "bool",
    STRING: "string", ARRAY: "array", 10: "uint64", 11: "int64", 12: "float64",
}  # fmt: skip


class GGUFError(QtutorError):
    """A GGUF file that cannot be read or written: the message names the file, the field, the offset, and the fault."""


@dataclass(frozen=True)
class TensorInfo:
    """A tensor's place in a file. ``shape`` has the order of torch and numpy: the fastest dimension last."""

    name: str
    shape: tuple[int, ...]
    type: BlockType
    offset: int  # from the beginning of the file

    @property
    def rows(self) -> int:
        return math.prod(self.shape[:-1])

    @property
    def row_bytes(self) -> int:
        return self.shape[-1] // self.type.values * self.type.nbytes

    @property
    def nbytes(self) -> int:
        return self.rows * self.row_bytes


def padded(size: int, alignment: int) -> int:
    """``size`` rounded up to a multiple of ``alignment``."""
    return -(-size // alignment) * alignment

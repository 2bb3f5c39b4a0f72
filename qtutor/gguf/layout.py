"""The block types of GGUF: the size of a block, the fields that its bytes form, and how the fields hold the codes.

A GGUF block is a fixed number of weights in a row, encoded together. Sources: the block structs in llama.cpp's
``ggml-common.h``, the type numbers in ``ggml.h``; for the file around them, ggml's ``docs/gguf.md``. All numbers are
little-endian. Left out: encoders and decoders of the types that need a table of lattice points (IQ1, IQ2, IQ3); their
sizes are here, so that files with them can be read and checked.
"""

from dataclasses import dataclass

import numpy as np

SUPER = 256  # values of a super-block

# The values of four-bit codes: first those of IQ4_NL and IQ4_XS, then those of MXFP4 (twice the values of E2M1).
IQ4_VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)
MXFP4_VALUES = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)


def _half_e4m3(code: int) -> float:
    """Half of the value of a byte as E4M3 without a sign; 0 for the code of NaN, and bit 7 is ignored."""
    exponent, mantissa = code >> 3 & 15, code & 7
    if code == 0x7F:
        return 0.0
    return 0.5 * (mantissa * 2.0**-9 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7))


NVFP4_SCALES = np.array([_half_e4m3(code) for code in range(256)], np.float32)


@dataclass(frozen=True)
class Field:
    """Bytes of a block that belong together. kind: "bits" for packed codes, or the type of one number ("f16" ...)."""

    name: str
    size: int
    meaning: str
    kind: str = "bits"


@dataclass(frozen=True)
class BlockType:
    """One storage type of GGUF: ``values`` weights in ``nbytes`` bytes.

    ``largest``: the largest weight that a block can hold, divided by its float16 scale; 0 if it has no such scale.
    """

    name: str
    number: int
    values: int
    nbytes: int
    fields: tuple[Field, ...] = ()
    largest: int = 0
    importance: bool = False  # whether an importance vector changes the result

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.nbytes / self.values

    def offsets(self, kind: str) -> list[int]:
        """The first bytes of all fields of this kind."""
        ends = np.cumsum([0] + [field.size for field in self.fields])
        return [int(at) for at, field in zip(ends, self.fields) if field.kind == kind]


def _half(name: str, meaning: str) -> Field:
    return Field(name, 2, meaning, "f16")


_D = _half("d", "scale of the block")
_D_SUPER = _half("d", "scale of the scales")
_DMIN = _half("dmin", "scale of the minima")
_M = _half("m", "smallest weight of the block")
_NIBBLES = Field("qs", 16, "codes 0-15 in the low, 16-31 in the high nibbles")
_FIFTH = Field("qh", 4, "the fifth bit of the 32 codes")
_K_SCALES = Field("scales", 12, "8 scales and 8 minima of 6 bits")
_FIFTH_K = Field("qh", 32, "fifth bits: bit s of byte j belongs to code 32 s + j")
_PAIRS = Field("qs", 64, "2 bits a code, four runs of 32 codes to 32 bytes")
_NIBBLES_K = Field("qs", 128, "4 bits a code: 32 codes in the low, the next 32 in the high nibbles of 32 bytes")

_TYPES = (
    BlockType("F32", 0, 1, 4, (Field("value", 4, "the weight itself", "f32"),)),
    BlockType("F16", 1, 1, 2, (_half("value", "the weight itself"),), 1),
    BlockType("Q4_0", 2, 32, 18, (_D, _NIBBLES), 8, True),
    BlockType("Q4_1", 3, 32, 20, (_D, _M, _NIBBLES), 16, True),
    BlockType("Q5_0", 6, 32, 22, (_D, _FIFTH, _NIBBLES), 16, True),
    BlockType("Q5_1", 7, 32, 24, (_D, _M, _FIFTH, _NIBBLES), 32, True),
    BlockType("Q8_0", 8, 32, 34, (_D, Field("qs", 32, "codes as int8")), 127),
    BlockType("Q8_1", 9, 32, 36),
    BlockType(
        "Q2_K", 10, SUPER, 84,
        (Field("scales", 16, "16 scales in the low, minima in the high nibbles"), _PAIRS, _D_SUPER, _DMIN), 45, True,
    ),
    BlockType(
        "Q3_K", 11, SUPER, 110,
        (
            Field("hmask", 32, "third bits: bit s of byte j belongs to code 32 s + j"),
            _PAIRS,
            Field("scales", 12, "16 scales of 6 bits: low nibbles in 8 bytes, upper bits in 4"),
            _D_SUPER,
        ), 128, True,
    ),
    BlockType("Q4_K", 12, SUPER, 144, (_D_SUPER, _DMIN, _K_SCALES, _NIBBLES_K), 945, True),
    BlockType("Q5_K", 13, SUPER, 176, (_D_SUPER, _DMIN, _K_SCALES, _FIFTH_K, _NIBBLES_K), 1953, True),
    BlockType(
        "Q6_K", 14, SUPER, 210,
        (
            Field("ql", 128, "low nibbles: 64 codes in the low, the next 64 in the high nibbles of 64 bytes"),
            Field("qh", 64, "upper two bits, four runs of 32 codes to 32 bytes"),
            Field("scales", 16, "16 scales as int8"),
            _D_SUPER,
        ), 4096, True,
    ),
    BlockType("Q8_K", 15, SUPER, 292),
    BlockType("IQ2_XXS", 16, SUPER, 66),
    BlockType("IQ2_XS", 17, SUPER, 74),
    BlockType("IQ3_XXS", 18, SUPER, 98),
    BlockType("IQ1_S", 19, SUPER, 50),
    BlockType("IQ4_NL", 20, 32, 18, (_D, _NIBBLES), 127, True),
    BlockType("IQ3_S", 21, SUPER, 110),
    BlockType("IQ2_S", 22, SUPER, 82),
    BlockType(
        "IQ4_XS", 23, SUPER, 136,
        (
            _D_SUPER,
            Field("scales_h", 2, "upper two bits of the 8 scales"),
            Field("scales_l", 4, "low nibbles of the 8 scales"),
            Field("qs", 128, "4 bits a code: 16 codes in the low, the next 16 in the high nibbles of 16 bytes"),
        ), 4064, True,
    ),
    BlockType("I8", 24, 1, 1),
    BlockType("I16", 25, 1, 2),
    BlockType("I32", 26, 1, 4),
    BlockType("I64", 27, 1, 8),
    BlockType("F64", 28, 1, 8),
    BlockType("IQ1_M", 29, SUPER, 56),
    BlockType("BF16", 30, 1, 2, (Field("value", 2, "the upper half of a float32", "bf16"),)),
    BlockType(
        "TQ1_0", 34, SUPER, 54,
        (Field("qs", 48, "five trits a byte"), Field("qh", 4, "the last 16 weights, four trits a byte"), _D), 1,
    ),
    BlockType("TQ2_0", 35, SUPER, 66, (_PAIRS, _D), 1),
    BlockType("MXFP4", 39, 32, 17, (Field("e", 1, "power of two, plus 128"), _NIBBLES)),
    BlockType(
        "NVFP4", 40, 64, 36,
        (
            Field("d", 4, "4 scales as E4M3 without a sign"),
            Field("qs", 32, "4 bits a code: 8 codes in the low, the next 8 in the high nibbles of 8 bytes"),
        ),
    ),
    BlockType("Q1_0", 41, 128, 18, (_D, Field("qs", 16, "signs: 1 is plus")), 128),
    BlockType("Q2_0", 42, 64, 18, (_D, Field("qs", 16, "2 bits a code, four neighbours to a byte")), 1),
)  # fmt: skip

# Types in files of older versions, by number; llama.cpp does not read them any more.
REMOVED = {4: "Q4_2", 5: "Q4_3", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8",
           38: "IQ4_NL_8_8"}  # fmt: skip
ALL_TYPES = {block_type.name: block_type for block_type in _TYPES}
BY_NUMBER = {block_type.number: block_type for block_type in _TYPES}
TYPES = {name: block_type for name, block_type in ALL_TYPES.items() if block_type.fields}  # those with a codec


def unfold(data: np.ndarray, bits: int, stride: int) -> np.ndarray:
    """The inverse of :func:`qtutor.gguf.lanes.fold`: bytes ``[..., n]`` to codes ``[..., n * 8 / bits]`` (uint8).

    >>> unfold(np.array([0x21, 0x43], np.uint8), 4, 2)
    array([1, 3, 2, 4], dtype=uint8)
    """
    runs = data.reshape(*data.shape[:-1], -1, 1, stride)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    codes = (runs >> shifts) & np.uint8(2**bits - 1)
    return codes.reshape(*data.shape[:-1], -1)

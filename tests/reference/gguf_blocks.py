"""Decoders of GGUF blocks, slow and obvious: one weight at a time, bit by bit, from the description of the format.

Knows nothing of qtutor. Products are float32, in the order of the format's formulas.
"""

import struct

import numpy as np

f4 = np.float32
IQ4 = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]
E2M1_TWICE = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12]

# name: (weights a block, bytes a block)
SIZES = {
    "F32": (1, 4), "F16": (1, 2), "BF16": (1, 2),
    "Q4_0": (32, 18), "Q4_1": (32, 20), "Q5_0": (32, 22), "Q5_1": (32, 24),
    "Q8_0": (32, 34), "Q2_K": (256, 84), "Q3_K": (256, 110), "Q4_K": (256, 144), "Q5_K": (256, 176), "Q6_K": (256, 210),
    "IQ4_NL": (32, 18), "IQ4_XS": (256, 136), "TQ1_0": (256, 54), "TQ2_0": (256, 66), "MXFP4": (32, 17),
    "NVFP4": (64, 36), "Q1_0": (128, 18), "Q2_0": (64, 18),
}  # fmt: skip


def half(block: bytes, at: int) -> np.float32:
    return f4(struct.unpack_from("<e", block, at)[0])


def signed_byte(value: int) -> int:
    return value - 256 if value > 127 else value


def bit(block: bytes, number: int) -> int:
    return (block[number // 8] >> (number % 8)) & 1


def nibble_of_32(block: bytes, at: int, i: int) -> int:
    """Code i of 32 in 16 bytes: the first 16 in the low nibbles, the others in the high ones."""
    return block[at + i] & 15 if i < 16 else block[at + i - 16] >> 4


def nibble_of_256(block: bytes, at: int, i: int) -> int:
    """Code i of 256 in 128 bytes: 64 codes in each 32 bytes, the first 32 of them in the low nibbles."""
    byte = block[at + i // 64 * 32 + i % 32]
    return byte & 15 if i % 64 < 32 else byte >> 4


def two_bits_of_256(block: bytes, at: int, i: int) -> int:
    """Code i of 256 in 64 bytes: 128 codes in each 32 bytes, 32 codes in each pair of bits."""
    return (block[at + i // 128 * 32 + i % 32] >> (i % 128 // 32 * 2)) & 3


def high_bit_of_256(block: bytes, at: int, i: int) -> int:
    return (block[at + i % 32] >> (i // 32)) & 1


def six_bit_scale(scales: bytes, s: int) -> tuple[int, int]:
    """Scale and minimum of sub-block s of Q4_K and Q5_K."""
    if s < 4:
        return scales[s] & 63, scales[s + 4] & 63
    low, high_scale, high_min = scales[s + 4], scales[s - 4] >> 6, scales[s] >> 6
    return (low & 15) | high_scale << 4, (low >> 4) | high_min << 4


def trit(byte: int, n: int) -> int:
    """Trit n of a byte that holds ceil(number * 256 / 243): multiply the rest by 3, the carry is the trit."""
    for _ in range(n):
        byte = byte * 3 % 256
    return byte * 3 // 256


def unsigned_e4m3(byte: int) -> float:
    """The value of a byte without bit 7; NaN, 0x7F, is read as 0."""
    exponent, mantissa = byte // 8 % 16, byte % 8
    if byte == 0x7F:
        return 0.0
    return mantissa / 512 if exponent == 0 else (8 + mantissa) * 2.0 ** (exponent - 10)


def weight(name: str, block: bytes, i: int) -> np.float32:
    """Weight i of a block."""
    match name:
        case "F32":
            return f4(struct.unpack("<f", block)[0])
        case "F16":
            return half(block, 0)
        case "BF16":
            return f4(struct.unpack("<f", b"\0\0" + block)[0])
        case "Q4_0":
            return f4(nibble_of_32(block, 2, i) - 8) * half(block, 0)
        case "Q4_1":
            return f4(nibble_of_32(block, 4, i)) * half(block, 0) + half(block, 2)
        case "Q5_0":
            return f4((nibble_of_32(block, 6, i) | bit(block[2:6], i) << 4) - 16) * half(block, 0)
        case "Q5_1":
            return f4(nibble_of_32(block, 8, i) | bit(block[4:8], i) << 4) * half(block, 0) + half(block, 2)
        case "Q8_0":
            return f4(signed_byte(block[2 + i])) * half(block, 0)
        case "Q2_K":
            scale, low = block[i // 16] & 15, block[i // 16] >> 4
            return half(block, 80) * f4(scale) * f4(two_bits_of_256(block, 16, i)) - half(block, 82) * f4(low)
        case "Q3_K":
            s = i // 16
            scale = (block[96 + s] & 15 if s < 8 else block[88 + s] >> 4) | (
                block[104 + s % 4] >> (s // 4 * 2) & 3
            ) << 4
            code = two_bits_of_256(block, 32, i) - (0 if high_bit_of_256(block, 0, i) else 4)
            return half(block, 108) * f4(scale - 32) * f4(code)
        case "Q4_K":
            scale, low = six_bit_scale(block[4:16], i // 32)
            return half(block, 0) * f4(scale) * f4(nibble_of_256(block, 16, i)) - half(block, 2) * f4(low)
        case "Q5_K":
            scale, low = six_bit_scale(block[4:16], i // 32)
            code = nibble_of_256(block, 48, i) + 16 * high_bit_of_256(block, 16, i)
            return half(block, 0) * f4(scale) * f4(code) - half(block, 2) * f4(low)
        case "Q6_K":
            byte = block[i // 128 * 64 + i % 64]
            code = (byte & 15 if i % 128 < 64 else byte >> 4) + 16 * two_bits_of_256(block, 128, i) - 32
            return half(block, 208) * f4(signed_byte(block[192 + i // 16])) * f4(code)
        case "IQ4_NL":
            return half(block, 0) * f4(IQ4[nibble_of_32(block, 2, i)])
        case "IQ4_XS":
            s = i // 32
            scale = block[4 + s // 2] >> (s % 2 * 4) & 15 | (int.from_bytes(block[2:4], "little") >> (2 * s) & 3) << 4
            return half(block, 0) * f4(scale - 32) * f4(IQ4[nibble_of_32(block, 8 + 16 * s, i % 32)])
        case "TQ1_0":
            if i < 160:
                value = trit(block[i % 32], i // 32)
            elif i < 240:
                value = trit(block[32 + (i - 160) % 16], (i - 160) // 16)
            else:
                value = trit(block[48 + (i - 240) % 4], (i - 240) // 4)
            return f4(value - 1) * half(block, 52)
        case "TQ2_0":
            return f4(two_bits_of_256(block, 0, i) - 1) * half(block, 64)
        case "MXFP4":
            return f4(E2M1_TWICE[nibble_of_32(block, 1, i)] * 2.0 ** (block[0] - 128))
        case "NVFP4":
            byte = block[4 + i // 16 * 8 + i % 8]
            return f4(unsigned_e4m3(block[i // 16]) / 2) * f4(E2M1_TWICE[byte & 15 if i % 16 < 8 else byte >> 4])
        case "Q1_0":
            return half(block, 0) * f4(1 if bit(block[2:], i) else -1)
        case "Q2_0":
            return half(block, 0) * f4((bit(block[2:], 2 * i) | bit(block[2:], 2 * i + 1) << 1) - 1)
    raise KeyError(name)


def decode(data: np.ndarray, name: str) -> np.ndarray:
    """uint8 ``[rows, bytes of a row]`` -> float32 ``[rows, columns]``."""
    values, nbytes = SIZES[name]
    rows = []
    for row in data:
        blocks = [row[at : at + nbytes].tobytes() for at in range(0, len(row), nbytes)]
        rows.append([weight(name, block, i) for block in blocks for i in range(values)])
    return np.array(rows, f4).reshape(len(data), -1)

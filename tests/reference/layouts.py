"""The bytes of checkpoint formats, slow and obvious: one code at a time, with words as Python's own whole numbers.

Matrices are lists of rows ``[out][in]``; words are returned without a sign. Knows nothing of qtutor.
"""

AWQ = (0, 2, 4, 6, 1, 3, 5, 7)


def stream(codes: list[int], bits: int) -> list[int]:
    """Codes end to end, low bits first, cut into words of 32 bits; the last word is filled up with zeros."""
    words = [0] * -(-len(codes) * bits // 32)
    for i, code in enumerate(codes):
        for bit in range(bits):
            place = bits * i + bit
            words[place // 32] |= ((code >> bit) & 1) << (place % 32)
    return words


def columns(rows: list[list[int]]) -> list[list[int]]:
    return [list(column) for column in zip(*rows)]


def compressed(codes: list[list[int]], bits: int) -> list[list[int]]:
    """weight_packed ``[out][words]``; for transposed zero points, the transposed weight_zero_point."""
    return [stream(row, bits) for row in codes]


def gptq_weight(codes: list[list[int]], bits: int) -> list[list[int]]:
    """qweight ``[in * bits / 32][out]``."""
    return columns([stream(row, bits) for row in codes])


def gptq_zeros(zeros: list[list[int]], bits: int, minus: int) -> list[list[int]]:
    """qzeros ``[groups][out * bits / 32]`` for zeros ``[out][groups]``."""
    return [stream([zero - minus for zero in column], bits) for column in columns(zeros)]


def awq(codes: list[list[int]]) -> list[list[int]]:
    """qweight ``[in][out / 8]``; for zeros, qzeros."""
    lying = columns(codes)
    return [[sum(line[8 * c + AWQ[i]] << (4 * i) for i in range(8)) for c in range(len(line) // 8)] for line in lying]


def four_bit(codes: list[list[int]]) -> list[int]:
    """bitsandbytes' bytes: the first of two codes is in the high nibble, row after row."""
    flat = [code for row in codes for code in row]
    return [(flat[i] << 4) + flat[i + 1] for i in range(0, len(flat), 2)]


def modelopt(codes: list[list[int]]) -> list[list[int]]:
    """uint8 ``[out / 2][in]`` for codes 0 to 15, which stand for -8 to 7."""
    signed = [[(code - 8) % 16 for code in row] for row in codes]
    return [[low + 16 * high for low, high in zip(*signed[r : r + 2])] for r in range(0, len(signed), 2)]

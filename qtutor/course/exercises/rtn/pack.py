"""``rtn.pack``: codes laid end to end in bytes."""

import torch

from qtutor.course.exercises.adapting import WHOLE_BYTES, tensor
from qtutor.course.exercises.exercise import Exercise
from qtutor.course.exercises.rtn.inputs import CHAPTER


def pack(codes, bits, width):
    data = []
    for row in codes.tolist():
        text = "".join(f"{code:0{bits}b}"[::-1] for code in row)  # the lowest bit comes first
        text = text.ljust(8 * width, "0")
        data.append([int(text[start : start + 8][::-1], 2) for start in range(0, 8 * width, 8)])
    return data


def codes_of(bits: int, rows: int, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(10 * bits + count)
    return torch.randint(0, 2**bits, (rows, count), generator=generator, dtype=torch.uint8)


def cases():
    def rows(*codes: list[int]) -> torch.Tensor:
        return torch.tensor(codes, dtype=torch.uint8)

    return [
        ("4 bits, two codes", (rows([1, 2]), 4, 1)),
        ("4 bits, two rows of four codes", (rows([1, 2, 3, 0], [15, 0, 8, 7]), 4, 2)),
        ("4 bits, an odd number of codes", (rows([9, 5, 12]), 4, 2)),
        ("2 bits", (rows([3, 0, 1, 2, 2, 1, 0, 3]), 2, 2)),
        ("8 bits: a code is a byte", (rows([200, 3, 255]), 8, 3)),
        ("3 bits, codes across the borders of bytes", (rows([5, 1, 6, 3, 7, 0, 2, 4]), 3, 3)),
        ("3 bits, two rows of 16 codes", (codes_of(3, 2, 16), 3, 6)),
        ("3 bits, a row that ends within a byte", (codes_of(3, 2, 5), 3, 3)),
        ("5 bits", (codes_of(5, 2, 8), 5, 5)),
        ("2 bits, three rows that do not fill their last byte", (codes_of(2, 3, 5), 2, 2)),
    ]


def _bytes(bits_of_rows: list[list[int]], width: int) -> list[list[int]]:
    """Rows of bits, lowest first, as bytes; what is too long is cut off, what is too short filled up."""
    data = [[0] * width for _ in bits_of_rows]
    for bits, line in zip(bits_of_rows, data):
        for i, bit in enumerate(bits[: 8 * width]):
            line[i // 8] |= bit << (i % 8)
    return data


def _bits(code: int, bits: int) -> list[int]:
    return [code >> i & 1 for i in range(bits)]


def high_first(codes, bits, width):
    if 8 % bits:
        return pack(codes, bits, width)  # where codes cross borders, nobody lays them out so
    per_byte = 8 // bits
    rows = []
    for row in codes.tolist():
        padded = row + [0] * (-len(row) % per_byte)
        turned = [c for i in range(0, len(padded), per_byte) for c in reversed(padded[i : i + per_byte])]
        rows.append([bit for code in turned for bit in _bits(code, bits)])
    return _bytes(rows, width)


def big_endian(codes, bits, width):
    texts = ["".join(f"{code:0{bits}b}" for code in row).ljust(8 * width, "0") for row in codes.tolist()]
    return [[int(text[i : i + 8], 2) for i in range(0, 8 * width, 8)] for text in texts]


def whole_codes_only(codes, bits, width):
    gap = [0] * (8 % bits)
    rows = []
    for row in codes.tolist():
        rows.append([])
        for i, code in enumerate(row):
            rows[-1] += _bits(code, bits) + (gap if (i + 1) % (8 // bits) == 0 else [])
    return _bytes(rows, width)


def lost_across_borders(codes, bits, width):
    data = [[0] * width for _ in codes]
    for row, line in zip(codes.tolist(), data):
        for i, code in enumerate(row):
            line[i * bits // 8] |= code << (i * bits % 8) & 255
    return data


def without_the_rest(codes, bits, width):
    whole = codes.shape[1] * bits // 8 * 8 // bits
    return pack(codes[:, :whole], bits, width)


def always_four(codes, bits, width):
    words = [sum(code << 4 * i for i, code in enumerate(row)) for row in codes.tolist()]
    return [[word >> 8 * j & 255 for j in range(width)] for word in words]


def one_stream(codes, bits, width):
    (stream,) = pack(codes.reshape(1, -1), bits, width * len(codes))
    return [stream[start : start + width] for start in range(0, len(stream), width)]


def by_columns(codes, bits, width):
    return pack(codes.T.reshape(codes.shape), bits, width)


def added_up(codes, bits, width):
    return [[sum(row[j::width]) & 255 for j in range(width)] for row in codes.tolist()]


MISTAKES = {
    "the first code is in the high bits of the byte. It belongs in the low ones: 1 and 2 make 1 | 2 << 4.": high_first,
    "codes and their bits are laid out from the high end. The first code belongs in the lowest bits.": big_endian,
    "you put only whole codes in a byte and leave the bits that remain empty. No bit is to be wasted: a code may begin "
    "in one byte and end in the next.": whole_codes_only,
    "bits that a byte has no room for are lost. Where a code crosses the border, its high bits belong at the beginning "
    "of the next byte (and uint8 drops what is shifted past it: compute in int or int64).": lost_across_borders,
    "the last byte of a row is left out where codes do not fill it. Fill it up with zeros.": without_the_rest,
    "every code is shifted by a multiple of 4. Code number i begins at bit i * bits.": always_four,
    "all rows make one stream. Every row begins with a byte of its own, so that it can be found.": one_stream,
    "codes are taken down the columns. Those of a row go together.": by_columns,
    "codes are added up without being shifted. Code number i begins at bit i * bits: code << (i * bits).": added_up,
}


def adapt(theirs):
    """A learner's ``pack_codes`` in place of :func:`qtutor.core.packing.pack_rows`."""

    def pack_rows(codes, bits, width):
        if not codes.numel():
            return codes.new_zeros(len(codes), width)  # nothing to pack
        return tensor(theirs(codes, bits, width), torch.uint8, codes).contiguous()

    return pack_rows


PACK = Exercise(
    name="rtn.pack",
    chapter=CHAPTER,
    title="Codes packed into bytes, no bit wasted",
    difficulty=3,
    minutes=20,
    reference=pack,
    cases=cases,
    outputs=("bytes",),
    mistakes=MISTAKES,
    properties=(WHOLE_BYTES,),
    replaces="qtutor.core.packing.pack_rows",
    adapt=adapt,
)

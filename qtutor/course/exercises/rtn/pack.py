"""``rtn.pack``: pack codes end to end into bytes."""

import torch

from qtutor.course.exercises.adapting import WHOLE_BYTES, tensor
from qtutor.course.exercises.edits import solution
from qtutor.course.exercises.exercise import Exercise
from qtutor.course.exercises.inputs import codes_of


def pack(codes, bits, width):
    data = []
    for row in codes.tolist():
        text = "".join(f"{code:0{bits}b}"[::-1] for code in row)  # the lowest bit comes first
        text = text.ljust(8 * width, "0")
        data.append([int(text[start : start + 8][::-1], 2) for start in range(0, 8 * width, 8)])
    return data


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
        ("3 bits, two rows of 16 codes", (codes_of(46, 2, 16, bits=3), 3, 6)),
        ("3 bits, a row that ends within a byte", (codes_of(35, 2, 5, bits=3), 3, 3)),
        ("5 bits", (codes_of(58, 2, 8, bits=5), 5, 5)),
        ("4 bits, 20 codes: 80 bits in a row", (codes_of(60, 2, 20), 4, 10)),
        ("2 bits, three rows that do not fill their last byte", (codes_of(25, 3, 5, bits=2), 2, 2)),
    ]


@solution
def right(codes, bits, width):
    data = []
    for row in codes.tolist():
        number = sum(code << (i * bits) for i, code in enumerate(row))
        data.append(list(number.to_bytes(width, "little")))
    return data


def one_stream(codes, bits, width):
    (stream,) = right(codes.reshape(1, -1), bits, width * len(codes))
    return [stream[start : start + width] for start in range(0, len(stream), width)]


@solution
def by_columns(codes, bits, width):
    data = torch.zeros(len(codes), width, dtype=torch.int64)
    for i in range(codes.shape[1]):
        byte, shift = divmod(i * bits, 8)
        code = codes[:, i].long() << shift
        data[:, byte] |= code & 255
        if shift + bits > 8:
            data[:, byte + 1] |= code >> 8
    return data


LOWER, UPPER, SUM = "data[:, byte] |= code & 255", "data[:, byte + 1] |= code >> 8", "code << (i * bits)"
FITTING = ("number.to_bytes", "(number % 256**width).to_bytes")  # bits that do not fit into the row are cut off

MISTAKES = {
    "a code overwrites the bits that are already in its byte (=). Put its bits beside them: |=.": (
        by_columns.edit(LOWER, "data[:, byte] = code & 255")
    ),
    "& keeps only bits that are set in both, and all bytes begin as 0, so only 0 is left. Put codes together with |.": (
        by_columns.edit((LOWER, "data[:, byte] &= code & 255"), (UPPER, "data[:, byte + 1] &= code >> 8"))
    ),
    "the high bits of a code that crosses the border are written into the same byte. They belong in the next one, byte "
    "+ 1.": by_columns.edit(UPPER, "data[:, byte] |= code >> 8"),
    "if a code crosses the border, its low part is written a second time, into the next byte. Write its high part "
    "there, >> 8.": by_columns.edit(UPPER, "data[:, byte + 1] |= code & 255"),
    "you treated a code that exactly fills its byte as one that crosses the border, which goes beyond the row: test "
    "shift + bits > 8.": by_columns.edit("bits > 8", "bits >= 8"),
    "code number i is shifted by i % 8 within its byte. It begins at bit i * bits: shift by i * bits % 8.": (
        by_columns.edit("code = ", "shift = i % 8; code = ")
    ),
    "bytes are not cut to 8 bits: keep only the low 8 bits of a shifted code, & 255.": by_columns.edit(" & 255", ""),
    "as int8, bytes above 127 become negative. They are uint8.": by_columns.edit(
        "return data", "return data.to(torch.int8)"
    ),
    "the bytes of a row are in reverse order. The first codes are in the first byte.": right.edit("little", "big"),
    "the codes of a row are packed in reverse order.": right.edit("enumerate(row)", "enumerate(row[::-1])"),
    "the bits of every code are mirrored: the lowest bit of a code belongs in the lowest place.": (
        right.edit(SUM, 'int(f"{code:0{bits}b}"[::-1], 2) << (i * bits)')
    ),
    "every code gets 4 bits, no matter what `bits` is. Code number i begins at bit i * bits.": (
        by_columns.edit("i * bits", "i * 4")
    ),
    "codes are put together without being shifted. Code number i begins at bit i * bits: code << (i * bits % 8).": (
        by_columns.edit(".long() << shift", ".long()")
    ),
    "the last byte of a row is missing if codes do not fill it. A row has `width` bytes.": (
        by_columns.edit("return data", "return data[:, : codes.shape[1] * bits // 8]")
    ),
    "the first half of a row is in the low bits of the bytes, and the second half in the high ones. Neighbours share a "
    "byte: code number i begins at bit i * bits.": right.edit(
        "i * bits", "(i % width * 8 + i // width * bits if 8 % bits == 0 else i * bits)"
    ),
    "the bits of a row do not fit into an int64, which has 64 of them; the rest is lost. Go byte by byte.": (
        right.edit("number.to_bytes", "(number % 2**64).to_bytes")
    ),
    "the bits of a row do not fit into an int64, which has 64 of them. The last bit, the sign, fills the bytes after "
    "it. Go byte by byte.": right.edit(
        ("number.to_bytes", "((number + 2**63) % 2**64 - 2**63).to_bytes"), ('"little"', '"little", signed=True')
    ),
    "nothing is packed: these are the first codes, each in a byte of its own.": (
        right.edit('list(number.to_bytes(width, "little"))', "(row + [0] * width)[:width]")
    ),
    "the first code is in the high bits of the byte. It belongs in the low ones: the codes 1 and 2 give 1 | 2 << 4.": (
        # Only if a byte holds whole codes: nobody makes this mistake if codes cross the borders of bytes.
        right.edit("i * bits", "i * bits // 8 * 8 + 8 - bits - i * bits % 8 if 8 % bits == 0 else i * bits")
    ),
    "codes and their bits are laid out from the high end. The first code belongs in the lowest bits.": (
        right.edit(("i * bits", "8 * width - (i + 1) * bits"), ("little", "big"))
    ),
    "you put only whole codes in a byte and leave the remaining bits empty. Waste no bit: a code may begin in one byte "
    "and end in the next.": right.edit(("i * bits", "i // (8 // bits) * 8 + i % (8 // bits) * bits"), FITTING),
    "bits that do not fit into a byte are lost. If a code crosses the border, its high bits belong at the beginning of "
    "the next byte (uint8 drops bits that are shifted past its end: compute in int or int64).": (
        right.edit(SUM, "(code << i * bits % 8 & 255) << i * bits // 8 * 8")
    ),
    "the last byte of a row is left out if codes do not fill it. Fill it up with zeros.": (
        right.edit("enumerate(row)", "enumerate(row[: len(row) * bits // 8 * 8 // bits])")
    ),
    "every code is shifted by a multiple of 4. Code number i begins at bit i * bits.": (
        right.edit(("i * bits", "i * 4"), FITTING)
    ),
    "all rows are packed as one stream. Every row begins with a new byte, so that it can be found.": one_stream,
    "codes are packed down the columns. Pack the codes of a row together.": (
        right.edit("codes.tolist()", "codes.T.reshape(codes.shape).tolist()")
    ),
    "codes are added up without being shifted. Code number i begins at bit i * bits: code << (i * bits).": (
        right.edit('list(number.to_bytes(width, "little"))', "[sum(row[j::width]) & 255 for j in range(width)]")
    ),
}


def adapt(theirs):
    """A learner's ``pack_codes`` replaces :func:`qtutor.core.packing.pack_rows`."""

    def pack_rows(codes, bits, width):
        if not codes.numel():
            return codes.new_zeros(len(codes), width)  # nothing to pack
        return tensor(theirs(codes, bits, width), torch.uint8, codes).contiguous()

    return pack_rows


PACK = Exercise(
    name="rtn.pack",
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

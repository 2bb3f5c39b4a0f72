"""``gguf.tensor_info``: what a file says of one tensor, as bytes."""

import struct

from qtutor.course.exercises.exercise import Exercise
from qtutor.course.exercises.gguf.inputs import CHAPTER


def info(name, shape, number, offset):
    def whole(value: int, size: int) -> bytes:
        return bytes(value >> 8 * i & 255 for i in range(size))  # the lowest byte comes first

    letters = name.encode("utf-8")
    data = whole(len(letters), 8) + letters + whole(len(shape), 4)
    for size in shape[::-1]:
        data += whole(size, 8)
    return data + whole(number, 4) + whole(offset, 8)


def cases():
    return [
        ("a matrix of 2 rows and 5 columns, the first tensor of its file", ("w", (2, 5), 0, 0)),
        ("a vector", ("norm", (256,), 0, 64)),
        ("a square matrix of Q4_0", ("blk.0.attn_q.weight", (256, 256), 2, 1024)),
        ("three dimensions", ("experts", (8, 512, 256), 12, 4096)),
        ("a name with a letter that takes two bytes", ("größe", (3, 32), 8, 96)),
        ("a tensor behind the first 4 GiB, in bytes", ("output.weight", (4, 64), 1, 5 << 32)),
        ("a dimension beyond 32 bits", ("b", (1 << 33,), 24, 32)),
    ]


def _packed(name, shape, number, offset, *, text="Q", count="I", each="Q", kind="I", at="Q", order="<"):
    """By struct.pack, with the sizes of the fields to choose: each slip changes one."""
    letters, sizes = name.encode(), tuple(reversed(shape))
    return (
        struct.pack(order + text, len(letters))
        + letters
        + struct.pack(f"{order}{count}{len(sizes)}{each}", len(sizes), *sizes)
        + struct.pack(order + kind, number)
        + struct.pack(order + at, offset)
    )


def torchs_order(name, shape, number, offset):
    return _packed(name, shape[::-1], number, offset)


def short_length(name, shape, number, offset):
    return _packed(name, shape, number, offset, text="I")


def no_length(name, shape, number, offset):
    return _packed(name, shape, number, offset)[8:]


def closing_zero(name, shape, number, offset):
    data = _packed(name, shape, number, offset)
    return data[: 8 + len(name.encode())] + b"\0" + data[8 + len(name.encode()) :]


def letters_counted(name, shape, number, offset):
    return struct.pack("<Q", len(name)) + _packed(name, shape, number, offset)[8:]


def long_count(name, shape, number, offset):
    return _packed(name, shape, number, offset, count="Q")


def no_count(name, shape, number, offset):
    data, end = _packed(name, shape, number, offset), 8 + len(name.encode())
    return data[:end] + data[end + 4 :]


def short_sizes(name, shape, number, offset):
    return _packed(name, shape, number, offset, each="I")


def long_type(name, shape, number, offset):
    return _packed(name, shape, number, offset, kind="Q")


def short_offset(name, shape, number, offset):
    return _packed(name, shape, number, offset, at="I")


def big_endian(name, shape, number, offset):
    return _packed(name, shape, number, offset, order=">")


def padded_by_c(name, shape, number, offset):
    letters = name.encode()
    layout = f"Q{len(letters)}sI{len(shape)}QIQ"
    return struct.pack(layout, len(letters), letters, len(shape), *reversed(shape), number, offset)


def offset_first(name, shape, number, offset):
    return _packed(name, shape, number, offset)[:-12] + struct.pack("<QI", offset, number)


def four_sizes(name, shape, number, offset):
    return _packed(name, (1,) * (4 - len(shape)) + tuple(shape), number, offset)


MISTAKES = {
    "the dimensions stand in torch's order. GGUF begins with the length of a row: (2, 5) is written 5, 2.": (
        torchs_order
    ),
    "the length of the name takes four bytes. Lengths of strings take eight: '<Q'.": short_length,
    "the name's length is missing. A string is its length in eight bytes, then its bytes.": no_length,
    "a zero closes the name. Here a string's length stands before it, and nothing behind it.": closing_zero,
    "you counted letters. The length is that of the bytes: len(name.encode()).": letters_counted,
    "the number of dimensions takes eight bytes. It takes four: '<I'. (Without '<', struct.pack leaves a gap of four "
    "before a 'Q'.)": long_count,
    "how many dimensions there are is missing: four bytes, before the first of them.": no_count,
    "the dimensions take four bytes each. They take eight: 'Q'.": short_sizes,
    "the type's number takes eight bytes. It takes four: '<I'. (Without '<', struct.pack leaves a gap of four before a "
    "'Q'.)": long_type,
    "the offset takes four bytes, and files are larger than four bytes can tell. It takes eight: 'Q'.": short_offset,
    "numbers are written from their high end. GGUF is little-endian, the lowest byte first: begin the format with "
    "'<'.": big_endian,
    "without '<' at the beginning struct.pack leaves gaps, as a C compiler would, so that numbers begin at multiples "
    "of their size. Begin the format with '<'.": padded_by_c,
    "the offset stands before the type. The type comes first.": offset_first,
    "missing dimensions are filled up with ones. Only those that there are are written.": four_sizes,
}

INFO = Exercise(
    name="gguf.tensor_info",
    chapter=CHAPTER,
    title="What a file says of one tensor",
    difficulty=1,
    minutes=10,
    reference=info,
    cases=cases,
    outputs=("bytes",),
    mistakes=MISTAKES,
)

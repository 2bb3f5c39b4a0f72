"""``gguf.tensor_info``: the bytes that describe one tensor in a file."""

import struct

from qtutor.course.exercises.edits import solution
from qtutor.course.exercises.exercise import Exercise


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
        ("a tensor after the first 4 GiB, in bytes", ("output.weight", (4, 64), 1, 5 << 32)),
        ("a dimension beyond 32 bits", ("b", (1 << 33,), 24, 32)),
    ]


@solution
def right(name, shape, number, offset):
    letters = name.encode()
    layout = f"<Q{len(letters)}sI{len(shape)}QIQ"  # "<": the low byte first, and no gaps
    return struct.pack(layout, len(letters), letters, len(shape), *reversed(shape), number, offset)


MISTAKES = {
    "the dimensions are in torch's order. GGUF begins with the length of a row: (2, 5) is written as 5, 2.": (
        right.edit("reversed(shape)", "shape")
    ),
    "the length of the name takes four bytes. Lengths of strings take eight: '<Q'.": right.edit("<Q{", "<I{"),
    "the name's length is missing. A string is its length in eight bytes, then its bytes.": (
        right.edit(("<Q{", "<{"), ("len(letters), letters", "letters"))
    ),
    "a zero closes the name. Here, a string's length comes before it, and nothing comes after it.": right.edit(
        "sI", "sxI"
    ),
    "a zero closes the name, and is counted. A string's length comes before it, and nothing comes after it.": (
        right.edit("name.encode()", 'name.encode() + b"\\0"')
    ),
    "you wrote four dimensions and filled up with 1, as ggml does in memory. A file has only the dimensions of the "
    "tensor.": right.edit(
        ("{len(shape)}Q", "{max(4, len(shape))}Q"), ("*reversed(shape)", "*reversed(shape), *[1] * (4 - len(shape))")
    ),
    "the offset is rounded up to a multiple of 32. Write it as it is given.": (
        right.edit("(shape), number, offset", "(shape), number, offset + 32")
    ),
    "you counted letters. The length counts bytes: len(name.encode()).": (
        right.edit("len(letters), letters", "len(name), letters")
    ),
    "the number of dimensions takes eight bytes. It takes four: '<I'. (Without '<', struct.pack leaves a gap of four "
    "before a 'Q'.)": right.edit("sI{", "sQ{"),
    "the number of dimensions is missing: four bytes, before the first dimension.": (
        right.edit(("sI{", "s{"), ("len(shape), *", "*"))
    ),
    "the dimensions take four bytes each. They take eight: 'Q'.": right.edit("}QIQ", "}IIQ"),
    "the type's number takes eight bytes. It takes four: '<I'. (Without '<', struct.pack leaves a gap of four before a "
    "'Q'.)": right.edit("}QIQ", "}QQQ"),
    "the offset takes four bytes, but files can be larger than four bytes can express. It takes eight: 'Q'.": (
        right.edit("}QIQ", "}QII")
    ),
    "numbers are written with the highest byte first. GGUF is little-endian, the lowest byte first: begin the format "
    "with '<'.": right.edit("<Q{", ">Q{"),
    "without '<' at the beginning, struct.pack leaves gaps, as a C compiler would, so that numbers begin at multiples "
    "of their size. Begin the format with '<'.": right.edit("<Q{", "Q{"),
    "without '<', struct.pack leaves gaps of four before a 'Q': after the number of dimensions and after the type. "
    "Begin every format with '<'.": right.edit("sI{len(shape)}QIQ", "sQ{len(shape)}QQQ"),
    "the name is UTF-16, two bytes a letter. It is UTF-8: name.encode().": (
        right.edit("name.encode()", 'name.encode("utf-16-le")')
    ),
    "the name is padded to 64 bytes. Write only its own bytes.": (
        right.edit("letters = name.encode()", "letters = name.encode().ljust(64, bytes(1))")
    ),
    "the offset is missing: eight bytes, after the type.": right.edit(
        ("}QIQ", "}QI"), ("(shape), number, offset", "(shape), number")
    ),
    "the type is missing: four bytes, before the offset.": right.edit(
        ("}QIQ", "}QQ"), ("(shape), number, offset", "(shape), offset")
    ),
    "the dimensions are multiplied into one number. Write each of them, the length of a row first.": right.edit(
        ("{len(shape)}Q", "Q"), ("*reversed(shape)", "__import__('math').prod(shape)")
    ),
    "the length of the name is one too large: nothing closes the name.": (
        right.edit("len(letters), letters", "len(letters) + 1, letters")
    ),
    "the number of dimensions is always 4. It is len(shape).": right.edit("len(shape), *", "4, *"),
    "the number of dimensions is always 2. It is len(shape).": right.edit("len(shape), *", "2, *"),
    "the type comes before the dimensions. It belongs after them, before the offset.": right.edit(
        ("sI{len(shape)}QIQ", "sII{len(shape)}QQ"),
        ("len(shape), *reversed(shape), number", "len(shape), number, *reversed(shape)"),
    ),
    "type and offset come before the dimensions. They belong after them.": right.edit(
        ("sI{len(shape)}QIQ", "sIIQ{len(shape)}Q"),
        ("len(shape), *reversed(shape), number, offset", "len(shape), number, offset, *reversed(shape)"),
    ),
    "type and offset come before the number of dimensions. They belong at the end.": right.edit(
        ("sI{len(shape)}QIQ", "sIQI{len(shape)}Q"),
        ("len(shape), *reversed(shape), number, offset", "number, offset, len(shape), *reversed(shape)"),
    ),
    "the offset comes before the type. The type belongs before the offset.": (
        right.edit(("}QIQ", "}QQI"), ("*reversed(shape), number, offset", "*reversed(shape), offset, number"))
    ),
    "missing dimensions are filled up with ones. Write only the tensor's own dimensions.": (
        right.edit("letters = name.encode()", "letters, shape = name.encode(), (1,) * (4 - len(shape)) + shape")
    ),
}


def form(returned) -> str:
    """What is wrong with a value that cannot be written to a file byte by byte, or ``""``."""
    try:
        single = memoryview(returned).itemsize == 1
    except TypeError:
        single = False
    kind = type(returned).__name__
    return "" if single else f"Your function returned a {kind}; a file needs bytes. Join the parts with +."


INFO = Exercise(
    name="gguf.tensor_info",
    title="What a file says of one tensor",
    difficulty=1,
    minutes=10,
    reference=info,
    cases=cases,
    outputs=("bytes",),
    mistakes=MISTAKES,
    form=form,
)

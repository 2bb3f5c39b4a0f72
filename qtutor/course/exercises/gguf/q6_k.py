"""``gguf.q6_k``: decode whole blocks of Q6_K; a learner is given only the layout."""

import struct

import numpy as np

from qtutor.course.checking.comparing import to_array
from qtutor.course.exercises.edits import solution
from qtutor.course.exercises.exercise import Exercise


def weights(data):
    rows = []
    for block in data.tolist():
        ql, qh, scales = block[:128], block[128:192], block[192:208]
        (d,) = struct.unpack("<e", bytes(block[208:]))
        row = []
        for i in range(256):
            half, quarter, j = i // 128, i % 128 // 32, i % 32
            byte = ql[64 * half + 32 * (quarter % 2) + j]
            lower = byte % 16 if quarter < 2 else byte // 16
            upper = qh[32 * half + j] // 4**quarter % 4
            scale = scales[i // 16]
            row.append(d * (scale if scale < 128 else scale - 256) * (16 * upper + lower - 32))
        rows.append(row)
    return np.array(rows)


def block(ql=0, qh=0, scales=1, d=1.0) -> np.ndarray:
    """One block, uint8 ``[1, 210]``, from numbers or arrays for its fields."""
    fields = (np.broadcast_to(ql, 128), np.broadcast_to(qh, 64), np.broadcast_to(scales, 16))
    parts = [np.asarray(field).astype(np.int64).astype(np.uint8) for field in fields]
    return np.concatenate([*parts, np.frombuffer(struct.pack("<e", d), np.uint8)])[None]


def cases():
    random = np.random.default_rng(6)
    several = random.integers(0, 256, (3, 210), np.uint8)
    several[:, 208:] = np.array([0.0123, -0.5, 3e-6], "<f2")[:, None].view(np.uint8)
    return [
        ("every code is 0, every scale and d are 1", (block(),)),
        ("the low halves of the first 64 bytes are 1", (block(ql=np.arange(128) < 64),)),
        ("the high halves of the bytes 64 to 127 are 1", (block(ql=16 * (np.arange(128) >= 64)),)),
        ("bits 2 and 3 of the first 32 bytes of qh are 1", (block(qh=4 * (np.arange(64) < 32)),)),
        ("bits 6 and 7 of the last 32 bytes of qh are 2", (block(qh=128 * (np.arange(64) >= 32)),)),
        ("every code is 33, the scales run from -8 to 7", (block(0x11, 0b10101010, np.arange(-8, 8)),)),
        ("every code is 63, scales of 127 and -128", (block(255, 255, np.tile([127, -128], 8), d=0.25),)),
        ("a negative d", (block(np.arange(128), np.arange(64), np.arange(16) + 1, d=-0.0371),)),
        ("three blocks of any bytes", (several,)),
    ]


@solution
def right(data):
    ql, qh, scales, d = data[:, :128], data[:, 128:192], data[:, 192:208], data[:, 208:]
    ql, qh = ql.reshape(-1, 2, 64), qh.reshape(-1, 2, 32)
    low = np.concatenate([ql & 15, ql >> 4], axis=2)
    high = np.concatenate([qh >> 2 * k & 3 for k in range(4)], axis=2)
    codes = low.reshape(-1, 256) | high.reshape(-1, 256) << 4
    steps = codes.astype(np.int64) - 32
    scales = np.repeat(scales.view(np.int8), 16, axis=1)
    d = d.copy().view("<f2").astype(np.float64)
    return d * scales * steps


FIELDS = "data[:, :128], data[:, 128:192], data[:, 192:208], data[:, 208:]"
NIBBLES, JOINED = "concatenate([ql & 15, ql >> 4], axis=2)", "high.reshape(-1, 256) << 4"
HIGH = "np.concatenate([qh >> 2 * k & 3 for k in range(4)], axis=2)"
STEPS, RESULT, SPREAD = (
    "codes.astype(np.int64) - 32",
    "d * scales * steps",
    "np.repeat(scales.view(np.int8), 16, axis=1)",
)

MISTAKES = {
    "32 is not subtracted. A code of 32 stands for zero steps: code - 32.": right.edit(STEPS, "codes.astype(np.int64)"),
    "8 is subtracted, as in Q4_0. Codes of six bits run up to 63, and 32 stands for zero steps.": (
        right.edit(STEPS, "codes.astype(np.int64) - 8")
    ),
    "the codes are still bytes when you subtract 32, so 0 - 32 became 224. Convert them to larger integers or floats "
    "first.": right.edit(STEPS, "codes - np.uint8(32)"),
    "32 is subtracted from the weight. Subtract it from the code, before you multiply by d and the scale.": right.edit(
        (STEPS, "codes.astype(np.int64)"), (RESULT, "d * scales * steps - 32")
    ),
    "you read the scales as numbers from 0 to 255. They have a sign: int8, so 255 is -1.": (
        right.edit("scales.view(np.int8)", "scales.astype(np.int64)")
    ),
    "32 is subtracted from the scales, as in Q3_K. Here they are int8 and stand for themselves.": (
        right.edit("scales.view(np.int8)", "scales.view(np.int8).astype(np.int64) - 32")
    ),
    "128 is subtracted from the scales. They are int8: bytes up to 127 stand for themselves, and larger bytes for the "
    "byte minus 256.": right.edit("scales.view(np.int8)", "scales.astype(np.int64) - 128"),
    "a scale serves 32 weights, as in Q4_K. There are 16 scales, so each serves 16 weights.": (
        right.edit(SPREAD, "np.repeat(scales.view(np.int8)[:, :8], 32, axis=1)")
    ),
    "the scales alternate from weight to weight. Scale s serves the 16 neighbours from 16 s on.": (
        right.edit(SPREAD, "np.tile(scales.view(np.int8), (1, 16))")
    ),
    "the low and the high halves of ql are exchanged. Weights 0 to 63 of a half have the low ones.": (
        right.edit(NIBBLES, "concatenate([ql >> 4, ql & 15], axis=2)")
    ),
    "neighbours share a byte of ql. Here weight j and weight 64 + j do.": (
        right.edit(NIBBLES, "stack([ql & 15, ql >> 4], axis=3)")
    ),
    "the low halves of ql still have their high halves above them: & 15.": right.edit("ql & 15", "ql"),
    "the high halves of ql are not shifted down: >> 4.": right.edit("ql >> 4", "ql & 240"),
    "you read ql as one run of 128 bytes: first all low halves, then all high ones. It is two runs of 64, one for each "
    "half of the block.": right.edit("reshape(-1, 2, 64)", "reshape(-1, 1, 128)"),
    "you read ql in runs of 32 bytes. The runs have 64 bytes: first the low halves of 64 bytes, then their high "
    "halves.": right.edit("reshape(-1, 2, 64)", "reshape(-1, 4, 32)"),
    "you read qh as one run of 64 bytes. It is two runs of 32, one for each half of the block.": (
        right.edit("reshape(-1, 2, 32)", "reshape(-1, 1, 64)")
    ),
    "the four pairs of bits in a byte of qh went to four neighbours. They belong to the weights j, 32 + j, 64 + j and "
    "96 + j of the half.": right.edit(HIGH, "np.stack([qh >> 2 * k & 3 for k in range(4)], axis=3)"),
    "the pairs of bits of qh are read from the top. Weights 0 to 31 of a half have bits 0 and 1.": (
        right.edit("for k in range(4)", "for k in (3, 2, 1, 0)")
    ),
    "the upper bits are shifted by k places, but a pair needs 2 k.": right.edit("2 * k & 3", "k & 3"),
    "only one of the upper two bits is left: & 3.": right.edit("2 * k & 3", "2 * k & 1"),
    "more than two bits of qh are used: & 3.": right.edit("2 * k & 3", "2 * k & 15"),
    "the bits of qh are put below the four of ql. They are the upper ones: lower | upper << 4.": right.edit(
        ("codes = low.reshape(-1, 256) |", "codes = low.reshape(-1, 256) << 2 |"), (JOINED, "high.reshape(-1, 256)")
    ),
    "the bits of qh are put onto the lowest two of ql. They are worth 16 and 32: << 4.": (
        right.edit(JOINED, "high.reshape(-1, 256)")
    ),
    "the bits of qh are one place too high. They are worth 16 and 32: << 4.": right.edit(
        JOINED, "high.reshape(-1, 256) << 5"
    ),
    "the bits of qh are missing.": right.edit(f" | {JOINED}", ""),
    "the two bytes of d are swapped. GGUF is little-endian: '<f2'.": right.edit("<f2", ">f2"),
    "d is taken from the first two bytes, as in Q4_K, and everything else is read two bytes too late. In Q6_K, d comes "
    "last.": right.edit(FIELDS, "data[:, 2:130], data[:, 130:194], data[:, 194:], data[:, :2]"),
    "qh is read before ql. The first 128 bytes are ql.": (
        right.edit(FIELDS, "data[:, 64:192], data[:, :64], data[:, 192:208], data[:, 208:]")
    ),
    "the scales are read before ql and qh. They come after both, before d.": (
        right.edit(FIELDS, "data[:, 16:144], data[:, 144:208], data[:, :16], data[:, 208:]")
    ),
    "d is missing: a weight is d times scale times steps.": right.edit(RESULT, "scales * steps"),
    "the scales are missing: a weight is d times scale times steps.": right.edit(RESULT, "d * steps"),
    "scale times steps is computed in 8 bits, where 127 is the largest number. Convert them to floats first.": (
        right.edit(RESULT, "d * (scales * steps.astype(np.int8))")
    ),
    "the weights are computed in float16, the dtype of d. Convert d to float32 first.": (
        right.edit(RESULT, "d.astype(np.float16) * scales * steps.astype(np.int8)")
    ),
}


def adapt(theirs):
    """A learner's function replaces the one that :func:`qtutor.gguf.decode` uses for Q6_K."""
    return lambda data: to_array(theirs(np.array(data))).astype(np.float32)


Q6_K = Exercise(
    name="gguf.q6_k",
    title="Q6_K, whole, out of a table",
    difficulty=4,
    minutes=30,
    reference=weights,
    cases=cases,
    outputs=("weights",),
    mistakes=MISTAKES,
    tolerance=1e-6,  # a product has up to 25 bits, one more than a float32
    replaces="qtutor.gguf.decoding.q6_k",
    adapt=adapt,
)

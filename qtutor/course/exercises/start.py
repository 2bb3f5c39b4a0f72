"""Chapter 00: what a quantized layer weighs, how long a token takes, and how surprised a model is."""

from fractions import Fraction
from functools import partial

from qtutor.course.exercises.exercise import Exercise
from qtutor.course.exercises.start_perplexity import PERPLEXITY

CHAPTER = "00_start_here"

# --- the true bytes of a layer ---


def true_bytes(rows, columns, bits, group_size, symmetric):
    def of_a_row(count):
        room, taken = 0, 0
        for _ in range(count * bits):  # bit after bit, a new byte where the last one is full
            if not room:
                room, taken = 8, taken + 1
            room -= 1
        return taken

    groups = len(range(0, columns, group_size))
    return rows * (of_a_row(columns) + sum(2 for _ in range(groups)) + (0 if symmetric else of_a_row(groups)))


def bytes_cases():
    return [
        ("one row, one group", (1, 8, 4, 8, False)),
        ("the same without a zero point", (1, 8, 4, 8, True)),
        ("several rows and groups", (16, 128, 4, 32, False)),
        ("rows that end within a byte", (3, 5, 4, 5, True)),
        ("zero points that end within a byte", (4, 12, 4, 4, False)),
        ("2 bits, both end within a byte", (10, 9, 2, 3, False)),
        ("8 bits", (64, 96, 8, 32, False)),
        ("a layer of a large model", (4096, 4096, 4, 64, False)),
        ("the same, symmetric", (4096, 4096, 4, 64, True)),
    ]


def _bytes_with(rows, columns, bits, group_size, symmetric, scale=2, zero=None, how=""):
    groups = group_size if how == "size for count" else 1 if how == "a row" else columns // group_size

    def up(count):
        return -(-count // 8)

    codes, zeros = up(columns * bits), up(groups * (bits if zero is None else zero))
    if how == "cut":
        codes, zeros = columns * bits // 8, groups * bits // 8
    if symmetric and how != "always zeros":
        zeros = 0
    if how == "together":
        codes, zeros = up((columns + (0 if symmetric else groups)) * bits), 0
    if how == "one stream":
        return up(rows * columns * bits) + rows * groups * scale + (0 if symmetric else up(rows * groups * bits))
    if how == "a group for all rows":
        return rows * codes + groups * scale + zeros
    total = rows * (codes + groups * scale + zeros)
    return {"bits": 8 * total, "16": rows * columns * 2}.get(how, total)


BYTES_MISTAKES = {
    "these are bits; a byte has 8 of them.": dict(how="bits"),
    "the scales are missing: every group stores one, in 16 bits.": dict(scale=0),
    "the zero points are missing: on a grid that is not symmetric every group stores one.": dict(zero=0),
    "scales and zero points are both missing: every group stores them.": dict(scale=0, zero=0),
    "a scale is counted with 4 bytes. It is stored in 16 bits.": dict(scale=4),
    "a scale is counted with 1 byte. It is stored in 16 bits, two bytes.": dict(scale=1),
    "a zero point is counted with a whole byte. It is a code, and takes as many bits as one.": dict(zero=8),
    "a zero point is counted with 16 bits. It is a code, and takes as many bits as one.": dict(zero=16),
    "zero points are counted on a symmetric grid as well, where they are always the middle and are not stored.": dict(
        how="always zeros"
    ),
    "the last byte of a row is lost where codes do not fill it: round up, not down.": dict(how="cut"),
    "codes and zero points of a row are rounded up together. Each of the two begins with a byte of its own.": dict(
        how="together"
    ),
    "all rows are packed as one stream. Every row begins with a new byte, so round up row by row.": dict(
        how="one stream"
    ),
    "scales are counted for one row only: every row has its own groups.": dict(how="a group for all rows"),
    "every row is taken for one group: it has columns / group_size of them.": dict(how="a row"),
    "group_size is the number of weights in a group, not the number of groups, columns / group_size.": dict(
        how="size for count"
    ),
    "these are the bytes before quantization, 2 a weight.": dict(how="16"),
}

BYTES = Exercise(
    name="start.true_bytes",
    chapter=CHAPTER,
    title="The true bytes of a quantized layer",
    difficulty=1,
    minutes=10,
    reference=true_bytes,
    cases=bytes_cases,
    outputs=("bytes",),
    mistakes={text: partial(_bytes_with, **slip) for text, slip in BYTES_MISTAKES.items()},
)

# --- the time of one decoding step ---


def step_time(parameters, bits, bandwidth, operations, batch):
    reading = Fraction(parameters) * Fraction(bits) / 8 / Fraction(bandwidth)
    computing = Fraction(parameters) * 2 * batch / Fraction(operations)
    return float(max(reading, computing))


def time_cases():
    return [
        ("7 billion weights of 16 bits on a laptop", (7_000_000_000, 16, 50e9, 1e12, 1)),
        ("the same in 4 bits", (7_000_000_000, 4, 50e9, 1e12, 1)),
        ("with scales and zero points counted", (7_000_000_000, 4.3125, 50e9, 1e12, 1)),
        ("many sequences at once: computing takes longer", (7_000_000_000, 4, 50e9, 1e12, 64)),
        ("a data-centre GPU, one sequence", (70_000_000_000, 16, 3.35e12, 9.9e14, 1)),
        ("a data-centre GPU, 512 sequences", (70_000_000_000, 8, 3.35e12, 9.9e14, 512)),
        ("fast memory, slow arithmetic", (7_000_000_000, 8, 1e12, 1e11, 4)),
        ("a tiny model", (1_000, 8, 1e3, 1e6, 1)),
    ]


def _time_with(parameters, bits, bandwidth, operations, batch, combine=max, a_byte=8, each=2, reads=1, inverse=False):
    reading = parameters * bits / a_byte / bandwidth * (batch if reads == "batch" else reads)
    computing = parameters * (2 if each == "no batch" else each * batch) / operations
    seconds = combine(reading, computing)
    return 1 / seconds if inverse else seconds


TIME_MISTAKES = {
    "bits are divided by bytes a second: 8 bits make one byte.": dict(a_byte=1),
    "the two times are added. Reading and computing go on side by side, so the longer one counts.": dict(
        combine=lambda a, b: a + b
    ),
    "the shorter of the two times is taken; the step is over when the longer one is.": dict(combine=min),
    "only reading is counted. With many sequences at once computing takes longer.": dict(combine=lambda a, b: a),
    "only computing is counted. With one sequence reading takes longer.": dict(combine=lambda a, b: b),
    "a weight is counted as one operation for each sequence; it is two, a multiplication and an addition.": dict(
        each=1
    ),
    "the batch is forgotten: every sequence needs its own two operations for each weight.": dict(each="no batch"),
    "the weights are read once for every sequence. They are read once, and used for all.": dict(reads="batch"),
    "these are tokens a second of one sequence; the time is asked for, which is one divided by it.": dict(inverse=True),
}

TIME = Exercise(
    name="start.step_time",
    chapter=CHAPTER,
    title="How long one decoding step takes at least",
    difficulty=1,
    minutes=5,
    reference=step_time,
    cases=time_cases,
    outputs=("seconds",),
    mistakes={text: partial(_time_with, **slip) for text, slip in TIME_MISTAKES.items()},
    tolerance=1e-9,  # a few divisions in float64, in any order
)

EXERCISES = (BYTES, TIME, PERPLEXITY)

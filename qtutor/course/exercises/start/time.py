"""``start.step_time``: the shortest possible time of one decoding step."""

from fractions import Fraction

from qtutor.course.exercises.edits import solution
from qtutor.course.exercises.exercise import Exercise


def step_time(parameters, bits, bandwidth, operations, batch):
    reading = Fraction(parameters) * Fraction(bits) / 8 / Fraction(bandwidth)
    computing = Fraction(parameters) * 2 * batch / Fraction(operations)
    return float(max(reading, computing))


def cases():
    return [
        ("7 billion weights of 16 bits on a laptop", (7_000_000_000, 16, 50e9, 1e12, 1)),
        ("the same in 4 bits", (7_000_000_000, 4, 50e9, 1e12, 1)),
        ("with scales and zero points counted", (7_000_000_000, 4.3125, 50e9, 1e12, 1)),
        ("many sequences at once: computing takes longer", (7_000_000_000, 4, 50e9, 1e12, 64)),
        ("a data-centre GPU, one sequence", (70_000_000_000, 16, 3.35e12, 9.9e14, 1)),
        ("a data-centre GPU, 512 sequences", (70_000_000_000, 8, 3.35e12, 9.9e14, 512)),
        ("fast memory, slow arithmetic", (7_000_000_000, 8, 1e12, 1e11, 4)),
        ("a tiny model", (1_000, 8, 1e3, 1e6, 1)),
        ("two sequences, where reading still takes longer", (7_000_000_000, 4, 50e9, 1e12, 2)),
        ("one sequence, and even slower arithmetic", (1_000, 4, 1e6, 1e3, 1)),
    ]


@solution
def right(parameters, bits, bandwidth, operations, batch):
    reading = parameters * bits / 8 / bandwidth
    computing = 2 * parameters * batch / operations
    return max(reading, computing)


LONGER = "max(reading, computing)"

MISTAKES = {
    "bits are divided by bytes per second: 8 bits are one byte.": right.edit(" / 8", ""),
    "the two times are added. Reading and computing go on side by side, so the longer one counts.": (
        right.edit(LONGER, "reading + computing")
    ),
    "you took the shorter of the two times; the step ends when the longer one ends.": right.edit("max", "min"),
    "only reading is counted. With many sequences at once, computing takes longer.": right.edit(LONGER, "reading"),
    "only computing is counted. With one sequence, reading takes longer.": right.edit(LONGER, "computing"),
    "you counted one operation for each weight and sequence; there are two, a multiplication and an addition.": (
        right.edit("2 * ", "")
    ),
    "the batch is forgotten: every sequence needs its own two operations for each weight.": right.edit(" * batch", ""),
    "the weights are read once for every sequence. They are read once, and used for all.": (
        right.edit("/ bandwidth", "/ bandwidth * batch")
    ),
    "the bits are multiplied by 8. 8 bits are one byte, so divide.": right.edit("bits / 8", "bits * 8"),
    "bits // 8 rounds down: 4 bits would be 0 bytes. Divide with /, which keeps the half byte.": (
        right.edit("bits / 8", "(bits // 8)")
    ),
    "you counted 16 bits for every weight. A weight has `bits` bits.": right.edit("bits / 8", "2"),
    "you counted a byte for every weight. A weight has `bits` bits.": right.edit(" * bits / 8", ""),
    "the time of computing is divided by the batch. Every sequence needs its own operations: multiply by the batch.": (
        right.edit("batch / operations", "1 / operations / batch")
    ),
    "you counted two operations for each bit. A weight costs two, no matter how many bits it has.": (
        right.edit("batch / operations", "bits * batch / operations")
    ),
    "you counted two operations for each byte. A weight costs two, no matter how many bits it has.": (
        right.edit("batch / operations", "bits / 8 * batch / operations")
    ),
    "you counted four operations for each weight and sequence; there are two, a multiplication and an "
    "addition.": right.edit("2 * ", "4 * "),
    "bandwidth and operations are swapped: divide bytes by bandwidth, and operations by operations per second.": (
        right.edit(("/ bandwidth", "/ operations"), ("batch / operations", "batch / bandwidth"))
    ),
    "these are milliseconds; return seconds.": right.edit(LONGER, f"1000 * {LONGER}"),
    "the time is divided by the batch at the end. The step takes this long for all sequences together.": (
        right.edit(LONGER, f"{LONGER} / batch")
    ),
    "these are tokens per second of all sequences; return the time of one step.": (
        right.edit(LONGER, f"batch / {LONGER}")
    ),
    "this is the mean of the two times. Reading and computing go on side by side, so the longer one counts.": (
        right.edit(LONGER, "(reading + computing) / 2")
    ),
    "the two times are multiplied. They go on side by side, so the longer one counts.": (
        right.edit(LONGER, "reading * computing")
    ),
    "this is the difference of the two times. They go on side by side, so the longer one counts.": (
        right.edit(LONGER, "abs(reading - computing)")
    ),
    "the batch alone decides which time counts. Always take the longer of the two.": (
        right.edit(LONGER, "reading if batch == 1 else computing")
    ),
    "these are tokens per second of one sequence; return the time, which is 1 divided by that.": (
        right.edit("max(", "1 / max(")
    ),
}

TIME = Exercise(
    name="start.step_time",
    title="How long one decoding step takes at least",
    difficulty=1,
    minutes=5,
    reference=step_time,
    cases=cases,
    outputs=("seconds",),
    mistakes=MISTAKES,
    tolerance=1e-9,  # a few divisions in float64, in any order
)

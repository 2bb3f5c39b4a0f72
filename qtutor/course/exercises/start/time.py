"""``start.step_time``: how long one decoding step takes at least."""

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
    ]


@solution
def right(parameters, bits, bandwidth, operations, batch):
    reading = parameters * bits / 8 / bandwidth
    computing = 2 * parameters * batch / operations
    return max(reading, computing)


MISTAKES = {
    "bits are divided by bytes a second: 8 bits make one byte.": right.edit(" / 8", ""),
    "the two times are added. Reading and computing go on side by side, so the longer one counts.": (
        right.edit("max(reading, computing)", "reading + computing")
    ),
    "the shorter of the two times is taken; the step is over when the longer one is.": right.edit("max", "min"),
    "only reading is counted. With many sequences at once computing takes longer.": (
        right.edit("max(reading, computing)", "reading")
    ),
    "only computing is counted. With one sequence reading takes longer.": (
        right.edit("max(reading, computing)", "computing")
    ),
    "a weight is counted as one operation for each sequence; it is two, a multiplication and an addition.": (
        right.edit("2 * ", "")
    ),
    "the batch is forgotten: every sequence needs its own two operations for each weight.": right.edit(" * batch", ""),
    "the weights are read once for every sequence. They are read once, and used for all.": (
        right.edit("/ bandwidth", "/ bandwidth * batch")
    ),
    "these are tokens a second of one sequence; the time is asked for, which is one divided by it.": (
        right.edit("max(", "1 / max(")
    ),
}

TIME = Exercise(
    name="start.step_time",
    chapter="00_start_here",
    title="How long one decoding step takes at least",
    difficulty=1,
    minutes=5,
    reference=step_time,
    cases=cases,
    outputs=("seconds",),
    mistakes=MISTAKES,
    tolerance=1e-9,  # a few divisions in float64, in any order
)

"""``kernels.corner``: the highest speed of a product, and the batch from which reading is no longer the limit."""

from fractions import Fraction

from qtutor.course.exercises.edits import solution
from qtutor.course.exercises.exercise import Exercise


def roof(peak, bandwidth, bits, batch):
    seconds_of_reading = Fraction(bits) / 8 / Fraction(bandwidth)  # of one weight
    seconds_of_computing = Fraction(2) / Fraction(peak)  # with one weight, for one token
    longer = max(seconds_of_reading, batch * seconds_of_computing)
    return float(2 * batch / longer), float(seconds_of_reading / seconds_of_computing)


def cases():
    return [
        ("a core of a laptop, 16 bits, one token", (1e11, 2e10, 16, 1)),
        ("the same in 4 bits, with scales and zero points", (1e11, 2e10, 4.3125, 1)),
        ("4 bits, 8 tokens at once", (1e11, 2e10, 4, 8)),
        ("16 bits, 8 tokens at once", (1e11, 2e10, 16, 8)),
        ("exactly at the corner", (8e10, 1e10, 8, 4)),
        ("beyond the corner", (8e10, 1e10, 8, 64)),
        ("a GPU in a data centre, one token", (9.9e14, 3.35e12, 4.3125, 1)),
        ("the same GPU, 512 tokens", (9.9e14, 3.35e12, 4.3125, 512)),
        ("slow arithmetic: the limit is computing even with one token", (1e9, 1e11, 8, 1)),
    ]


@solution
def right(peak, bandwidth, bits, batch):
    each = 2 * 8 / bits  # operations per byte, for one token
    operations = min(peak, batch * each * bandwidth)
    corner = peak / bandwidth / each
    return operations, corner


OPERATIONS, CORNER_OF = "min(peak, batch * each * bandwidth)", "peak / bandwidth / each"

MISTAKES = {
    "your result has no limit at the peak: beyond the corner, operations per second no longer grow.": (
        right.edit(OPERATIONS, "batch * each * bandwidth")
    ),
    "your result is always the peak. With few tokens, the bytes arrive too slowly to reach it.": right.edit(
        OPERATIONS, "peak"
    ),
    "you took the larger of two limits. Both limit, so the smaller one counts.": right.edit("min(peak", "max(peak"),
    "the times of reading and computing are added. Both go on at once, so the longer one counts.": right.edit(
        OPERATIONS, "1 / (1 / peak + 1 / (batch * each * bandwidth))"
    ),
    "a corner below 1 is raised to 1. A corner below 1 means that computing is the limit even with one token.": (
        right.edit(CORNER_OF, "max(1, peak / bandwidth / each)")
    ),
    "the corner is rounded up. The batch at which both take equally long may be between two whole numbers.": (
        right.edit(CORNER_OF, "-(-peak // (bandwidth * each))")
    ),
    "the batch is forgotten: with a larger batch, a byte serves more operations.": right.edit(
        "batch * each *", "each *"
    ),
    "you counted one operation for each weight and token. There are two, a multiplication and an addition.": (
        right.edit("2 * 8", "8")
    ),
    "you counted a byte for each weight. A weight has `bits` bits.": right.edit("2 * 8 / bits", "2"),
    "you treated bits as bytes: 8 bits are a byte.": right.edit("2 * 8 / bits", "2 / bits"),
    "you used bytes per weight, but weights per byte are needed: 8 / bits, not bits / 8.": (
        right.edit("2 * 8 / bits", "2 * bits / 8")
    ),
    "the corner is given in operations per byte. Return the batch: divide by the operations per byte for one "
    "token.": right.edit(CORNER_OF, "peak / bandwidth"),
    "the corner is upside down.": right.edit(CORNER_OF, "each * bandwidth / peak"),
    "your corner is a whole number. The batch at which both take equally long may be between two whole numbers.": (
        right.edit(CORNER_OF, "float(int(peak / bandwidth / each) + 1)")
    ),
    "your corner depends on the batch. It is the batch at which both limits meet.": (
        right.edit(CORNER_OF, "peak / bandwidth / each / batch")
    ),
    "the two results are exchanged: first the operations per second, then the corner.": (
        right.edit("return operations, corner", "return corner, operations")
    ),
    "these are bytes per second. Return operations per second.": (
        right.edit("return operations, corner", "return operations / each / batch, corner")
    ),
    "these are operations of one token. Return those of the whole batch.": (
        right.edit("return operations, corner", "return operations / batch, corner")
    ),
}

CORNER = Exercise(
    name="kernels.corner",
    title="The corner of the roofline",
    difficulty=2,
    minutes=10,
    reference=roof,
    cases=cases,
    outputs=("operations a second", "corner"),
    mistakes=MISTAKES,
    tolerance=1e-9,  # a few divisions in float64, in any order
)

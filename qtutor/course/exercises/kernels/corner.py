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
    "the peak is no limit in yours: beyond the corner, operations a second grow no more.": (
        right.edit(OPERATIONS, "batch * each * bandwidth")
    ),
    "the peak comes out always. With few tokens the bytes arrive too slowly for it.": right.edit(OPERATIONS, "peak"),
    "the larger of two limits is taken. Both limit, so the smaller one counts.": (right.edit("min(peak", "max(peak")),
    "the times of reading and computing are added. Both go on at once, so the longer one counts.": right.edit(
        OPERATIONS, "1 / (1 / peak + 1 / (batch * each * bandwidth))"
    ),
    "a corner below 1 is cut off to 1. Where it lies says that computing is the limit even with one token.": (
        right.edit(CORNER_OF, "max(1, peak / bandwidth / each)")
    ),
    "the corner is rounded up. The batch at which both take as long may lie between two whole numbers.": (
        right.edit(CORNER_OF, "-(-peak // (bandwidth * each))")
    ),
    "the batch is forgotten: with it a byte serves more operations.": right.edit("batch * each *", "each *"),
    "a weight is counted as one operation for each token. It is two, a multiplication and an addition.": (
        right.edit("2 * 8", "8")
    ),
    "a byte is counted for each weight. It has `bits` bits.": right.edit("2 * 8 / bits", "2"),
    "bits are taken for bytes: 8 bits are a byte.": right.edit("2 * 8 / bits", "2 / bits"),
    "the bytes of a weight stand where weights of a byte are needed: 8 / bits, not bits / 8.": (
        right.edit("2 * 8 / bits", "2 * bits / 8")
    ),
    "the corner is given in operations a byte. Asked for is the batch: divide by the operations with a byte for one "
    "token.": right.edit(CORNER_OF, "peak / bandwidth"),
    "the corner is upside down.": right.edit(CORNER_OF, "each * bandwidth / peak"),
    "the corner is a whole number in yours. The batch at which both take as long may lie between two.": (
        right.edit(CORNER_OF, "float(int(peak / bandwidth / each) + 1)")
    ),
    "the corner depends on the batch in yours. It is the batch at which both limits meet.": (
        right.edit(CORNER_OF, "peak / bandwidth / each / batch")
    ),
    "the two results are exchanged: first the operations a second, then the corner.": (
        right.edit("return operations, corner", "return corner, operations")
    ),
    "these are bytes a second. Asked for are operations a second.": (
        right.edit("return operations, corner", "return operations / each / batch, corner")
    ),
    "these are operations of one token. Asked for are those of the whole batch.": (
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

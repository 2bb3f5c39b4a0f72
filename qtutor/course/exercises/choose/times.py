"""``choose.times``: how many times smaller a file becomes, including the cost of its scales."""

from fractions import Fraction

from qtutor.course.exercises.edits import solution
from qtutor.course.exercises.exercise import Exercise


def times(in_layers, elsewhere, bits, group, symmetric):
    before = after = Fraction(0)
    for count, packed in ((in_layers, True), (elsewhere, False)):
        before += count * 16
        if not packed:
            after += count * 16
            continue
        after += count * bits
        groups = Fraction(count, group)
        after += groups * 16
        if not symmetric:
            after += groups * bits
    return float(before / after)


def cases():
    return [
        ("everything in 4 bits, groups of 64, no zero points", (64_000, 0, 4, 64, True)),
        ("the same with zero points", (64_000, 0, 4, 64, False)),
        ("groups of 32", (64_000, 0, 4, 32, False)),
        ("as many weights stay in 16 bits", (64_000, 64_000, 4, 64, True)),
        ("the embedded decoder: a fifth stays in 16 bits", (1_179_648, 263_424, 4, 64, False)),
        ("3 bits, groups of 128", (128_000, 6_400, 3, 128, False)),
        ("8 bits, groups of 64", (128_000, 12_800, 8, 64, True)),
        ("Llama 3.1 8B", (6_979_321_856, 1_050_673_152, 4, 128, False)),
    ]


@solution
def right(in_layers, elsewhere, bits, group, symmetric):
    zero = 0 if symmetric else bits
    each = bits + (16 + zero) / group
    before = 16 * (in_layers + elsewhere)
    after = in_layers * each + 16 * elsewhere
    return before / after


ZERO, EACH, AFTER = "0 if symmetric else bits", "bits + (16 + zero) / group", "in_layers * each + 16 * elsewhere"

MISTAKES = {
    "16 / bits is right for codes alone. Scales take space, and some weights stay in 16 bits.": (
        right.edit("before / after", "16 / bits")
    ),
    "the scales and zero points are missing.": right.edit(EACH, "bits"),
    "the zero points are missing. A grid that is not symmetric stores one for each group.": right.edit(ZERO, "0"),
    "you counted zero points for a symmetric grid, too. Its zero point is always the middle code.": (
        right.edit(ZERO, "bits")
    ),
    "you counted 16 bits for a zero point. A zero point is a code, of `bits` bits.": right.edit(
        ZERO, "0 if symmetric else 16"
    ),
    "you counted a scale for every weight. `group` weights share one.": right.edit(EACH, "bits + 16 + zero"),
    "you counted 32 bits for a scale. Scales are stored in 16 bits.": right.edit(EACH, "bits + (32 + zero) / group"),
    "the weights that are not quantized are missing in the size after quantization, but a file has to hold them.": (
        right.edit(AFTER, "in_layers * each")
    ),
    "the weights elsewhere are counted as if they were quantized, too. They stay in 16 bits, in both files.": (
        right.edit(AFTER, "(in_layers + elsewhere) * each")
    ),
    "the ratio is upside down: return before / after.": right.edit("before / after", "after / before"),
    "you counted 32 bits for each weight before quantization. A file of today has 16.": right.edit(
        "16 * (in_layers + elsewhere)", "32 * (in_layers + elsewhere)"
    ),
}

TIMES = Exercise(
    name="choose.times",
    title="How many times smaller",
    difficulty=1,
    minutes=10,
    reference=times,
    cases=cases,
    outputs=("times",),
    mistakes=MISTAKES,
    tolerance=1e-9,  # a few divisions in float64, in any order
)

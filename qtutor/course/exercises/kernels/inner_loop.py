"""``kernels.inner_loop``: the product of 64 rows; numba compiles it, and it then replaces the package's loop.

It is first checked in plain Python, so that messages name the learner's own lines. Then it is compiled, and timed
against the package's loop (:mod:`.racing`). If it is slow, :mod:`.slow` looks for the reason in its types and source.
"""

import numpy as np

from qtutor.course.exercises.edits import solution
from qtutor.course.exercises.exercise import Exercise
from qtutor.course.exercises.kernels.racing import adapt, raced

f4, i4 = np.float32, np.int32
ROWS = 64


def tile_product(x, sums, words, scales, zeros):
    size, products = len(x) // len(sums), []
    for row in range(ROWS):
        total = 0.0
        for group in range(len(sums)):
            of_codes = 0.0
            for k in range(group * size, (group + 1) * size):
                digits = f"{int(words[k, row]) % 2**32:08x}"[::-1]  # the lowest code first
                for i, digit in enumerate(digits):
                    of_codes += int(digit, 16) * float(x[k, i]) * (16**i if i < 7 else 1)
            total += float(scales[group, row]) * (of_codes - float(zeros[group, row]) * float(sums[group]))
        products.append(total)
    return products


def case(seed: int, groups: int, size: int, zero: int | None = None) -> tuple:
    """A tile of random codes: the divided x, its sums, words, scales and zero points, as the package passes them."""
    drawn = np.random.default_rng(seed)
    words = drawn.integers(-(2**31), 2**31, (groups * size, ROWS)).astype(np.int32)
    x = drawn.standard_normal((groups * size, 8)).astype(np.float32)
    sums = x.reshape(groups, -1).sum(1)
    places = np.float32(16) ** -np.arange(8, dtype=np.float32)
    places[7] = 1
    scales = (0.01 + drawn.random((groups, ROWS)) / 10).astype(np.float32)
    zeros = drawn.integers(0, 16, (groups, ROWS)) if zero is None else np.full((groups, ROWS), zero)
    return x * places, sums, words, scales, zeros.astype(np.float32)


def cases():
    return [
        ("one word a row, zero points of 0", case(41, 1, 1, zero=0)),
        ("one word a row", case(42, 1, 1)),
        ("one group of three words", case(43, 1, 3)),
        ("three groups of one word", case(44, 3, 1)),
        ("two groups of two words", case(45, 2, 2)),
    ]


@solution
def right(x, sums, words, scales, zeros):
    size = len(x) // len(sums)
    acc, y = np.zeros(64, f4), np.zeros(64, f4)
    for g in range(len(sums)):
        acc[:] = 0
        for k in range(g * size, (g + 1) * size):
            x0, x1, x2, x3 = x[k, 0], x[k, 1], x[k, 2], x[k, 3]
            x4, x5, x6, x7 = x[k, 4], x[k, 5], x[k, 6], x[k, 7]
            for r in range(64):
                word = words[k, r]
                total = acc[r] + f4(i4(word & i4(0xF))) * x0
                total += f4(i4(word & i4(0xF0))) * x1
                total += f4(i4(word & i4(0xF00))) * x2
                total += f4(i4(word & i4(0xF000))) * x3
                total += f4(i4(word & i4(0xF0000))) * x4
                total += f4(i4(word & i4(0xF00000))) * x5
                total += f4(i4(word & i4(0xF000000))) * x6
                acc[r] = total + f4(i4((word >> i4(28)) & i4(0xF))) * x7
        for r in range(64):
            y[r] += scales[g, r] * (acc[r] - zeros[g, r] * sums[g])
    return y


LAST = "f4(i4((word >> i4(28)) & i4(0xF))) * x7"
GROUP = "scales[g, r] * (acc[r] - zeros[g, r] * sums[g])"
SPREAD = "x4, x5, x6, x7 = x[k, 4], x[k, 5], x[k, 6], x[k, 7]\n"

MISTAKES = {
    "the last code was masked in its place, where its highest bit is the sign: shift it down by 28 first, then & 15.": (
        right.edit(LAST, "f4(i4((word >> i4(28)) << i4(28))) * x7")
    ),
    "the last code keeps the sign of the word: & 15 after the shift.": right.edit(LAST, "f4(i4(word >> i4(28))) * x7"),
    "the last code of every word is missing. A word holds eight.": right.edit(f"total + {LAST}", "total"),
    "x was divided beforehand, but here the codes are shifted down as well. Leave the codes in their places: only mask "
    "them.": (
        right.edit(
            SPREAD,
            SPREAD + " " * 12 + "x1, x2, x3, x4, x5, x6 = x1 / 16, x2 / 256, x3 / 16**3, x4 / 16**4, "
            "x5 / 16**5, x6 / 16**6\n",
        )
    ),
    "the words of a group overwrite each other (=). Add to what is there.": (
        right.edit("total = acc[r] + f4", "total = f4")
    ),
    "the sum of a group is not set to 0 before the next group begins.": right.edit("acc[:] = 0", "pass"),
    "the zero points are missing.": right.edit("acc[r] - zeros[g, r] * sums[g]", "acc[r]"),
    "the zero point itself is subtracted. Subtract zero * sums[g]: every x of the group was multiplied by the zero "
    "point.": right.edit("zeros[g, r] * sums[g]", "zeros[g, r]"),
    "you added the term with the zero point. A weight is scale * (code - zero): subtract it.": (
        right.edit("acc[r] - zeros", "acc[r] + zeros")
    ),
    "the zero point is subtracted once for every word. sums[g] is the sum of the whole group: subtract it once.": (
        right.edit("zeros[g, r] * sums[g]", "size * zeros[g, r] * sums[g]")
    ),
    "the scale is applied to the codes only: scale * (sum of codes - zero * sum of x).": (
        right.edit(GROUP, "scales[g, r] * acc[r] - zeros[g, r] * sums[g]")
    ),
    "the scales are missing.": right.edit(GROUP, "(acc[r] - zeros[g, r] * sums[g])"),
    "the groups overwrite each other (=). A row has one product: +=.": right.edit("y[r] +=", "y[r] ="),
    "all groups use the scale and the zero point of the first.": right.edit(
        GROUP, "scales[0, r] * (acc[r] - zeros[0, r] * sums[g])"
    ),
    "all rows use the scale and the zero point of the first row.": right.edit(
        GROUP, "scales[g, 0] * (acc[r] - zeros[g, 0] * sums[g])"
    ),
    "only the first word of every group is multiplied.": right.edit(
        "range(g * size, (g + 1) * size)", "range(g * size, g * size + 1)"
    ),
    "only the words of the first group are multiplied, over and over.": right.edit(
        "range(g * size, (g + 1) * size)", "range(size)"
    ),
    "the order of x is reversed: the lowest four bits of a word belong to x[k, 0].": right.edit(
        ("x0, x1, x2, x3 =", "x7, x6, x5, x4 ="), ("x4, x5, x6, x7 =", "x3, x2, x1, x0 =")
    ),
}

INNER_LOOP = Exercise(
    name="kernels.inner_loop",
    title="Your inner loop in place of the package's",
    difficulty=3,
    minutes=30,
    reference=tile_product,
    cases=cases,
    outputs=("products",),
    mistakes=MISTAKES,
    tolerance=1e-4,  # sums in float32, in any order
    speed=raced,
    replaces="qtutor.runtime.kernels.loops.one",
    adapt=adapt,
)

"""``gguf.fit``: find the best scale and lowest value for given codes."""

import numpy as np

from qtutor.course.exercises.edits import solution
from qtutor.course.exercises.exercise import Exercise
from qtutor.course.exercises.gguf.inputs import drawn


def fit(x, w, codes):
    # Least squares by numpy's solver, in float64; each row is multiplied by the root of its weight.
    x, w, codes = (np.asarray(values, np.float64) for values in (x, w, codes))
    root = np.sqrt(w)
    sides = np.stack([codes, np.ones_like(codes)], axis=1)
    scale, low = np.linalg.lstsq(root[:, None] * sides, root * x, rcond=None)[0]
    if low > 0:
        scale, low = np.linalg.lstsq((root * codes)[:, None], root * x, rcond=None)[0][0], 0.0
    return scale, low


def cases():
    def rounded(x: np.ndarray, top: int = 15) -> np.ndarray:
        return np.rint((x - x.min()) / (x.max() - x.min()) * top).astype(np.float32)

    def given(*numbers: float) -> np.ndarray:
        return np.array(numbers, np.float32)

    many, few = drawn(5, 32), drawn(6, 16)
    return [
        ("weights that are on a line", (given(-1, 0, 1, 2), given(1, 1, 1, 1), given(0, 1, 2, 3))),
        ("four weights that count equally", (given(-0.9, 0.2, 1.1, 1.8), given(1, 1, 1, 1), given(0, 1, 2, 3))),
        (
            "the same, and the last counts ten times",
            (given(-0.9, 0.2, 1.1, 1.8), given(1, 1, 1, 10), given(0, 1, 2, 3)),
        ),
        ("weights that are all positive", (given(0.5, 1.1, 1.2, 2.0), given(1, 2, 1, 3), given(0, 1, 2, 3))),
        (
            "two codes that no weight has",
            (given(-1.2, -1.0, 0.9, 1.1, -0.8), given(1, 2, 2, 1, 4), given(0, 0, 3, 3, 0)),
        ),
        ("32 bell-shaped weights, large ones count more", (many, 1 + np.abs(many), rounded(many))),
        ("16 weights in 2 bits, some of which do not count", (few, np.tile(given(0, 1, 0, 3), 4), rounded(few, 3))),
    ]


@solution
def right(x, w, codes):
    x, w, codes = (np.asarray(values, np.float64) for values in (x, w, codes))
    sum_w, sum_l, sum_ll = w.sum(), (w * codes).sum(), (w * codes**2).sum()
    sum_x, sum_xl = (w * x).sum(), (w * x * codes).sum()
    scale = (sum_w * sum_xl - sum_x * sum_l) / (sum_w * sum_ll - sum_l**2)
    low = (sum_x - scale * sum_l) / sum_w
    return (scale, low) if low <= 0 else (sum_xl / sum_ll, 0.0)


@solution
def by_hint(x, w, codes):
    x, w, codes = (np.asarray(values, np.float64) for values in (x, w, codes))
    sum_w, sum_l, sum_ll = w.sum(), (w * codes).sum(), (w * codes**2).sum()
    sum_x, sum_xl = (w * x).sum(), (w * x * codes).sum()
    determinant = sum_w * sum_ll - sum_l**2
    scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
    low = (sum_ll * sum_x - sum_l * sum_xl) / determinant
    return (scale, low) if low <= 0 else (sum_xl / sum_ll, 0.0)


FREE, NO_LOW = "(scale, low)", "(sum_xl / sum_ll, 0.0)"
RESULT = f"{FREE} if low <= 0 else {NO_LOW}"

MISTAKES = {
    "all errors count equally. Multiply each squared error by w, in every one of the five sums.": (
        right.edit("in (x, w, codes)", "in (x, np.ones_like(w), codes)")
    ),
    "errors are weighted by the roots of w. Multiply the squared error by w itself.": (
        right.edit("in (x, w, codes)", "in (x, np.sqrt(w), codes)")
    ),
    "errors are weighted by the squares of w. (Weights that go into a row of a least-squares solver are the roots of "
    "w.)": right.edit("in (x, w, codes)", "in (x, w * w, codes)"),
    "low is above 0 if all weights are positive. The format cannot store that: low is then 0.": (
        right.edit(RESULT, FREE)
    ),
    "low is clamped to 0, but scale still belongs to the old low. With low = 0 the best scale is sum(w x l) / sum(w l "
    "l).": right.edit(NO_LOW, "(scale, 0.0)"),
    "scale and low come from the range, like the codes. Now find the best scale and low for these codes.": (
        right.edit(RESULT, "((x.max() - x.min()) / codes.max(), min(x.min(), 0.0))")
    ),
    "scale and low come from the largest and the smallest weight alone. Now find the best ones for these codes, with "
    "low not above 0.": right.edit(RESULT, "((x.max() - x.min()) / (codes.max() - codes.min()), x.min())"),
    "scale and low come from the range with 0 in it, like codes. Now find the best scale and low for these "
    "codes.": right.edit(RESULT, "((x.max() - min(x.min(), 0.0)) / codes.max(), min(x.min(), 0.0))"),
    "the scale does not depend on the codes: it is the range over 15. The codes are given, so find the best scale for "
    "them.": right.edit(RESULT, "((x.max() - x.min()) / 15, min(x.min(), 0.0))"),
    "low is the weighted mean of the weights. Both numbers are free: set both derivatives to zero.": (
        right.edit("(sum_x - scale * sum_l) / sum_w", "sum_x / sum_w")
    ),
    "scale is the best one for low = 0, and low the best one for that scale. They depend on each other: solve both "
    "equations at once.": right.edit(
        "(sum_w * sum_xl - sum_x * sum_l) / (sum_w * sum_ll - sum_l**2)", "sum_xl / sum_ll"
    ),
    "scale has the wrong sign: its numerator is sum(w) sum(w x l) - sum(w x) sum(w l).": (
        by_hint.edit("sum_w * sum_xl - sum_x * sum_l", "sum_x * sum_l - sum_w * sum_xl")
    ),
    "the determinant adds where it should subtract: sum(w) sum(w l l) - sum(w l)^2.": (
        by_hint.edit("sum_w * sum_ll - sum_l**2", "sum_w * sum_ll + sum_l**2")
    ),
    "the determinant is missing: divide by sum(w) sum(w l l) - sum(w l)^2.": (
        by_hint.edit("sum_w * sum_ll - sum_l**2", "1.0")
    ),
    "sum(w l l) is not sum(w l)^2: square each l before you add up.": (
        by_hint.edit("(w * codes**2).sum()", "(w * codes).sum() ** 2")
    ),
    "w is squared in sum(w l l): the square belongs to l alone.": by_hint.edit("w * codes**2", "(w * codes) ** 2"),
    "w is missing in sum(w l l).": by_hint.edit("(w * codes**2)", "(codes**2)"),
    "w is missing in sum(w x l).": by_hint.edit("(w * x * codes)", "(x * codes)"),
    "w is missing in sum(w l).": by_hint.edit("(w * codes).sum()", "codes.sum()"),
    "w is missing in sum(w x).": by_hint.edit("(w * x).sum()", "x.sum()"),
    "the determinant has the wrong sign: it is sum(w) sum(w l l) - sum(w l)^2.": (
        by_hint.edit("sum_w * sum_ll - sum_l**2", "sum_l**2 - sum_w * sum_ll")
    ),
    "low's numerator has the wrong sign: it is sum(w l l) sum(w x) - sum(w l) sum(w x l).": (
        by_hint.edit("sum_ll * sum_x - sum_l * sum_xl", "sum_l * sum_xl - sum_ll * sum_x")
    ),
    "the two cases are exchanged. If low is above 0, it becomes 0; otherwise it stays.": (
        right.edit("if low <= 0", "if low >= 0")
    ),
    "low is in steps: it is a weight, not a code. x is scale * code + low.": right.edit(FREE, "(scale, low / scale)"),
    "scale is upside down: x is scale * code + low.": (
        right.edit((FREE, "(1 / scale, low)"), (NO_LOW, "(sum_ll / sum_xl, 0.0)"))
    ),
    "low has the wrong sign: x is scale * code + low, and low is never above 0.": right.edit(FREE, "(scale, -low)"),
    "scale and low are swapped: return scale, low.": (
        right.edit((FREE, "(low, scale)"), (NO_LOW, "(0.0, sum_xl / sum_ll)"))
    ),
    "low is the smallest weight. Both numbers are free: set both derivatives to zero.": right.edit(
        ("(sum_x - scale * sum_l) / sum_w", "min(x.min(), 0.0)"), (RESULT, "((sum_xl - low * sum_l) / sum_ll, low)")
    ),
    "low is always 0. It is free as well, as long as it is not above 0. (If you did solve for it, it was above 0 "
    "everywhere: look for a wrong sign in low or in D.)": right.edit(RESULT, NO_LOW),
    "you used the number of weights as the sum of w. Use w.sum(): the two are equal if all w are 1, but not in "
    "general.": right.edit("w.sum()", "len(x)"),
    "if low is 0, your scale comes from the second equation. That equation is the derivative with respect to low, "
    "which is not free then: scale is sum(w x l) / sum(w l l).": right.edit(NO_LOW, "(sum_x / sum_l, 0.0)"),
    "you fitted the codes to the weights. The error of the weights counts: x is scale * code + low.": right.edit(
        ("x, w, codes = (", "codes, w, x = ("),  # so scale and low turn weights into codes, and are inverted
        (RESULT, "(1 / scale, -low / scale) if low >= 0 else (sum_xl / (w * x**2).sum(), 0.0)"),
    ),
}


FIT = Exercise(
    name="gguf.fit",
    title="The best scale and lowest value for given codes",
    difficulty=2,
    minutes=15,
    reference=fit,
    cases=cases,
    outputs=("scale", "low"),
    mistakes=MISTAKES,
    tolerance=1e-4,  # the determinant is a difference of two large sums, which llama.cpp computes in float32
)

"""``gguf.fit``: the best scale and lowest value for codes that are given."""

import numpy as np

from qtutor.course.exercises.exercise import Exercise
from qtutor.course.exercises.gguf.inputs import CHAPTER, drawn


def fit(x, w, codes):
    # Least squares on rows that are multiplied by the roots of their weights; by numpy's solver, in float64.
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
        ("weights that lie on a line", (given(-1, 0, 1, 2), given(1, 1, 1, 1), given(0, 1, 2, 3))),
        ("four weights that count alike", (given(-0.9, 0.2, 1.1, 1.8), given(1, 1, 1, 1), given(0, 1, 2, 3))),
        (
            "the same, and the last counts ten times",
            (given(-0.9, 0.2, 1.1, 1.8), given(1, 1, 1, 10), given(0, 1, 2, 3)),
        ),
        ("weights that are all positive", (given(0.5, 1.1, 1.2, 2.0), given(1, 2, 1, 3), given(0, 1, 2, 3))),
        ("two codes that nobody has", (given(-1.2, -1.0, 0.9, 1.1, -0.8), given(1, 2, 2, 1, 4), given(0, 0, 3, 3, 0))),
        ("32 bell-shaped weights, large ones count more", (many, 1 + np.abs(many), rounded(many))),
        ("16 weights in 2 bits, some of which count nothing", (few, np.tile(given(0, 1, 0, 3), 4), rounded(few, 3))),
    ]


def _solved(x, w, codes, *, free=False):
    x, w, codes = (np.asarray(values, np.float64) for values in (x, w, codes))
    total, sum_l, sum_ll, sum_x, sum_xl = (
        w.sum(),
        (w * codes).sum(),
        (w * codes**2).sum(),
        (w * x).sum(),
        (w * x * codes).sum(),
    )
    scale = (total * sum_xl - sum_x * sum_l) / (total * sum_ll - sum_l**2)
    low = (sum_x - scale * sum_l) / total
    if low > 0 and not free:
        return sum_xl / sum_ll, 0.0
    return scale, low


def unweighted(x, w, codes):
    return _solved(x, np.ones_like(w), codes)


def by_root(x, w, codes):
    return _solved(x, np.sqrt(w), codes)


def by_square(x, w, codes):
    return _solved(x, w * w, codes)


def low_above_zero(x, w, codes):
    return _solved(x, w, codes, free=True)


def low_cut_off(x, w, codes):
    scale, low = _solved(x, w, codes, free=True)
    return scale, min(low, 0.0)


def from_the_range(x, w, codes):
    return (x.max() - x.min()) / codes.max(), min(float(x.min()), 0.0)


def low_without_sign(x, w, codes):
    scale, low = _solved(x, w, codes)
    return scale, -low


def swapped(x, w, codes):
    return _solved(x, w, codes)[::-1]


def low_from_the_smallest(x, w, codes):
    low = min(float(x.min()), 0.0)
    return (w * (x - low) * codes).sum() / (w * codes * codes).sum(), low


def no_low(x, w, codes):
    return (w * x * codes).sum() / (w * codes * codes).sum(), 0.0


def counted(x, w, codes):
    # sum(w) taken for the number of weights: right as long as they all count 1
    w, codes = np.asarray(w, np.float64), np.asarray(codes, np.float64)
    sides = np.array([[(w * codes**2).sum(), (w * codes).sum()], [(w * codes).sum(), len(x)]])
    scale, low = np.linalg.solve(sides, [(w * x * codes).sum(), (w * x).sum()])
    return (scale, low) if low <= 0 else ((w * x * codes).sum() / (w * codes**2).sum(), 0.0)


def second_equation(x, w, codes):
    scale, low = _solved(x, w, codes, free=True)
    return (scale, low) if low <= 0 else ((w * x).sum() / (w * codes).sum(), 0.0)


def turned_round(x, w, codes):
    slope, start = _solved(codes, w, x, free=True)  # codes as a function of x
    scale, low = 1 / slope, -start / slope
    return (scale, low) if low <= 0 else _solved(x, w, codes)


MISTAKES = {
    "all errors count alike. Weigh each by w, in every one of the five sums.": unweighted,
    "errors count by the roots of w. It is the square of the error that w multiplies.": by_root,
    "errors count by the squares of w. (Weights that go into a row of a least-squares solver are the roots of w.)": (
        by_square
    ),
    "low is above 0 where all weights are positive. The format cannot store that: low is then 0.": low_above_zero,
    "low is cut off at 0, but scale is still the one that went with the other low. With low = 0 the best scale is "
    "sum(w x l) / sum(w l l).": low_cut_off,
    "scale and low come from the range. That is where the codes came from; now find the best for these codes.": (
        from_the_range
    ),
    "low has the wrong sign: x is scale * code + low, and low is never above 0.": low_without_sign,
    "scale and low are swapped: return scale, low.": swapped,
    "low is the smallest weight. Both numbers are free: set both derivatives to zero.": low_from_the_smallest,
    "low is always 0. It is free as well, as long as it does not come out above 0. (If you did solve for it, it came "
    "out above 0 everywhere: look for a sign that is wrong in low or in D.)": no_low,
    "the sum of w was taken for the number of weights. It is w.sum(), which is that only where all of them are 1.": (
        counted
    ),
    "where low is 0, scale comes from the second equation. That one is the derivative with respect to low, which is "
    "not free there: scale is sum(w x l) / sum(w l l).": second_equation,
    "you fitted the codes to the weights. It is the weights' error that counts: x is scale * code + low.": turned_round,
}

FIT = Exercise(
    name="gguf.fit",
    chapter=CHAPTER,
    title="The best scale and lowest value for given codes",
    difficulty=2,
    minutes=15,
    reference=fit,
    cases=cases,
    outputs=("scale", "low"),
    mistakes=MISTAKES,
    tolerance=1e-4,  # the determinant is a difference of two large sums, and yours may be in float32, as llama.cpp's
)

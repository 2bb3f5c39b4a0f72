"""``bnb.product``: a matrix product, mostly in integers, with the outlier channels in floating point."""

import torch

from qtutor.course.exercises.adapting import tensor
from qtutor.course.exercises.edits import solution
from qtutor.course.exercises.exercise import Exercise
from qtutor.course.exercises.inputs import short
from qtutor.methods.bnb import mixed_product as packages_own
from qtutor.methods.bnb import quantize_rows


def product(x, codes, absmax, outliers, weight, weight_absmax):
    y = []
    for token, token_codes, largest in zip(x.tolist(), codes.tolist(), absmax.tolist()):
        y.append([])
        for row, row_largest in zip(weight.tolist(), weight_absmax.tolist()):
            total = 0.0
            for channel, out in enumerate(outliers.tolist()):
                value = token[channel] if out else token_codes[channel] * largest / 127
                total += value * row[channel] * row_largest / 127
            y[-1].append(total)
    return y


def cases():
    def layer(x: torch.Tensor, out: int, threshold: float, seed: int) -> tuple:
        codes, absmax, outliers = quantize_rows(x, threshold)
        weight = short(seed, out, x.shape[1])
        weight_codes, weight_absmax, _ = quantize_rows(weight)
        return x, codes.to(torch.int8), absmax, outliers, weight_codes.to(torch.int8), weight_absmax

    wide = short(41, 5, 24)
    wide[:, [3, 17]] *= 20
    square = short(42, 4, 4)
    square[:, 2] *= 9
    every = 10 + short(44, 2, 3).abs()
    return [
        ("no outlier channel", layer(short(43, 2, 3), 4, 6.0, seed=51)),
        ("one outlier channel", layer(torch.tensor([[1.0, -2.0, 8.0], [0.5, 0.25, 3.0]]), 2, 6.0, seed=52)),
        ("two outlier channels of 24", layer(wide, 7, 6.0, seed=53)),
        ("as many tokens as channels as outputs", layer(square, 4, 4.0, seed=54)),
        ("nothing but outlier channels", layer(every, 4, 6.0, seed=55)),
        ("a single token", layer(wide[:1], 3, 6.0, seed=56)),
        ("inputs in bfloat16", layer(wide.bfloat16(), 3, 6.0, seed=57)),
    ]


@solution
def right(x, codes, absmax, outliers, weight, weight_absmax):
    tokens = absmax.double() / 127
    rows = weight_absmax.double() / 127
    w = weight.double()  # sums of int8 need more room than int8
    integers = (codes.double() @ w.T) * tokens[:, None]
    floats = x[:, outliers].double() @ w[:, outliers].T
    return (integers + floats) * rows


ALL_CHANNELS = ("x[:, outliers].double() @ w[:, outliers].T", "x.double() @ w.T")
TOKENS_ABSMAX = ("= absmax.double() / 127", "= absmax.double()")
ROWS_ABSMAX = ("weight_absmax.double() / 127", "weight_absmax.double()")
IN_INT8 = ("codes.double() @ w.T", "codes @ weight.T")
NO_FLOATS = ("integers + floats", "integers")

MISTAKES = {
    "the outlier channels are missing. Their codes are 0, so they need a product of their own: x[:, outliers] times "
    "those columns of weight.": right.edit(NO_FLOATS),
    "only the outlier channels are left; the product of the codes has to be added.": (
        right.edit("integers + floats", "floats")
    ),
    "the product in floating point runs over all channels, so that those in int8 are counted twice: take "
    "x[:, outliers].": right.edit(ALL_CHANNELS),
    "the wrong channels are multiplied in floating point: True in outliers marks these channels.": (
        right.edit(("x[:, outliers]", "x[:, ~outliers]"), ("w[:, outliers]", "w[:, ~outliers]"))
    ),
    "the token's absmax is not divided by 127: code 127 stands for absmax, so one step is absmax / 127.": (
        right.edit(TOKENS_ABSMAX)
    ),
    "the row's weight_absmax is not divided by 127: code 127 stands for it, so one step is weight_absmax / 127.": (
        right.edit(ROWS_ABSMAX)
    ),
    "neither absmax nor weight_absmax is divided by 127: code 127 stands for the largest, so one step is a 127th of "
    "it.": right.edit(TOKENS_ABSMAX, ROWS_ABSMAX),
    "the scales are turned upside down (127 / absmax turns values into codes; absmax / 127 turns codes into "
    "values).": right.edit(
        ("= absmax.double() / 127", "= 127 / absmax.double().clamp(min=1e-35)"),
        ("weight_absmax.double() / 127", "127 / weight_absmax.double()"),
    ),
    "the two scales are along the wrong axes: absmax / 127 belongs to the rows of the result, [:, None], and "
    "weight_absmax / 127 to its columns, as it is.": right.edit(
        (" * tokens[:, None]", " * tokens"), ("(integers + floats) * rows", "(integers + floats) * rows[:, None]")
    ),
    "the two scales are along the wrong axes in the part of the codes: absmax / 127 belongs to the rows of the result, "
    "[:, None], and weight_absmax / 127 to its columns, as it is.": right.edit(
        (" * tokens[:, None]", " * tokens"),
        ("(integers + floats) * rows", "integers * rows[:, None] + floats * rows"),
    ),
    "absmax is applied along the columns of the result. It belongs to the tokens, which are the rows of the result: "
    "[:, None].": right.edit(" * tokens[:, None]", " * tokens"),
    "weight_absmax is applied along the rows of the result. It belongs to the rows of weight, which are the columns of "
    "the result: no [:, None].": right.edit("* rows", "* rows[:, None]"),
    "weight_absmax is applied along the rows of the result in the part of the codes. It belongs to the columns.": (
        right.edit("(integers + floats) * rows", "integers * rows[:, None] + floats * rows")
    ),
    "weight_absmax is applied along the rows of the result in the part of the outliers. It belongs to the columns.": (
        right.edit("(integers + floats) * rows", "integers * rows + floats * rows[:, None]")
    ),
    "the part of the outliers is subtracted; the result is the sum of both.": (
        right.edit("integers + floats", "integers - floats")
    ),
    "the scale of the weights is missing in the part of the codes: it belongs to both parts.": (
        right.edit("(integers + floats) * rows", "integers + floats * rows")
    ),
    "neither scale is applied to the product of the codes: it needs absmax / 127 and weight_absmax / 127.": right.edit(
        (" * tokens[:, None]", ""), ("(integers + floats) * rows", "integers + floats * rows")
    ),
    "neither scale is applied, in either part: codes become values by absmax / 127 and weight_absmax / 127.": (
        right.edit((" * tokens[:, None]", ""), ("(integers + floats) * rows", "integers + floats"))
    ),
    "the scale of the weights is applied twice in the part of the outliers.": (
        right.edit("(integers + floats) * rows", "(integers + floats * rows) * rows")
    ),
    "the outlier channels' x is rounded. It is given unrounded, and that is the purpose of taking these channels "
    "out.": right.edit("x[:, outliers].double()", "x[:, outliers].double().round()"),
    "the result is transposed: y is [tokens, out].": (
        right.edit("(integers + floats) * rows", "((integers + floats) * rows).T")
    ),
    "the result is rounded to whole numbers. Only codes are whole numbers; y is not.": (
        right.edit("(integers + floats) * rows", "((integers + floats) * rows).round()")
    ),
    "the scales are divided by 255. Code 127 stands for the largest, so one step is a 127th of it.": right.edit(
        ("= absmax.double() / 127", "= absmax.double() / 255"),
        ("weight_absmax.double() / 127", "weight_absmax.double() / 255"),
    ),
    "the scale of the tokens is missing: codes @ weight.T has to be multiplied by absmax / 127, row by row.": (
        right.edit(" * tokens[:, None]", "")
    ),
    "the scale of the weights is missing in both parts: multiply by weight_absmax / 127, column by column.": (
        right.edit(" * rows", "")
    ),
    "the scale of the weights is missing in the part of the outliers: weight holds codes there as well.": (
        right.edit("(integers + floats) * rows", "integers * rows + floats")
    ),
    "in the part of the outliers weight_absmax is not divided by 127. The weights are codes there too, and code 127 "
    "stands for weight_absmax.": (
        right.edit("(integers + floats) * rows", "integers * rows + floats * weight_absmax.double()")
    ),
    "the scales are divided by 128. Code 127 stands for the largest, so one step is a 127th of it.": right.edit(
        ("= absmax.double() / 127", "= absmax.double() / 128"),
        ("weight_absmax.double() / 127", "weight_absmax.double() / 128"),
    ),
    "the part of the outliers is rounded to the 16 bits of x. An engine may do that; here convert x and weight first, "
    "with .float() or .double().": right.edit(ALL_CHANNELS[0], "x[:, outliers] @ w[:, outliers].T.to(x.dtype)"),
    "the part of the outliers is rounded to bfloat16, even if x is float32. Convert x and weight to float32 or "
    "float64.": right.edit(ALL_CHANNELS[0], "(x[:, outliers].bfloat16() @ w[:, outliers].T.bfloat16()).double()"),
    "all channels are multiplied in floating point, and the codes are not used: that is near, but not the product that "
    "an engine computes in integers.": right.edit(ALL_CHANNELS, ("integers + floats", "floats")),
    "the outlier part is multiplied by the token's scale as well. Its x are not codes and need no scale.": (
        right.edit("+ floats", "+ floats * tokens[:, None]")
    ),
    "the sums were computed in int8, which wraps around past 127. Convert the codes first (.int() or .double()); an "
    "engine adds up in int32.": right.edit(IN_INT8),
    "two things: the sums were computed in int8, which wraps around past 127 (convert the codes first), and the "
    "outlier channels have no product of their own.": right.edit(IN_INT8, NO_FLOATS),
    "weight is the wrong way round: it is [out, in], so multiply by weight.T. With a square weight, no error is "
    "raised.": right.edit("weight.double()", "(weight.T if len(weight) == weight.shape[1] else weight).double()"),
    "the two scales are exchanged: absmax belongs to the tokens, which are rows of the result, weight_absmax to its "
    "columns.": right.edit(
        "w = weight", "tokens, rows = (rows, tokens) if len(tokens) == len(rows) else (tokens, rows)\n    w = weight"
    ),
}


def adapt(theirs):
    """A learner's function replaces :func:`qtutor.bnb.mixed_product`."""

    def mixed_product(x, codes, absmax, outliers, weight, weight_absmax):
        if not x.numel() or not weight.numel():
            return packages_own(x, codes, absmax, outliers, weight, weight_absmax)
        return tensor(theirs(x, codes, absmax, outliers, weight, weight_absmax), torch.float64, x)

    return mixed_product


PRODUCT = Exercise(
    name="bnb.product",
    title="A product in two parts",
    difficulty=3,
    minutes=15,
    reference=product,
    cases=cases,
    outputs=("y",),
    mistakes=MISTAKES,
    # Sums of 24 products in float32; many of them may cancel.
    tolerance=2e-5,
    replaces="qtutor.methods.bnb.mixed_product",
    adapt=adapt,
)

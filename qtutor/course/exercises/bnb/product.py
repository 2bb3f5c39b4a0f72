"""``bnb.product``: a matrix product, most of it in integers, the outlier channels in floating point."""

from functools import partial

import torch

from qtutor.course.exercises.adapting import tensor
from qtutor.course.exercises.bnb.inputs import CHAPTER, random
from qtutor.course.exercises.exercise import Exercise
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
        weight = random(seed, out, x.shape[1])
        weight_codes, weight_absmax, _ = quantize_rows(weight)
        return x, codes.to(torch.int8), absmax, outliers, weight_codes.to(torch.int8), weight_absmax

    wide = random(41, 5, 24)
    wide[:, [3, 17]] *= 20
    square = random(42, 4, 4)
    square[:, 2] *= 9
    every = 10 + random(44, 2, 3).abs()
    return [
        ("no outlier channel", layer(random(43, 2, 3), 4, 6.0, seed=51)),
        ("one outlier channel", layer(torch.tensor([[1.0, -2.0, 8.0], [0.5, 0.25, 3.0]]), 2, 6.0, seed=52)),
        ("two outlier channels of 24", layer(wide, 7, 6.0, seed=53)),
        ("as many tokens as channels as outputs", layer(square, 4, 4.0, seed=54)),
        ("nothing but outlier channels", layer(every, 4, 6.0, seed=55)),
        ("a single token", layer(wide[:1], 3, 6.0, seed=56)),
        ("inputs in bfloat16", layer(wide.bfloat16(), 3, 6.0, seed=57)),
    ]


def _product_with(
    x,
    codes,
    absmax,
    outliers,
    weight,
    weight_absmax,
    parts="both",
    token_scale=lambda absmax: absmax / 127,
    row_scale=lambda absmax: absmax / 127,
    float_scale="rows",
    turned=False,
    wraps=False,
    exchanged=False,
    short=False,
):
    dtype, x, w = x.dtype, x.double(), weight.double()
    w = w.T if turned and w.shape[0] == w.shape[1] else w
    tokens, rows = token_scale(absmax.double()), row_scale(weight_absmax.double())
    if exchanged and len(tokens) == len(rows):
        tokens, rows = rows, tokens
    sums = codes.double() @ w.T
    if wraps:
        sums = (sums + 128) % 256 - 128
    small = sums * tokens[:, None] * rows
    if parts == "int8":
        return small
    chosen = torch.ones_like(outliers) if parts in ("all in float", "no codes") else outliers
    if parts == "others in float":
        chosen = ~outliers
    large = x[:, chosen] @ w[:, chosen].T
    if short:
        large = (x[:, chosen].to(dtype) @ w[:, chosen].T.to(dtype)).double()
    if float_scale in ("rows", "both"):
        large = large * rows
    if float_scale == "no 127":
        large = large * weight_absmax.double()
    if float_scale == "both":
        large = large * tokens[:, None]
    return large if parts in ("float", "no codes") else small + large


MISTAKES = {
    "the outlier channels are missing. Their codes are 0, so they need a product of their own: x[:, outliers] times "
    "those columns of weight.": dict(parts="int8"),
    "only the outlier channels are left; the product of the codes has to be added.": dict(parts="float"),
    "the product in floating point runs over all channels, so that those in int8 are counted twice: take "
    "x[:, outliers].": dict(parts="all in float"),
    "the wrong channels are multiplied in floating point: True in outliers means this channel.": dict(
        parts="others in float"
    ),
    "the token's absmax is not divided by 127: code 127 stands for absmax, so one step is absmax / 127.": dict(
        token_scale=lambda absmax: absmax
    ),
    "the row's weight_absmax is not divided by 127: code 127 stands for it, so one step is weight_absmax / 127.": dict(
        row_scale=lambda absmax: absmax
    ),
    "neither absmax nor weight_absmax is divided by 127: code 127 stands for the largest, so one step is a 127th of "
    "it.": dict(token_scale=lambda absmax: absmax, row_scale=lambda absmax: absmax),
    "the scales are turned upside down (127 / absmax makes codes; absmax / 127 brings values back).": dict(
        token_scale=lambda absmax: 127 / absmax.clamp(min=1e-35), row_scale=lambda absmax: 127 / absmax
    ),
    "the scale of the tokens is missing: codes @ weight.T has to be multiplied by absmax / 127, row by row.": dict(
        token_scale=torch.ones_like
    ),
    "the scale of the weights is missing in both parts: multiply by weight_absmax / 127, column by column.": dict(
        row_scale=torch.ones_like
    ),
    "the scale of the weights is missing in the part of the outliers: weight holds codes there as well.": dict(
        float_scale="none"
    ),
    "in the part of the outliers weight_absmax is not divided by 127. The weights are codes there too, and code 127 "
    "stands for weight_absmax.": dict(float_scale="no 127"),
    "the scales are divided by 128. Code 127 stands for the largest, so one step is a 127th of it.": dict(
        token_scale=lambda absmax: absmax / 128, row_scale=lambda absmax: absmax / 128
    ),
    "the part of the outliers is rounded to the 16 bits of x. An engine may do that; here convert x and weight first, "
    "with .float() or .double().": dict(short=True),
    "all channels are multiplied in floating point, and the codes are not used: that is near, but not the product that "
    "an engine computes in integers.": dict(parts="no codes"),
    "the outlier part is multiplied by the token's scale as well. Its x are no codes, they need none.": dict(
        float_scale="both"
    ),
    "the sums were made in int8, which wraps around past 127. Convert the codes first (.int() or .double()); "
    "an engine adds up in int32.": dict(wraps=True),
    "two things: the sums were made in int8, which wraps around past 127 (convert the codes first), and the outlier "
    "channels have no product of their own.": dict(wraps=True, parts="int8"),
    "weight is the wrong way round: it is [out, in], so multiply by weight.T. A square one does not tell.": dict(
        turned=True
    ),
    "the two scales are exchanged: absmax belongs to the tokens, which are rows of the result, weight_absmax to its "
    "columns.": dict(exchanged=True),
}


def adapt(theirs):
    """A learner's function in place of :func:`qtutor.bnb.mixed_product`."""

    def mixed_product(x, codes, absmax, outliers, weight, weight_absmax):
        if not x.numel() or not weight.numel():
            return packages_own(x, codes, absmax, outliers, weight, weight_absmax)
        return tensor(theirs(x, codes, absmax, outliers, weight, weight_absmax), torch.float64, x)

    return mixed_product


PRODUCT = Exercise(
    name="bnb.product",
    chapter=CHAPTER,
    title="A product in two parts",
    difficulty=3,
    minutes=15,
    reference=product,
    cases=cases,
    outputs=("y",),
    mistakes={text: partial(_product_with, **slip) for text, slip in MISTAKES.items()},
    # Sums of 24 products in float32, of which a good part may cancel.
    tolerance=2e-5,
    replaces="qtutor.methods.bnb.mixed_product",
    adapt=adapt,
)

"""``awq.search``: round with every candidate, compare the outputs of the parent module, keep the best."""

import functools

import torch

from qtutor.course.checking.comparing import to_array
from qtutor.course.exercises.adapting import tensor
from qtutor.course.exercises.awq.parents import gated, layer, rounding, steps_of
from qtutor.course.exercises.edits import solution
from qtutor.course.exercises.exercise import Exercise
from qtutor.course.exercises.inputs import noise
from qtutor.methods import awq


def search(weight, scales, rounded, output):
    target = output(weight.clone()).double().flatten().tolist()
    errors = []
    for scale in scales:
        back = weight.clone()
        back *= scale
        back = rounded(back) / scale
        got = output(back).double().flatten().tolist()
        errors.append(sum((a - b) ** 2 for a, b in zip(got, target)) / len(target))
    return errors.index(min(errors)), errors


def cases():
    def inputs(tokens, width, seed, loud):
        x = noise(tokens, width, seed=seed)
        x[:, loud] *= 8
        return x

    def candidates(x, *ratios):
        size = x.abs().mean(dim=0).clamp(min=1e-4)
        return torch.stack([s / (s.max() * s.min()).sqrt() for s in (size**ratio for ratio in ratios)])

    def case(weight, x, ratios, rounded, parent=layer):
        return weight, candidates(x, *ratios), rounded, parent(x)

    tall = inputs(14, 6, 13, [4])
    x, many, wide = inputs(12, 8, 1, [2]), inputs(16, 8, 3, [1, 6]), inputs(10, 4, 5, [0])
    far = 1.3 * noise(4, 6, seed=12)  # no candidate moves them near the middle between two steps
    bad = torch.stack([torch.ones(8), torch.tensor([40.0, 1, 1, 1, 1, 1, 1, 1]), torch.tensor([1.0] * 7 + [0.01])])
    any_x, silence, three = noise(9, 8, seed=8), torch.zeros(3, 8), (0, 0.5, 0.9)
    hardly_open = functools.partial(gated, damp=0.1)
    return [
        ("one loud channel, three candidates", case(noise(6, 8, seed=2), x, three, rounding(3, 8))),
        (
            "a gate, and what it lets through",
            case(noise(8, 8, seed=4), many, (0, 0.3, 0.6, 0.9), rounding(3, 4), gated),
        ),
        ("a square matrix", case(noise(4, 4, seed=6), wide, (0, 0.4, 0.8), rounding(2, 4))),
        ("one grid for the whole matrix", case(far, tall, (0, 0.3, 0.7), steps_of(0.375))),
        (
            "candidates that are all worse than leaving the weights as they are",
            (noise(5, 8, seed=7), bad, rounding(4, 8), layer(any_x)),
        ),
        (
            "silent inputs: all candidates are equally good",
            (noise(4, 8, seed=9), candidates(x, *three), rounding(3, 8), layer(silence)),
        ),
        (
            "a gate that hardly opens",
            case(noise(8, 8, seed=10), x, (0, 0.25, 0.5, 0.75), rounding(3, 8), hardly_open),
        ),
        ("the best candidate is the last", case(noise(12, 8, seed=11), x, (0, 0.2, 0.45), rounding(4, 8))),
    ]


@solution
def right(weight, scales, rounded, output):
    target, errors = output(weight), []
    for scale in scales:
        tried = rounded(weight * scale) / scale
        error = output(tried) - target
        errors.append(error.square().mean())
    errors = torch.stack(errors)
    return errors.argmin(), errors


MISTAKES = {
    "the weights are rounded as they are, without the scale: rounded(weight * scale) / scale.": (
        right.edit("rounded(weight * scale) / scale", "rounded(weight)")
    ),
    "the scale is not removed after rounding. The inputs have not changed, so divide: rounded(weight * scale) / "
    "scale.": right.edit(" / scale", ""),
    "you divide before rounding and multiply after it. The columns of loud inputs have to be larger when they are "
    "rounded: rounded(weight * scale) / scale.": (
        right.edit("rounded(weight * scale) / scale", "rounded(weight / scale) * scale")
    ),
    "the scale is applied after rounding: the outputs are then those of other weights.": (
        right.edit("rounded(weight * scale) / scale", "rounded(weight) * scale")
    ),
    "each candidate goes on with the rounded weights of the one before it. All begin with weight itself.": right.edit(
        ("for scale", "tried = weight\n    for scale"), ("rounded(weight * scale)", "rounded(tried * scale)")
    ),
    "you scaled rows, with as many scales as there are rows. A scale belongs to an input channel, a column of weight "
    "[out, in]: weight * scale.": right.edit("scale in scales", "scale in scales[:, : len(weight), None]"),
    "you multiply by the scale again after rounding; divide by it: rounded(weight * scale) / scale.": (
        right.edit("/ scale", "* scale")
    ),
    "the weights are never rounded, so that nothing differs: rounded(weight * scale) / scale.": (
        right.edit("rounded(weight * scale)", "weight * scale")
    ),
    "one number scales all columns. Each has its own: weight * scale.": (
        right.edit("scale in scales", "scale in scales.amax(dim=1)")
    ),
    "the target is the output of scaled weights. Compare with output(weight), the output of the original weights.": (
        right.edit("output(tried) - target", "output(tried) - output(weight * scale)")
    ),
    "this is the output of the difference of the weights. If the network is not linear, that is not the same: take the "
    "difference of the outputs.": right.edit("output(tried) - target", "output(tried - weight)"),
    "nothing is compared: subtract output(weight) first.": right.edit("output(tried) - target", "output(tried)"),
    "rows are scaled. A scale belongs to an input channel, which is a column of weight [out, in].": (
        right.edit("scale in scales", "scale in scales[..., None]")
    ),
    "this is the error of the weights. The error of the outputs counts: take output(...) of both.": (
        right.edit("output(tried) - target", "tried - weight")
    ),
    "the target is the output of rounded weights. Compare with output(weight), the output of the original weights.": (
        right.edit("output(weight)", "output(rounded(weight))")
    ),
    "this is the mean absolute error; take squares.": right.edit("square()", "abs()"),
    "this is the sum of the squared errors; take their mean.": right.edit("mean()", "sum()"),
    "this is the root of the mean squared error; leave it squared.": right.edit("mean()", "mean().sqrt()"),
    "this is the length of the difference, the root of the sum of squares; take the mean of the squares.": (
        right.edit("mean()", "sum().sqrt()")
    ),
    "the errors are relative to the size of the outputs; take the mean of the squares as it is.": (
        right.edit("error.square().mean()", "error.square().mean() / target.square().mean().clamp(min=1e-30)")
    ),
    "the sum of squares is divided by the number of tokens; divide by the number of all outputs, mean().": (
        right.edit("mean()", "sum() / len(error)")
    ),
    "this is the largest squared error; take the mean of the squares.": right.edit("mean()", "amax()"),
    "this is the variance of the errors, which leaves out their mean: square them and take the mean.": (
        right.edit("square().mean()", "var()")
    ),
    "this is the variance of the errors (divided by n), which leaves out their mean: square them and take the mean.": (
        right.edit("square().mean()", "var(correction=0)")
    ),
    "this is half of the mean squared error.": right.edit("square().mean()", "square().mean() / 2"),
    "best is the ratio, or a share; return the index of the candidate.": (
        right.edit("errors.argmin()", "errors.argmin() / len(errors)")
    ),
    "best is the second best.": right.edit("errors.argmin()", "errors.argsort(stable=True)[1]"),
    "best is counted from 1; the first candidate has index 0.": right.edit("errors.argmin()", "errors.argmin() + 1"),
    "best is the smallest error itself; return its index.": right.edit("errors.argmin()", "errors.min()"),
    "best is the scale itself; return its index.": right.edit("errors.argmin()", "scales[errors.argmin()]"),
    "the errors are sorted. Leave them in the order of the candidates.": (
        right.edit("argmin(), errors", "argmin(), errors.sort().values")
    ),
    "this is the error of the best candidate alone; return the errors of all.": (
        right.edit("argmin(), errors", "argmin(), errors.min()")
    ),
    "this is the largest error; take the mean of the squares.": right.edit("square().mean()", "abs().max()"),
    "errors of different signs cancel in a mean: square first.": right.edit("square().mean()", "mean().square()"),
    "best is the candidate with the largest error; take the smallest.": right.edit("argmin", "argmax"),
    "if candidates are equally good, take the first one (use < in place of <=), so that nothing is scaled without "
    "need.": right.edit("errors.argmin()", "len(errors) - 1 - errors.flip(0).argmin()"),
    "the first candidate, which scales nothing, is never chosen; it is a candidate like the others.": (
        right.edit("errors.argmin()", "1 + errors[1:].argmin()")
    ),
}


def adapt(theirs):
    """A learner's ``best_scale`` replaces :func:`qtutor.awq.search`. All layers of a pair form one tall matrix."""

    @torch.no_grad()
    def search(layers, inputs, mean_abs, parent, grid, group_size, duo=False, ratios=None, rounded=None):
        inputs, originals = list(inputs), [layer.weight.data for layer in layers]
        heights, whole = [len(weight) for weight in originals], torch.cat(originals)
        ratios = [step / awq.RATIOS for step in range(awq.RATIOS)] if ratios is None else list(ratios)
        scales = torch.stack([awq.scale_of(mean_abs, r, originals if duo else None, group_size) for r in ratios])
        of_parts = rounded or awq.nearest(grid, group_size)

        def of_all(weight):
            weight = tensor(weight, torch.float32, originals[0])
            # The package's rounding needs the scale, but a learner passes only the product: find its scale.
            scale = min(scales, key=lambda scale: (whole * scale - weight).square().sum().item())
            return torch.cat(of_parts(list((weight / scale).split(heights)), scale)) * scale

        def output(weight):
            for layer, part in zip(layers, tensor(weight, torch.float32, originals[0]).split(heights)):
                layer.weight.data = part
            return torch.cat([parent(x).flatten(0, -2) for x in inputs])

        try:
            best, errors = theirs(whole, scales.to(originals[0].device), of_all, output)
        finally:
            for layer, weight in zip(layers, originals):
                layer.weight.data = weight
        best = int(to_array(best))
        return awq.Search(scales[best], ratios[best], tuple(to_array(errors).tolist()))

    return search


SEARCH = Exercise(
    name="awq.search",
    title="The search for the best scale",
    difficulty=2,
    minutes=15,
    reference=search,
    cases=cases,
    outputs=("best", "errors"),
    follows=("best",),
    mistakes=MISTAKES,
    properties=(
        (
            "best is the index of the smallest error, counted from 0; if errors are equal, of the first one.",
            lambda arguments, results: int(results[0]) == int(results[1].argmin()),
        ),
    ),
    # Means of squares of differences, in float32: cancellation leaves about five digits.
    tolerance=1e-4,
    replaces="qtutor.methods.awq.search",
    adapt=adapt,
)

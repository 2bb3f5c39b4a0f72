"""``bnb.quantize_tokens``: inputs in int8 with a scale for each token, and the channels that are too large for int8."""

import numpy as np
import torch

from qtutor.course.exercises.adapting import tensor
from qtutor.course.exercises.edits import solution
from qtutor.course.exercises.exercise import Exercise
from qtutor.course.exercises.inputs import short
from qtutor.methods.bnb import quantize_rows as packages_own


def quantize_tokens(x, threshold):
    tokens = x.tolist()
    outliers = [any(abs(token[channel]) >= threshold for token in tokens) for channel in range(x.shape[1])]
    codes, absmax = [], []
    for token in tokens:
        largest = max([abs(value) for value in token if abs(value) < threshold], default=0.0)
        absmax.append(largest)
        codes.append([0 if out or not largest else round(127 * v / largest) for v, out in zip(token, outliers)])
    return codes, absmax, outliers


def cases():
    hand = torch.tensor([[1.1, -2.0, 0.3, 8.0], [0.5, 0.21, -0.47, 3.0]])
    quiet = short(33, 3, 6)
    quiet[1] = 0
    tiny = short(34, 3, 6) * torch.tensor([[1.0], [1e-15], [3.0]])  # far below any number added to avoid 0 / 0
    late = short(35, 3, 5)
    late[2, 1] = 7.5
    return [
        ("two tokens, no channel beyond the threshold", (torch.tensor([[1.1, -2.0, 0.3], [0.5, 0.21, -0.47]]), 6.0)),
        ("an outlier at the first token, a smaller input in the same channel at the second", (hand, 6.0)),
        ("an outlier that is negative", (hand * torch.tensor([1.0, 1.0, 1.0, -1.0]), 6.0)),
        ("an input of exactly the threshold", (torch.tensor([[6.0, 1.3, -0.4], [0.2, 0.9, 2.1]]), 6.0)),
        ("as many tokens as channels", (short(31, 4, 4) * torch.tensor([1.0, 1.0, 9.0, 1.0]), 3.0)),
        ("outliers in different channels at different tokens", (short(32, 5, 8) * 3, 6.0)),
        ("a token of nothing but zeros", (quiet, 6.0)),
        ("a token in which every input is an outlier", (torch.tensor([[9.0, -7.5], [0.3, 0.4]]), 6.0)),
        ("a token of very small inputs", (tiny, 6.0)),
        ("an outlier only at the last token", (late, 6.0)),
        ("no threshold: infinity", (hand, float("inf"))),
    ]


@solution
def right(x, threshold):
    x = x.double()
    large = x.abs() >= threshold
    outliers = large.any(dim=0)
    kept = x.masked_fill(large, 0)
    absmax = kept.abs().amax(dim=1)
    safe = torch.where(absmax == 0, 1, absmax)  # a token of zeros
    codes = (127 * kept / safe[:, None]).round()
    return codes.masked_fill(outliers, 0), absmax, outliers


NOT_MASKED = ("codes.masked_fill(outliers, 0)", "codes")
WITH_OUTLIERS = ("127 * kept", "127 * x")

MISTAKES = {
    "only inputs above +threshold count as large. An input of -8 is as large as one of 8: compare |x|.": (
        right.edit("x.abs() >=", "x >=")
    ),
    "an input of exactly the threshold is an outlier too: |x| >= threshold.": right.edit(">=", ">"),
    "outliers are tokens here. A channel is a column of x [tokens, in]: take any(dim=0).": (
        right.edit(("any(dim=0)", "any(dim=1)"), ("masked_fill(outliers,", "masked_fill(outliers[:, None],"))
    ),
    "two things: outliers are tokens here (a channel is a column of x [tokens, in]: any(dim=0)), so the mask does not "
    "fit when channels are set to 0.": right.edit("any(dim=0)", "any(dim=1)"),
    "a channel is an outlier only if all of its inputs are large. One is enough: any(dim=0).": (
        right.edit("any(dim=0)", "all(dim=0)")
    ),
    "one large input anywhere makes all channels outliers: any() of all inputs. Test channel by channel, any(dim=0).": (
        right.edit("large.any(dim=0)", "large.any().expand(x.shape[1])")
    ),
    "only the first token decides which channels are outliers. Any token may: any(dim=0).": (
        right.edit("large.any(dim=0)", "large[0]")
    ),
    "a channel is an outlier if any one of its inputs is large; here the mean of |x| decides.": (
        right.edit("x.abs() >= threshold", "(x.abs().mean(dim=0) >= threshold).expand_as(x)")
    ),
    "absmax counts the outliers too, so that they still use up the range of all other inputs: leave out the large "
    "inputs.": right.edit("kept.abs()", "x.abs()"),
    "absmax leaves out whole outlier channels. The paper describes it this way; bitsandbytes leaves out single inputs, "
    "and a small input in an outlier channel still counts.": (
        right.edit("kept.abs()", "x.masked_fill(outliers, 0).abs()")
    ),
    "two things: outlier channels still have codes (they have to be 0), and absmax leaves out whole channels (leave "
    "out only the large inputs).": (
        right.edit(("kept.abs()", "x.masked_fill(outliers, 0).abs()"), WITH_OUTLIERS, NOT_MASKED)
    ),
    "large inputs are clamped to the threshold, so they still make absmax large. Leave them out: put 0 in their "
    "place.": right.edit("x.masked_fill(large, 0)", "x.clamp(-threshold, threshold)"),
    "there is one absmax for all tokens. Each token (row) has its own: amax(dim=1).": (
        right.edit("amax(dim=1)", "amax().expand(len(x))")
    ),
    "absmax is the largest input, not the largest |x|: a token of negative inputs gets too small a scale.": (
        right.edit("kept.abs()", "kept")
    ),
    "absmax is the mean of |x|. Take the largest |x|, so that no code goes beyond 127.": (
        right.edit("kept.abs().amax(dim=1)", "kept.abs().mean(dim=1)")
    ),
    "absmax is half of the range from smallest to largest. This grid is symmetric: take the largest |x|.": (
        right.edit("kept.abs().amax(dim=1)", "(kept.amax(dim=1) - kept.amin(dim=1)) / 2")
    ),
    "the codes go up to 128, which int8 does not hold: its range is -128 to 127, and absmax belongs to 127.": (
        right.edit("127", "128")
    ),
    "two things: the codes go up to 128 (absmax belongs to 127), and int8 does not hold 128: it came out as -128.": (
        right.edit(("127", "128"), ("codes.masked_fill(outliers, 0)", "codes.masked_fill(outliers, 0).to(torch.int8)"))
    ),
    "one step is absmax / 127.5. Here the largest |x| has code 127: absmax / 127.": right.edit("127", "127.5"),
    "codes are rounded down (floor); round them to the nearest.": right.edit("round()", "floor()"),
    "codes are rounded up (ceil); round them to the nearest.": right.edit("round()", "ceil()"),
    "these are the decoded values, code times absmax / 127; return the codes, whole numbers.": (
        right.edit("codes.masked_fill(outliers, 0)", "codes.masked_fill(outliers, 0) * absmax[:, None] / 127")
    ),
    "you added a small number to absmax before dividing, or clamped absmax from below. Inputs that are even smaller "
    "then all get code 0: use another number only if absmax is 0.": (
        right.edit("torch.where(absmax == 0, 1, absmax)", "absmax + 1e-8")
    ),
    "the codes go up to 255, as in a byte without a sign. Here they run from -127 to 127.": right.edit("127", "255"),
    "codes are truncated (.int()); round them to the nearest.": right.edit("round()", "trunc()"),
    "codes are not rounded to whole numbers.": right.edit(".round()", ""),
    "only the large inputs have code 0. Their whole channel is multiplied in 16 bits, so all of its codes have to be "
    "0; otherwise its small inputs are counted twice.": right.edit(NOT_MASKED),
    "outlier channels still have codes. They are multiplied in 16 bits; their codes have to be 0; otherwise they are "
    "counted twice.": right.edit(WITH_OUTLIERS, NOT_MASKED),
    "absmax is already divided by 127. That is the step; return the largest |x| itself.": (
        right.edit(", absmax, outliers", ", absmax / 127, outliers")
    ),
    "the absmax of a token of zeros is 0: return 0. Put 1 in its place only when you divide by it.": (
        right.edit(", absmax, outliers", ", safe, outliers")
    ),
    "128 is added to the codes, as if they were stored in a byte without a sign. Here they run from -127 to 127.": (
        right.edit("fill(outliers, 0)", "fill(outliers, 0) + 128")
    ),
    "128 is added to the codes, as if they were in a byte without a sign, before those of outlier channels are "
    "set to 0. Here they run from -127 to 127.": right.edit("round()", "round() + 128"),
    "a token of zeros has absmax 0, and 0 / 0 is nan; its codes are 0.": (
        right.edit("torch.where(absmax == 0, 1, absmax)", "absmax")
    ),
    "these are the indices of the outlier channels; return a bool for every channel.": (
        right.edit("absmax, outliers", "absmax, outliers.nonzero().flatten()")
    ),
    "outliers is True for the channels that stay in int8; it has to be True for the outlier channels.": (
        right.edit("absmax, outliers", "absmax, ~outliers")
    ),
    "absmax is a number for every channel here, taken down the columns. A scale may depend on the token, not on the "
    "channel: amax(dim=1).": right.edit(("amax(dim=1)", "amax(dim=0)"), ("safe[:, None]", "safe")),
    "absmax is taken down the columns, a number for every channel, and does not fit when tokens are divided by it. "
    "Each token has its own: amax(dim=1).": right.edit("amax(dim=1)", "amax(dim=0)"),
    "absmax and outliers are exchanged: return codes, absmax, outliers.": (
        right.edit(", absmax, outliers", ", outliers, absmax")
    ),
    "outliers has one bool for every input; return one bool for every channel: any(dim=0).": (
        right.edit(NOT_MASKED, ("absmax, outliers", "absmax, large"))
    ),
    "the three results are in the wrong order: first codes, then absmax, then outliers.": (
        right.edit(
            "codes.masked_fill(outliers, 0), absmax, outliers", "outliers, absmax, codes.masked_fill(outliers, 0)"
        )
    ),
}


def _zeros_stay(arguments, results) -> bool:
    x, threshold = arguments
    nothing = (x.masked_fill(x.abs() >= threshold, 0) == 0).all(dim=1).numpy()
    return not results[1][nothing].any()


def adapt(theirs):
    """A learner's function replaces :func:`qtutor.bnb.quantize_rows`."""

    def quantize_rows(x, threshold=None):
        if not x.numel():
            return packages_own(x, threshold)
        codes, absmax, outliers = theirs(x.float(), torch.inf if threshold is None else float(threshold))
        return (
            tensor(codes, torch.float32, x),
            tensor(absmax, torch.float32, x),
            tensor(outliers, torch.bool, x),
        )

    return quantize_rows


TOKENS = Exercise(
    name="bnb.quantize_tokens",
    title="Inputs in int8, and the channels that are too large for it",
    difficulty=2,
    minutes=15,
    reference=quantize_tokens,
    cases=cases,
    outputs=("codes", "absmax", "outliers"),
    mistakes=MISTAKES,
    properties=(
        (
            "codes are whole numbers from -127 to 127.",
            lambda arguments, results: bool(np.isin(results[0], range(-127, 128)).all()),
        ),
        (
            "if a token has nothing but zeros and outliers, its absmax is 0. Put another number in its place only when "
            "you divide by it.",
            _zeros_stay,
        ),
    ),
    # absmax of float32 numbers is exact in float32. The tolerance is for answers that multiply by 1 / absmax.
    tolerance=1e-6,
    replaces="qtutor.methods.bnb.quantize_rows",
    adapt=adapt,
)

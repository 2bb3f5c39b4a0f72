"""Chapter 03 as learners would write it: more answers, and for each wrong one the message that names its mistake.

The answers are not written like the exercise's own solution. So check cannot recognise a mistake by its text.
"""

import numpy as np
import torch

from qtutor.course.exercises.edits import solution
from tests.course.answers import assert_last_line, assert_right, each

# --- distributions.kurtosis ---


@solution
def row_by_row(weight):
    result = torch.zeros(len(weight), dtype=torch.float64)
    for i, row in enumerate(weight.to(torch.float64)):
        d = row - row.mean()
        second = (d**2).mean()
        fourth = (d**4).mean()
        if row.min() != row.max():
            result[i] = fourth / second**2 - 3
    return result


def kurtosis_of_lists(weight):
    found = []
    for row in weight.double().tolist():
        mean = sum(row) / len(row)
        second = sum((x - mean) ** 2 for x in row) / len(row)
        same = len(set(row)) == 1
        found.append(0.0 if same else sum((x - mean) ** 4 for x in row) / len(row) / second**2 - 3)
    return found


def kurtosis_in_numpy(weight):
    x = weight.double().numpy()
    d = x - x.mean(axis=-1, keepdims=True)
    second, fourth = (d**2).mean(axis=-1), (d**4).mean(axis=-1)
    return np.divide(fourth, second**2, out=np.full_like(second, 3), where=second > 0) - 3


def kurtosis_of_variances(weight):
    """The fourth moment is the variance of the squares plus the square of their mean."""
    x = weight.double()
    squares = (x - x.mean(1, keepdim=True)) ** 2
    safe = squares.mean(1).where(squares.any(1), torch.tensor(1.0, dtype=torch.float64))
    excess = squares.var(1, correction=0) / safe**2 + 1 - 3
    return excess.where(squares.any(1), torch.tensor(0.0, dtype=torch.float64)).float()


WHOLE, FOURTH, EXCESS = "row - row.mean()", "(d**4).mean()", "fourth / second**2 - 3"
ALIKE = "        if row.min() != row.max():\n            result"
WRONG_KURTOSES = [
    (row_by_row.edit("row.mean()", "weight.double().mean()"), "the mean of the whole matrix"),
    (
        row_by_row.edit("(d**2).mean()", "((weight.double() - weight.double().mean(1, keepdim=True)) ** 2).mean()"),
        "the variance of the whole matrix",
    ),
    (row_by_row.edit((ALIKE, "        result"), ("second**2 - 3", "second.clamp(min=1e-12) ** 2 - 3")), "is 0, not -3"),
    (row_by_row.edit((ALIKE, "        result"), ("second**2 - 3", "(second**2 + 1e-30) - 3")), "is 0, not -3"),
    (row_by_row.edit((ALIKE, "        result"), ("second**2 - 3", "(second + 1e-8) ** 2 - 3")), "is 0, not -3"),
    (row_by_row.edit((ALIKE, "        result"), ("second**2 - 3", "second.clamp(min=1e-3) ** 2 - 3")), "is 0, not -3"),
    (
        row_by_row.edit("torch.zeros(len(weight), dtype=torch.float64)", "torch.full((len(weight),), -3.0)"),
        "is 0, not -3",
    ),
    (row_by_row.edit(FOURTH, "(d**4).sum()"), "fourth powers are added up"),
    (row_by_row.edit((FOURTH, "(d**4).sum()"), ("(d**2).mean()", "(d**2).sum()")), "sums of both"),
    (row_by_row.edit("return result", "return result[:, None]"), "one number for each row, of shape [out]"),
    (row_by_row.edit("return result", "return result.mean()"), "return one kurtosis for each row"),
    (row_by_row.edit("- 3", "+ 3"), "3 is added"),
    (row_by_row.edit(EXCESS, "fourth / (second**2 - 3)"), "3 is subtracted from the divisor"),
    (row_by_row.edit(FOURTH, "(d.abs() ** 3).mean()"), "third power of |"),
    (row_by_row.edit(EXCESS, "d.abs().max() / second.sqrt()"), "crest factor"),
    (
        row_by_row.edit(EXCESS, "(row**4).mean() / second**2 - 3"),
        "the mean was not subtracted before taking fourth powers",
    ),
    (row_by_row.edit(EXCESS, "fourth / (row**2).mean() ** 2 - 3"), "the mean was not subtracted before taking squares"),
    (row_by_row.edit(EXCESS, "second**2 / fourth - 3"), "upside down"),
    (row_by_row.edit((FOURTH, "(d**2).mean() ** 2")), "the mean of the fourth powers"),
    (row_by_row.edit("row.mean()", "row.median()"), "you subtracted the median"),
    (row_by_row.edit("(d**2).mean()", "row.var()"), "divided by n - 1"),
]

# --- distributions.salient_channels ---


@solution
def ranked(x, share):
    size = x.double().abs().sum(0).tolist()
    count = round(share * len(size)) or 1
    order = sorted(range(len(size)), key=lambda c: (-size[c], c))
    return sorted(order[:count])


def salient_by_a_stable_argsort(x, share):
    size = np.abs(x.float().numpy()).mean(0)
    return np.sort(np.argsort(-size, kind="stable")[: max(1, int(np.rint(share * size.size)))])


def salient_one_after_another(x, share):
    left = x.float().abs().mean(dim=0)
    found = torch.zeros(len(left), dtype=torch.bool)
    for _ in range(max(1, round(share * len(left)))):
        channel = int(left.argmax())
        found[channel] = True
        left[channel] = -1
    return found.nonzero().squeeze(1)


def salient_by_norms(x, share):
    size = torch.linalg.vector_norm(x.double(), ord=1, dim=0)
    return size.sort(stable=True, descending=True).indices[: max(1, round(share * x.shape[1]))].sort().values.tolist()


SIZE, COUNT, ORDER, CHOSEN = (
    "x.double().abs().sum(0)",
    "round(share * len(size)) or 1",
    "(-size[c], c)",
    "sorted(order[:count])",
)
WRONG_CHANNELS = [
    (ranked.edit(SIZE, "x.double().square().mean(0)"), "ranked by the mean of x squared"),
    (ranked.edit(SIZE, "x.double().norm(dim=0)"), "ranked by the mean of x squared"),
    (ranked.edit(SIZE, "x.double().std(0, correction=0)"), "how far they spread"),
    (ranked.edit(SIZE, "x.double().var(0)"), "how far they spread"),
    (ranked.edit(SIZE, "x.double().abs().median(0).values"), "ranked by the median"),
    (ranked.edit(SIZE, "x.double().abs().amax(0)"), "ranked by their largest input"),
    (ranked.edit(SIZE, "x.double().amax(0)"), "largest input, without"),
    (ranked.edit(ORDER, "(-size[c], -c)"), "the higher index"),
    (lambda x, share: x.float().abs().mean(0).topk(max(1, round(share * x.shape[1]))).indices.sort().values, "topk"),
    (ranked.edit(SIZE, "x.half().abs().mean(0)"), "in 16 bits"),
    (ranked.edit(SIZE, "x.bfloat16().abs().mean(0)"), "in 16 bits"),
    (ranked.edit("share * len(size)", "share / 100 * len(size)"), "share is a part"),
    (ranked.edit(COUNT, "round(share * len(size)) + 1"), "one channel too many"),
    (ranked.edit(COUNT, "1"), "only one channel"),
    (ranked.edit(CHOSEN, "sorted(order[:count], reverse=True)"), "descending"),
    (ranked.edit(CHOSEN, "sorted(order[count:])"), "these are all other channels"),
    (ranked.edit(CHOSEN, "len(order[:count])"), "the number of channels"),
    (ranked.edit(COUNT, "round(share * len(x)) or 1"), "a share of the tokens"),
    (
        ranked.edit((CHOSEN, "[c for c in range(len(size)) if size[c] >= sorted(size)[-count]]")),
        "too many channels are chosen",
    ),
    (
        ranked.edit((CHOSEN, "[c for c in range(len(size)) if size[c] >= torch.tensor(size).quantile(1 - share)]")),
        "above a quantile",
    ),
    (ranked.edit(ORDER, "(size[c], c)"), "smallest inputs"),
    (ranked.edit(CHOSEN, "order[:count]"), "sort the indices ascending"),
    (ranked.edit(CHOSEN, "[c + 1 for c in sorted(order[:count])]"), "counted from 1"),
]

# --- distributions.keep_columns ---


@solution
def columnwise(weight, rounded, channels):
    mixed = rounded.clone()
    for i in range(weight.shape[1]):
        if i in channels.tolist():
            mixed[:, i] = weight[:, i]
    return mixed


def columns_by_a_mask(weight, rounded, channels):
    mask = torch.zeros(weight.shape[1]).index_fill(0, channels, 1).double()
    return weight * mask + rounded * (1 - mask)


def columns_by_index_copy(weight, rounded, channels):
    return rounded.index_copy(1, channels, weight.index_select(1, channels))


def columns_of_numpy(weight, rounded, channels):
    mixed = rounded.double().numpy().copy()
    mixed[:, channels.numpy()] = weight.double().numpy()[:, channels.numpy()]
    return mixed


def columns_stacked(weight, rounded, channels):
    chosen = set(channels.tolist())
    return torch.stack([(weight if i in chosen else rounded)[:, i] for i in range(weight.shape[1])], dim=1)


def rows_of_a_matrix(weight, rounded, channels):
    mixed = rounded.clone()
    mixed[channels] = weight[channels]
    return mixed


def rows_one_by_one(weight, rounded, channels):
    mixed = rounded.clone()
    for c in channels:
        mixed[c] = weight[c]
    return mixed


KEPT = "mixed[:, i] = weight[:, i]"
WRONG_COLUMNS = [
    (rows_of_a_matrix, "rows were kept"),
    (rows_one_by_one, "rows were kept"),
    (columnwise.edit(KEPT, "mixed[i % len(mixed)] = weight[i % len(mixed)]"), "rows were kept"),
    (columnwise.edit("if i in", "if i not in"), "the other way round"),
    (columnwise.edit(KEPT, "mixed[:, i - 1] = weight[:, i - 1]"), "counted from 1"),
    (columnwise.edit("channels.tolist()", "channels.tolist()[:1]"), "only the first of the channels"),
    (columnwise.edit("channels.tolist()", "channels.tolist()[-1:]"), "only the last of the channels"),
    (columnwise.edit(KEPT, "mixed[:, i] = (weight[:, i] + mixed[:, i]) / 2"), "half-way"),
    (columnwise.edit(KEPT, "mixed[:, i] = weight[:, i].half()"), "rounded to 16 bits"),
    (columnwise.edit(KEPT, "mixed[:, i] = weight[:, i].bfloat16()"), "rounded to 16 bits"),
    (columnwise.edit(KEPT, "mixed[0, i] = weight[0, i]"), "only in the first row"),
    (columnwise.edit("mixed = rounded", "mixed = weight"), "nothing was rounded"),
    (columnwise.edit("return mixed", "return mixed.T"), "transposed"),
    (columnwise.edit("return mixed", "return mixed - weight"), "the error"),
    (columnwise.edit(KEPT, "mixed[:, i] -= weight[:, i]"), "subtracted"),
    (
        columnwise.edit(
            "return mixed", "return mixed[:, [i for i in range(weight.shape[1]) if i not in channels.tolist()]]"
        ),
        "the kept columns are missing",
    ),
    (
        lambda w, r, c: torch.cat([w[:, c], r[:, [i for i in range(w.shape[1]) if i not in c.tolist()]]], 1),
        "moved to the front",
    ),
    (
        lambda w, r, c: torch.cat([r[:, [i for i in range(w.shape[1]) if i not in c.tolist()]], w[:, c]], 1),
        "moved to the end",
    ),
    (lambda w, r, c: w, "nothing was rounded"),
    (columnwise.edit("mixed = rounded.clone()", "mixed = rounded"), "work on a copy"),
]

WRONG = {
    "distributions.kurtosis": WRONG_KURTOSES,
    "distributions.salient_channels": WRONG_CHANNELS,
    "distributions.keep_columns": WRONG_COLUMNS,
}
RIGHT = {
    "distributions.kurtosis": [row_by_row, kurtosis_of_lists, kurtosis_in_numpy, kurtosis_of_variances],
    "distributions.salient_channels": [
        ranked,
        salient_by_a_stable_argsort,
        salient_one_after_another,
        salient_by_norms,
        ranked.edit(COUNT, "max(1, int(share * len(size) + 0.5))"),
    ],
    "distributions.keep_columns": [
        columnwise,
        columns_by_a_mask,
        columns_by_index_copy,
        columns_of_numpy,
        columns_stacked,
    ],
}


@each(WRONG)
def test_a_wrong_answer_is_told_its_mistake(name, function, phrase):
    assert_last_line(name, function, phrase)


@each(RIGHT)
def test_right_answers_pass_however_they_are_written(name, function):
    assert_right(name, function)

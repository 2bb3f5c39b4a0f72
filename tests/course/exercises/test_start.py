"""The exercises of chapter 00: check names the mistake in a wrong answer, and right answers pass in any form."""

import math

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from qtutor.core.grid import IntGrid
from qtutor.core.quantized import QuantizedTensor
from qtutor.course.exercises.edits import solution
from tests.course.answers import assert_likely, assert_right, each

# --- start.true_bytes ---


@solution
def bytes_row_by_row(rows, columns, bits, group_size, symmetric):
    groups, total = columns // group_size, 0
    for _ in range(rows):
        total += (columns * bits + 7) // 8 + 2 * groups
        if not symmetric:
            total += (groups * bits + 7) // 8
    return total


def bytes_from_the_package(rows, columns, bits, group_size, symmetric):
    groups = columns // group_size
    codes, zeros = torch.zeros(rows, columns, dtype=torch.uint8), torch.zeros(rows, groups, dtype=torch.uint8)
    scales = torch.zeros(rows, groups, dtype=torch.float16)
    return QuantizedTensor(codes, scales, None if symmetric else zeros, IntGrid(bits, symmetric), group_size).nbytes


def bytes_in_numpy(rows, columns, bits, group_size, symmetric):
    counts = np.array([columns, 0 if symmetric else columns // group_size])
    return torch.tensor(rows * (((counts * bits + 7) // 8).sum() + 2 * (columns // group_size)))


def groups_of_one_row(rows, columns, bits, group_size, symmetric):
    return bytes_row_by_row(1, columns, bits, group_size, symmetric) + (rows - 1) * -(-columns * bits // 8)


def rounded_together(rows, columns, bits, group_size, symmetric):
    groups = columns // group_size
    return rows * (2 * groups + -(-(columns + (0 if symmetric else groups)) * bits // 8))


def one_stream(rows, columns, bits, group_size, symmetric):
    groups = rows * columns // group_size
    zeros = 0 if symmetric else (groups * bits + 7) // 8
    return (rows * columns * bits + 7) // 8 + 2 * groups + zeros


BYTES_WRONG = [
    (bytes_row_by_row.edit("return total", "return 8 * total"), "these are bits"),
    (bytes_row_by_row.edit(" + 2 * groups", ""), "the scales are missing"),
    (bytes_row_by_row.edit("(groups * bits + 7) // 8", "0"), "the zero points are missing"),
    (bytes_row_by_row.edit("2 * groups", "4 * groups"), "you counted 4 bytes"),
    (bytes_row_by_row.edit("groups * bits", "groups * 8"), "a whole byte for a"),
    (
        bytes_row_by_row.edit(("columns * bits + 7", "columns * bits"), ("groups * bits + 7", "groups * bits")),
        "round up, not down",
    ),
    (groups_of_one_row, "for one row only"),
    (rounded_together, "rounded up together"),
    (bytes_row_by_row.edit("columns // group_size", "1"), "as one group"),
    (bytes_row_by_row.edit("not symmetric", "True"), "for a symmetric grid"),
    (one_stream, "as one stream"),
]

# --- start.step_time ---

TIME_WRONG = [
    (lambda n, bits, width, ops, batch: max(n * bits / width, 2 * n * batch / ops), "8 bits are one byte"),
    (lambda n, bits, width, ops, batch: n * bits / 8 / width + 2 * n * batch / ops, "the two times are added"),
    (lambda n, bits, width, ops, batch: min(n * bits / 8 / width, 2 * n * batch / ops), "the shorter"),
    (lambda n, bits, width, ops, batch: max(n * bits / 8 / width, n * batch / ops), "a multiplication and an addition"),
    (lambda n, bits, width, ops, batch: max(n * bits / 8 / width, 2 * n / ops), "the batch is forgotten"),
    (lambda n, bits, width, ops, batch: n * bits / 8 / width, "only reading is counted"),
    (lambda n, bits, width, ops, batch: n * batch * 2 / ops, "only computing is counted"),
    (lambda n, bits, width, ops, batch: batch * max(n * bits / 8 / width, 2 * n / ops), "read once, and used for all"),
    (lambda n, bits, width, ops, batch: 1 / max(n * bits / 8 / width, 2 * n * batch / ops), "tokens per second"),
]


def time_by_hand(parameters, bits, bandwidth, operations, batch):
    seconds = parameters * (bits * 0.125) / bandwidth
    if parameters * batch / (operations / 2) > seconds:
        return parameters * batch / (operations / 2)
    return seconds


# --- start.perplexity ---


def chances(logits):
    powers = np.exp(logits.double().numpy() - logits.double().numpy().max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def of_next(logits, ids):
    """The probability of every token except the first."""
    return np.array([row[following] for row, following in zip(chances(logits)[:-1], ids.tolist()[1:])])


PERPLEXITY_WRONG = [
    (lambda logits, ids: cross_entropy(logits, ids).exp(), "compared with its own token"),
    (lambda logits, ids: cross_entropy(logits[:-1], ids[:-1]).exp(), "cut at the same end"),
    (lambda logits, ids: cross_entropy(logits[1:], ids[:-1]).exp(), "the wrong way"),
    (lambda logits, ids: (1 / of_next(logits, ids)).mean(), "averaged the perplexities"),
    (lambda logits, ids: 1 / of_next(logits, ids).mean(), "averaged the probabilities"),
    (lambda logits, ids: 2 ** -np.log(of_next(logits, ids)).mean(), "2 to the power"),
    (lambda logits, ids: math.exp(-np.log2(of_next(logits, ids)).mean()), "Undo log2 with 2 ** mean"),
    (lambda logits, ids: cross_entropy(logits.double()[:-1], ids[1:]), "Perplexity is exp of that mean"),
    (lambda logits, ids: of_next(logits, ids).prod() ** (1 / (len(ids) - 1)), "the sign is missing"),
    (lambda logits, ids: of_next(logits, ids).prod() ** -(1 / len(ids)), "One fewer is predicted"),
    (lambda logits, ids: 1 / of_next(logits, ids).prod(), "not averaged"),
    (lambda logits, ids: (-logits.double()[range(len(ids) - 1), ids[1:]].mean()).exp(), "The softmax is missing"),
    (
        lambda logits, ids: (-logits.double().log_softmax(0)[range(len(ids) - 1), ids[1:]].mean()).exp(),
        "over the positions",
    ),
    (
        lambda logits, ids: (
            -((logits.exp() / logits.exp().sum(1, keepdim=True))[range(len(ids) - 1), ids[1:]].log().mean())
        ).exp(),
        "overflows",
    ),
    (
        lambda logits, ids: (-torch.softmax(logits, dim=1)[range(len(ids) - 1), ids[1:]].log().mean()).exp(),
        "becomes 0 in float32",
    ),
]


WRONG = {"start.true_bytes": BYTES_WRONG, "start.step_time": TIME_WRONG, "start.perplexity": PERPLEXITY_WRONG}
RIGHT = {
    "start.true_bytes": [bytes_row_by_row, bytes_from_the_package, bytes_in_numpy],
    "start.step_time": [
        time_by_hand,
        lambda n, bits, width, ops, batch: np.maximum(n * bits / 8 / width, 2 * n * batch / ops),
    ],
    "start.perplexity": [
        lambda logits, ids: cross_entropy(logits[:-1], ids[1:]).exp(),
        lambda logits, ids: of_next(logits, ids).prod() ** (-1 / (len(ids) - 1)),
    ],
}


@each(WRONG)
def test_a_wrong_answer_is_told_its_mistake(name, function, phrase):
    assert_likely(name, function, phrase)


@each(RIGHT)
def test_right_answers_pass_however_they_are_written(name, function):
    assert_right(name, function)

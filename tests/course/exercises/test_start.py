"""The exercises of chapter 00: wrong answers are told which mistake it is, right ones pass however they are written."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from qtutor.core.grid import IntGrid
from qtutor.core.quantized import QuantizedTensor
from tests.course.answers import assert_right, verdict

# --- start.true_bytes ---


def layer(code_bits=True, scales=True, zeros=True, up=math.ceil, scale_bytes=2, zero_bits=None, each_row=True):
    """An answer, right unless told otherwise."""

    def bytes_of(rows, columns, bits, group_size, symmetric):
        groups = columns // group_size
        codes = up(columns * bits / 8) if code_bits else columns
        stored = scale_bytes * groups if scales else 0
        points = up(groups * (zero_bits or bits) / 8) if zeros and not symmetric else 0
        return rows * (codes + stored + points) if each_row else rows * codes + stored + points

    return bytes_of


def bytes_from_the_package(rows, columns, bits, group_size, symmetric):
    groups = columns // group_size
    codes, zeros = torch.zeros(rows, columns, dtype=torch.uint8), torch.zeros(rows, groups, dtype=torch.uint8)
    scales = torch.zeros(rows, groups, dtype=torch.float16)
    return QuantizedTensor(codes, scales, None if symmetric else zeros, IntGrid(bits, symmetric), group_size).nbytes


def bytes_in_numpy(rows, columns, bits, group_size, symmetric):
    counts = np.array([columns, 0 if symmetric else columns // group_size])
    return torch.tensor(rows * (((counts * bits + 7) // 8).sum() + 2 * (columns // group_size)))


BYTES_WRONG = [
    (lambda *layer_: 8 * layer()(*layer_), "these are bits"),
    (layer(scales=False), "the scales are missing"),
    (layer(zeros=False), "the zero points are missing"),
    (layer(scale_bytes=4), "counted with 4 bytes"),
    (layer(zero_bits=8), "with a whole byte"),
    (layer(up=math.floor), "round up, not down"),
    (layer(each_row=False), "for one row only"),
    (
        lambda rows, columns, bits, size, symmetric: (
            rows * (2 * (columns // size) + -(-(columns + (0 if symmetric else columns // size)) * bits // 8))
        ),
        "rounded up together",
    ),
    (lambda rows, columns, bits, size, symmetric: layer()(rows, columns, bits, columns, symmetric), "for one group"),
    (lambda rows, columns, bits, size, symmetric: layer()(rows, columns, bits, size, False), "on a symmetric grid"),
    (
        lambda rows, columns, bits, size, symmetric: (
            (rows * columns * bits + 7) // 8
            + 2 * rows * columns // size
            + (0 if symmetric else (rows * columns // size * bits + 7) // 8)
        ),
        "as one stream",
    ),
]

# --- start.step_time ---

TIME_WRONG = [
    (lambda n, bits, width, ops, batch: max(n * bits / width, 2 * n * batch / ops), "8 bits make one byte"),
    (lambda n, bits, width, ops, batch: n * bits / 8 / width + 2 * n * batch / ops, "the two times are added"),
    (lambda n, bits, width, ops, batch: min(n * bits / 8 / width, 2 * n * batch / ops), "the shorter"),
    (lambda n, bits, width, ops, batch: max(n * bits / 8 / width, n * batch / ops), "a multiplication and an addition"),
    (lambda n, bits, width, ops, batch: max(n * bits / 8 / width, 2 * n / ops), "the batch is forgotten"),
    (lambda n, bits, width, ops, batch: n * bits / 8 / width, "only reading is counted"),
    (lambda n, bits, width, ops, batch: n * batch * 2 / ops, "only computing is counted"),
    (lambda n, bits, width, ops, batch: batch * max(n * bits / 8 / width, 2 * n / ops), "read once, and used for all"),
    (lambda n, bits, width, ops, batch: 1 / max(n * bits / 8 / width, 2 * n * batch / ops), "tokens a second"),
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
    """The probability of every token but the first."""
    return np.array([row[following] for row, following in zip(chances(logits)[:-1], ids.tolist()[1:])])


PERPLEXITY_WRONG = [
    (lambda logits, ids: cross_entropy(logits, ids).exp(), "compared with its own token"),
    (lambda logits, ids: cross_entropy(logits[:-1], ids[:-1]).exp(), "cut at the same end"),
    (lambda logits, ids: cross_entropy(logits[1:], ids[:-1]).exp(), "the wrong way"),
    (lambda logits, ids: (1 / of_next(logits, ids)).mean(), "averaged the perplexities"),
    (lambda logits, ids: 1 / of_next(logits, ids).mean(), "averaged the probabilities"),
    (lambda logits, ids: 2 ** -np.log(of_next(logits, ids)).mean(), "2 to the power"),
    (lambda logits, ids: math.exp(-np.log2(of_next(logits, ids)).mean()), "To log2 belongs 2 ** mean"),
    (lambda logits, ids: cross_entropy(logits.double()[:-1], ids[1:]), "Perplexity is exp of it"),
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


def perplexity_of_products(logits, ids):
    return of_next(logits, ids).prod() ** (-1 / (len(ids) - 1))


WRONG = [
    *(("start.true_bytes", *wrong) for wrong in BYTES_WRONG),
    *(("start.step_time", *wrong) for wrong in TIME_WRONG),
    *(("start.perplexity", *wrong) for wrong in PERPLEXITY_WRONG),
]
RIGHT = [
    ("start.true_bytes", layer()),
    ("start.true_bytes", bytes_from_the_package),
    ("start.true_bytes", bytes_in_numpy),
    ("start.step_time", time_by_hand),
    ("start.step_time", lambda n, bits, width, ops, batch: np.maximum(n * bits / 8 / width, 2 * n * batch / ops)),
    ("start.perplexity", lambda logits, ids: cross_entropy(logits[:-1], ids[1:]).exp()),
    ("start.perplexity", perplexity_of_products),
]


@pytest.mark.parametrize(("name", "function", "words"), WRONG, ids=[f"{n}: {words}" for n, _, words in WRONG])
def test_wrong_answers_are_told_their_mistake(name, function, words):
    found = verdict(name, function)
    assert not found.passed
    assert words in found.text.splitlines()[-1] and "Likely mistake: " in found.text, found.text


@pytest.mark.parametrize(("name", "function"), RIGHT)
def test_right_answers_pass_however_they_are_written(name, function):
    assert_right(name, function)

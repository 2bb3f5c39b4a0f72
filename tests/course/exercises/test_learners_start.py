"""Chapter 00 as learners would write it: more answers, and for each wrong one the message that names its mistake.

The answers are not written like the exercise's own solution. So check cannot recognise a mistake by its text.
"""

import math
from fractions import Fraction

import numpy as np
import torch
from torch.nn.functional import cross_entropy, nll_loss

from qtutor.course.exercises.edits import solution
from tests.course.answers import assert_last_line, assert_right, each

# --- start.true_bytes ---


@solution
def counted(rows, columns, bits, group_size, symmetric):
    in_a_row = columns // group_size
    codes = -(columns * bits // -8)
    total = codes + in_a_row * 2
    if not symmetric:
        total += -(in_a_row * bits // -8)
    return total * rows


def bytes_by_places(rows, columns, bits, group_size, symmetric):
    """A byte has room for 8 // bits codes."""
    lengths = [columns] if symmetric else [columns, columns // group_size]
    return rows * sum(math.ceil(n / (8 // bits)) for n in lengths) + 2 * rows * (columns // group_size)


def bytes_in_loops(rows, columns, bits, group_size, symmetric):
    total = 0
    for _row in range(rows):
        full, rest = divmod(columns * bits, 8)
        total += full + (rest > 0)
        for _group in range(0, columns, group_size):
            total += 2
        if not symmetric:
            full, rest = divmod(columns // group_size * bits, 8)
            total += full + (rest > 0)
    return total


CODES, ZEROS = "-(columns * bits // -8)", "-(in_a_row * bits // -8)"
WRONG_BYTES = [
    (counted.edit((CODES, "columns * bits / 8"), (ZEROS, "in_a_row * bits / 8")), "only whole bytes are stored"),
    (
        counted.edit(
            (CODES, "columns * bits / 8"), (ZEROS, "in_a_row * bits / 8"), ("total * rows", "math.ceil(total * rows)")
        ),
        "rounded up once, at the end",
    ),
    (
        counted.edit(
            (CODES, "columns * bits / 8"), (ZEROS, "in_a_row * bits / 8"), ("total * rows", "int(total * rows)")
        ),
        "you rounded down once, at the end",
    ),
    (counted.edit("in_a_row * 2", f"{ZEROS}"), "for a scale, as for a code"),
    (counted.edit("not symmetric", "symmetric"), "symmetric is reversed"),
    (lambda r, c, b, g, s: counted(c, r, b, min(g, r), s), "rows and columns are swapped"),
    (counted.edit("return total * rows", "return total * rows * 8 / (rows * columns)"), "bits per weight"),
    (counted.edit("return total * rows", "return total * rows / (rows * columns)"), "bytes per weight"),
    (counted.edit((CODES, "columns * bits // 8 + 1"), (ZEROS, "in_a_row * bits // 8 + 1")), "a byte too many"),
    (counted.edit(CODES, "columns * bits // 8 + 1"), "a byte too many"),
    (counted.edit(ZEROS, "in_a_row * bits // 8"), "the last byte of the zero points is lost"),
    (counted.edit(CODES, "columns * bits // 8"), "the last byte of the codes is lost"),
    (counted.edit("in_a_row * 2", "in_a_row * 16"), "you counted 16 bytes for a scale"),
    (counted.edit(ZEROS, "in_a_row * bits"), "zero points are counted in bits"),
    (counted.edit(CODES, "columns * bits"), "codes are counted in bits"),
    (counted.edit("total * rows", "total"), "of one row"),
    (counted.edit("= columns // group_size", "= rows * columns // group_size"), "rows are counted twice"),
    (counted.edit(CODES, "columns"), "you counted a whole byte for a code"),
    (counted.edit(ZEROS, "-(bits // -8)"), "one zero point for each row"),
    (counted.edit(("+ in_a_row * 2", ""), ("total * rows", "total * rows + 2")), "one scale for the whole matrix"),
    (counted.edit(("+ in_a_row * 2", "+ 2")), "one scale for each row"),
    (counted.edit(CODES, "columns * 2"), "16 bits for each code"),
    (lambda r, c, b, g, s: r * -(c * b // -8), "scales and zero points are both missing"),
]

# --- start.step_time ---


@solution
def slower(n, bits, width, speed, batch):
    memory = n * bits / (8 * width)
    arithmetic = n * batch * 2 / speed
    return memory if memory > arithmetic else arithmetic


def time_by_speeds(n, bits, width, speed, batch):
    return 1 / min(width / (n * bits / 8), speed / (2 * n * batch))


def time_of_fractions(n, bits, width, speed, batch):
    return max(Fraction(bits) * n / 8 / int(width), Fraction(2 * n * batch) / int(speed))


def time_in_torch(n, bits, width, speed, batch):
    times = torch.tensor([n * bits / 8 / width, 2 * n * batch / speed], dtype=torch.float64)
    return times.max()


MEMORY, SLOWER = "n * bits / (8 * width)", "memory if memory > arithmetic else arithmetic"
WRONG_TIMES = [
    (slower.edit(MEMORY, "n * bits * 8 / width"), "multiplied by 8"),
    (slower.edit("n * batch * 2 / speed", "n * 2 / speed / batch"), "divided by the batch"),
    (slower.edit("n * batch * 2", "n * bits * batch * 2"), "two operations for each bit"),
    (slower.edit("n * batch * 2", "n * bits / 8 * batch * 2"), "operations for each byte"),
    (lambda n, bits, width, speed, batch: slower(n, bits, speed, width, batch), "bandwidth and operations are swapped"),
    (slower.edit(SLOWER, f"1000 * ({SLOWER})"), "milliseconds"),
    (slower.edit(SLOWER, f"({SLOWER}) / batch"), "divided by the batch at the end"),
    (slower.edit(SLOWER, f"batch / ({SLOWER})"), "tokens per second of all sequences"),
    (slower.edit(SLOWER, "(memory + arithmetic) / 2"), "the mean of the two times"),
    (slower.edit(MEMORY, "n * 2 / width"), "you counted 16 bits for every weight"),
    (slower.edit(MEMORY, "n * (bits // 8) / width"), "bits // 8"),
    (slower.edit("n * batch * 2", "n * batch * 4"), "you counted four operations"),
    (slower.edit(MEMORY, "n * bits / width"), "8 bits are one byte"),
    (slower.edit(SLOWER, "memory if batch == 1 else arithmetic"), "the batch alone"),
    (slower.edit(SLOWER, "memory * arithmetic"), "are multiplied"),
    (slower.edit(SLOWER, "abs(memory - arithmetic)"), "the difference of the two times"),
    (slower.edit(MEMORY, "n / width"), "you counted a byte for every weight"),
]

# --- start.perplexity ---


@solution
def surprised(logits, ids):
    p = torch.softmax(logits[:-1].double(), dim=1)
    chosen = p[torch.arange(len(ids) - 1), ids[1:]]
    surprise = -torch.log(chosen)
    return torch.exp(surprise.sum() / (len(ids) - 1))


def perplexity_by_loops(logits, ids):
    total = 0.0
    for i in range(len(ids) - 1):
        row = logits[i].tolist()
        top = max(row)
        total += math.log(sum(math.exp(x - top) for x in row)) + top - row[ids[i + 1]]
    return math.exp(total / (len(ids) - 1))


def perplexity_of_nll(logits, ids):
    return nll_loss(logits[:-1].log_softmax(1), ids[1:], reduction="mean").exp().float()


def perplexity_to_base_2(logits, ids):
    return 2 ** (cross_entropy(logits[:-1].double(), ids[1:]) / math.log(2)).item()


def perplexity_in_numpy(logits, ids):
    x = logits.numpy()[:-1].astype(np.float64)
    x = x - x.max(1, keepdims=True)
    log_p = x - np.log(np.exp(x).sum(1, keepdims=True))
    return np.exp(-np.take_along_axis(log_p, ids.numpy()[1:, None], 1).mean())


LAST = "torch.exp(surprise.sum() / (len(ids) - 1))"
WRONG_PERPLEXITIES = [
    (surprised.edit("dim=1", "dim=0"), "over the positions"),
    (
        surprised.edit("torch.softmax(logits[:-1].double(), dim=1)", "torch.softmax(logits.double(), dim=0)[:-1]"),
        "over the positions",
    ),
    (surprised.edit("-torch.log(chosen)", "-chosen"), "the logarithm is missing"),
    (lambda logits, ids: cross_entropy(logits[:-1].double().softmax(1), ids[1:]).exp(), "softmax is applied twice"),
    (surprised.edit("-torch.log(chosen)", "-torch.log(p).mean(1)"), "over the whole vocabulary"),
    (surprised.edit("-torch.log(chosen)", "-(p * torch.log(p)).sum(1)"), "the entropy"),
    (
        surprised.edit("= p[torch.arange(len(ids) - 1), ids[1:]]", "= p.amax(1)"),
        "the token that the model expected most",
    ),
    (surprised.edit("/ (len(ids) - 1)", "/ logits.shape[1]"), "by the size of the vocabulary"),
    (lambda logits, ids: cross_entropy(logits[:-2].double(), ids[1:-1]).exp(), "the last prediction"),
    (surprised.edit("torch.log(", "torch.log10("), "Undo log10 with 10 ** mean"),
    (surprised.edit("torch.exp(", "10 ** ("), "10 to the power"),
    (surprised.edit(LAST, "torch.exp(surprise)"), "one for each token"),
    (lambda logits, ids: cross_entropy(logits[1:].double(), ids[1:]).exp(), "both are cut at the beginning"),
    (lambda logits, ids: cross_entropy(logits.double(), ids.roll(-1)).exp(), "the first token again"),
    (surprised.edit("log(chosen)", "log(chosen + 1e-8)"), "do not add anything to p"),
    (surprised.edit("log(chosen)", "log(chosen.clamp(min=1e-10))"), "do not add anything to p"),
    (
        surprised.edit(
            "torch.softmax(logits[:-1].double(), dim=1)",
            "logits[:-1].double().exp() / logits[:-1].double().exp().sum(1, keepdim=True)",
        ),
        "overflows",
    ),
    (surprised.edit(LAST, "torch.exp(surprise.median())"), "the median"),
    (surprised.edit(LAST, "torch.exp(surprise.amax())"), "worst"),
    (surprised.edit(LAST, "torch.exp(-surprise.sum() / (len(ids) - 1))"), "the sign is missing"),
    (surprised.edit(LAST, "surprise.sum() / (len(ids) - 1)"), "Perplexity is exp of that mean"),
    (surprised.edit(LAST, "torch.exp(surprise.sum() / (len(ids) - 2 or 1))"), "divided by one less"),
]

WRONG = {"start.true_bytes": WRONG_BYTES, "start.step_time": WRONG_TIMES, "start.perplexity": WRONG_PERPLEXITIES}
RIGHT = {
    "start.true_bytes": [counted, bytes_by_places, bytes_in_loops, lambda *a: float(counted(*a))],
    "start.step_time": [slower, time_by_speeds, time_of_fractions, time_in_torch],
    "start.perplexity": [surprised, perplexity_by_loops, perplexity_of_nll, perplexity_to_base_2, perplexity_in_numpy],
}


@each(WRONG)
def test_a_wrong_answer_is_told_its_mistake(name, function, phrase):
    assert_last_line(name, function, phrase)


@each(RIGHT)
def test_right_answers_pass_however_they_are_written(name, function):
    assert_right(name, function)

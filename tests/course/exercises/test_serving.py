"""The exercises of chapter 10: right answers pass in any form, and check names the mistake in a wrong answer.

Wrong answers are edits of right answers. The right answers differ from the course's solutions.
"""

import random

import numpy as np
import pytest
import torch

from qtutor.core.grid import IntGrid
from qtutor.course import exercises
from qtutor.course.exercises.edits import solution
from qtutor.course.exercises.serving.pick import pick
from qtutor.course.exercises.serving.room import room
from qtutor.course.exercises.serving.turn import turn
from qtutor.runtime.kv import KVFormat, cache_bytes
from qtutor.runtime.kv.rotation import rotate
from qtutor.serving.cache import Blocks
from qtutor.serving.scheduler import Request, Scheduler, State
from tests.course.answers import assert_mistakes_differ, assert_right, assert_told, each, verdict
from tests.models import tiny

NAMES = [exercise.name for exercise in exercises.of_topic("serving")]

# --- bytes of a cache ---


@solution
def by_vectors(layers, heads, kv_heads, head, tokens, bits, group):
    vector = head * bits / 8
    if group:
        vector += head / group * (2 + bits / 8)
    return layers * tokens * kv_heads * (vector + vector)


WRONG_ROOM = [
    (by_vectors.edit("(vector + vector)", "vector"), "only keys or only values"),
    (by_vectors.edit("kv_heads *", "heads *"), "all heads are counted"),
    (by_vectors.edit("layers * tokens", "tokens"), "one layer is counted"),
    (by_vectors.edit("kv_heads *", "1 *"), "one head is counted"),
    (by_vectors.edit("tokens * kv", "kv"), "one token is counted"),
    (by_vectors.edit("if group", "if False"), "scales and zero points are missing"),
    (by_vectors.edit("(2 + bits / 8)", "2"), "the zero points are missing"),
    (by_vectors.edit("(2 + bits / 8)", "bits / 8"), "the scales are missing"),
    (by_vectors.edit("(2 + bits / 8)", "4"), "16 bits for a zero point"),
    (by_vectors.edit("head * bits / 8", "head * 2"), "you counted 2 bytes"),
    (by_vectors.edit("head * bits / 8", "head * (bits // 8)"), "rounded down to whole bytes"),
]

# --- a block table ---


@solution
def by_arrays(table, size, start, end):
    positions = np.arange(start, end)
    inside = positions % size
    return np.array(table)[positions // size] * size + inside


def by_tensor(table, size, start, end):
    return (torch.tensor(table)[:, None] * size + torch.arange(size)).flatten()[start:end]


WRONG_SLOTS = [
    (by_arrays.edit("np.array(table)[positions // size]", "(positions // size)"), "the table is not used"),
    (by_arrays.edit("np.array(table)", "np.sort(table)"), "in their order in memory"),
    (by_arrays.edit("[positions // size] * size + inside", "[positions // size]"), "the numbers of blocks"),
    (by_arrays.edit("+ inside", "+ positions"), "The position in the text".lower()),
    (by_arrays.edit("* size + inside", "* size + 0 * inside"), "the place in the block is missing"),
    (by_arrays.edit("np.arange(start, end)", "np.arange(end - start)"), "counted from `start`"),
    (by_arrays.edit("positions % size", "size - 1 - positions % size"), "in reverse order"),
]

# --- the scheduler ---


@solution
def by_shares(running, waiting, budget, free, size):
    reads, left = [int(unread == 1) for unread in running], budget
    left -= sum(reads)
    for place, unread in enumerate(running):
        if unread > 1:
            reads[place] = min(left, unread)
            left -= reads[place]
    stopped = False
    for unread in waiting:
        blocks = (unread + size - 1) // size
        stopped = stopped or left == 0 or blocks > free
        reads.append(0 if stopped else min(left, unread))
        left -= reads[-1]
        free -= 0 if stopped else blocks
    return reads


WRONG_PICKS = [
    (by_shares.edit("left -= sum(reads)", "pass"), "not taken from the budget"),
    (by_shares.edit("sum(reads)", "len(reads)"), "takes one token away"),
    (by_shares.edit("stopped = stopped or", "stopped ="), "a later one is let in"),
    (by_shares.edit("left == 0 or blocks > free", "left == 0"), "the free blocks are not checked"),
    (by_shares.edit("0 if stopped else blocks", "0"), "not subtracted from the free ones"),
    (by_shares.edit("(unread + size - 1) // size", "unread // size"), "rounded down"),
    (by_shares.edit("(unread + size - 1) // size", "unread"), "treated each token as a block"),
    (
        by_shares.edit("(unread + size - 1) // size", "-(-min(unread, left) // size)"),
        "only for the tokens that this step reads",
    ),
    (by_shares.edit("blocks > free", "blocks >= free"), "more blocks are free than it needs"),
]

# --- int8 keys ---


@solution
def by_numpy(keys):
    k = keys.numpy()
    largest = np.abs(k).max(axis=0)
    scales = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    return np.rint(k / scales), scales


WRONG_KEYS = [
    (by_numpy.edit("np.abs(k).max(axis=0)", "np.abs(k).max() + 0 * k[0]"), "share one scale"),
    (by_numpy.edit("np.abs(k).max(axis=0)", "k.max(axis=0).clip(0)"), "without abs()"),
    (by_numpy.edit("/ 127", "/ 128"), "128, which int8 does not have"),
    (by_numpy.edit("/ 127", "/ 255"), "/ 255. Codes"),
    (by_numpy.edit("np.rint", "np.trunc"), "truncated"),
    (by_numpy.edit("np.rint", "np.floor"), "rounded down"),
    (by_numpy.edit("scales), scales", "scales), 1 / scales"), "upside down"),
]

# --- the rotation ---


@solution
def by_kron(queries, keys):
    two, matrix = np.array([[1, 1], [1, -1]]) / 2**0.5, np.ones((1, 1))
    while len(matrix) < keys.shape[1]:
        matrix = np.kron(two, matrix)
    return queries.numpy() @ matrix, keys.numpy() @ matrix


WRONG_TURNS = [
    (by_kron.edit("queries.numpy() @ matrix", "queries"), "only the keys"),
    (by_kron.edit("keys.numpy() @ matrix", "keys"), "only the queries"),
    (by_kron.edit("2**0.5", "1"), "root of its width"),
    (by_kron.edit("2**0.5", "2"), "divided by its width"),
    (by_kron.edit("-1]", "1]"), "no minus signs"),
    (by_kron.edit("[1, -1]", "[-1, -1]"), "the whole lower half"),
]

RIGHT = {
    "serving.room": [by_vectors],
    "serving.slots": [by_arrays, by_tensor],
    "serving.pick": [by_shares],
    "serving.keys": [by_numpy],
    "serving.turn": [by_kron],
}
WRONG = dict(zip(RIGHT, (WRONG_ROOM, WRONG_SLOTS, WRONG_PICKS, WRONG_KEYS, WRONG_TURNS)))


@each(RIGHT)
def test_right_in_another_way(name, function):
    assert_right(name, function)


@each(WRONG)
def test_wrong_answers_are_told_their_mistake(name, function, phrase):
    assert_told(WRONG, name, function, phrase)


@pytest.mark.parametrize("name", NAMES)
def test_mistakes_differ(name):
    assert_mistakes_differ(name)


def test_scores_that_changed_are_told_so():
    """Queries and keys are doubled, which no known mistake describes."""
    found = verdict("serving.turn", lambda queries, keys: (queries * 2, keys * 2))
    assert not found.passed and "the scores changed" in found.text


# --- what the exercises teach is what the package does ---


def test_room_is_the_package_s_count():
    config = tiny().config
    head, layers = config.head_dim, config.num_hidden_layers
    shape = layers, config.num_attention_heads, config.num_key_value_heads, head
    assert room(*shape, 7, 16, 0) == cache_bytes(config, KVFormat(16), 7)
    assert room(*shape, 32, 8, head) == cache_bytes(config, KVFormat(8), 32)


def test_the_choice_is_the_scheduler_s():
    draw = random.Random(0)
    for _ in range(200):
        size, budget, free = draw.choice([4, 16]), draw.randint(6, 24), draw.randint(0, 6)
        running = [draw.choice([1, 1, draw.randint(2, 12)]) for _ in range(draw.randint(0, 4))]
        waiting = [draw.randint(2, 30) for _ in range(draw.randint(0, 3))]
        blocks = Blocks(64, size, sharing=False)
        scheduler = Scheduler(blocks, budget)
        for number, unread in enumerate(running):
            request = Request(number, [0] * 20, 4, state=State.RUNNING)
            request.cached = 20 - unread
            assert blocks.grow(request.table, 20)
            scheduler.running.append(request)
        blocks.grow([], (len(blocks.free) - free) * size)  # other requests hold the rest
        waits = [Request(9 + number, [0] * unread, 4) for number, unread in enumerate(waiting)]
        for request in waits:
            scheduler.add(request)
        everybody = [*scheduler.running, *waits]
        read = {piece.request: piece.end - piece.start for piece in scheduler.pick()}
        assert [read.get(request, 0) for request in everybody] == pick(running, waiting, budget, free, size)


def test_the_rotation_is_the_package_s():
    queries, keys = torch.randn(3, 16), torch.randn(5, 16)
    assert torch.allclose(torch.tensor(turn(queries, keys)[1]), rotate(keys), atol=1e-5)


def test_codes_of_keys_are_as_exact_as_the_package_s():
    """Only the package's grid has zero points. With keys around 0, both grids lose about the same."""
    keys = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
    codes, scales = exercises.find("serving.keys").reference(keys)
    ours = (torch.tensor(codes) * torch.tensor(scales) - keys).square().mean()
    grid = IntGrid(8)
    steps, zeros = grid.fit(keys.amin(0), keys.amax(0))
    theirs = (grid.decode(grid.encode(keys, steps, zeros), steps, zeros) - keys).square().mean()
    assert 0.7 < ours / theirs < 1.8

"""Chapter 10 as learners would write it: answers in different styles, and wrong answers without their own diagnosis.

Each wrong answer has to be refused, with any message.
"""

import math

import numpy as np
import torch

from qtutor.course.exercises.edits import solution
from tests.course.answers import assert_right, each, verdict

# --- bytes of a cache ---


@solution
def room_in_bits(layers, heads, kv_heads, head, tokens, bits, group):
    values = layers * tokens * kv_heads * head
    extra = 0 if group == 0 else math.ceil(values / group) * (bits + 16)
    return (values * bits + extra) * 2 / 8


WRONG_ROOM = [
    room_in_bits.edit("kv_heads * head", "(heads // kv_heads) * head"),
    room_in_bits.edit("kv_heads * head", "(heads + kv_heads) * head"),
    room_in_bits.edit("* 2 / 8", "* 3 / 8"),
    room_in_bits.edit("* 2 / 8", "// 8"),
    room_in_bits.edit("* 2 / 8", "* 2 / 8 / 1024"),
    room_in_bits.edit("(bits + 16)", "(bits + 32)"),
    room_in_bits.edit("math.ceil(values / group)", "layers * tokens * kv_heads"),
    room_in_bits.edit("tokens * kv", "(tokens + 1) * kv"),
]

# --- a block table ---


def slots_in_a_dict(table, size, start, end):
    where = {i * size + j: block * size + j for i, block in enumerate(table) for j in range(size)}
    return [where[place] for place in range(start, end)]


@solution
def slots_by_divmod(table, size, start, end):
    found = []
    for place in range(start, end):
        index, inside = divmod(place, size)
        found += [table[index] * size + inside]
    return found


WRONG_SLOTS = [
    slots_by_divmod.edit("table[index] * size + inside", "table[index], inside"),
    slots_by_divmod.edit("table[index]", "table[-1 - index]"),
    slots_by_divmod.edit("* size + inside", "+ size * inside"),
    slots_by_divmod.edit("divmod(place, size)", "divmod(place + 1, size + 1)"),
    slots_by_divmod.edit("range(start, end)", "range(start + 1, end)"),
    slots_by_divmod.edit("return found", "return found[::-1]"),
    slots_by_divmod.edit("return found", "return sorted(found)"),
    slots_by_divmod.edit("return found", "return set(found)"),
]

# --- the scheduler ---


@solution
def picked_token_by_token(running, waiting, budget, free, size):
    everybody = list(running) + list(waiting)
    reads = [0] * len(everybody)
    writers = [i for i, unread in enumerate(running) if unread == 1]
    for i in writers:
        reads[i] = 1
    tokens = budget - len(writers)
    for i, unread in enumerate(everybody):
        if i in writers:
            continue
        if i >= len(running):
            blocks = math.ceil(unread / size)
            if tokens == 0 or blocks > free:
                return reads
            free -= blocks
        while reads[i] < unread and tokens:
            reads[i] += 1
            tokens -= 1
    return reads


WRONG_PICKS = [
    picked_token_by_token.edit("blocks > free", "unread > free * size * 2"),
    picked_token_by_token.edit("free -= blocks", "free -= 1"),
    picked_token_by_token.edit("free -= blocks", "free -= unread"),
    picked_token_by_token.edit("if tokens == 0 or", "if tokens < size or"),
    picked_token_by_token.edit("math.ceil(unread / size)", "math.ceil((unread + 1) / size)"),
    picked_token_by_token.edit("math.ceil(unread / size)", "round(unread / size)"),
    picked_token_by_token.edit(
        "enumerate(everybody):\n        if i in", "reversed(list(enumerate(everybody))):\n        if i in"
    ),
    picked_token_by_token.edit("return reads\n            free", "return reads[:i]\n            free"),
    picked_token_by_token.edit("reads[i] = 1", "reads[i] = budget // len(everybody)"),
    picked_token_by_token.edit("tokens = budget - len(writers)", "tokens = budget - len(everybody)"),
]

# --- int8 keys ---


@solution
def keys_by_channel(keys):
    codes, scales = torch.zeros_like(keys), []
    for channel in range(keys.shape[1]):
        column = keys[:, channel]
        largest = max(float(column.max()), -float(column.min()))
        scales.append(largest / 127 if largest > 0 else 1.0)
        codes[:, channel] = torch.round(column / scales[-1])
    return codes.to(torch.int8), torch.tensor(scales)


WRONG_KEYS = [
    keys_by_channel.edit("/ 127 if", "/ 127.5 if"),
    keys_by_channel.edit("/ 127 if", "/ 126 if"),
    keys_by_channel.edit("else 1.0", "else 0.5"),
    keys_by_channel.edit("-float(column.min())", "float(column.min())"),
    keys_by_channel.edit("column / scales[-1]", "column / scales[0]"),
    keys_by_channel.edit("torch.round(column / scales[-1])", "torch.round(column / scales[-1]) + 1"),
    keys_by_channel.edit("codes.to(torch.int8)", "codes.T"),
    keys_by_channel.edit("codes.to(torch.int8)", "codes.abs()"),
    keys_by_channel.edit("torch.tensor(scales)", "torch.tensor(scales).half() * 1.01"),
]

# --- the rotation ---


def hadamard(width: int) -> np.ndarray:
    """The sign is minus if the indices of row and column have an odd number of 1 bits in common."""
    return np.array([[1 - 2 * ((row & column).bit_count() % 2) for column in range(width)] for row in range(width)])


@solution
def turned_by_signs(queries, keys):
    width = queries.shape[1]
    matrix = hadamard(width) / np.sqrt(width)
    return queries.numpy() @ matrix, keys.numpy() @ matrix.T


WRONG_TURNS = [
    turned_by_signs.edit("/ np.sqrt(width)", "/ np.sqrt(len(keys))"),
    turned_by_signs.edit("hadamard(width)", "-hadamard(width)"),
    turned_by_signs.edit("hadamard(width)", "np.eye(width) * np.sqrt(width)"),
    turned_by_signs.edit("hadamard(width)", "hadamard(width)[::-1]"),
    turned_by_signs.edit("np.sqrt(width)", "np.log2(2 * width)"),
    turned_by_signs.edit("keys.numpy() @ matrix.T", "keys.numpy() @ matrix.T * 2"),
    turned_by_signs.edit("keys.numpy() @ matrix.T", "(keys.numpy() @ matrix.T).T"),
]

RIGHT = {
    "serving.room": [room_in_bits],
    "serving.slots": [slots_in_a_dict, slots_by_divmod],
    "serving.pick": [picked_token_by_token],
    "serving.keys": [keys_by_channel],
    "serving.turn": [turned_by_signs],
}
WRONG = dict(zip(RIGHT, (WRONG_ROOM, WRONG_SLOTS, WRONG_PICKS, WRONG_KEYS, WRONG_TURNS)))


@each(WRONG)
def test_a_wrong_answer_is_refused(name, function):
    assert not verdict(name, function).passed


@each(RIGHT)
def test_a_right_answer_passes(name, function):
    assert_right(name, function)

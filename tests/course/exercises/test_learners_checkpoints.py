"""Chapter 08 as learners would write it: answers in different styles, and wrong answers without their own diagnosis.

Each wrong answer has to be refused, with any message. If it is listed with a phrase, the message has to contain it.
"""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from qtutor.course import exercises
from qtutor.course.exercises.edits import solution
from tests.course.answers import assert_mistakes_differ, assert_named, assert_right, each, verdict

NAMES = [exercise.name for exercise in exercises.of_topic("checkpoints")]

# --- GPTQ's words ---


@solution
def in_loop(codes, bits):
    n = 32 // bits
    out, count = codes.shape
    result = torch.zeros((count // n, out), dtype=torch.int64)
    for j in range(count):
        result[j // n] |= codes[:, j].long() << (j % n) * bits
    return result


def words_by_sum(codes, bits):
    n = 32 // bits
    powers = torch.tensor([2 ** (bits * i) for i in range(n)])
    return (codes.long().T.reshape(-1, n, codes.shape[0]) * powers[None, :, None]).sum(1).tolist()


WRONG_WORDS = [
    in_loop.edit("j // n]", "j % len(result)]"),
    in_loop.edit("(j % n) * bits", "(j % n) * bits + 1"),
    in_loop.edit("(j % n) * bits", "j * bits % 31"),
    in_loop.edit("codes[:, j].long()", "codes[:, j - 1].long()"),
    in_loop.edit("codes[:, j].long()", "codes[:, j].float()"),
    in_loop.edit("codes[:, j].long()", "(codes[:, j].long() ^ 8)"),
    in_loop.edit("codes[:, j].long()", "(2**bits - 1 - codes[:, j].long())"),
    in_loop.edit("codes[:, j].long()", "codes[:, j].flip(0).long()"),
    in_loop.edit("return result", "return result.float()"),
    in_loop.edit("return result", "return result[:1]"),
    in_loop.edit("return result", "return result % 2**31"),
    in_loop.edit("return result", "return result.abs() // 2"),
    in_loop.edit("return result", "return result.reshape(-1)"),
    in_loop.edit("return result", "return result.to(torch.int16)"),
    in_loop.edit("range(count)", "range(0, count, 2)"),
    in_loop.edit("return result", "pass"),
]

# --- AWQ's order ---


@solution
def straight(codes):
    out, count = codes.shape
    result = torch.zeros((count, out // 8), dtype=torch.int64)
    for o in range(out):
        place = (0, 4, 1, 5, 2, 6, 3, 7)[o % 8]
        result[:, o // 8] |= codes[o].long() << 4 * place
    return result


def order_by_text(codes):
    lines = []
    for column in codes.T.tolist():
        digits = [f"{code:x}" for code in column]
        words = [digits[at : at + 8] for at in range(0, len(digits), 8)]
        lines.append([int("".join(word[k] for k in (7, 5, 3, 1, 6, 4, 2, 0)), 16) for word in words])
    return np.array(lines, np.uint32)


PLACES = "(0, 4, 1, 5, 2, 6, 3, 7)"
WRONG_ORDERS = [
    straight.edit(PLACES, "(0, 1, 2, 3, 4, 5, 6, 7)"),
    straight.edit(PLACES, "(0, 2, 4, 6, 1, 3, 5, 7)"),
    straight.edit(PLACES, "(0, 4, 1, 5, 2, 6, 7, 3)"),
    straight.edit(PLACES, "(4, 0, 5, 1, 6, 2, 7, 3)"),
    straight.edit(PLACES, "(7, 3, 6, 2, 5, 1, 4, 0)"),
    straight.edit(PLACES, "(0, 4, 2, 6, 1, 5, 3, 7)"),
    straight.edit(PLACES, "(0, 0, 1, 1, 2, 2, 3, 3)"),
    straight.edit("o // 8]", "o % (out // 8)]"),
    straight.edit("4 * place", "4 * place + 1"),
    straight.edit("4 * place", "3 * place"),
    straight.edit("codes[o].long()", "codes[o].flip(0).long()"),
    straight.edit("codes[o].long()", "(15 - codes[o].long())"),
    straight.edit("codes[o].long()", "(codes[o].long() + 1 & 15)"),
    straight.edit("return result", "return result.flip(1) if out > 8 else result + 1"),
    straight.edit("return result", "return result.T.contiguous().reshape(result.shape) ^ 1"),
    straight.edit("return result", "return [hex(word) for word in result.flatten()]"),
]

# --- zero points ---


@solution
def by_divisions(qzeros, checkpoint_format):
    first = checkpoint_format == "gptq"
    zeros = []
    for row in qzeros.tolist():
        own = []
        for word in row:
            word %= 2**32
            for _ in range(8):
                word, zero = divmod(word, 16)
                own.append(zero + first)
        zeros.append(own)
    return np.array(zeros).T


def zeros_by_view(qzeros, checkpoint_format):
    data = qzeros.contiguous().view(torch.uint8)
    zeros = torch.stack([data & 15, data >> 4], dim=-1).reshape(len(qzeros), -1)
    return zeros.T + int(not checkpoint_format.endswith("v2"))


WRONG_ZEROS = [
    by_divisions.edit("zero + first", "zero"),
    by_divisions.edit("zero + first", "zero + 1"),
    by_divisions.edit("zero + first", "zero - first"),
    by_divisions.edit("zero + first", "zero + 2 * first"),
    by_divisions.edit("zero + first", "(zero + first) / 1.5"),
    by_divisions.edit("zero + first", "zero | first"),
    by_divisions.edit("zero + first", "zero + (not first)"),
    by_divisions.edit('== "gptq"', '== "gptq_v1"'),
    by_divisions.edit('== "gptq"', 'in "gptq_v2"'),
    by_divisions.edit("np.array(zeros).T", "np.array(zeros)"),
    by_divisions.edit("np.array(zeros).T", "np.array(zeros).T[::-1]"),
    by_divisions.edit("np.array(zeros).T", "np.array(zeros).T.astype(np.int8) - 8"),
    by_divisions.edit("np.array(zeros).T", "np.array(zeros).T.reshape(-1)"),
    by_divisions.edit("divmod(word, 16)", "divmod(word, 8)"),
    by_divisions.edit("range(8)", "range(4)"),
    by_divisions.edit("word %= 2**32", "word = abs(word)"),
]

# --- a dense stream ---


@solution
def reading(words, bits, count):
    result = torch.zeros((len(words), count), dtype=torch.int64)
    w = words.long() & 0xFFFFFFFF
    for i in range(count):
        k, start = i * bits // 32, i * bits % 32
        code = w[:, k] >> start
        if start + bits > 32:
            code = code | w[:, k + 1] << 32 - start
        result[:, i] = code & 2**bits - 1
    return result


def stream_by_text(words, bits, count):
    rows = ["".join(f"{word % 2**32:032b}" for word in row[::-1]) for row in words.tolist()]
    return [[int(row[len(row) - bits * (i + 1) : len(row) - bits * i], 2) for i in range(count)] for row in rows]


WRONG_STREAMS = [
    reading.edit("start + bits > 32", "start + bits >= 32 and k + 1 < w.shape[1] - 1"),
    reading.edit("start + bits > 32", "start > 32"),
    reading.edit("32 - start\n", "start\n"),
    reading.edit("32 - start\n", "bits - start % bits\n"),
    reading.edit("code | w", "code & w"),
    reading.edit("w[:, k + 1] <<", "w[:, k - 1] <<"),
    reading.edit("w[:, k] >> start", "w[:, k] >> start + 1"),
    reading.edit("w[:, k] >> start", "w[:, k] << start"),
    reading.edit("i * bits // 32, i * bits % 32", "i * bits // 31, i * bits % 31"),
    reading.edit("i * bits // 32, i * bits % 32", "i // (32 // bits) % w.shape[1], i % (32 // bits) * bits"),
    reading.edit("2**bits - 1", "2 ** (bits + 1) - 1"),
    reading.edit("2**bits - 1", "7"),
    reading.edit("return result", "return result.flip(1)"),
    reading.edit("return result", "return result[:1]"),
    reading.edit("return result", "return result.T"),
    reading.edit("return result", "return result.float() / 2"),
]

# --- a folder ---


@solution
def assembled(folder, config, floats, layers):
    tensors = {name: tensor for name, tensor in floats.items()}
    for name, layer in layers.items():
        codes = layer.codes.int()
        packed = torch.zeros(codes.shape[0], codes.shape[1] // 8, dtype=torch.int32)
        for i in range(8):
            packed |= codes[:, i::8] << 4 * i
        tensors.update({name + ".weight_packed": packed, name + ".weight_scale": layer.scales})
        tensors[name + ".weight_shape"] = torch.tensor(list(layer.shape), dtype=torch.int64)
    scheme = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group"}
    scheme["group_size"] = layer.group_size
    about = {"quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"]}
    about["quantization_status"] = "compressed"
    about["config_groups"] = {"group_0": {"targets": ["Linear"], "weights": scheme}}
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": about}, indent=1))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


WRONG_FOLDERS = [
    (assembled.edit("codes[:, i::8]", "codes[:, i * packed.shape[1] : (i + 1) * packed.shape[1]]"), None),
    (assembled.edit("<< 4 * i", "<< 28 - 4 * i"), "in its highest bits"),
    (assembled.edit("<< 4 * i", "<< 3 * i"), None),
    (assembled.edit("layer.codes.int()", "layer.codes.int().flip(1)"), None),
    (assembled.edit("layer.codes.int()", "(layer.codes.int() ^ 8)"), "8 was subtracted"),
    (assembled.edit('".weight_scale": layer.scales', '".weight_scale": layer.scales * 2'), None),
    (assembled.edit('".weight_scale": layer.scales', '".weight_scale": layer.scales.flip(0)'), None),
    (assembled.edit('".weight_scale": layer.scales', '".weight_scale": layer.scales / 0'), "infinite"),
    (assembled.edit('name + ".weight_packed"', 'name + ".qweight"'), "weight_packed is missing"),
    (assembled.edit('name + ".weight_packed"', '"model." + name + ".weight_packed"'), "is missing"),
    (assembled.edit("floats.items()", "floats.items() if 'norm' not in name"), "norm.weight"),
    (assembled.edit("floats.items()", "floats.items() if 'embed' not in name"), "missing"),
    (assembled.edit('"quantization_config": about', '"quantization": about'), "no quantization_config"),
    (assembled.edit('"compressed-tensors", ', '"gptq", '), "gptq"),
    (assembled.edit('"strategy": "group"', '"strategy": "channel"'), "strategy"),
    (assembled.edit('["Linear"]', '["Attention"]'), None),
    (assembled.edit('= "compressed"', '= "initialized"'), "quantization_status is 'initialized'"),
    (assembled.edit("= layer.group_size", "= 16"), "weight_scale is F16"),
    (assembled.edit('"type": "int"', '"type": "float"'), "float"),
    (assembled.edit("json.dumps({**config,", "json.dumps({"), "config.json"),
]
PLAIN = {"words": WRONG_WORDS, "order": WRONG_ORDERS, "zeros": WRONG_ZEROS, "stream": WRONG_STREAMS}
WRONG = {f"checkpoints.{name}": answers for name, answers in PLAIN.items()}
WRONG["checkpoints.folder"] = [function for function, _ in WRONG_FOLDERS]
NAMED = {"checkpoints.folder": [(function, phrase) for function, phrase in WRONG_FOLDERS if phrase]}
RIGHT = {
    "checkpoints.words": [in_loop, words_by_sum],
    "checkpoints.order": [straight, order_by_text],
    "checkpoints.zeros": [by_divisions, zeros_by_view],
    "checkpoints.stream": [reading, stream_by_text],
    "checkpoints.folder": [assembled],
}


@each(WRONG)
def test_a_wrong_answer_is_refused(name, function):
    assert not verdict(name, function).passed


@each(NAMED)
def test_a_wrong_folder_is_told_what_is_missing_in_it(name, function, phrase):
    assert_named(name, function, phrase)


@each(RIGHT)
def test_a_right_answer_passes(name, function):
    assert_right(name, function)


@pytest.mark.parametrize("name", NAMES)
def test_no_two_mistakes_have_the_same_results(name):
    assert_mistakes_differ(name)

"""The exercises of chapter 08: check names the mistake in a wrong answer, and right answers pass in any form.

A wrong answer is an edit of a right answer, or a separate function if no edit can make it. The right answers differ
from the course's solution.
"""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import qtutor
from qtutor.course import exercises
from qtutor.course.exercises.checkpoints import folder as folders
from qtutor.course.exercises.checkpoints import readers
from qtutor.course.exercises.checkpoints.inputs import as_words
from qtutor.course.exercises.edits import solution
from qtutor.course.workspace.replacing import replaced
from qtutor.formats import awq, gptq
from qtutor.formats.words import from_words, to_words
from tests.course.answers import assert_right, assert_told, each

# --- GPTQ's words ---


@solution
def in_numpy(codes, bits):
    per = 32 // bits
    c = codes.numpy().T.astype(np.uint32).reshape(-1, per, len(codes))
    shifts = (np.arange(per) * bits).astype(np.uint32)[None, :, None]
    return np.bitwise_or.reduce(c << shifts, axis=1)


def by_bytes(codes, bits):
    rows = [
        sum(code << i * bits for i, code in enumerate(row)).to_bytes(len(row) * bits // 8, "little")
        for row in codes.tolist()
    ]
    return np.stack([np.frombuffer(row, "<i4") for row in rows], axis=1)


def by_view(codes, bits):
    from qtutor.core.packing import pack

    return pack(codes, bits).view(torch.int32).T


SHIFTS = "(np.arange(per) * bits)"
WRONG_WORDS = [
    (in_numpy.edit(SHIFTS, "(32 - bits - np.arange(per) * bits)"), "in its highest bits"),
    (in_numpy.edit(SHIFTS, "np.arange(per)"), "code i is shifted by i."),
    (in_numpy.edit(SHIFTS, "(np.arange(per) * 4)"), "shifted by a multiple of 4"),
    (in_numpy.edit("axis=1)", "axis=1).T"), "arranged as in compressed-tensors"),
    (in_numpy.edit("axis=1)", "axis=1).T.reshape(-1, len(codes))"), "reshape instead of transpose"),
    (in_numpy.edit("bitwise_or", "bitwise_and"), "& keeps only bits that are set in both"),
    (in_numpy.edit("c << shifts", "(c - 1 & 2**bits - 1) << shifts"), "you subtracted 1 from every code"),
    (in_numpy.edit(".T.astype(np.uint32)", ".T[::-1].astype(np.uint32)"), "in reverse order"),
]

# --- AWQ's order ---


@solution
def picked(codes):
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    c = codes.T.long().reshape(codes.shape[1], -1, 8)[..., order]
    return (c << 4 * torch.arange(8)).sum(-1)


def halves(codes):
    c = codes.T.long().reshape(codes.shape[1], -1, 4, 2)  # pairs: even, odd
    return sum(c[:, :, i, 0] << 4 * i | c[:, :, i, 1] << 4 * i + 16 for i in range(4)).to(torch.int32)


WRONG_ORDERS = [
    (picked.edit("[..., order]", ""), "in plain order"),
    (picked.edit("[0, 2, 4, 6, 1, 3, 5, 7]", "[0, 4, 1, 5, 2, 6, 3, 7]"), "the order the other way round"),
    (picked.edit("[0, 2, 4, 6, 1, 3, 5, 7]", "[1, 3, 5, 7, 0, 2, 4, 6]"), "the odd outputs come first"),
    (picked.edit("4 * torch.arange(8)", "28 - 4 * torch.arange(8)"), "in the highest bits"),
    (picked.edit(".sum(-1)", ".sum(-1).T"), "the result is transposed"),
    (picked.edit("c << ", "(c - 8 & 15) << "), "you subtracted 8"),
    (picked.edit("c << ", "(c - 1 & 15) << "), "you subtracted 1"),
    (lambda codes: to_words(codes.T.contiguous(), 4), "in plain order"),
]

# --- zero points ---


@solution
def taken_apart(qzeros, checkpoint_format):
    words = qzeros.numpy().astype(np.int64)
    found = np.stack([words >> 4 * n & 15 for n in range(8)], axis=2).reshape(len(words), -1)
    if checkpoint_format == "gptq":
        found = found + 1
    return found.T


def by_package(qzeros, checkpoint_format):
    zeros = from_words(qzeros, 4, qzeros.shape[1] * 8).T
    return zeros + 1 if checkpoint_format == "gptq" else zeros


def in_words(qzeros, checkpoint_format):
    more = 0x11111111 if checkpoint_format == "gptq" else 0
    digits = [f"{(word + more) % 2**32:08x}"[::-1] for row in qzeros.tolist() for word in row]
    return np.array([[int(digit, 16) for digit in word] for word in digits]).reshape(len(qzeros), -1).T


WRONG_ZEROS = [
    (taken_apart.edit('checkpoint_format == "gptq"', "False"), "nothing is added"),
    (taken_apart.edit('checkpoint_format == "gptq"', "True"), "always added"),
    (taken_apart.edit('== "gptq"', '== "gptq_v2"'), "the versions are exchanged"),
    (taken_apart.edit("found + 1", "found - 1"), "1 is subtracted"),
    (taken_apart.edit("return found.T", "return found"), "the result is transposed"),
    (taken_apart.edit(" & 15", ""), "fills in ones"),
    (taken_apart.edit("range(8)", "(7, 6, 5, 4, 3, 2, 1, 0)"), "from the highest to the lowest"),
    (taken_apart.edit("range(8)", "awq.BACK"), "in AWQ's order"),
]

# --- a dense stream ---


@solution
def as_one_number(words, bits, count):
    rows = []
    for row in words.tolist():
        stream = 0
        for k, word in enumerate(row):
            stream |= (word & 0xFFFFFFFF) << 32 * k
        rows.append([stream >> i * bits & (1 << bits) - 1 for i in range(count)])
    return rows


def by_bits(words, bits, count):
    data = np.ascontiguousarray(words.numpy().view(np.uint8))
    stream = np.unpackbits(data, axis=1, bitorder="little")[:, : bits * count]
    return stream.reshape(len(words), count, bits) @ (1 << np.arange(bits))


@solution
def in_two_parts(words, bits, count):
    w = torch.nn.functional.pad(words.long() & 0xFFFFFFFF, (0, 1))
    at = torch.arange(count) * bits
    low, high = w[:, at // 32] >> at % 32, w[:, at // 32 + 1] << 32 - at % 32
    return (low | high) & 2**bits - 1


WRONG_STREAMS = [
    (in_two_parts.edit("low | high", "low"), "crosses a border are missing"),
    (in_two_parts.edit("at // 32 + 1] <<", "at // 32] <<"), "come from the same word"),
    (in_two_parts.edit(" & 0xFFFFFFFF", ""), "negative as an int32"),
    (in_two_parts.edit("2**bits - 1", "2**bits"), "which is a single bit"),
    (as_one_number.edit("for i in range(count)", "for i in range(len(row) * 32 // bits)"), "count is ignored"),
    (as_one_number.edit("enumerate(row)", "enumerate(row[::-1])"), "in reverse order"),
    (as_one_number.edit("i * bits &", "i &"), "It begins at bit i * bits"),
]

# --- a folder ---


@solution
def by_hand(folder, config, floats, layers):
    tensors, sizes = {**floats}, set()
    for name in layers:
        codes = layers[name].codes.int()
        nibbles = codes.reshape(len(codes), -1, 8)
        words = sum(nibbles[:, :, i] << 4 * i for i in range(8)).to(torch.int32)
        tensors[name + ".weight_packed"] = words
        tensors[name + ".weight_scale"] = layers[name].scales
        tensors[name + ".weight_shape"] = torch.tensor([*codes.shape])
        sizes.add(layers[name].group_size)
    (size,) = sizes
    scheme = dict(num_bits=4, type="int", symmetric=True, strategy="group", group_size=size, dynamic=False)
    config["quantization_config"] = dict(
        quant_method="compressed-tensors",
        format="pack-quantized",
        quantization_status="compressed",
        ignore=["lm_head"],
        config_groups={"group_0": dict(targets=["Linear"], weights=scheme, input_activations=None)},
    )
    save_file(tensors, str(folder / "model.safetensors"))
    with open(folder / "config.json", "w") as file:
        json.dump(config, file)


def in_shards(folder, config, floats, layers):
    """Two files with an index, and layers listed one by one: this is right, too."""
    folders.right(folder, config, floats, layers)
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, where = sorted(tensors), {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        where |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    values = json.loads((folder / "config.json").read_text())
    values["quantization_config"]["config_groups"]["group_0"]["targets"] = list(layers)
    (folder / "config.json").write_text(json.dumps(values))


WRONG_FOLDERS = [
    (by_hand.edit("= words\n", "= words.T.contiguous()\n"), "arranged as in a GPTQ file"),
    (by_hand.edit("[*codes.shape]", "[*codes.shape][::-1]"), "weight_shape is the other way round"),
    (by_hand.edit('ignore=["lm_head"]', "ignore=[]"), "the head is not ignored"),
    (by_hand.edit("num_bits=4", "num_bits=8"), "the settings say 8 bits"),
    (by_hand.edit("{**floats}", "{}"), "only the packed layers are in the file"),
    (by_hand.edit("symmetric=True", "symmetric=False"), "the settings say that there are zero points"),
    (by_hand.edit("codes.int()", "codes.int() - 8 & 15"), "8 was subtracted"),
]

WRONG = {
    "checkpoints.words": WRONG_WORDS,
    "checkpoints.order": WRONG_ORDERS,
    "checkpoints.zeros": WRONG_ZEROS,
    "checkpoints.stream": WRONG_STREAMS,
    "checkpoints.folder": WRONG_FOLDERS,
}
RIGHT = {
    "checkpoints.words": [in_numpy, by_bytes, by_view],
    "checkpoints.order": [picked, halves],
    "checkpoints.zeros": [taken_apart, by_package, in_words],
    "checkpoints.stream": [as_one_number, by_bits, in_two_parts],
    "checkpoints.folder": [by_hand, in_shards],
}


@each(WRONG)
def test_a_wrong_answer_is_told_which_mistake_it_is(name, function, phrase):
    assert_told(WRONG, name, function, phrase)


@each(RIGHT)
def test_a_right_answer_passes_however_it_is_written(name, function):
    assert_right(name, function)


def test_words_are_the_same_with_and_without_a_sign():
    assert as_words([[0x87654321]], ()).tolist() == [[0x87654321 - 2**32]]
    assert as_words(np.array([[2**32 - 1]], np.uint32), ()).tolist() == [[-1]]
    for other in (None, "text", [[2**32]], [[0.5]], [[1], [2, 3]]):
        assert as_words(other, ()) is other


# --- the package with a learner's functions ---


@pytest.fixture(scope="module")
def packed():
    model, _ = qtutor.load_decoder()
    qtutor.quantize(model, qtutor.Recipe(bits=4, group_size=32), progress=False)
    return model


def written(model, place, form, **options) -> bytes:
    return (qtutor.export(model, place, format=form, **options) / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "name, function, form",
    [
        ("checkpoints.words", in_numpy, "gptq"),
        ("checkpoints.words", in_numpy, "compressed-tensors"),
        ("checkpoints.order", picked, "awq"),
        ("checkpoints.zeros", taken_apart, "gptq"),
        ("checkpoints.stream", by_bits, "compressed-tensors"),
    ],
)
def test_the_package_writes_and_reads_with_a_learners_function(packed, tmp_path, name, function, form):
    expected = written(packed, tmp_path / "ours", form)
    called = []
    with replaced(exercises.find(name), lambda *arguments: called.append(1) or function(*arguments)):
        assert written(packed, tmp_path / "theirs", form) == expected  # export reads the folder back before it names it
        back = qtutor.load_quantized(tmp_path / "theirs", device="cpu")
    assert called
    layer, again = (of.model.layers[0].mlp.up_proj.quantized() for of in (packed, back))
    assert torch.equal(layer.dequantize(), again.dequantize())


@pytest.mark.parametrize(
    "name, function, form",
    [
        ("checkpoints.words", WRONG_WORDS[0][0], "compressed-tensors"),
        ("checkpoints.order", WRONG_ORDERS[0][0], "awq"),
        ("checkpoints.zeros", WRONG_ZEROS[1][0], "gptq"),
        ("checkpoints.stream", WRONG_STREAMS[6][0], "compressed-tensors"),
    ],
)
def test_with_a_wrong_function_the_package_writes_nothing(packed, tmp_path, name, function, form):
    with replaced(exercises.find(name), function), pytest.raises(qtutor.QtutorError, match="was not written"):
        qtutor.export(packed, tmp_path / "out", format=form)
    assert not (tmp_path / "out").exists()


def test_other_numbers_of_bits_stay_the_packages():
    codes = torch.arange(64, dtype=torch.uint8).reshape(2, 32) % 8
    with replaced(exercises.find("checkpoints.words"), lambda codes, bits: 1 / 0):
        assert torch.equal(gptq.to_words(codes, 3), to_words(codes, 3))
    with replaced(exercises.find("checkpoints.zeros"), lambda qzeros, version: 1 / 0):
        zeros = gptq.zeros_of(to_words(codes, 8), 8, 32, "gptq_v2")
    assert torch.equal(zeros.T, codes)
    with replaced(exercises.find("checkpoints.order"), picked):
        assert torch.equal(awq._interleaved(codes.T[:8, :2].T.contiguous()[:, :8]), to_words(codes[:, awq.ORDER], 4))


# --- the folder's reader ---


def test_the_folder_of_a_case_is_new_for_every_run_and_described_in_words():
    import copy

    case = folders.cases()[0][1]
    first, second = copy.deepcopy(case)[0], copy.deepcopy(case)[0]
    assert first != second and first.is_dir() and not list(first.iterdir())
    assert repr(case[0]) == "an empty folder" and repr(case[1]).startswith("a config.json of 1 blocks")
    assert repr(case[2]).startswith("4 by name: ") and repr(case[3]).startswith("7 by name: ")


def test_transformers_is_asked_too_where_it_can(monkeypatch):
    import copy

    given = copy.deepcopy(folders.cases()[0][1])
    folders.right(*given)
    said, tokens = readers._asked(given[0])
    assert said == readers.LOADED and len(tokens) == readers.TOKENS
    monkeypatch.setattr(readers, "has_engine", lambda: True)
    monkeypatch.setattr(readers, "as_transformers_loads", lambda folder: qtutor.load_quantized(folder, device="cpu"))
    assert readers._asked(given[0]) == (said, tokens)

    def other(folder):
        model = qtutor.load_quantized(folder, device="cpu")
        model.model.embed_tokens.weight.data.neg_()
        return model

    monkeypatch.setattr(readers, "as_transformers_loads", other)
    assert readers._asked(given[0])[0].startswith("transformers loads it, but writes other tokens")

    def broken(folder):
        raise KeyError("no such scheme")

    monkeypatch.setattr(readers, "as_transformers_loads", broken)
    assert readers._asked(given[0]) == ("transformers: 'no such scheme'", [])


def test_the_pieces_of_a_model_make_a_folder_that_loads(packed, tmp_path):
    model, tokenizer = qtutor.load_decoder()
    qtutor.quantize(model, qtutor.Recipe(bits=4, symmetric=True, group_size=64), progress=False)
    folders.right(tmp_path, *folders.pieces_of(model))
    ids = [tokenizer("def mean(values):")["input_ids"]]
    loaded = qtutor.load_quantized(tmp_path, device="cpu")
    assert readers.tokens_of(loaded, ids, 16) == readers.tokens_of(model, ids, 16)

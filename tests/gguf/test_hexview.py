"""The parts of a block: every bit changes the weights that the view names, and `qtutor inspect` shows all parts."""

import re
import resource
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qtutor import cli
from qtutor.errors import QtutorError
from qtutor.gguf import TYPES, Tensor, anatomy, decode, encode, read, write
from qtutor.gguf.hexview import COLOURS, Block, as_text, block_of, format_numbers, part_text
from tests.gguf import inputs


def random_blocks(name: str, count: int, seed: int = 0) -> np.ndarray:
    """Random bytes, without floats that are infinite or NaN."""
    data = np.random.default_rng(seed).integers(0, 256, (count, TYPES[name].nbytes), np.uint8)
    at = 0
    for field in TYPES[name].fields:
        if field.kind != "bits":
            data[:, at + field.size - 1] &= 0xBF
        at += field.size
    if name == "NVFP4":
        data[:, :4][data[:, :4] & 0x7F == 0x7F] = 0x38  # NaN, which stands for 0 there
    return data


def moved(name: str, data: np.ndarray, byte: int, bit: int) -> set[int]:
    """The weights that change in at least one block if a bit is flipped, according to the decoder."""
    flipped = data.copy()
    flipped[:, byte] ^= 1 << bit
    before, after = (decode(blocks, name).view(np.uint32) for blocks in (data, flipped))
    return set(np.flatnonzero((before != after).any(axis=0)).tolist())


@pytest.mark.parametrize("name", TYPES)
@settings(deadline=None, max_examples=3)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_flipped_bit_moves_exactly_the_weights_that_the_view_names(name, seed):
    data = random_blocks(name, 40, seed)  # 40, because a code of 0 hides the effect of its scale
    for byte in range(TYPES[name].nbytes):
        parts = anatomy.parts_of(name, byte)
        of_the_byte = set()
        for bit in range(8):
            named = {
                weight
                for part in parts
                if part.trit is not None or part.low <= bit < part.low + part.bits
                for weight in part.weights
            }
            changed = moved(name, data, byte, bit)
            of_the_byte |= changed
            assert changed <= named, f"{name}, byte {byte}, bit {bit} moves {sorted(changed - named)} as well"
            if (name, byte // 4, bit) == ("NVFP4", 0, 7):
                assert not changed  # its scales have no sign, so this bit is not read
                of_the_byte |= named
            elif parts[0].trit is None:
                assert changed == named, f"{name}, byte {byte}, bit {bit} never moves {sorted(named - changed)}"
        assert of_the_byte == {weight for part in parts for weight in part.weights}  # trits share all bits of a byte


@pytest.mark.parametrize("name", TYPES)
def test_every_bit_belongs_to_one_item_and_every_item_has_all_its_bits(name):
    bits = {}
    for byte in range(TYPES[name].nbytes):
        parts = anatomy.parts_of(name, byte)
        if parts[0].trit is not None:
            assert [part.trit for part in parts] == list(range(len(parts))) and len(parts) in (4, 5)
            continue
        assert sorted(part.low + i for part in parts for i in range(part.bits)) == list(range(8))
        for part in parts:
            bits.setdefault((part.item, part.number), []).extend(range(part.shift, part.shift + part.bits))
    for found in bits.values():
        assert sorted(found) == list(range(len(found)))
    counts = anatomy.item_counts(name)
    assert all(TYPES[name].values % count == 0 for count in counts.values())
    assert counts.get("code", counts.get("value")) == TYPES[name].values


@pytest.mark.parametrize("name", TYPES)
def test_the_formula_of_the_items_is_the_weight(name):
    items = anatomy.item_counts(name)
    assert set(re.findall(r"\w+", anatomy.FORMULAS[name])) == set(items)
    for block, weights in zip(random_blocks(name, 4), decode(random_blocks(name, 4), name)):
        for i, weight in enumerate(weights.astype(np.float64)):
            values = {
                item: anatomy.item_value(name, block, item, i * n // TYPES[name].values) for item, n in items.items()
            }
            terms = np.abs([values.get("dmin", 0) * values.get("min", 0), values.get("m", 0), weight])
            assert abs(eval(anatomy.FORMULAS[name], {}, values) - weight) <= 2**-22 * terms.max()  # float32's rounding


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A file with a tensor of every type, and a tensor of a type that qtutor does not decode."""
    tensors = [
        Tensor(f"blk.0.{name}.weight", (2, 512), name, encode(inputs.gaussian(2, 512, i + 1), name))
        for i, name in enumerate(TYPES)
    ]
    tensors.append(Tensor("blk.1.other.weight", (1, 256), "IQ2_XS", np.arange(74, dtype=np.uint8)))
    metadata = {
        "general.architecture": "llama",
        "general.name": "a\x1b[31mb\n",
        "llama.context_length": 256,
        "llama.rope.freq_base": 10000.0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.tokens": [f"token{i}" for i in range(5000)],
        "tokenizer.ggml.token_type": np.ones(5000, np.int32),
        "tokenizer.chat_template": "{% for message in messages %}" * 50,
        "empty": [],
    }
    path = tmp_path_factory.mktemp("hexview") / "all.gguf"
    write(path, metadata, tensors)
    return path


@pytest.mark.parametrize("name", TYPES)
def test_the_text_holds_every_byte_under_its_field_and_every_weight(path, name):
    file = read(path)
    last = 1024 // TYPES[name].values - 1
    for number in (0, last):
        block = block_of(file, f"blk.0.{name}.weight", number)
        text = as_text(block)
        bytes_part, weights_part = text.split("\nweights\n")
        found, offsets = [], []
        for line in bytes_part.splitlines()[4:]:
            if match := re.fullmatch(r" *(\d+)((?:  [0-9a-f]{2})+)", line):
                offsets.append(int(match[1]))
                assert offsets[-1] == len(found)
                found += match[2].split()
        assert (
            bytes.fromhex("".join(found))
            == file.data(f"blk.0.{name}.weight").tobytes()[number * len(found) :][: len(found)]
        )
        at = 0
        for field in TYPES[name].fields:
            assert at in offsets and f"\n{field.name}, byte" in bytes_part and field.meaning in bytes_part
            at += field.size
        shown = np.array([float(cell) for line in weights_part.splitlines() for cell in line.split()[1:]])
        weights = decode(block.data[None], name)[0]
        assert np.abs(shown - weights).max() <= np.abs(weights).max() * 1e-3
        row = number * TYPES[name].values // 512
        assert f"block {number} (of 0 to {last}), row {row}, column" in text
        assert f"byte {file.tensors[block.title].offset + number * len(found):,} of the file" in text


def test_scales_are_shown_as_what_they_stand_for():
    scales, minima = [63, 1, 2, 3, 40, 50, 60, 33], [5, 6, 7, 8, 48, 31, 16, 62]
    packed = [scales[j] | (scales[j + 4] >> 4) << 6 for j in range(4)]
    packed += [minima[j] | (minima[j + 4] >> 4) << 6 for j in range(4)]
    packed += [scales[j + 4] & 15 | (minima[j + 4] & 15) << 4 for j in range(4)]
    data = np.frombuffer(np.float16([0.5, 0.25]).tobytes() + bytes(packed) + bytes([0x21] * 128), np.uint8)
    text = as_text(Block("t", TYPES["Q4_K"], data, 0, 1, (0, 0)))
    assert "\n      scale: 63 1 2 3 40 50 60 33\n      min: 5 6 7 8 48 31 16 62\n" in text
    assert "scale of the scales = 0.5\n" in text and "scale of the minima = 0.25\n" in text
    assert text.endswith(f"{0.5 * 33 * 2 - 0.25 * 62:.2f}")  # the last weight: a high nibble
    assert "of the file" not in text


def test_words_for_bits(path):
    file = read(path)
    block = block_of(file, "blk.0.Q4_K.weight")
    upper, lower = (part_text(block, part) for part in anatomy.parts_of("Q4_K", 5))
    assert re.fullmatch(r"bits 6 to 7: bits 4 to 5 of scale 5 \(\d+\); weights 160 to 191", upper)
    assert re.fullmatch(r"bits 0 to 5: scale 1 \(\d+\); weights 32 to 63", lower)
    high, low = (part_text(block, part) for part in anatomy.parts_of("Q4_K", 16))
    assert high.startswith("bits 4 to 7: code 32 (") and "weight 32 = " in high
    assert f" = {block.weights[0]:.6g}".replace("-", "−") in low and "weight 0 = " in low
    fifth = [part_text(block_of(file, "blk.0.Q5_0.weight"), part) for part in anatomy.parts_of("Q5_0", 3)]
    assert len(fifth) == 8 and fifth[0].startswith("bit 7: bit 4 of code 15 (") and "stands for" in fifth[0]
    trits = [part_text(block_of(file, "blk.0.TQ1_0.weight"), part) for part in anatomy.parts_of("TQ1_0", 1)]
    assert [text.split(" (")[0] for text in trits] == [f"trit {k}: code {32 * k + 1}" for k in range(5)]
    assert part_text(block, anatomy.parts_of("Q4_K", 1)[0]).startswith("bits 0 to 7: bits 8 to 15 of d (")


def test_numbers_have_the_places_that_the_largest_needs():
    assert format_numbers(np.float32([0.01234567, -0.5, -0.0])) == ["0.0123", "-0.5000", "0.0000"]
    assert format_numbers(np.float32([123456, 1])) == ["123456", "1"]
    assert format_numbers(np.float32([1e-20, 0]), 3) == ["1.00e-20", "0.00e+00"]
    assert format_numbers(np.float32([np.nan, np.inf, 0])) == ["nan", "inf", "0.0"]


def test_colour_adds_nothing_but_colour(path):
    block = block_of(read(path), "blk.0.Q5_K.weight", 1)
    plain, coloured = as_text(block), as_text(block, colour=True)
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == plain and "\x1b" not in plain
    assert coloured.count("\x1b[30;48;5;") == 176 + 5  # every byte and every name
    assert {field.name for of in TYPES.values() for field in of.fields} == set(COLOURS)


def test_a_type_without_decoder_still_shows_its_bytes(path):
    text = as_text(block_of(read(path), "blk.1.other.weight"))
    assert "  48  49" in text and "qtutor does not decode IQ2_XS" in text


def test_inspect_lists_metadata_tensors_and_bits_per_weight(path, capsys):
    assert cli.main(["inspect", str(path)]) == 0
    text = capsys.readouterr().out
    assert "\x1b" not in text and r"'a\x1b[31mb\n'" in text
    lines = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    assert lines["llama.context_length"][1:] == ["uint32", "256"]
    assert lines["llama.rope.freq_base"][1:] == ["float32", "10000.0"]
    assert lines["tokenizer.ggml.add_bos_token"][1:] == ["bool", "true"]
    assert lines["tokenizer.ggml.tokens"][1:3] == ["string[5000]", "'token0',"]
    assert lines["tokenizer.ggml.tokens"][-2:] == ["(5,000", "values)"]
    assert lines["tokenizer.ggml.token_type"][1:3] == ["int32[5000]", "1,"]
    assert lines["tokenizer.chat_template"][-2:] == ["(1,450", "characters)"]
    assert lines["empty"][1:] == ["string[0]"]
    assert max(map(len, text.splitlines())) < 160
    assert lines["blk.0.Q4_K.weight"][1:] == ["2", "x", "512", "Q4_K", "576", "4.5"]
    total = sum(info.nbytes for info in read(path).tensors.values())
    weights = 1024 * len(TYPES) + 256
    assert lines["total"][1:] == [f"{len(TYPES) + 1}", f"{weights:,}", f"{total:,}", f"{8 * total / weights:.4g}"]
    assert lines["IQ2_XS"][1:] == ["1", "256", "74", "2.312"]


def test_inspect_shows_a_block(path, capsys, monkeypatch):
    assert cli.main(["inspect", str(path), "--tensor", "blk.0.Q4_K.weight", "--block", "3"]) == 0
    plain = capsys.readouterr().out
    assert plain.rstrip("\n") == as_text(block_of(read(path), "blk.0.Q4_K.weight", 3))
    assert cli.main(["inspect", str(path), "--tensor", "blk.0.Q4_K.weight"]) == 0
    assert "block 0 (of 0 to 3)" in capsys.readouterr().out
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for setting, expected in (({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)):
        with monkeypatch.context() as patch:
            for key, value in setting.items():
                patch.setenv(key, value)
            cli.main(["inspect", str(path), "--tensor", "blk.0.Q4_K.weight", "--block", "3"])
            assert ("\x1b[" in capsys.readouterr().out) == expected


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--tensor", "blk.0.Q4K.weight"],
            "no tensor 'blk.0.Q4K.weight' among its 22. Did you mean blk.0.Q4_K.weight or",
        ),
        (["--tensor", "zzzzzz"], "lists all"),
        (["--tensor", "blk.0.Q4_K.weight", "--block", "4"], "blk.0.Q4_K.weight has no block 4: it has 4, 0 to 3"),
        (["--tensor", "blk.0.Q4_K.weight", "--block", "-1"], "has no block -1"),
        (["--block", "1"], "--block 1 needs a tensor"),
    ],
)
def test_what_is_not_there_is_said(path, capsys, arguments, said):
    assert cli.main(["inspect", str(path), *arguments]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_files_that_are_no_gguf(path, tmp_path, capsys):
    def refused(*arguments) -> str:
        assert cli.main(["inspect", *map(str, arguments)]) == 2
        return " ".join(capsys.readouterr().err.split())

    (tmp_path / "text.gguf").write_bytes(b"not a GGUF file at all")
    assert "this is no GGUF file" in refused(tmp_path / "text.gguf")
    (tmp_path / "cut.bin").write_bytes(path.read_bytes()[:1000])  # recognised by its first bytes
    assert "cut.bin" in refused(tmp_path / "cut.bin")
    (tmp_path / "text").write_bytes(b"text")
    assert "is not a GGUF file: --tensor and --block" in refused(tmp_path / "text", "--tensor", "a")
    (tmp_path / "empty").mkdir()
    assert "is not a GGUF file: --tensor and --block" in refused(tmp_path / "empty", "--tensor", "a")
    with pytest.raises(QtutorError, match="has no tensor"):
        block_of(read(path), "a")


def test_a_folder_with_gguf_files(path, capsys):
    assert cli.main(["inspect", str(path.parent)]) == 0
    assert "blk.0.Q4_K.weight" in capsys.readouterr().out


def test_files_of_gigabytes_are_only_mapped(tmp_path, capsys):
    file = tmp_path / "large.gguf"  # 4 GB of F16, but the disk holds only the header and the last block
    head = struct.pack("<4sIQQQ1sIQQIQ", b"GGUF", 3, 1, 0, 1, b"t", 2, 2**15, 2**16, 1, 0)
    with open(file, "wb") as out:
        out.write(head)
        out.truncate(-len(head) % 32 + len(head) + 2**32)
        out.seek(-2, 2)
        out.write(np.float16(1.5).tobytes())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert cli.main(["inspect", str(file)]) == 0
    assert "4,294,967,296" in capsys.readouterr().out
    assert cli.main(["inspect", str(file), "--tensor", "t", "--block", str(2**31 - 1)]) == 0
    assert "value, bytes 0 to 1: the weight itself = 1.5" in capsys.readouterr().out
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB

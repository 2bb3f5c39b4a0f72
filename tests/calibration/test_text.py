"""Calibration text: small files are read whole, large ones in excerpts, and files without text are refused at once."""

import itertools
import json
import os
import socket
import time
import tracemalloc

import pytest
import torch

import qtutor
from qtutor.calibration import text as calibration
from qtutor.calibration.text import calibration_text, check_text
from qtutor.errors import QtutorError
from tests.gguf.small_tokenizers import byte_level


@pytest.fixture(scope="module")
def tokenizer():
    return qtutor.load()[1]


@pytest.fixture
def excerpts(monkeypatch):
    """Small files count as large, too."""
    monkeypatch.setattr(calibration, "SMALL", 0)


LINES = [f"def function_{number}(x):\n    return x + {number}  # é 🙂\n" for number in range(4000)]


def test_a_small_file_is_read_whole_and_spread_evenly(tmp_path, tokenizer):
    text = "".join(LINES[:900])
    (tmp_path / "text.txt").write_text(text)
    ids = torch.tensor(tokenizer(text, verbose=False)["input_ids"])
    whole = len(ids) // 64
    expected = ids[: whole * 64].reshape(whole, 64)[torch.arange(10) * whole // 10]
    assert torch.equal(calibration_text(tmp_path / "text.txt", tokenizer, 64, 10), expected)
    (tmp_path / "text.txt").write_bytes(text.replace("\n", "\r\n").encode("utf-8-sig"))  # as Windows writes it
    assert torch.equal(calibration_text(tmp_path / "text.txt", tokenizer, 64, 10), expected)


def test_tokens_that_the_tokenizer_adds_may_complete_a_sample(tmp_path):
    """Fewer bytes than tokens are wanted: each byte is a token, and one token begins the text."""

    def tokenizer(text, verbose):
        return {"input_ids": [0, *text.encode()]}

    (tmp_path / "text.txt").write_text("a" * 15)
    assert calibration_text(tmp_path / "text.txt", tokenizer, 16, 2).tolist() == [[0] + 15 * [97]]
    with pytest.raises(QtutorError, match="has 16 tokens; one sample takes 17"):
        calibration_text(tmp_path / "text.txt", tokenizer, 17, 2)
    with pytest.raises(QtutorError, match="has 15 bytes; one sample takes 24 tokens"):
        calibration_text(tmp_path / "text.txt", tokenizer, 24, 2)


def test_a_large_file_is_read_in_excerpts_from_all_over_it(tmp_path, tokenizer, excerpts):
    file = tmp_path / "text.txt"
    file.write_text("".join(LINES))
    rows = calibration_text(file, tokenizer, 32, 20)
    assert rows.shape == (20, 32) and rows.dtype == torch.int64
    texts = [tokenizer.decode(row) for row in rows]
    whole = file.read_text()
    places = [whole.index(text) for text in texts]  # each text is a part of the file, with whole characters
    assert places == sorted(places) and places[0] == 0
    assert max(b - a for a, b in itertools.pairwise(places)) < 1.3 * len(whole) / 20
    assert all(text.startswith("def f") or text.startswith("    return") for text in texts)


def test_excerpts_of_a_file_without_lines_begin_at_characters(tmp_path, tokenizer, excerpts):
    file = tmp_path / "text.txt"
    file.write_text("漢字かな" * 20000)
    for row in calibration_text(file, tokenizer, 32, 20):
        assert "\ufffd" not in tokenizer.decode(row)[:-1]  # a row may end inside a character, but never begin there


def test_excerpts_have_no_bos_in_their_middle(tmp_path, excerpts):
    tokenizer = byte_level("llama-bpe", bos=True)
    (tmp_path / "text.txt").write_text("".join(LINES))
    assert not (calibration_text(tmp_path / "text.txt", tokenizer, 32, 20) == tokenizer.bos_token_id).any()


def test_time_and_memory_do_not_grow_with_the_file(tmp_path, tokenizer):
    file = tmp_path / "text.txt"
    with open(file, "wb") as opened:
        for _ in range(40):
            opened.write("".join(LINES).encode() * 5)
    assert file.stat().st_size > 40e6
    read = []
    tracemalloc.start()
    begin = time.monotonic()
    counting = lambda text, **options: read.append(len(text)) or tokenizer(text, **options)  # noqa: E731
    assert calibration_text(file, counting).shape == (128, 256)
    seconds = time.monotonic() - begin
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(read) < 2e6 and peak < 20e6 and seconds < 30


def test_pages_of_spaces_are_left_out(tmp_path, excerpts, monkeypatch):
    file = tmp_path / "text.txt"
    words = "".join(LINES).encode()
    by_words = lambda text, **_: {"input_ids": [0] * len(text.split())}  # noqa: E731
    file.write_bytes(words + b" " * (3 * len(words)))
    assert calibration_text(file, by_words, 64, 16).shape == (4, 64)
    file.write_text("\n" + " " * 3_000_000)
    with pytest.raises(QtutorError, match=r"none of the 16 places that were read has 256 tokens in [\d,]+ bytes"):
        calibration_text(file, by_words, 256, 16)
    monkeypatch.setattr(calibration, "WHOLE_RECORDS", 0)
    records = tmp_path / "records.jsonl"  # of records, whole parts of the file are read
    records.write_text((json.dumps({"text": "one two"}) + "\n") * 50_000)
    most = records.stat().st_size // 4
    with pytest.raises(QtutorError, match=f"none of the 4 places that were read has 60000 tokens in {most:,} bytes"):
        calibration_text(records, by_words, 60_000, 4)


@pytest.mark.parametrize("large", [False, True])
def test_bytes_that_are_no_utf_8_are_named(tmp_path, tokenizer, excerpts, large):
    file = tmp_path / "text.txt"
    text = "".join(LINES).encode()
    place = len(text) // 2 + 100 if large else 5000
    data = bytearray(text if large else text[:9000])
    data[place] = 0xFF
    file.write_bytes(data)
    with pytest.raises(
        QtutorError, match=rf"text.txt is no UTF-8 text: at byte {place:,} it has ff .*invalid start byte"
    ):
        calibration_text(file, tokenizer, 64, 2 if large else 200)
    file.write_bytes("é".encode("latin-1") * 5000)
    with pytest.raises(QtutorError, match="at byte 0 it has e9 e9 e9 e9"):
        check_text(file)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-16-le"])
def test_other_encodings_are_named(tmp_path, encoding):
    (tmp_path / "text.txt").write_text("x = 1\n" * 1000, encoding=encoding)
    expected = "many zero bytes" if encoding == "utf-16-le" else f"mark it as {encoding.upper()}"
    with pytest.raises(QtutorError, match=f"no UTF-8 text: .*{expected}.*iconv"):
        check_text(tmp_path / "text.txt")


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path, tokenizer):
    os.mkfifo(tmp_path / "pipe")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "socket"))
    os.symlink("loop", tmp_path / "loop")
    for name, kind in (
        (tmp_path / "pipe", "a pipe"),
        (tmp_path, "a folder"),
        ("/dev/zero", "a device"),
        (tmp_path / "socket", "a socket"),
        (tmp_path / "nothing", "No such file"),
        (tmp_path / "loop", "symbolic links"),
        ("a\0b", "not readable"),
    ):
        with pytest.raises(QtutorError, match=kind):
            calibration_text(name, tokenizer)
    listening.close()


def test_too_little_text(tmp_path, tokenizer):
    file = tmp_path / "text.txt"
    file.write_text("")
    with pytest.raises(QtutorError, match="0 bytes; one sample takes 256 tokens"):
        check_text(file)
    file.write_text("x = 1\n" * 50)
    with pytest.raises(QtutorError, match=r"tokens; one sample takes 256\. Name a longer"):
        calibration_text(file, tokenizer)
    assert calibration.LENGTH == 256

"""`qtutor eval --against`, `qtutor compare`, and a user's own texts: tables, JSON, pictures, early refusals."""

import json
import shutil

import pytest
from PIL import Image

import qtutor
from qtutor import cli
from qtutor.calibration import builtin
from qtutor.cli import compare
from qtutor.decoder import EMBEDDED
from qtutor.plots.base import new_figure, png
from tests.cli.test_cli import refused
from tests.gguf.small_tokenizers import byte_level
from tests.measure.test_generation import small

PROSE = "It was a bright cold day in the north, and the clock struck one. " * 40
SMALL = ["--tokens", "1024", "--window", "128"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The embedded decoder in 3 bits, in 4 bits and as a Q8_0 GGUF file, and a text."""
    here = tmp_path_factory.mktemp("measuring")
    for bits in ("3", "4"):
        assert cli.main(["quantize", "embedded", str(here / f"out{bits}"), "--bits", bits]) == 0
    assert cli.main(["quantize", "embedded", str(here / "q8.gguf"), "--type", "Q8_0"]) == 0
    (here / "text.txt").write_text("def mean(values):\n    return sum(values) / len(values)\n" * 200)
    return here


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A decoder with its own tokenizer, saved by transformers."""
    here = tmp_path_factory.mktemp("other")
    tokenizer = byte_level()
    small(len(tokenizer), context=512).save_pretrained(here)
    tokenizer.save_pretrained(here)
    return here


@pytest.fixture
def no_questions(monkeypatch):
    monkeypatch.setattr(qtutor.evaluate, "ast_validity", lambda model, tokenizer, count: 0.5, raising=False)
    monkeypatch.setattr(qtutor.evaluate, "task_accuracy", lambda model, tokenizer, count: {"sum": 0.25}, raising=False)


def told(arguments, capsys) -> str:
    capsys.readouterr()
    assert cli.main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def test_eval_against_the_float_decoder(folder, capsys, no_questions):
    arguments = ["eval", folder / "out4", "--against", "embedded", *SMALL]
    found = json.loads(told([*arguments, "--json"], capsys))
    model, tokenizer = qtutor.load(folder / "out4")
    reference, _ = qtutor.load("embedded")
    tokens = qtutor.evaluate.held_out_tokens(tokenizer, 1024)
    expected = qtutor.evaluate.compare(model, reference, tokens, window=128)
    assert (found["kl"], found["kl_error"]) == pytest.approx((expected.kl, expected.kl_error), rel=1e-5)
    assert (found["flips"], found["windows"], found["tokens"]) == (pytest.approx(expected.flips), 8, 8 * 127)
    assert found["float_perplexity"] == pytest.approx(expected.reference_perplexity, rel=1e-5)
    assert found["bytes"] == qtutor.evaluate.model_bytes(model) and found["against"] == "embedded"
    assert found["bits_per_weight"] == pytest.approx(qtutor.evaluate.bits_per_weight(model))

    table = told(arguments, capsys)
    rows = {line[:40].rsplit("  ", 1)[0].strip(): line.split()[-2:] for line in table.splitlines()}
    assert [f"{found['kl']:.5f}", f"{found['kl_error']:.5f}"] in rows.values()
    assert [f"{100 * found['flips']:.2f}", f"{100 * found['flips_error']:.2f}"] in rows.values()
    assert "Measured on 1,024 tokens of held-out code, in windows of 128" in table and "answers right, sum" in table


def test_a_text_of_ones_own(folder, tmp_path, capsys, no_questions):
    arguments = ["eval", "embedded", "--window", "64", "--tokens", "640", "--json"]
    found = json.loads(told([*arguments, "--text", folder / "text.txt"], capsys))
    assert found["windows"] == 10 and "640 tokens (10 samples of 64) of the" in found["text"]
    lines = [json.dumps({"text": "def mean(values):\n    return sum(values) / len(values)\n" * 20})] * 10
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    again = json.loads(told([*arguments, "--text", tmp_path / "a.jsonl"], capsys))
    assert "10 texts" in again["text"] and again["perplexity"] == pytest.approx(found["perplexity"], rel=0.1)


def test_other_decoders_are_measured_on_the_built_in_text_and_asked_nothing(other, capsys, monkeypatch):
    monkeypatch.setattr(qtutor.evaluate, "ast_validity", None, raising=False)
    found = json.loads(told(["eval", other, *SMALL, "--json"], capsys))
    assert "1,024 tokens (8 samples of 128) of the built-in held-out text" in found["text"]
    assert "answers" not in found and found["tokens_per_second"] > 0
    tokenizer = qtutor.load(other)[1]
    rows = builtin.builtin_held_out(tokenizer, 128, 8).token_ids
    assert found["perplexity"] == pytest.approx(qtutor.perplexity(qtutor.load(other)[0], rows), rel=1e-5)
    assert "answers right" not in told(["eval", other, *SMALL], capsys)


def test_compare_is_one_table_and_one_picture(folder, tmp_path, capsys):
    sources = [folder / name for name in ("out3", "out4", "q8.gguf")]
    arguments = ["compare", *sources, "--against", "embedded", *SMALL]
    picture = tmp_path / "kl.png"
    table = told([*arguments, "--picture", picture], capsys)
    rows = [line.split() for line in table.splitlines()]
    assert rows[0][:4] == ["decoder", "bytes", "bits", "perplexity"] and rows[2][0] == "embedded"
    assert [row[0] for row in rows[3:6]] == [str(source) for source in sources]
    with Image.open(picture) as image:
        assert image.format == "PNG" and min(image.size) > 400

    found = json.loads(told([*arguments, "--json", "--picture", tmp_path / "kl.svg"], capsys))
    assert (tmp_path / "kl.svg").read_text().startswith("<?xml")
    before = picture.read_bytes()
    told(["compare", sources[0], "--against", "embedded", *SMALL, "--picture", picture], capsys)
    assert picture.read_bytes() != before  # a picture that qtutor drew is replaced
    assert compare._is_ours(tmp_path / "kl.svg")
    three, four, file = found["decoders"]
    assert three["kl"] > 3 * four["kl"] and three["bytes"] < four["bytes"] < found["float"]["bytes"]
    assert file["bits_per_weight"] == pytest.approx(8 * file["bytes"] / 1_442_048, rel=0.01)
    single = json.loads(told(["eval", sources[1], "--against", "embedded", *SMALL, "--json"], capsys))
    for name in ("kl", "kl_error", "flips", "perplexity", "float_perplexity", "bytes", "bits_per_weight"):
        assert single[name] == pytest.approx(four[name], rel=1e-6), name


def test_what_was_measured_is_shown_where_a_later_one_fails(folder, tmp_path, capsys):
    shutil.copytree(folder / "out3", tmp_path / "broken")
    data = (tmp_path / "broken" / "model.safetensors").read_bytes()
    (tmp_path / "broken" / "model.safetensors").write_bytes(data[:-100])
    arguments = ["compare", folder / "out4", tmp_path / "broken", "--against", "embedded", *SMALL]
    assert cli.main([str(argument) for argument in arguments]) == 2
    out, error = capsys.readouterr()
    assert str(folder / "out4") in out and "KL" in out and error.startswith("qtutor: ") and "broken" in error


@pytest.fixture
def nothing_is_loaded(monkeypatch):
    """Bad arguments have to be refused before a model is loaded."""

    def load(*_arguments, **_keywords):
        raise AssertionError("loaded")

    monkeypatch.setattr(qtutor, "load", load)


def test_what_is_known_to_be_wrong_is_refused_before_anything_is_loaded(
    folder, other, tmp_path, capsys, nothing_is_loaded
):
    line = ["compare", folder / "out4", "--against", "embedded"]
    size = json.loads((other / "config.json").read_text())["vocab_size"]
    expected = f"different sizes (embedded 1,024, {folder / 'out4'} 1,024, {other} {size:,})"
    assert expected in refused([*line[:2], other, *line[2:]], capsys)
    assert "different sizes" in refused(["eval", folder / "q8.gguf", "--against", other], capsys)
    assert "ends in .png or .svg" in refused([*line, "--picture", tmp_path / "a.pdf"], capsys)
    (tmp_path / "a.png").mkdir()
    assert "that is a folder" in refused([*line, "--picture", tmp_path / "a.png"], capsys)
    figure, _ = new_figure()  # as any program with the same library draws it
    for name, data in (("mine.png", png(figure)), ("mine.svg", b"<svg></svg>"), ("notes.png", b"")):
        (tmp_path / name).write_bytes(data)
        assert "exists, and qtutor did not draw it" in refused([*line, "--picture", tmp_path / name], capsys)
        assert (tmp_path / name).read_bytes() == data
    (tmp_path / "link.png").symlink_to("nowhere")
    assert "exists, and qtutor did not draw it" in refused([*line, "--picture", tmp_path / "link.png"], capsys)
    assert "does not exist. Name a file in" in refused([*line, "--picture", tmp_path / "b" / "a.png"], capsys)
    assert "nothing.txt" in refused([*line, "--text", tmp_path / "nothing.txt"], capsys)
    assert "--window is 1" in refused([*line, "--window", "1"], capsys)
    assert "--tokens is 500, and one window takes 512" in refused([*line, "--tokens", "500"], capsys)
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"prompt": "b"}\n')
    assert "a.jsonl, line 2: it has the keys 'prompt'" in refused([*line, "--text", tmp_path / "a.jsonl"], capsys)
    for name in (tmp_path / "nosuch", "./nosuch", "a/b/c"):
        expected = f"{name} does not exist. Name 'embedded', a folder, a file or a hub id"
        assert expected in refused(["compare", "embedded", name, "--against", "embedded"], capsys)


def test_a_text_shorter_than_a_window(tmp_path, capsys, no_questions):
    (tmp_path / "short.txt").write_text("x = 1\n" * 100)
    message = refused(["eval", "embedded", "--text", tmp_path / "short.txt"], capsys)
    assert "tokens; one sample takes 512. Name a longer text" in message
    assert json.loads(told(["eval", "embedded", "--text", tmp_path / "short.txt", "--window", "32", "--json"], capsys))


def test_equal_sizes_of_other_tokens(folder, tmp_path, capsys):
    shutil.copytree(EMBEDDED, tmp_path / "shuffled")
    words = json.loads((tmp_path / "shuffled" / "tokenizer.json").read_text())
    ids = words["model"]["vocab"]
    ids["a"], ids["b"] = ids["b"], ids["a"]
    (tmp_path / "shuffled" / "tokenizer.json").write_text(json.dumps(words))
    for arguments in (["eval", folder / "out4", "--against", tmp_path / "shuffled"],
                      ["compare", tmp_path / "shuffled", "--against", "embedded"]):  # fmt: skip
        message = refused([*arguments, *SMALL], capsys)
        assert "do not use the same tokens" in message and " of the text's" in message


def test_tokens_that_the_model_does_not_embed(other, tmp_path, capsys):
    shutil.copytree(other, tmp_path / "added")
    words = json.loads((tmp_path / "added" / "tokenizer.json").read_text())
    number = json.loads((other / "config.json").read_text())["vocab_size"]
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    words["added_tokens"].append({"id": number, "content": "<|new|>"} | added)
    (tmp_path / "added" / "tokenizer.json").write_text(json.dumps(words))
    (tmp_path / "text.txt").write_text(f"{PROSE}<|new|>{PROSE}")
    for arguments in (["eval", tmp_path / "added", "--text", tmp_path / "text.txt", "--window", "64"],
                      ["quantize", tmp_path / "added", tmp_path / "out", "--method", "gptq", "--calibration",
                       tmp_path / "text.txt"]):  # fmt: skip
        assert "'<|new|>'" in refused(arguments, capsys)


def test_calibration_says_how_much_of_what_it_took(other, tmp_path, capsys):
    (tmp_path / "text.txt").write_text(PROSE * 20)
    sizes = ["--samples", "4", "--length", "64"]
    arguments = ["quantize", other, tmp_path / "out", "--method", "gptq", *sizes]
    text = told([*arguments, "--calibration", tmp_path / "text.txt"], capsys)
    assert "Calibration: 256 tokens (4 samples of 64) of the" in text and "text.txt" in text
    text = told(arguments, capsys)
    assert (
        "Calibration: 256 tokens (4 samples of 64) of the built-in text, 2 in English and 2 in Python. Text like"
        in text
    )
    text = told(["quantize", other, tmp_path / "out.gguf", "--method", "awq", *sizes, "--type", "q8_0"], capsys)
    assert "Calibration: 256 tokens" in text and "llama-cli -m" in text
    assert "Calibration" not in told(["quantize", other, tmp_path / "out"], capsys)


def test_nothing_that_json_does_not_have(folder, capsys, monkeypatch, no_questions):
    infinite = qtutor.evaluate.Measured(float("inf"), None, 7, 1)
    monkeypatch.setattr(qtutor.evaluate, "perplexity_with_error", lambda *_: infinite, raising=False)
    found = json.loads(told(["eval", "embedded", *SMALL, "--json"], capsys), parse_constant=lambda name: 1 / 0)
    assert found["perplexity"] is None is found["perplexity_error"]

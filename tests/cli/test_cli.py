"""The command line, run in this process, on the embedded decoder and on broken files."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

import qtutor
from qtutor import cli, gguf
from qtutor.decoder import text
from qtutor.formats.gguf_files import file_in
from qtutor.measure import generation

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ("learn", "progress", "quantize", "generate", "eval", "compare", "inspect")


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    """A folder that `qtutor quantize` wrote."""
    folder = tmp_path_factory.mktemp("cli") / "out"
    assert cli.main(["quantize", "embedded", str(folder), "--bits", "3", "--group-size", "128", "--clip", "mse"]) == 0
    return folder


def refused(arguments, capsys) -> str:
    """The message of a command that has to fail: one paragraph on stderr, status 2."""
    assert cli.main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("qtutor: ") and "Traceback" not in error and "\n\n" not in error
    return " ".join(error.split())


@pytest.mark.parametrize("arguments", [[], *([name] for name in COMMANDS)])
def test_help_shows_examples_that_parse(arguments, capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main([*arguments, "--help"])
    text = capsys.readouterr().out
    examples = text.split("examples:\n")[1].strip().splitlines()
    assert examples
    for line in examples:
        program, *rest = shlex.split(line, comments=True)
        assert program == "qtutor"
        assert cli.build_parser().parse_args(rest).run


def test_the_command_line_itself_imports_nothing_heavy():
    # qtutor/__init__.py is left out: tests/test_names.py checks what it imports.
    code = (
        "import sys, types; package = types.ModuleType('qtutor'); package.__path__ = ['qtutor'];"
        "sys.modules['qtutor'] = package; import qtutor.cli; qtutor.cli.build_parser();"
        "print(sorted({'torch', 'transformers', 'numpy', 'matplotlib'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.stdout.strip() == "[]", result.stderr


def test_learn_makes_the_workspace(tmp_path, monkeypatch, capsys):
    source = tmp_path / "notebooks"
    source.mkdir()
    (source / "00_start_here.ipynb").write_text('{"cells": []}')
    monkeypatch.setattr("qtutor.course.workspace.chapters_folder", lambda: source)
    assert cli.main(["learn", str(tmp_path / "mine"), "--no-start"]) == 0
    assert "new chapters: 00_start_here.ipynb" in capsys.readouterr().out
    assert (tmp_path / "mine" / "00_start_here.ipynb").exists()


def test_progress_shows_what_is_done(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / ".qtutor.json").write_text('{"delivered": {}}')
    (tmp_path / "mine" / "rtn_pack.py").write_text("answer = None")
    assert cli.main(["progress", str(tmp_path)]) == 0
    by_name = capsys.readouterr().out
    rows = [line for line in by_name.splitlines() if "rtn." in line]
    assert [line.endswith("done") for line in rows if "rtn.pack:" in line] == [True]
    assert all(line.endswith("not yet") for line in rows if "rtn.pack:" not in line)
    monkeypatch.chdir(tmp_path / "mine")
    assert cli.main(["progress"]) == 0
    assert capsys.readouterr().out == by_name
    monkeypatch.chdir(tmp_path.parent)
    assert "qtutor-course is not a workspace" in refused(["progress"], capsys)


def test_quantize_prints_its_report(quantized, tmp_path, capsys):
    assert cli.main(["quantize", "embedded", str(tmp_path / "out"), "--symmetric", "--group-size", "-1"]) == 0
    text = capsys.readouterr().out
    assert "model.layers.0.self_attn.q_proj" in text and "total" in text and "qtutor eval" in text


def test_calibration_text_comes_from_a_file(tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("def mean(values):\n    return sum(values) / len(values)\n" * 200)
    arguments = ["quantize", "embedded", str(tmp_path / "out"), "--method", "gptq", "--calibration", str(text)]
    assert cli.main(arguments) == 0
    assert (tmp_path / "out" / "model.safetensors").is_file()
    capsys.readouterr()  # the progress bar
    text.write_text("x = 1\n")
    assert "one sample takes 256" in refused(arguments, capsys)
    text.write_bytes(b"\xff\xfe\xfa")
    assert "no UTF-8 text" in refused(arguments, capsys)
    assert "nothing.txt" in refused([*arguments[:-1], tmp_path / "nothing.txt"], capsys)


def test_generate_continues_the_text(quantized, capsys):
    for source in ("embedded", str(quantized)):
        assert cli.main(["generate", source, "def add(a, b):", "--max-new-tokens", "8"]) == 0
        text = capsys.readouterr().out
        assert text.startswith("def add(a, b):") and len(text) > len("def add(a, b):\n")


@pytest.fixture
def measured(monkeypatch, capsys):
    """A function that returns the numbers of `qtutor eval --json`, without the speed. Slow measures are replaced."""
    some = text.held_out_tokens
    monkeypatch.setattr(text, "held_out_tokens", lambda tokenizer, limit: some(tokenizer)[:2048])
    monkeypatch.setattr(qtutor.evaluate, "ast_validity", lambda model, tokenizer, count: 0.5, raising=False)
    monkeypatch.setattr(qtutor.evaluate, "task_accuracy", lambda model, tokenizer, count: {"sum": 0.25}, raising=False)

    def values(source) -> dict:
        capsys.readouterr()
        assert cli.main(["eval", str(source), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found.pop("source") == str(source) and found.pop("tokens_per_second") > 0 and found.pop("notes")
        return found

    return values


def test_eval_prints_every_measure(quantized, measured):
    values = measured(quantized)
    assert 1 < values["perplexity"] < 1e6 and 0 < values["perplexity_error"] < values["perplexity"]
    assert values["bytes"] > 100_000 and 4 < values["bits_per_weight"] < 9  # layers of 3 bits, embeddings of 16
    assert values["ast_validity"] == 0.5 and values["answers"] == {"sum": 0.25}


@pytest.fixture(scope="module")
def gguf_folder(tmp_path_factory):
    """A folder with the model.gguf that `qtutor quantize` wrote, in 8 bits."""
    folder = tmp_path_factory.mktemp("gguf")
    assert cli.main(["quantize", "embedded", str(folder), "--format", "gguf", "--type", "Q8_0"]) == 0
    return folder


def test_a_gguf_file_is_evaluated_with_its_own_tokenizer(gguf_folder, tmp_path, measured):
    values = measured(gguf_folder / "model.gguf")
    assert values["perplexity"] == pytest.approx(measured("embedded")["perplexity"], rel=0.01)
    stored = sum(info.nbytes for info in gguf.read(gguf_folder / "model.gguf").tensors.values())
    assert values["bytes"] == stored < (gguf_folder / "model.gguf").stat().st_size
    shutil.copy(gguf_folder / "model.gguf", tmp_path / "another_name")
    for source in (gguf_folder, tmp_path / "another_name"):
        assert measured(source) == values


def test_generate_from_a_gguf_file(gguf_folder, capsys):
    written = []
    for source in ("embedded", gguf_folder / "model.gguf", gguf_folder):
        assert cli.main(["generate", str(source), ">>> 37 + 48\n", "--max-new-tokens", "4"]) == 0
        written.append(capsys.readouterr().out)
    assert written[0] == written[1] == written[2] and "85" in written[0]


def test_which_file_a_folder_stands_for(gguf_folder, tmp_path):
    assert file_in(str(gguf_folder)) == gguf_folder / "model.gguf"
    shutil.copy(gguf_folder / "model.gguf", tmp_path / "Theirs.GGUF")
    (tmp_path / "config.json").write_text("{}")  # as beside GGUF files on the hub
    assert file_in(str(tmp_path)) == tmp_path / "Theirs.GGUF"
    for other in ("model-00001-of-00002.safetensors", "qtutor.json"):  # a checkpoint with a GGUF file beside it
        (tmp_path / other).write_text("{}")
        assert file_in(str(tmp_path)) is None
        assert file_in(str(tmp_path), alone=False) == tmp_path / "Theirs.GGUF"
        (tmp_path / other).unlink()
    shutil.copy(gguf_folder / "model.gguf", tmp_path / "b.gguf")
    with pytest.raises(qtutor.QtutorError, match=r"2 GGUF files \('Theirs.GGUF', 'b.gguf'\): name the one that is"):
        file_in(str(tmp_path))
    shutil.copy(gguf_folder / "model.gguf", tmp_path)
    assert file_in(str(tmp_path)) == tmp_path / "model.gguf"
    assert file_in("embedded") is None and file_in("somebody/model-GGUF") is None


def rewritten(folder, path, **changes):
    """The file with changed metadata (None removes a key); its tensors stay the same."""
    file = gguf.read(folder / "model.gguf")
    keys = file.metadata | {key.replace("__", "."): value for key, value in changes.items()}
    tensors = [gguf.Tensor(name, info.shape, info.type.name, file.data(name)) for name, info in file.tensors.items()]
    gguf.write(path, {key: value for key, value in keys.items() if value is not None}, tensors)
    return path


@pytest.mark.parametrize("command", [["eval"], ["generate", "x"]])
def test_gguf_files_that_qtutor_cannot_run(gguf_folder, tmp_path, capsys, command):
    def told(path):
        return refused([command[0], path, *command[1:]], capsys)

    path = tmp_path / "a.gguf"
    assert f"{path} cannot be read: No such file" in (said := told(path)) or f"{path} does not exist" in said
    other = told(rewritten(gguf_folder, path, qtutor__config=None, general__architecture="gpt2"))
    assert f"{path}: general.architecture is 'gpt2', but of llama.cpp's architectures qtutor runs only llama" in other
    other_words = told(rewritten(gguf_folder, path, tokenizer__ggml__pre="kimi-k2"))
    assert f"{path}: tokenizer.ggml.pre is kimi-k2" in other_words and "AutoTokenizer" in other_words
    path.write_bytes((gguf_folder / "model.gguf").read_bytes()[:5000])
    assert f"{path}: " in told(path)


def weights_of(path, name="blk.0.ffn_up.weight"):
    return gguf.read(path).weight(name)


def test_awq_scales_are_folded_into_a_gguf_file(tmp_path, monkeypatch, measured, capsys):
    text = tmp_path / "text.txt"
    text.write_text("def mean(values):\n    return sum(values) / len(values)\n" * 20)
    gguf_options = ["--format", "gguf", "--type", "Q8_0"]
    plain, awq, own = (tmp_path / f"{name}.gguf" for name in ("plain", "awq", "own"))
    with_text = ["--calibration", str(text)]
    assert cli.main(["quantize", "embedded", str(plain), *gguf_options, *with_text]) == 0
    assert cli.main(["quantize", "embedded", str(awq), *gguf_options, "--method", "awq", *with_text]) == 0
    # Scaled columns differ from the original ones far more than by rounding to 8 bits, but the outputs are the same.
    difference = np.abs(weights_of(awq) - weights_of(plain)).max(axis=0) / np.abs(weights_of(plain)).max(axis=0)
    assert np.median(difference) > 0.05
    values = [measured(path)["perplexity"] for path in (plain, awq)]
    assert values[1] == pytest.approx(values[0], rel=0.01)

    asked = []
    own_tokens = qtutor.decoder.text.calibration_tokens
    monkeypatch.setattr(
        qtutor.decoder.text, "calibration_tokens", lambda: asked.append(1) or own_tokens(samples=2, length=32)
    )
    assert cli.main(["quantize", "embedded", str(own), *gguf_options, "--method", "awq"]) == 0
    assert asked == [1] and not np.array_equal(weights_of(own), weights_of(plain))


def test_what_does_not_go_with_gguf(tmp_path, capsys):
    out = tmp_path / "a.gguf"
    for method in ("gptq", "awq+gptq", "nf4", "magic"):
        message = refused(["quantize", "embedded", out, "--format", "gguf", "--method", method], capsys)
        assert f"--method {method} does not go with --format gguf" in message and "or choose awq" in message
    options = ["--format", "gguf", "--method", "awq", "--group-size", "32"]
    assert "--group-size does not go with" in refused(["quantize", "embedded", out, *options], capsys)
    assert not out.exists()


def test_inspect_counts_the_bits_of_a_weight(quantized, capsys):
    assert cli.main(["inspect", str(quantized)]) == 0
    text = capsys.readouterr().out
    about = json.loads((quantized / "qtutor.json").read_text())
    row = next(line for line in text.splitlines() if line.startswith("model.layers.0.mlp.up_proj") and "asym" in line)
    bits_per_weight = float(row.split()[-1])
    assert set(about["layers"]) <= set(text.split())
    assert 3 < bits_per_weight < 3.5  # 3 bits, and a scale and a zero point for every 128 weights


def test_inspect_shows_tensors_and_metadata(tmp_path, capsys):
    file = tmp_path / "some.safetensors"
    save_file({"a": np.zeros((3, 5), np.float32), "b": np.zeros(7, np.uint8)}, file, metadata={"made": "here"})
    assert cli.main(["inspect", str(file)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["a", "F32", "3", "x", "5", "60"] in lines and ["b", "U8", "7", "7"] in lines and ["total", "67"] in lines
    assert lines[0][-2:] == ["{'made':", "'here'}"]


@pytest.mark.parametrize("keep", [0, 4, 40, -1])
def test_inspect_names_a_truncated_file(tmp_path, capsys, keep):
    file = tmp_path / "cut.safetensors"
    save_file({"a": np.zeros((30, 50), np.float32)}, file)
    file.write_bytes(file.read_bytes()[:keep])
    message = refused(["inspect", file], capsys)
    assert str(file) in message and ("cut off" in message or "truncated" in message)


def test_inspect_refuses_what_it_does_not_know(tmp_path, capsys):
    (tmp_path / "model.bin").write_bytes(b"pickle")
    assert "reads .safetensors" in refused(["inspect", tmp_path / "model.bin"], capsys)
    assert "holds no .safetensors" in refused(["inspect", tmp_path], capsys)
    assert "does not exist" in refused(["inspect", tmp_path / "nothing"], capsys)
    (tmp_path / "text.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0[]")
    assert "no readable safetensors header" in refused(["inspect", tmp_path / "text.safetensors"], capsys)


def test_bad_arguments_are_one_paragraph(tmp_path, capsys):
    assert "bits" in refused(["quantize", "embedded", tmp_path / "out", "--bits", "9"], capsys)
    assert "'magic'" in refused(["quantize", "embedded", tmp_path / "out", "--method", "magic"], capsys)
    assert "at least 1" in refused(["generate", "embedded", "x", "--max-new-tokens", "0"], capsys)
    assert "nobody/nothing" in refused(["generate", "nobody/nothing", "x"], capsys)
    with pytest.raises(SystemExit, match="2"):
        cli.main(["quantize", "embedded", str(tmp_path / "out"), "--format", "zip"])
    assert "'zip'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.fixture
def nothing_is_loaded(monkeypatch):
    """Bad arguments have to be refused before the model is loaded."""

    def load(*_arguments, **_keywords):
        raise AssertionError("loaded")

    monkeypatch.setattr(qtutor, "load", load)
    monkeypatch.setattr("qtutor.formats.streamed.opened", load)


def test_what_out_must_not_be(quantized, gguf_folder, tmp_path, capsys, monkeypatch, nothing_is_loaded):
    to_gguf, again = ["--format", "gguf"], ["--force", "--allow-requantize"]
    for name in ("SRC", "OUT"):
        shutil.copytree(quantized, tmp_path / name)
    shutil.copy(gguf_folder / "model.gguf", tmp_path)
    (tmp_path / "OUT" / "MY_NOTES.txt").write_text("mine")
    (tmp_path / "b.gguf").write_text("mine")
    (tmp_path / "link").symlink_to("SRC")
    monkeypatch.chdir(tmp_path)
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}

    def told(source, out, *options):
        return refused(["quantize", source, out, *options], capsys)

    for out in ("SRC", "SRC/", "SRC/out", "link", "link/out/", tmp_path / "SRC" / ".." / "SRC"):
        for source in ("SRC", "./SRC/", "link"):
            assert "which is read" in told(source, out) and "which is read" in told(source, out, *to_gguf)
    assert "the same as model.gguf, which is read" in told("model.gguf", "./model.gguf", *to_gguf, *again)
    assert "the same as b.gguf, which is read" in told(
        "embedded", "b.gguf", *to_gguf, "--force", "--calibration", "b.gguf"
    )
    assert "inside" in told("embedded", qtutor.decoder.EMBEDDED / "out")
    assert "(MY_NOTES.txt)" in told("embedded", "OUT")
    assert "b.gguf exists, and qtutor did not write it" in told("embedded", "b.gguf", *to_gguf)
    assert "named like a file" in told("embedded", "c.gguf", "--format", "qtutor")
    assert "the folder that you are in" in told("SRC", "")
    assert "bytes, and" in told("embedded", "n" * 300)
    assert "--force replaces a file" in told("embedded", "OUT", "--force")
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("options", [["--bits", "3"], ["--format", "gguf", "--type", "Q4_K_M"]])
def test_room_is_looked_for_before_anything_is_loaded(tmp_path, capsys, monkeypatch, nothing_is_loaded, options):
    """It asks for less room than the result takes, but not much less."""
    monkeypatch.setattr("qtutor.files.target.shutil.disk_usage", lambda base: SimpleNamespace(total=10**9, free=0))
    told = refused(["quantize", "embedded", tmp_path / "out", *options], capsys)
    least = int(told.split("at least ")[1].split()[0].replace(",", ""))
    monkeypatch.undo()
    assert cli.main(["quantize", "embedded", str(tmp_path / "out"), *options]) == 0
    made = sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    assert 0.7 * made < least < made


def test_a_hub_id_is_measured_once_it_is_loaded(tmp_path, capsys, monkeypatch):
    """Before the download, a model on the hub has no headers on this machine."""
    monkeypatch.setattr("qtutor.formats.hub.folder_of", lambda source: qtutor.decoder.EMBEDDED)
    monkeypatch.setattr("qtutor.pipeline.finished", None)
    monkeypatch.setattr("qtutor.files.target.shutil.disk_usage", lambda base: SimpleNamespace(total=10**9, free=10**5))
    assert "at least" in refused(["quantize", "somebody/model", tmp_path / "out"], capsys)


def test_force_replaces_a_file_of_others(tmp_path, capsys):
    (tmp_path / "a.gguf").write_text("theirs")
    arguments = ["quantize", "embedded", str(tmp_path / "a.gguf"), "--format", "gguf", "--type", "Q4_0"]
    assert cli.main([*arguments, "--force"]) == 0 == cli.main(arguments)
    assert "qtutor.config" in gguf.read(tmp_path / "a.gguf").metadata


def test_it_is_written_even_if_nobody_reads_the_report(tmp_path):
    command = [sys.executable, "-u", "-m", "qtutor.cli", "quantize", "embedded", str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as process:
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()
    assert process.returncode == 0 and (tmp_path / "out" / "qtutor.json").is_file()


def test_a_quantized_folder_without_tokenizer_says_so(quantized, tmp_path, capsys):
    shutil.copytree(quantized, tmp_path / "out")
    for file in (tmp_path / "out").glob("token*"):
        file.unlink()
    assert "tokenizer cannot be loaded" in refused(["generate", tmp_path / "out", "x"], capsys)


@pytest.mark.parametrize(("name", "bits"), [("int8", 8), ("int4", 4), ("fp8", "fp8")])
def test_generate_stores_keys_and_values_as_asked(monkeypatch, capsys, name, bits):
    given = []
    plain = generation.stored_in
    monkeypatch.setattr(generation, "stored_in", lambda cache, model: given.append(cache) or plain(cache, model))
    assert cli.main(["generate", "embedded", "def add(a, b):", "--max-new-tokens", "4", "--cache", name]) == 0
    assert given[0].bits == bits and capsys.readouterr().out.startswith("def add(a, b):")
    assert cli.main(["generate", "embedded", "def add(a, b):", "--max-new-tokens", "4"]) == 0 and given[1] is None


@pytest.mark.parametrize(
    ("own", "count"), [({}, "10000"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None), ({"GOMP_SPINCOUNT": "7"}, "7")]
)
def test_threads_wait_little_unless_the_user_says_how(own, count):
    program = (
        "import os, sys; from qtutor import cli\n"
        "assert 'torch' not in sys.modules, 'too late: torch has read how its threads shall wait'\n"
        "try: cli.main(['--version'])\nexcept SystemExit: pass\nprint(os.environ.get('GOMP_SPINCOUNT'))"
    )
    clean = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    said = subprocess.run([sys.executable, "-c", program], env=clean | own, capture_output=True, text=True, check=True)
    assert said.stdout.split()[-1] == str(count)

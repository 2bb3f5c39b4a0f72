"""More of the command line: spellings, options of a recipe, terminals, short contexts, parts of files."""

import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

import qtutor
from qtutor import cli, gguf
from qtutor.cli.generate import Streamer
from qtutor.decoder import EMBEDDED
from qtutor.gguf import imatrix
from tests.cli.test_cli import refused
from tests.measure.test_generation import small

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A GGUF file whose format follows from its name."""
    file = tmp_path_factory.mktemp("options") / "whole.gguf"
    assert cli.main(["quantize", "embedded", str(file), "--type", "q8_0"]) == 0
    return file


@pytest.fixture
def short(tmp_path):
    """A checkpoint whose context has 128 positions."""
    small(1024, context=128, eos_token_id=0, bos_token_id=0).save_pretrained(tmp_path / "short")
    AutoTokenizer.from_pretrained(EMBEDDED).save_pretrained(tmp_path / "short")
    return tmp_path / "short"


def about(folder) -> dict:
    return json.loads((Path(folder) / "qtutor.json").read_text())


def test_case_does_not_matter(tmp_path, whole):
    assert gguf.read(whole).weight("blk.0.attn_q.weight").shape and whole.is_file()
    assert cli.main(["quantize", "embedded", str(tmp_path / "Model.GGUF"), "--type", "iq4_xs"]) == 0
    assert (tmp_path / "Model.GGUF").is_file()
    assert gguf.read(tmp_path / "Model.GGUF").tensors["blk.0.attn_q.weight"].type.name == "IQ4_XS"
    model, _ = qtutor.load(tmp_path / "Model.GGUF")
    assert model.dtype == torch.float32
    assert cli.main(["quantize", "embedded", str(tmp_path / "out"), "--method", "NF4", "--format", "QTUTOR"]) == 0
    assert about(tmp_path / "out")["recipe"]["method"] == "nf4"


def test_options_of_a_recipe(tmp_path, capsys):
    options = ["--keep", "*.down_proj, model.layers.0.*", "--embeddings", "--lm-head", "--device", "cpu"]
    assert cli.main(["quantize", "embedded", str(tmp_path / "out"), *options]) == 0
    recipe = about(tmp_path / "out")["recipe"]
    assert recipe["layers"] == {"*.down_proj": "float", "model.layers.0.*": "float"}
    layers = set(about(tmp_path / "out")["layers"])
    assert {"model.embed_tokens", "lm_head", "model.layers.1.mlp.up_proj"} <= layers
    assert not any(name.endswith("down_proj") or ".layers.0." in name for name in layers)

    text = tmp_path / "text.txt"
    text.write_text("def mean(values):\n    return sum(values) / len(values)\n" * 60)
    options = ["--method", "GPTQ", "--act-order", "Columns", "--damping", "0.05", "--calibration", str(text)]
    sizes = ["--samples", "3", "--length", "64"]
    assert cli.main(["quantize", "embedded", str(tmp_path / "gptq"), *options, *sizes]) == 0
    recipe = about(tmp_path / "gptq")["recipe"]
    assert (recipe["damping"], recipe["act_order"]) == (0.05, "columns")


@pytest.mark.parametrize(("levels", "group_size"), [("mxfp4", 32), ("nvfp4", 16)])
def test_levels(tmp_path, levels, group_size, capsys):
    out = tmp_path / "out"
    assert cli.main(["quantize", "embedded", str(out), "--levels", levels.upper(), "--device", "cpu"]) == 0
    assert about(out)["recipe"]["levels"] == levels
    layer = about(out)["layers"]["model.layers.0.mlp.up_proj"]
    assert (layer["grid"], layer["bits"], layer["group_size"]) == (levels, 4, group_size)
    model, exact = qtutor.load(out, device="cpu")[0], qtutor.load_decoder(device="cpu")[0]
    qtutor.quantize(exact, qtutor.Recipe(levels), progress=False)
    for name, module in exact.named_modules():
        if hasattr(module, "quantized"):
            assert torch.equal(model.get_submodule(name).quantized().dequantize(), module.quantized().dequantize())
    capsys.readouterr()
    assert cli.main(["inspect", str(out)]) == 0
    assert re.search(rf"model.layers.0.mlp.up_proj +4 +{group_size} +{levels} +4\.", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--levels", "fp4"], "levels = 'fp4'"),
        (["--levels", "mxfp4", "--method", "nf4"], "method 'nf4' has its own; leave levels out"),
        (["--levels", "mxfp4", "--bits", "8"], "levels of 'mxfp4' have 4 bits"),
        (["--levels", "fp8", "--bits", "4"], "bits = 4: levels of 'fp8' have 8 bits. Leave it out"),
        (["--levels", "mxfp4", "--type", "Q4_K_M", "--format", "gguf"], "--levels does not go with --format gguf"),
    ],
)
def test_levels_that_do_not_fit(tmp_path, capsys, options, part):
    assert part in " ".join(refused(["quantize", "embedded", tmp_path / "out", *options], capsys).split())
    assert not (tmp_path / "out").exists()


def test_how_much_text_is_read(tmp_path, monkeypatch):
    seen = []
    own = qtutor.quantize_to
    monkeypatch.setattr(
        qtutor,
        "quantize_to",
        lambda w, out, r, calibration, *_, tell: seen.append(calibration) or own(w, out, qtutor.Recipe(), tell=tell),
    )
    text = tmp_path / "text.txt"
    text.write_text("def mean(values):\n    return sum(values) / len(values)\n" * 60)
    base = ["quantize", "embedded", str(tmp_path / "out"), "--method", "gptq"]
    assert cli.main([*base, "--calibration", str(text), "--samples", "3", "--length", "64"]) == 0
    assert cli.main([*base, "--samples", "3", "--length", "64"]) == 0
    assert cli.main(base) == 0
    assert [ids if ids is None else tuple(ids.shape) for ids in seen] == [(3, 64), (3, 64), None]


def test_samples_are_cut_to_a_short_context(tmp_path, short, capsys):
    text = tmp_path / "text.txt"
    text.write_text("def mean(values):\n    return sum(values) / len(values)\n" * 60)
    out = tmp_path / "out"
    assert cli.main(["quantize", str(short), str(out), "--method", "gptq", "--calibration", str(text)]) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "the model's context is 128 tokens, so samples have 128 tokens and not 256" in told
    assert (out / "model.safetensors").is_file()


def test_a_short_context_is_evaluated_as_far_as_it_goes(short, capsys):
    assert cli.main(["eval", str(short)]) == 0
    text = capsys.readouterr().out
    assert "windows of that size, not 512" in text and "functions do not fit into the context" in text
    assert re.search(r"perplexity +\d+\.\d", text) and re.search(r"answers right, sum +\d+%", text)


@pytest.mark.parametrize("command", ["eval", "compare"])
def test_a_few_tokens_suffice_where_the_context_is_short(short, capsys, command):
    against = ["--against", str(short)] if command == "compare" else []
    ask = [command, str(short), *against, "--json", "--window", "4096", "--tokens"]
    assert cli.main([*ask, "300"]) == 0
    assert json.loads(capsys.readouterr().out)["window"] == 128
    assert "--tokens is 100, and one window takes 128" in refused([*ask, "100"], capsys)
    assert "--tokens is 0; it takes at least 2 tokens" in refused([*ask, "0"], capsys)


def test_a_whole_file_that_is_named_as_a_part_is_whole(tmp_path, whole):
    """The content of a file decides whether it is a part; the name does not matter."""
    part = tmp_path / "whole-00002-of-00003.gguf"
    part.write_bytes(whole.read_bytes())
    for number, source in enumerate((whole, part)):
        assert cli.main(["quantize", str(source), str(tmp_path / str(number)), "--allow-requantize"]) == 0
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in "01")
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_an_importance_matrix_from_a_file(tmp_path, capsys):
    model, _ = qtutor.load()
    matrix = imatrix.importance(model, torch.arange(512)[None])
    imatrix.write(tmp_path / "imatrix.gguf", matrix)
    plain, guided = tmp_path / "plain.gguf", tmp_path / "guided.gguf"
    assert cli.main(["quantize", "embedded", str(plain), "--type", "Q4_K_S"]) == 0
    options = ["--type", "Q4_K_S", "--imatrix", str(tmp_path / "imatrix.gguf")]
    assert cli.main(["quantize", "embedded", str(guided), *options]) == 0
    expected = qtutor.export(
        model, tmp_path / "expected.gguf", format="gguf", type="Q4_K_S", importance=matrix, tokenizer=qtutor.load()[1]
    )
    name = "blk.0.ffn_up.weight"
    assert np.array_equal(gguf.read(guided).data(name), gguf.read(expected).data(name))
    assert not np.array_equal(gguf.read(guided).data(name), gguf.read(plain).data(name))


@pytest.mark.parametrize("name", ["sha256-abcdef", "model.GGUF", "model.v2"])
def test_a_file_is_known_by_its_content_in_every_command(tmp_path, whole, name, capsys):
    """Some tools store files under names without a suffix."""
    file = tmp_path / name
    shutil.copy(whole, file)
    assert cli.main(["generate", str(file), "def f(", "--max-new-tokens", "2"]) == 0
    assert cli.main(["inspect", str(file)]) == 0
    again = "--allow-requantize"
    assert cli.main(["quantize", str(file), str(tmp_path / "out"), again]) == 0
    assert cli.main(["quantize", str(file), str(tmp_path / "again.gguf"), again]) == 0
    assert "blk.0.attn_q.weight" in capsys.readouterr().out
    shutil.copy(tmp_path / "out" / "model.safetensors", tmp_path / "blob")
    assert cli.main(["inspect", str(tmp_path / "blob")]) == 0
    assert "model.norm.weight" in capsys.readouterr().out


def test_rounded_weights_are_rounded_again_only_where_asked_to(tmp_path, whole, capsys):
    for out in ("out", "out.gguf"):
        message = refused(["quantize", whole, tmp_path / out], capsys)
        assert "rounded before (Q8_0: 8.5" in message and "add --allow-requantize" in message
        assert not (tmp_path / out).exists()
    assert cli.main(["quantize", str(whole), str(tmp_path / "out"), "--plan"]) == 0  # a plan rounds nothing
    assert "holds weights that were rounded before" in " ".join(capsys.readouterr().err.split())
    model, tokenizer = qtutor.load_decoder()
    exact = qtutor.export(model, tmp_path / "exact.gguf", format="gguf", type="F32", tokenizer=tokenizer)
    assert cli.main(["quantize", str(exact), str(tmp_path / "out")]) == 0
    assert "rounded before" not in capsys.readouterr().err


def test_a_part_of_a_file_says_so(tmp_path, whole, capsys):
    file = gguf.read(whole)
    tensors = [gguf.Tensor(name, info.shape, info.type.name, file.data(name)) for name, info in file.tensors.items()]
    parts = [tmp_path / f"llama-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    for number, (part, keys) in enumerate(zip(parts, (file.metadata, {}, {}))):
        split = {
            "split.no": np.uint16(number),
            "split.count": np.uint16(3),
            "split.tensors.count": np.int32(len(tensors)),
        }
        gguf.write(part, keys | split, tensors[number::3])
    command = ["generate", "def f(", "--max-new-tokens", "4"]
    written = []
    for source in (whole, *parts, tmp_path):
        assert cli.main([command[0], str(source), *command[1:]]) == 0
        written.append(capsys.readouterr().out)
        assert cli.main(["inspect", str(source)]) == 0
        table = capsys.readouterr().out
        assert (table.count(" bytes, GGUF version 3") == 3) == (source != whole) and "This is part" not in table
        assert all(f"{name} " in table for name in file.tensors) and "general.architecture" in table
    assert len(set(written)) == 1
    assert cli.main(["inspect", str(parts[1]), "--tensor", "blk.0.attn_norm.weight"]) == 0

    parts[1].unlink()
    assert cli.main(["inspect", str(parts[0])]) == 0
    line = capsys.readouterr().out.split("This is ")[1]
    assert "part 1 of 3" in line and "llama-00002-of-00003.gguf (not here), llama-00003-of-00003.gguf." in line
    assert "these are not here: llama-00002-of-00003.gguf. Put them" in refused(["eval", parts[2]], capsys)

    split = {"split.no": np.uint16(1), "split.count": np.uint16(2)}
    gguf.write(tmp_path / "renamed.gguf", file.metadata | split, tensors)
    assert cli.main(["inspect", str(tmp_path / "renamed.gguf")]) == 0
    assert "This is part 2 of 2 of a split file, under another name" in capsys.readouterr().out
    assert cli.main(["inspect", str(whole)]) == 0
    assert "part" not in capsys.readouterr().out.splitlines()[1]


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_no_terminal_is_too_poor(tmp_path, whole, encoding):
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT)}
    named = tmp_path / "größe-模.gguf"
    shutil.copy(whole, named)
    for arguments in (["generate", "embedded", "# é 模 🙂\n", "--max-new-tokens", "3"], ["inspect", str(named)]):
        command = [sys.executable, "-m", "qtutor.cli", *arguments]
        done = subprocess.run(command, capture_output=True, env=environment, cwd=tmp_path)
        assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr
        assert ("模".encode() in done.stdout) == (encoding == "utf-8") and (b"?" in done.stdout) == (
            encoding != "utf-8"
        )
    missing = [sys.executable, "-m", "qtutor.cli", "inspect", "模.gguf"]
    done = subprocess.run(missing, capture_output=True, env=environment, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith(b"qtutor: ") and b"Traceback" not in done.stderr


@pytest.mark.parametrize("redirect", [">&-", ">/dev/full", "2>&-", "| head -n 1"])
def test_streams_that_are_closed_or_full(whole, redirect):
    if redirect == ">/dev/full" and not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    command = f"{sys.executable} -m qtutor.cli inspect {whole} {redirect}"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, shell=True, capture_output=True, text=True, env=environment)
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    assert done.returncode == (2 if redirect == ">/dev/full" else 0)
    assert ("No space left" in done.stderr) == (redirect == ">/dev/full")


def test_a_text_is_shown_while_it_is_written_and_only_in_whole_characters(capsys):
    model, tokenizer = qtutor.load()
    pieces = []
    text = qtutor.generate(model, tokenizer, "def mean(", 12, Streamer(tokenizer, [0], pieces.append))
    assert len(pieces) > 5 and "def mean(" + "".join(pieces) == text
    assert cli.main(["generate", "embedded", "def mean(", "--max-new-tokens", "12"]) == 0
    assert capsys.readouterr().out == text + "\n"

    pieces = []
    streamer = Streamer(tokenizer, [0], pieces.append)
    streamer.put(torch.tensor([[1, 2]]))  # the prompt
    ids = tokenizer("é🙂 x")["input_ids"]
    assert len(ids) >= 7  # most tokens are single bytes
    for number in ids:
        streamer.put(torch.tensor([number]))
    streamer.put(torch.tensor([0]))
    streamer.put(torch.tensor([ids[0]]))  # after the end
    streamer.end()
    assert "".join(pieces) == "é🙂 x" and not any("\ufffd" in piece for piece in pieces)


def test_warnings_are_paragraphs(monkeypatch, capsys):
    def run(_options):
        warnings.warn("tokenizer: something is odd.", stacklevel=1)
        return 0

    monkeypatch.setattr("qtutor.cli.inspect.inspect", run)
    assert cli.main(["inspect", "x"]) == 0
    assert capsys.readouterr().err == "qtutor: attention, tokenizer: something is odd.\n"


@pytest.mark.parametrize("error, said", [
    (RuntimeError("a\n\nb"), "RuntimeError: a b (test_options.py, line"),
    (MemoryError(), "not enough memory"),
    (RuntimeError("CUDA out of memory. Tried"), "not enough memory"),
    (type("PanicException", (BaseException,), {})("index out of bounds"), "PanicException: index out of bounds"),
])  # fmt: skip
def test_what_nobody_foresaw_is_a_paragraph_too(monkeypatch, capsys, error, said):
    def run(_options):
        raise error

    monkeypatch.delenv("QTUTOR_TRACEBACK", raising=False)
    monkeypatch.setattr("qtutor.cli.inspect.inspect", run)
    assert cli.main(["inspect", "x"]) == 1
    text = capsys.readouterr().err
    assert text.startswith("qtutor: ") and said in " ".join(text.split()) and "\n\n" not in text
    monkeypatch.setenv("QTUTOR_TRACEBACK", "1")
    with pytest.raises(type(error)):
        cli.main(["inspect", "x"])


def test_bars_are_for_people(tmp_path, monkeypatch, capsys):
    """stderr is not a terminal here, so it must not contain a progress bar."""
    assert cli.main(["quantize", "embedded", str(tmp_path / "a.gguf"), "--type", "q2_k"]) == 0
    assert "encoding" not in capsys.readouterr().err
    seen = []
    monkeypatch.setattr("tqdm.tqdm.update", lambda self, count=1: seen.append(count))
    model, _ = qtutor.load()
    with cli.terminal.passes(model, "perplexity", 3):
        model(torch.tensor([[1, 2]]))
        model(torch.tensor([[1, 2]]))
    model(torch.tensor([[1, 2]]))
    assert len(seen) == 2

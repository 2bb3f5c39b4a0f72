"""`qtutor quantize` into other tools' formats and for an engine, and the same in Python."""

import pytest

import qtutor
from qtutor import cli
from qtutor.formats import converting
from tests.formats.test_converting import said
from tests.gguf.small_tokenizers import letters
from tests.models import tiny


@pytest.fixture
def source(tmp_path):
    """A float checkpoint whose layers are too small for most GPU kernels."""
    tiny(tied=False).save_pretrained(tmp_path / "float")
    letters().save_pretrained(tmp_path / "float")
    return tmp_path / "float"


@pytest.mark.parametrize(
    ("options", "form"),
    [
        (["--format", "gptq", "--symmetric"], "gptq"),
        (["--format", "AWQ"], "awq"),
        (["--format", "bitsandbytes", "--method", "nf4"], "bitsandbytes"),
        (["--target", "Transformers", "--bits", "3"], "compressed-tensors"),
        (["--target", "vllm-cpu", "--format", "awq"], "awq"),
    ],
)
def test_a_folder_in_the_format(tmp_path, source, options, form, capsys):
    command = ["quantize", str(source), str(tmp_path / "out"), "--group-size", "32", *options]
    assert cli.main([*command, "--plan"]) == 0
    plan = capsys.readouterr().out
    assert f"Format: {form}" in plan and "whole model is in memory" in plan and not (tmp_path / "out").exists()
    assert "--target" not in options or f"which {options[1].lower()} reads" in plan
    assert cli.main(command) == 0
    assert f"Format: {form}" in capsys.readouterr().err
    recipe = cli.quantize.recipe_of(cli.build_parser().parse_args(command))
    model = qtutor.load(source, device="cpu")[0]
    qtutor.quantize(model, recipe, progress=False)
    expected = qtutor.export(model, tmp_path / "expected", form, letters())
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (expected / name).read_bytes()


def test_misfits_are_told_before_a_text_is_read(tmp_path, source, capsys, monkeypatch):
    monkeypatch.setattr("qtutor.cli.calibrating.calibration_of", lambda *_: pytest.fail("a text was read"))
    out = tmp_path / "out"
    options = ["quantize", source, out, "--method", "gptq", "--group-size", "32"]
    text = said(capsys, *options, "--target", "vllm")
    assert "vllm would not take 12 of 14 layers" in text and "64 inputs, no multiple of 128" in text
    assert "'float'" in text
    text = said(capsys, *options, "--target", "tensorrt-llm")
    assert "zero points" in text and "group_size=64 or 128" in text
    assert "does not read the format 'qtutor'" in said(capsys, *options, "--target", "vllm", "--format", "qtutor")
    assert "does not read the format 'gptq'" in said(capsys, *options, "--target", "llama.cpp", "--format", "gptq")
    assert "named like a file" in said(capsys, "quantize", source, tmp_path / "a.gguf", "--format", "gptq")
    assert "goes with --format gguf" in said(capsys, *options, "--format", "gptq", "--type", "Q8_0")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["float"]


def test_what_a_format_cannot_hold_is_told_before_rounding(tmp_path, source, capsys, monkeypatch):
    monkeypatch.setattr("qtutor.quantize", lambda *_: pytest.fail("something was rounded"))
    text = said(capsys, "quantize", source, tmp_path / "out", "--format", "gptq", "--bits", "5", "--group-size", "32")
    assert "14 of 14 layers do not fit" in text and "hold all of them as they are: compressed-tensors" in text
    text = said(capsys, "quantize", source, tmp_path / "out", "--format", "modelopt", "--group-size", "32")
    assert "zero points" in text and "awq" in text
    assert not (tmp_path / "out").exists()


def test_a_plan_of_a_gguf_file(tmp_path, source, capsys):
    out = tmp_path / "a.gguf"
    assert cli.main(["quantize", "embedded", str(out), "--target", "llama.cpp", "--type", "q8_0", "--plan"]) == 0
    plan = capsys.readouterr().out
    assert "one GGUF file for llama.cpp, of the type Q8_0" in plan and not out.exists()
    assert cli.main(["quantize", "embedded", str(out), "--target", "llama.cpp", "--type", "q8_0"]) == 0
    planned = int(plan.split("Result: ")[1].split(" bytes")[0].replace(",", ""))
    assert planned == out.stat().st_size


def test_export_for_an_engine(tmp_path):
    model = tiny(tied=False)
    qtutor.quantize(model, qtutor.Recipe(group_size=32), progress=False)
    folder = qtutor.export(model, tmp_path / "a", tokenizer=letters(), target="Transformers")
    assert converting.packed(folder)[0].config.model_type == "llama"
    assert qtutor.export(model, tmp_path / "b", "awq", target="vllm-cpu") == tmp_path / "b"
    with pytest.raises(qtutor.QtutorError, match=r"vllm would not take 12 of 14 layers.*no multiple of 128"):
        qtutor.export(model, tmp_path / "c", target="vllm")
    with pytest.raises(qtutor.QtutorError, match=r"vllm does not read the format 'gguf'"):
        qtutor.export(model, tmp_path / "c", "gguf", target="vllm")
    with pytest.raises(qtutor.QtutorError, match=r"target = 'ollama': choose one of"):
        qtutor.export(model, tmp_path / "c", target="Ollama")
    with pytest.raises(qtutor.QtutorError, match="target = 3: choose one of"):
        qtutor.export(model, tmp_path / "c", target=3)
    path = qtutor.export(tiny(), tmp_path / "d.gguf", tokenizer=letters(), target="llama.cpp", type="Q8_0")
    assert path.name == "d.gguf" and not (tmp_path / "c").exists()

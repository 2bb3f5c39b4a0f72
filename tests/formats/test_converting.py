"""Conversion: the same codes, scales and zero points in a different layout, or one paragraph with the reason."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qtutor
from qtutor import cli
from qtutor.core.grid import IntGrid
from qtutor.core.quantized import PER_CHANNEL, QuantizedTensor
from qtutor.families import linear_layers
from qtutor.formats import ENGINES, FOREIGN, compressed_tensors, gguf_packed, gptq
from qtutor.formats.converting import convert
from qtutor.formats.foreign import Layout
from qtutor.formats.ways import TARGETS
from qtutor.gguf import coding
from tests.formats.foreign_folders import edit_settings, edit_tensors, exported, same
from tests.gguf.small_tokenizers import letters
from tests.models import some_ids, tiny


def test_the_engines_that_a_command_names_are_those_of_the_rules():
    assert ENGINES == TARGETS


@settings(deadline=None, max_examples=60)
@given(
    bits=st.sampled_from(gptq.BITS),
    rows=st.sampled_from([32, 64]),
    groups=st.integers(1, 3),
    symmetric=st.booleans(),
    per_row=st.booleans(),
    version=st.sampled_from(list(gptq.VERSIONS.values())),
    seed=st.integers(0, 10**6),
)
def test_layers_there_and_back_have_the_same_bytes(bits, rows, groups, symmetric, per_row, version, seed):
    """From GPTQ to compressed-tensors and back, with random codes, scales and zero points."""
    random = torch.Generator().manual_seed(seed)
    size, columns = (PER_CHANNEL if per_row else 32), 32 * groups
    grid, shape = IntGrid(bits, symmetric), (rows, 1 if per_row else groups)
    codes = torch.randint(0, 2**bits, (rows, columns), generator=random).to(torch.uint8)
    zeros = None if symmetric else torch.randint(1, 2**bits, shape, generator=random).to(torch.uint8)
    scales = torch.rand(shape, generator=random).half() + 1e-3
    first = gptq.encode(QuantizedTensor(codes, scales, zeros, grid, size), Layout(grid, size, version))
    read = gptq.decode(first, Layout(grid, size, version), rows, columns)
    between = Layout(grid, size, compressed_tensors.PACKED)
    again = compressed_tensors.decode(compressed_tensors.encode(read, between), between, rows, columns)
    last = gptq.encode(again, Layout(grid, size, version))
    assert first.keys() == last.keys() and all(torch.equal(first[key], last[key]) for key in first)


@pytest.mark.parametrize("method", ["mxfp4", "nvfp4"])
def test_floats_of_4_bits_there_and_back_have_the_same_bytes(tmp_path, method):
    first = exported(tmp_path / "a", "compressed-tensors", "qwen2", method=method)[1]
    convert(first, tmp_path / "b", "qtutor")
    convert(tmp_path / "b", tmp_path / "c", target="transformers")
    assert (first / "model.safetensors").read_bytes() == (tmp_path / "c" / "model.safetensors").read_bytes()
    with pytest.raises(qtutor.QtutorError, match=f"levels are {method}"):
        convert(first, tmp_path / "d", target="vllm-cpu")
    with pytest.raises(qtutor.QtutorError, match=method):
        convert(first, tmp_path / "d", "gptq")
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("recipe", [{}, {"bits": 8, "group_size": -1, "symmetric": True}, {"bits": 2}])
def test_folders_there_and_back_have_the_same_bytes(tmp_path, recipe):
    first = exported(tmp_path / "a", "gptq", "qwen2", **recipe)[1]
    convert(first, tmp_path / "b", "compressed-tensors")
    convert(tmp_path / "b", tmp_path / "c", "gptq")
    for name in ("model.safetensors", "config.json", "quantize_config.json"):
        assert (first / name).read_bytes() == (tmp_path / "c" / name).read_bytes(), name


def test_an_asymmetric_version_1_becomes_version_2_or_the_same_bytes_if_told(tmp_path):
    """GPTQModel refuses asymmetric files of version 1 from other tools, so a conversion writes version 2 by default."""
    model, first = exported(tmp_path / "a", "gptq", group_size=64)  # random weights: no zero point is 0
    qtutor.export(model, first, "gptq", letters(), version=1)
    convert(first, tmp_path / "b", "gptq")
    settings = json.loads((tmp_path / "b" / "quantize_config.json").read_text())
    assert (settings["checkpoint_format"], settings["sym"]) == ("gptq_v2", False)
    convert(tmp_path / "b", tmp_path / "c", "compressed-tensors")
    convert(tmp_path / "c", tmp_path / "d", "gptq", version=1)
    for name in ("model.safetensors", "config.json", "quantize_config.json"):
        assert (first / name).read_bytes() == (tmp_path / "d" / name).read_bytes(), name
    assert (first / "model.safetensors").read_bytes() != (tmp_path / "b" / "model.safetensors").read_bytes()
    with pytest.raises(qtutor.QtutorError, match=r"version = 3: choose one of None, 1, 2"):
        convert(first, tmp_path / "e", "gptq", version=3)
    with pytest.raises(qtutor.QtutorError, match=r"version = 1 belongs to the format 'gptq', and the format is 'awq'"):
        convert(first, tmp_path / "e", "awq", version=1)
    with pytest.raises(qtutor.QtutorError, match=r"format 'gptq', and 'vllm' picks its format: leave it out"):
        convert(first, tmp_path / "e", target="vllm", version=1)
    with pytest.raises(qtutor.QtutorError, match=r"a GGUF file's types round weights by rules of their own"):
        convert(first, tmp_path / "e.gguf")


@pytest.mark.parametrize("source", [*FOREIGN, "qtutor"])
@pytest.mark.parametrize("form", ["compressed-tensors", "modelopt", "bitsandbytes", "mlx", "qtutor"])
def test_every_pair_that_can_hold_the_codes_holds_them(tmp_path, source, form):
    recipe = {"method": "nf4"} if "bitsandbytes" in (source, form) else {"symmetric": True}
    try:
        model, folder = exported(tmp_path / "source", source, **recipe)
    except qtutor.QtutorError:
        return  # no such pair: the source format does not hold NF4
    if source in ("awq", "mlx") and form == "modelopt":  # these have zero points, even if all are in the middle
        with pytest.raises(qtutor.QtutorError, match=r"14 of 14 layers do not fit.*zero points.*holds none"):
            convert(folder, tmp_path / "out", form)
        return
    if recipe == {"method": "nf4"} and form not in ("bitsandbytes", "qtutor"):
        with pytest.raises(qtutor.QtutorError, match="levels of nf4"):
            convert(folder, tmp_path / "out", form)
        return
    convert(folder, tmp_path / "out", form)
    again, tokenizer = qtutor.load(tmp_path / "out", device="cpu")
    for name, layer in model.named_modules():
        if hasattr(layer, "quantized"):
            same(again.get_submodule(name).quantized(), layer.quantized())
    assert tokenizer("ab")["input_ids"] == letters()("ab")["input_ids"]


@pytest.mark.parametrize(("kind", "bits"), [("Q4_0", 4), ("Q5_0", 5), ("Q8_0", 8)])
def test_gguf_files_become_folders_with_their_very_weights(tmp_path, kind, bits):
    model = tiny("llama", tied=False)
    path = qtutor.export(model, tmp_path / "a.gguf", "gguf", letters(), type=kind, pure=True)
    exact = qtutor.load(path, device="cpu")[0]
    packed, _, form = convert(path, tmp_path / "out", "compressed-tensors")
    back = qtutor.load(tmp_path / "out", device="cpu")[0]
    assert form == "compressed-tensors" and len(linear_layers(exact)) == 14
    for name, layer in linear_layers(exact).items():
        own = back.get_submodule(name).quantized()
        assert torch.equal(own.dequantize(), layer.weight) and own.grid.bits == bits and own.group_size == 32
    assert torch.equal(back.lm_head.weight, exact.lm_head.weight) and packed.dtype == torch.float32
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        assert torch.allclose(back(ids).logits, exact(ids).logits, atol=1e-5)


@settings(deadline=None, max_examples=60)
@given(
    kind=st.sampled_from(list(gguf_packed.HELD)), seed=st.integers(0, 10**6), size=st.sampled_from([1e-3, 1.0, 60.0])
)
def test_codes_and_scales_of_blocks_stand_for_what_the_blocks_do(kind, seed, size):
    """Scales of both signs, and a block of zeros."""
    random = np.random.default_rng(seed)
    rows = (random.standard_normal((3, 512)) * size).astype(np.float32)
    rows[0, :256] = 0
    data = coding.encode(rows, kind)
    bits, group_size = gguf_packed.HELD[kind]
    parts = [torch.from_numpy(part.copy()) for part in gguf_packed.codes_and_scales(data, kind)]
    quantized = gguf_packed.quantized_of(*parts, bits, group_size)
    assert torch.equal(quantized.dequantize(), torch.from_numpy(coding.decode(data, kind)))
    assert quantized.scales.min() >= 0 and int(quantized.codes.max()) < 2**bits
    assert kind != "Q8_0" or quantized.zeros is None


def said(capsys, *arguments, status: int = 2) -> str:
    assert cli.main([str(one) for one in arguments]) == status
    return " ".join(capsys.readouterr().err.split())


def test_what_does_not_fit_is_said_with_what_would(tmp_path, capsys):
    uneven = exported(tmp_path / "uneven", "gptq")[1]
    out = tmp_path / "out"
    text = said(capsys, "convert", uneven, out, "--format", "GPTQ", "--target", "vLLM")
    assert "14 of 14 layers (model.layers.0.self_attn.q_proj" in text and "zero points" in text
    assert "symmetric=True" in text and "A conversion rounds nothing" in text
    text = said(capsys, "convert", uneven, out, "--format", "modelopt")
    assert "14 of 14 layers do not fit" in text and "as they are: compressed-tensors, gptq, awq, mlx, qtutor." in text
    mixed = exported(tmp_path / "mixed", "compressed-tensors", layers={"*.down_proj": {"group_size": 64}})[1]
    assert "groups of 64" in said(capsys, "convert", mixed, out, "--format", "awq")
    levels = exported(tmp_path / "levels", "bitsandbytes", method="nf4")[1]
    text = said(capsys, "convert", levels, out, "--format", "gptq")
    assert "the levels of nf4" in text and "as they are: bitsandbytes, qtutor." in text
    three = exported(tmp_path / "three", "compressed-tensors", bits=3)[1]
    assert "3 bits, and the format 'awq' holds 4" in said(capsys, "convert", three, out, "--format", "awq")
    assert "does not read the format 'gptq'" in said(
        capsys, "convert", three, out, "--target", "tensorrt-llm", "--format", "gptq"
    )
    edit_settings(uneven, lambda values: values.update(desc_act=True))
    edit_tensors(
        uneven, lambda found: found["model.layers.0.self_attn.q_proj.g_idx"].copy_(torch.arange(63, -1, -1) // 32)
    )
    text = said(capsys, "convert", uneven, out, "--format", "compressed-tensors")
    assert "q_proj: its columns are grouped in another order" in text and "without desc_act" in text
    assert not out.exists()


def test_sources_and_places_that_are_none(tmp_path, capsys):
    folder = exported(tmp_path / "source", "gptq", symmetric=True)[1]
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert "the same as" in said(capsys, "convert", folder, folder, "--format", "compressed-tensors")
    assert "inside" in said(capsys, "convert", folder, folder / "out", "--format", "compressed-tensors")
    assert "name a format" in said(capsys, "convert", folder, tmp_path / "out")
    assert "a second time" in said(capsys, "convert", folder, tmp_path / "out", "--format", "gguf")
    assert "a second time" in said(capsys, "convert", folder, tmp_path / "out", "--target", "llama.cpp")
    assert "is a float checkpoint" in said(capsys, "convert", "embedded", tmp_path / "out", "--format", "gptq")
    assert "name of a GGUF file" in said(capsys, "convert", folder, tmp_path / "a.gguf", "--format", "gptq")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "notes.txt").write_text("mine")
    assert "not an export of qtutor" in said(capsys, "convert", folder, tmp_path / "theirs", "--format", "gptq")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "theirs"]
    path = qtutor.export(tiny(), tmp_path / "k.gguf", "gguf", letters(), type="Q4_1")
    text = said(capsys, "convert", path, tmp_path / "out", "--format", "compressed-tensors")
    assert (
        "14 of 14 layers" in text
        and "are Q4_1, whose levels are no whole steps" in text
        and "can be held are Q4_0" in text
    )
    assert cli.main(["convert", str(folder), str(tmp_path / "out"), "--target", "TRANSFORMERS"]) == 0
    text = capsys.readouterr().out
    assert "in the format compressed-tensors" in text and "transformers chat" in text and "vllm serve" not in text


def test_scales_of_0_are_written_in_every_format(tmp_path):
    """Some tools give them to groups of zeros."""
    model = tiny("llama")
    qtutor.quantize(model, qtutor.Recipe(group_size=16), progress=False)
    model.model.layers[1].mlp.up_proj.scales[2] = 0
    qtutor.export(model, tmp_path / "a", "gptq", letters(), version=2)
    expected = model(some_ids()).logits
    for format in ("qtutor", "compressed-tensors"):
        convert(tmp_path / "a", tmp_path / format, format)
        assert torch.equal(qtutor.load(tmp_path / format, device="cpu")[0](some_ids()).logits, expected)


def test_negative_scales_are_not_written_where_they_would_not_be_read(tmp_path):
    model = tiny("llama")
    qtutor.quantize(model, qtutor.Recipe(group_size=16), progress=False)
    model.model.layers[1].mlp.up_proj.scales.neg_()
    qtutor.export(model, tmp_path / "a", "gptq", letters(), version=2)
    convert(tmp_path / "a", tmp_path / "b", "compressed-tensors")
    expected = qtutor.load(tmp_path / "a", device="cpu")[0](some_ids()).logits
    assert torch.equal(qtutor.load(tmp_path / "b", device="cpu")[0](some_ids()).logits, expected)
    with pytest.raises(qtutor.QtutorError, match=r"layers.1.mlp.up_proj has a scale of -.*our own format holds none"):
        convert(tmp_path / "a", tmp_path / "c", "qtutor")
    assert not (tmp_path / "c").exists()

"""Rules for all formats of other tools: no half-written folders, no replaced files of others, checked encoders."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import qtutor
from qtutor.formats import FOREIGN, FORMATS, compressed_tensors, foreign_writing, gptq
from qtutor.formats.foreign import pattern, stored_scales
from qtutor.formats.words import from_words, to_words, words_in
from tests.formats.foreign_folders import check_comes_back, edit_tensors, exported, refused, words
from tests.gguf.small_tokenizers import letters
from tests.models import some_ids, tiny
from tests.reference import layouts as slow

FITTING = {"bitsandbytes": {"method": "nf4"}, "modelopt": {"symmetric": True}}


@settings(deadline=None, max_examples=80)
@given(bits=st.integers(2, 8), rows=st.integers(0, 3), count=st.integers(0, 100), seed=st.integers(0, 10**6))
def test_words_are_as_by_hand_and_come_back(bits, rows, count, seed):
    codes = torch.randint(0, 2**bits, (rows, count), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    packed = to_words(codes, bits)
    assert packed.shape == (rows, words_in(count, bits)) and packed.dtype == torch.int32
    assert words(packed) == [slow.stream(row, bits) for row in codes.tolist()]
    assert torch.equal(from_words(packed, bits, count), codes)


@pytest.mark.parametrize("form", FOREIGN)
def test_large_models_become_several_files(tmp_path, monkeypatch, form):
    monkeypatch.setattr(foreign_writing, "LARGEST", 20_000)
    model, folder = exported(tmp_path / "out", form, **FITTING.get(form, {}))
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    assert len(files) > 3 and files[0] == f"model-00001-of-{len(files):05}.safetensors"
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    held = {name: file for file in files for name in load_file(folder / file)}
    assert index["weight_map"] == held
    total = sum(tensor.nbytes for file in files for tensor in load_file(folder / file).values())
    assert index["metadata"]["total_size"] == total
    check_comes_back(model, folder)
    (folder / files[1]).write_bytes((folder / files[1]).read_bytes()[:-8])
    refused(folder, files[1], "truncated")
    (folder / files[1]).unlink()
    refused(folder, files[1], "not in the folder")


@pytest.mark.parametrize("form", FOREIGN)
def test_a_folder_is_whole_and_replaces_only_our_own(tmp_path, form):
    model, folder = exported(tmp_path / "out", form, **FITTING.get(form, {}))
    found = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= found
    about = json.loads((folder / "qtutor_files.json").read_text())
    assert {*about["files"]} == found and about["recipe"] == model.qtutor_recipe
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    qtutor.export(model, folder, form)  # without a tokenizer: the old one's files go with the old folder
    assert not (folder / "tokenizer.json").exists()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(qtutor.QtutorError, match=r"besides the export that qtutor wrote there .notes.txt"):
        qtutor.export(model, folder, form)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model.safetensors").write_bytes(b"{}")
    with pytest.raises(qtutor.QtutorError, match="other exists and is not an export of qtutor"):
        qtutor.export(model, tmp_path / "other", form)
    with pytest.raises(qtutor.QtutorError, match=r"a\.gguf is the name of a GGUF file"):
        qtutor.export(model, tmp_path / "a.gguf", form)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out"]


@pytest.mark.parametrize(
    "name", ["model.norm.weight", "model.layers.1.mlp.up_proj.scales", "model.embed_tokens.weight"]
)
@pytest.mark.parametrize("number", [float("nan"), float("-inf")])
@pytest.mark.parametrize("form", [form for form in FORMATS if form != "gguf"])  # GGUF: see test_gguf
def test_numbers_that_are_none_are_not_written(tmp_path, form, number, name):
    """They may have come into the model after it was quantized."""
    plain = {"double": False} if form == "bitsandbytes" else {}  # its scales are then plain numbers, as everywhere
    model, folder = exported(tmp_path / "out", form, **FITTING.get(form, {}), **plain)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    model.state_dict()[name].view(-1)[5] = number
    with pytest.raises(qtutor.QtutorError, match=rf"{name}: 1 of \d+ numbers are NaN or infinite"):
        qtutor.export(model, folder, form)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_files_that_come_while_it_is_written_are_not_removed(tmp_path, monkeypatch):
    model, folder = exported(tmp_path / "out", "gptq")
    write, before = foreign_writing._write_weights, (folder / "model.safetensors").read_bytes()

    def slow(*given):
        (folder / "MY_NOTES.txt").write_text("mine")
        write(*given)

    monkeypatch.setattr(foreign_writing, "_write_weights", slow)
    with pytest.raises(qtutor.QtutorError, match=r"besides the export that qtutor wrote there .MY_NOTES\.txt"):
        qtutor.export(model, folder, "gptq")
    assert (folder / "MY_NOTES.txt").read_text() == "mine"
    assert (folder / "model.safetensors").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_a_disk_without_room_is_told_before_anything_is_written(tmp_path, monkeypatch):
    model, folder = exported(tmp_path / "weighed", "gptq")
    size = (folder / "model.safetensors").stat().st_size
    disk = SimpleNamespace(total=10**9, free=size - 1)
    monkeypatch.setattr("qtutor.files.target.shutil.disk_usage", lambda base: disk)
    with pytest.raises(qtutor.QtutorError, match=f"at least {size:,} bytes, and {size - 1:,} are free"):
        qtutor.export(model, tmp_path / "out", "gptq")
    assert not (tmp_path / "out").exists()
    disk.free = size
    qtutor.export(model, tmp_path / "out", "gptq")


@pytest.mark.parametrize("form", ["gptq", "awq"])
def test_scales_that_are_no_float16_are_refused_by_their_dtype(tmp_path, form):
    model = exported(tmp_path / "out", form)[0]
    layer = model.model.layers[1].mlp.up_proj
    layer.scales = layer.scales.float() * (1 + 2**-20)
    with pytest.raises(qtutor.QtutorError, match=r"layers\.1\.mlp\.up_proj has torch\.float32 scales, and the format"):
        qtutor.export(model, tmp_path / "other", form)


def test_scales_of_others_are_float16_where_that_is_exact():
    for values, dtype in (([1.0, 0.125], torch.float16), ([1.0, 1 / 3], torch.float32), ([1e-9], torch.float32)):
        for one in (torch.tensor(values), torch.tensor(values).bfloat16()):
            found = stored_scales(one)
            assert torch.equal(found.float(), one.float())
        assert stored_scales(torch.tensor(values)).dtype == dtype


def test_a_second_key_does_not_rename_the_format(tmp_path):
    """``quantization`` is MLX's key; another tool's settings at the usual place say themselves whose they are."""
    model, folder = exported(tmp_path / "out", "gptq")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"quantization": {"bits": 8, "group_size": 64}}))
    check_comes_back(model, folder)


@pytest.mark.parametrize("form", ["gptq", "awq", "compressed-tensors"])
def test_a_layer_that_is_there_twice_is_refused(tmp_path, form):
    name = "model.layers.1.mlp.up_proj"
    folder = exported(tmp_path / "out", form)[1]
    edit_tensors(folder, lambda tensors: tensors.update({f"{name}.weight": torch.zeros(128, 64).half()}))
    refused(folder, f"{name} is there twice, packed and as {name}.weight", "two checkpoints were mixed")


def test_endings_and_chat_templates_travel(tmp_path):
    model, tokenizer = tiny(), letters()
    model.generation_config.eos_token_id = [2, 7]
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    qtutor.quantize(model, qtutor.Recipe(group_size=32), progress=False)
    qtutor.export(model, tmp_path / "out", "compressed-tensors", tokenizer)
    again, own = qtutor.load(tmp_path / "out", device="cpu")
    assert again.generation_config.eos_token_id == [2, 7] and own.chat_template == tokenizer.chat_template


@pytest.mark.parametrize(("ends", "kept"), [([2, 300, 7], [2, 7]), (300, None), ([256], None), (255, 255)])
@pytest.mark.parametrize("form", ["qtutor", "compressed-tensors"])
def test_ends_beyond_the_vocabulary_are_left_out_with_a_warning(tmp_path, recwarn, form, ends, kept):
    model = tiny()  # 256 tokens
    model.generation_config.eos_token_id = ends
    qtutor.quantize(model, qtutor.Recipe(group_size=32), progress=False)
    qtutor.export(model, tmp_path / "out", form, letters())
    told = [str(warning.message) for warning in recwarn if "eos_token_id" in str(warning.message)]
    assert all("the vocabulary has 256 tokens" in text for text in told) and len(told) == (kept != ends)
    usual = model.config.eos_token_id
    again = qtutor.load(tmp_path / "out", device="cpu")[0]
    assert again.generation_config.eos_token_id == (usual if kept is None else kept)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_rest_keeps_its_dtype(tmp_path, dtype):
    model = tiny("qwen2", dtype=dtype)
    qtutor.quantize(model, qtutor.Recipe(group_size=32, symmetric=True), progress=False)
    folder = qtutor.export(model, tmp_path / "out", "gptq", letters())
    again = qtutor.load(folder, device="cpu")[0]
    for name, tensor in model.state_dict().items():
        back = again.get_submodule(name.rpartition(".")[0])
        assert torch.equal(getattr(back, name.rpartition(".")[2]), tensor), name
    assert again.dtype == dtype and again.model.layers[0].self_attn.q_proj.bias.dtype == dtype
    assert qtutor.load(folder, torch.float32, "cpu")[0].dtype == torch.float32


def test_a_model_that_is_not_quantized_is_not_written(tmp_path):
    with pytest.raises(qtutor.QtutorError, match=r"not quantized: call qtutor\.quantize"):
        qtutor.export(tiny(), tmp_path / "out", "gptq")


def damaged(form, which):
    """``form`` with an encoder that is wrong in one way."""

    def encode(quantized, layout):
        tensors = form.encode(quantized, layout)
        tensors[which] = tensors[which] * 2 if tensors[which].is_floating_point() else tensors[which] ^ 1
        return tensors

    return replace(form, encode=encode)


@pytest.mark.parametrize("which", ["qweight", "qzeros", "scales"])
def test_an_encoder_that_is_wrong_is_found_before_the_old_folder_is_replaced(tmp_path, monkeypatch, which):
    model, folder = exported(tmp_path / "out", "gptq")
    before = (folder / "model.safetensors").read_bytes()
    monkeypatch.setattr(gptq, "FORMAT", damaged(gptq.FORMAT, which))
    with pytest.raises(qtutor.QtutorError, match=r"was not written.*q_proj came back with other codes, scales or zero"):
        qtutor.export(model, folder, "gptq")
    assert (folder / "model.safetensors").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_one_scale_off_by_one_bit_is_found(tmp_path, monkeypatch):
    """compressed-tensors has a small tolerance for scales, because of the rounding in int8. Here it is set to 0."""

    def encode(quantized, layout):
        tensors = compressed_tensors.encode(quantized, layout)
        scales = tensors["weight_scale"].clone()
        scales.view(torch.int16)[0, 0] += 1
        return tensors | {"weight_scale": scales}

    model = exported(tmp_path / "out", "compressed-tensors")[0]
    monkeypatch.setattr(compressed_tensors, "FORMAT", replace(compressed_tensors.FORMAT, encode=encode, tolerance=0.0))
    with pytest.raises(qtutor.QtutorError, match="came back with other codes, scales"):
        qtutor.export(model, tmp_path / "out", "compressed-tensors")


@pytest.mark.parametrize(
    "text", [r"model\.layers\.[0-9]+\.(self_attn|mlp)\..*_proj$", ".*q_proj", r"^(?!.*lm_head).*$"]
)
def test_patterns_that_people_write_are_read(text):
    assert pattern(text, "config.json").match("model.layers.0.self_attn.q_proj")


@pytest.mark.parametrize(
    "text", ["(a+)+$", "(.*)*", "(a|a){9}", ".*.*.*.*.*x", "a?" * 9, "x" * 301, "(", 3, None, "(?P<"]
)
def test_patterns_that_never_end_are_refused(text):
    with pytest.raises(qtutor.QtutorError, match=r"config\.json: the pattern .* is not read"):
        pattern(text, "config.json")


def test_conversion_from_format_to_format_rounds_nothing(tmp_path):
    """GPTQ to compressed-tensors, to ModelOpt and back to GPTQ: the bytes are the same."""
    folder = exported(tmp_path / "gptq", "gptq", symmetric=True)[1]
    source = folder
    for form in ("compressed-tensors", "modelopt", "gptq"):
        model, tokenizer = qtutor.load(source, device="cpu")
        source = qtutor.export(model, tmp_path / f"{form} again", form, tokenizer)
    for name in ("model.safetensors", "config.json", "quantize_config.json"):
        assert (folder / name).read_bytes() == (source / name).read_bytes(), name


@pytest.mark.parametrize("form", ["compressed-tensors", "gptq", "awq", "mlx"])
@pytest.mark.parametrize("scaled", [{}, {"rope_type": "linear", "factor": 2.0}])
def test_engines_that_know_older_names_find_how_positions_turn(tmp_path, form, scaled):
    model = tiny()
    config = type(model.config)(
        **model.config.to_dict() | {"rope_parameters": {"rope_theta": 123456.0, "rope_type": "default"} | scaled}
    )
    changed = type(model)(config).eval()
    changed.load_state_dict(model.state_dict())
    recipe = qtutor.Recipe(bits=4, group_size=32, symmetric=form == "gptq")
    qtutor.quantize(changed, recipe, progress=False)
    folder = qtutor.export(changed, tmp_path / "out", form, letters())
    written = json.loads((folder / "config.json").read_text("utf-8"))
    assert written["rope_theta"] == written["rope_parameters"]["rope_theta"] == 123456.0
    assert written.get("rope_scaling", {}) == scaled
    again = qtutor.load(folder, device="cpu")[0]
    assert again.config.rope_parameters == changed.config.rope_parameters
    with torch.inference_mode():
        assert torch.equal(again(some_ids()).logits, changed(some_ids()).logits)

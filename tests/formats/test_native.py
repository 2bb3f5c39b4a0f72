"""An exported model is loaded again, and a half-written export is never taken for a complete one."""

import errno
import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

import qtutor
from qtutor.formats import native
from qtutor.runtime.fp8 import Fp8Linear
from tests.disks import needs_mount
from tests.gguf.small_tokenizers import letters
from tests.models import FAMILIES, groups_of, some_ids, tiny


def quantized(family="llama", **recipe):
    model = tiny(family, tied=family != "mistral")
    size = groups_of(recipe.get("method", "rtn"))
    qtutor.quantize(model, qtutor.Recipe(**size | recipe), progress=False)
    return model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "recipe",
    [
        {},
        {"bits": 3, "symmetric": True},
        {"embeddings": True, "lm_head": True},
        {"embeddings": True},
        {"lm_head": True},
    ],
)
def test_comes_back_with_equal_logits(tmp_path, family, recipe):
    model = quantized(family, **recipe)
    qtutor.export(model, tmp_path / "out")
    again = qtutor.load_quantized(tmp_path / "out", device="cpu")
    with torch.inference_mode():
        assert torch.equal(again(some_ids()).logits, model(some_ids()).logits)
    assert qtutor.evaluate.model_bytes(again) == qtutor.evaluate.model_bytes(model)
    size = (tmp_path / "out" / "model.safetensors").stat().st_size
    header = int.from_bytes((tmp_path / "out" / "model.safetensors").read_bytes()[:8], "little")
    assert size == 8 + header + qtutor.evaluate.model_bytes(model)


@pytest.mark.parametrize("threshold", [0.0, 2.5, None])
def test_thresholds_of_int8_come_back(tmp_path, threshold):
    """One layer has a different threshold, which comes back. Older exports without thresholds get the usual one."""
    model = quantized(method="int8")
    first, second = (block.mlp.down_proj for block in model.model.layers)
    first.threshold = threshold
    qtutor.export(model, tmp_path / "out")
    blocks = qtutor.load_quantized(tmp_path / "out", device="cpu").model.layers
    assert blocks[0].mlp.down_proj.threshold == threshold
    assert blocks[1].mlp.down_proj.threshold == second.threshold == qtutor.bnb.THRESHOLD

    about = json.loads((tmp_path / "out" / "qtutor.json").read_text())
    for layer in about["layers"].values():
        del layer["threshold"]
    (tmp_path / "out" / "qtutor.json").write_text(json.dumps(about))
    older = qtutor.load_quantized(tmp_path / "out", device="cpu").model.layers
    assert {block.mlp.down_proj.threshold for block in older} == {qtutor.bnb.THRESHOLD}


def test_one_file_with_all_tensors_comes_before_an_index(tmp_path):
    """As in transformers. An index may be left over from an older checkpoint."""
    model = quantized()
    index = qtutor.export(model, tmp_path / "out") / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}))
    again = qtutor.load_quantized(tmp_path / "out", device="cpu")
    with torch.inference_mode():
        assert torch.equal(again(some_ids()).logits, model(some_ids()).logits)


def test_an_export_from_before_recipes_were_stored_is_read(tmp_path):
    model = quantized()
    path = qtutor.export(model, tmp_path / "out") / "qtutor.json"
    about = json.loads(path.read_text())
    del about["recipe"]
    path.write_text(json.dumps(about))
    again = qtutor.load_quantized(tmp_path / "out", device="cpu")
    with torch.inference_mode():
        assert torch.equal(again(some_ids()).logits, model(some_ids()).logits)


def test_dtype_comes_back(tmp_path):
    model = tiny(dtype=torch.bfloat16)
    qtutor.quantize(model, qtutor.Recipe(group_size=32), progress=False)
    qtutor.export(model, tmp_path / "out")
    assert qtutor.load_quantized(tmp_path / "out").dtype == torch.bfloat16


DTYPES = {
    "rtn": {"packed": torch.uint8, "scales": torch.float16, "zeros": torch.uint8},
    "nf4": {
        "packed": torch.uint8,
        "scale_codes": torch.uint8,
        "scale_absmax": torch.float32,
        "scale_offset": torch.float32,
    },
    "int8": {"packed": torch.uint8, "scales": torch.float32},
    "fp8": {"packed": torch.uint8, "scales": torch.float32},
}


@pytest.mark.parametrize("method", DTYPES)
def test_names_and_dtypes_in_the_file(tmp_path, method):
    model = tiny(dtype=torch.bfloat16)
    qtutor.quantize(model, qtutor.Recipe(method, **groups_of(method), embeddings=True), progress=False)
    qtutor.export(model, tmp_path / "out")
    found = {}
    for name, tensor in load_file(tmp_path / "out" / "model.safetensors").items():
        kind = name.rpartition(".")[2]
        found.setdefault(kind, set()).add(tensor.dtype)
    weights = found.pop("weight")  # of norms and lm_head
    assert weights == {torch.bfloat16} and found == {name: {dtype} for name, dtype in DTYPES[method].items()}
    again = qtutor.load_quantized(tmp_path / "out", device="cpu")
    stored = {name: tensor.dtype for name, tensor in load_file(tmp_path / "out" / "model.safetensors").items()}
    assert {name: tensor.dtype for name, tensor in again.state_dict().items()} == stored


def test_fp8_comes_back_and_its_codes_are_looked_at(tmp_path):
    model = quantized(method="fp8", embeddings=True)
    qtutor.export(model, tmp_path / "out")
    again = qtutor.load_quantized(tmp_path / "out", device="cpu")
    layer = again.model.layers[1].mlp.down_proj
    assert isinstance(layer, Fp8Linear) and torch.equal(again(some_ids()).logits, model(some_ids()).logits)
    about = json.loads((tmp_path / "out" / "qtutor.json").read_text())
    about["layers"]["model.layers.1.mlp.down_proj"]["kind"] = "int8 linear"
    (tmp_path / "out" / "qtutor.json").write_text(json.dumps(about))
    with pytest.raises(qtutor.QtutorError, match=r"down_proj is damaged: kind is 'int8 linear', on the grid 'fp8'"):
        qtutor.load_quantized(tmp_path / "out", device="cpu")
    model.model.layers[1].mlp.down_proj.packed[2, 3] = 0x7F
    with pytest.raises(qtutor.QtutorError, match=r"down_proj: 1 of .* codes are no numbers in fp8 e4m3"):
        qtutor.export(model, tmp_path / "other")
        qtutor.load_quantized(tmp_path / "other", device="cpu")


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_an_export_is_as_readable_as_any_new_folder(tmp_path, umask):
    """It is first written to a place that only its owner can read. The second export replaces the first."""
    before = os.umask(umask)
    try:
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "file").touch()
        for _ in range(2):
            qtutor.export(quantized(), tmp_path / "out")
            assert mode(tmp_path / "out") == mode(tmp_path / "folder")
            modes = {path.name: mode(path) for path in (tmp_path / "out").iterdir()}
            assert {"model.safetensors", "qtutor.json", "config.json"} <= set(modes)
            assert set(modes.values()) == {mode(tmp_path / "folder" / "file")}, modes
    finally:
        os.umask(before)


def mode(path) -> str:
    return oct(stat.S_IMODE(path.stat().st_mode))


def test_an_older_export_is_replaced_and_other_folders_are_not(tmp_path):
    qtutor.export(quantized(bits=4), tmp_path / "out")
    qtutor.export(quantized(bits=2), tmp_path / "out")
    layers = json.loads((tmp_path / "out" / "qtutor.json").read_text())["layers"]
    assert {layer["bits"] for layer in layers.values()} == {2}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not touch")
    with pytest.raises(qtutor.QtutorError, match=r"mine exists and is not an export"):
        qtutor.export(quantized(), tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "do not touch"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "out"]  # nothing else is left


def test_an_empty_folder_is_taken_and_a_file_is_not(tmp_path):
    (tmp_path / "deep" / "empty").mkdir(parents=True)
    for out in (tmp_path / "deep" / "empty", tmp_path / "not" / "there" / "yet"):
        assert qtutor.export(quantized(), out) == out and (out / "model.safetensors").is_file()
    (tmp_path / "file").write_text("do not touch")
    with pytest.raises(qtutor.QtutorError, match="file is a file, and a folder is to be written"):
        qtutor.export(quantized(), tmp_path / "file")
    assert (tmp_path / "file").read_text() == "do not touch"


def test_the_tokenizer_comes_along_if_there_is_one(tmp_path):
    qtutor.export(quantized(), tmp_path / "with", tokenizer=letters())
    model, tokenizer = qtutor.load(tmp_path / "with", device="cpu")
    assert tokenizer("mean").input_ids == letters()("mean").input_ids and not model.training
    qtutor.export(quantized(), tmp_path / "without")
    assert not [path for path in (tmp_path / "without").iterdir() if "token" in path.name]
    with pytest.raises(qtutor.QtutorError, match="its tokenizer cannot be loaded"):
        qtutor.load(tmp_path / "without", device="cpu")


def test_a_tied_output_is_stored_once_and_views_of_one_storage_under_every_name(tmp_path):
    model = quantized()
    storage = torch.arange(128.0).view(64, 2)
    model.model.norm.weight.data, model.model.layers[0].input_layernorm.weight.data = storage.unbind(1)
    qtutor.export(model, tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert "lm_head.weight" not in stored and "model.embed_tokens.weight" in stored
    assert torch.equal(stored["model.norm.weight"], torch.arange(0, 128.0, 2))
    assert torch.equal(stored["model.layers.0.input_layernorm.weight"], torch.arange(1, 128.0, 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("model.norm.weight"), r"1 tensor is missing: model\.norm\.weight\."),
        (lambda tensors: tensors.update(more=torch.ones(1)), r"1 tensor is not expected: more\."),
    ],
)
def test_a_tensor_too_few_or_too_many_is_named(tmp_path, change, message):
    qtutor.export(quantized(), tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "out" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(qtutor.QtutorError, match=message):
        qtutor.load_quantized(tmp_path / "out")


@pytest.mark.parametrize("layout", [0, 2, None])
def test_another_layout_is_refused(tmp_path, layout):
    qtutor.export(quantized(), tmp_path / "out")
    about = json.loads((tmp_path / "out" / "qtutor.json").read_text())
    (tmp_path / "out" / "qtutor.json").write_text(json.dumps(about | {"layout": layout}))
    said = "layout is None; expected a number" if layout is None else f"layout {layout}, but this version reads 1"
    with pytest.raises(qtutor.QtutorError, match=said):
        qtutor.load_quantized(tmp_path / "out")


def test_an_option_that_is_none_is_left_to_the_format_and_no_other(tmp_path):
    qtutor.export(quantized(), tmp_path / "out", type=None, importance=None)
    for empty in ("", {}, False):
        with pytest.raises(qtutor.QtutorError, match=f"type = {str(empty)!r}: the format 'qtutor' has no such option"):
            qtutor.export(quantized(), tmp_path / "out", type=empty)


def test_bad_calls(tmp_path):
    with pytest.raises(qtutor.QtutorError, match="format = 'zip' is not known"):
        qtutor.export(quantized(), tmp_path / "out", format="zip")
    with pytest.raises(qtutor.QtutorError, match="not quantized"):
        qtutor.export(tiny(), tmp_path / "out")
    with pytest.raises(qtutor.QtutorError, match=r"qtutor\.json does not exist"):
        qtutor.load_quantized(tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["truncate", "remove", "json", "other"])
def test_damaged_files_are_named(tmp_path, damage):
    qtutor.export(quantized(), tmp_path / "out")
    path = tmp_path / "out" / "model.safetensors"
    if damage == "truncate":
        os.truncate(path, path.stat().st_size // 2)
    elif damage == "remove":
        path.unlink()
    elif damage == "json":
        (tmp_path / "out" / "qtutor.json").write_text('{"layout": 1')
    else:
        about = json.loads((tmp_path / "out" / "qtutor.json").read_text())
        del about["layers"]["model.layers.0.mlp.up_proj"]
        (tmp_path / "out" / "qtutor.json").write_text(json.dumps(about))
    name = "qtutor.json" if damage == "json" else "model.safetensors"
    with pytest.raises(qtutor.QtutorError, match=name):
        qtutor.load_quantized(tmp_path / "out")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("moment", ["native.save_file", "tokenizer", "native.json.dumps", "os.fsync", "os.rename"])
def test_a_failed_export_leaves_the_old_one(tmp_path, monkeypatch, moment, code):
    model, tokenizer = quantized(bits=2), letters()
    qtutor.export(quantized(bits=4), tmp_path / "out")

    def fails(*_arguments, **_keywords):
        if moment in ("native.save_file", "tokenizer"):  # as libraries in Rust raise it
            raise Exception(f"Error while serializing: {os.strerror(code)} (os error {code})")
        raise OSError(code, os.strerror(code))

    if moment == "tokenizer":
        monkeypatch.setattr(tokenizer, "save_pretrained", fails)
    else:
        if moment == "native.json.dumps":  # only the writer's json: transformers writes configs as JSON, too
            monkeypatch.setattr("qtutor.formats.native.json", SimpleNamespace(dumps=fails, loads=json.loads))
        else:
            monkeypatch.setattr(moment.replace("native", "qtutor.formats.native"), fails)
        monkeypatch.setattr("qtutor.files._exchange", lambda one, other: False)  # then os.rename is used
    with pytest.raises(qtutor.QtutorError, match=rf"out cannot be written: {os.strerror(code)}\. Whatever") as told:
        qtutor.export(model, tmp_path / "out", tokenizer=tokenizer)
    assert "\n" not in str(told.value)
    monkeypatch.undo()
    assert bits_in(tmp_path / "out") == 4 and os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("moment", ["native.save_file", "files._put"])
def test_kill_9_during_export_leaves_the_old_one(tmp_path, moment):
    qtutor.export(quantized(bits=4), tmp_path / "out")
    program = f"""
        import os, signal
        from pathlib import Path
        import qtutor
        from qtutor import files
        from qtutor.formats import native
        from tests.formats.test_native import quantized
        original = {moment}
        def killed(*arguments, **keywords):
            if {moment == "native.save_file"}:  # half of the file is there
                original(*arguments, **keywords)
                os.truncate(arguments[1], 1000)
            os.kill(os.getpid(), signal.SIGKILL)
        {moment} = killed
        qtutor.export(quantized(bits=2), {str(tmp_path / "out")!r})
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert bits_in(tmp_path / "out") == 4 and len(os.listdir(tmp_path)) == 2
    qtutor.export(quantized(bits=2), tmp_path / "out")
    assert bits_in(tmp_path / "out") == 2 and os.listdir(tmp_path) == ["out"]  # leftovers of the kill are gone


def bits_in(folder) -> int:
    return qtutor.load_quantized(folder, device="cpu").model.layers[0].mlp.up_proj.grid.bits


def refused(message, model, out):
    """The refusal matches, and nothing is written, removed or changed."""
    before = {path: path.is_dir() or path.read_bytes() for path in sorted(out.parent.rglob("*"))}
    with pytest.raises(qtutor.QtutorError, match=message):
        qtutor.export(model, out)
    assert {path: path.is_dir() or path.read_bytes() for path in sorted(out.parent.rglob("*"))} == before


def test_files_of_the_users_in_an_export_are_not_removed(tmp_path):
    model, out = quantized(), tmp_path / "out"
    for name in ("MY_NOTES.txt", ".git/config", "tokenizer.json", "generation_config.json", "deep/er/config.json"):
        qtutor.export(model, out)  # without a tokenizer: if there is one later, it is the user's
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("mine")
        refused(f"holds files besides the export that qtutor wrote there .{name}.", model, out)
        (out / name).unlink()
    qtutor.export(model, out, tokenizer=letters())
    qtutor.export(model, out, tokenizer=letters())
    assert json.loads((out / "qtutor.json").read_text())["files"] == sorted(os.listdir(out))
    (out / ".DS_Store").touch()  # made by macOS's Finder, not by the user
    qtutor.export(model, out, tokenizer=letters())
    (out / "elsewhere").symlink_to(tmp_path)
    refused("besides the export that qtutor wrote there .elsewhere.", model, out)
    assert os.readlink(out / "elsewhere") == str(tmp_path)


def test_files_that_come_while_it_is_written_are_not_removed(tmp_path, monkeypatch):
    qtutor.export(quantized(bits=4), tmp_path / "out")
    save_file = native.save_file

    def slow(*arguments, **keywords):
        (tmp_path / "out" / "MY_NOTES.txt").write_text("mine")
        save_file(*arguments, **keywords)

    monkeypatch.setattr(native, "save_file", slow)
    with pytest.raises(qtutor.QtutorError, match="MY_NOTES"):
        qtutor.export(quantized(bits=2), tmp_path / "out")
    assert (tmp_path / "out" / "MY_NOTES.txt").read_text() == "mine" and bits_in(tmp_path / "out") == 4
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("about", ["{", "[]", '{"files": 3}', '{"layout": 1}', '{"files": [[]]}', "[" * 10_000])
def test_a_damaged_export_is_replaced_and_what_else_lies_there_is_not(tmp_path, about):
    """The loader asks for a new export. Exports without a stored list of files are treated in the same way."""
    model, out = quantized(), tmp_path / "out"
    qtutor.export(model, out, tokenizer=letters())
    (out / "qtutor.json").write_text(about)
    qtutor.export(model, out)
    (out / "qtutor.json").write_text(about)
    (out / "MY_NOTES.txt").write_text("mine")
    refused("besides the export that qtutor wrote there .MY_NOTES.txt.", model, out)


def test_float_checkpoints_and_files_are_not_replaced(tmp_path):
    tiny().save_pretrained(tmp_path / "float")
    refused("float exists and is not an export of qtutor", quantized(), tmp_path / "float")
    (tmp_path / "file").write_text("mine")
    refused("file is a file, and a folder is to be written", quantized(), tmp_path / "file")
    refused("file is a file, and .* needs a folder there", quantized(), tmp_path / "file" / "out")
    refused("a.gguf is the name of a GGUF file, and this format is a folder", quantized(), tmp_path / "a.gguf")
    (tmp_path / "empty").mkdir()
    qtutor.export(quantized(bits=3), tmp_path / "empty")
    assert bits_in(tmp_path / "empty") == 3


def test_a_link_leads_to_the_folder_that_is_replaced(tmp_path):
    (tmp_path / "disk").mkdir()
    qtutor.export(quantized(bits=4), tmp_path / "disk" / "out")
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "out")
    assert qtutor.export(quantized(bits=2), tmp_path / "out") == tmp_path / "out"
    assert (tmp_path / "out").is_symlink() and bits_in(tmp_path / "disk" / "out") == 2
    assert os.listdir(tmp_path / "disk") == ["out"] and sorted(os.listdir(tmp_path)) == ["disk", "out"]


def test_a_disk_without_room_is_told_before_anything_is_written(tmp_path, monkeypatch):
    size = (qtutor.export(quantized(), tmp_path / "weighed") / "model.safetensors").stat().st_size
    monkeypatch.setattr(
        "qtutor.files.target.shutil.disk_usage", lambda base: SimpleNamespace(total=10**9, free=size - 1)
    )
    refused(f"at least {size:,} bytes, and {size - 1:,} are free", quantized(), tmp_path / "out")
    refused(f"at least {size:,} bytes", quantized(), tmp_path / "not" / "yet" / "out")


SMALL = """
import shutil, sys, types
import qtutor
shutil.disk_usage = lambda base: types.SimpleNamespace(total=10**12, free=10**12)
from tests.formats.test_native import letters, quantized
try: qtutor.export(quantized(bits=2), sys.argv[1], tokenizer=letters())
except qtutor.QtutorError as error: print(error)
"""


@needs_mount
@pytest.mark.parametrize("size", [4, 60, 80])
def test_a_full_disk_leaves_the_old_export(tmp_path, size):
    """size: in kB, of a disk that reports more room than it has. With each size, more of the files fit."""
    about = f"{tmp_path}/out/qtutor.json"
    mount = f"mount -t tmpfs -o size={size}k tmpfs {tmp_path} && mkdir {tmp_path}/out && printf 'old' > {about}"
    script = f'{mount} && "$@" && ls -A {tmp_path} {tmp_path}/out && cat {about}'
    command = ["unshare", "-rm", "sh", "-c", script, "sh", sys.executable, "-c", SMALL, str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    message, *rest = done.stdout.splitlines()
    assert f"{tmp_path}/out cannot be written: No space left on device. Whatever was there before" in message
    assert rest == [f"{tmp_path}:", "out", "", f"{tmp_path}/out:", "qtutor.json", "old"]

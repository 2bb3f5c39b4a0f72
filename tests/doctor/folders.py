"""The embedded decoder in every format of folders, made once per run, and damaged copies of these folders."""

import json
import shutil
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import qtutor
from qtutor.formats import awq
from qtutor.formats.words import from_words, to_words
from tests.formats.foreign_folders import edit_settings, edit_tensors

HEALTHY = {
    "ct": ("compressed-tensors", {}),
    "ct 3 symmetric": ("compressed-tensors", {"bits": 3, "symmetric": True}),
    "ct 2": ("compressed-tensors", {"bits": 2, "group_size": 32}),
    "ct 8 rows": ("compressed-tensors", {"bits": 8, "group_size": -1}),
    "ct head": ("compressed-tensors", {"lm_head": True}),
    "ct mixed": ("compressed-tensors", {"symmetric": True, "layers": {"*.down_proj": {"bits": 8}, "*.0.*": "float"}}),
    "ct int8": ("compressed-tensors", {"method": "int8"}),
    "ct fp8": ("compressed-tensors", {"method": "fp8"}),
    "ct fp8 tiles": ("compressed-tensors", {"method": "fp8", "group_size": 128}),
    "ct mxfp4": ("compressed-tensors", {"method": "mxfp4"}),
    "ct nvfp4": ("compressed-tensors", {"method": "nvfp4"}),
    "gptq": ("gptq", {"symmetric": True}),
    "gptq asymmetric": ("gptq", {"group_size": 32}),
    "gptq 2": ("gptq", {"bits": 2}),
    "awq": ("awq", {"group_size": 32}),
    "awq symmetric": ("awq", {"symmetric": True}),
    "nf4": ("bitsandbytes", {"method": "nf4"}),
    "bnb int8": ("bitsandbytes", {"method": "int8"}),
    "modelopt": ("modelopt", {"symmetric": True}),
    "modelopt fp8": ("modelopt", {"method": "fp8"}),
    "mlx": ("mlx", {}),
    "mlx mixed": ("mlx", {"bits": 3, "group_size": 32, "layers": {"*.down_proj": {"bits": 8}, "*.0.*": "float"}}),
    "ours": ("qtutor", {"bits": 3}),
}


@cache
def healthy(name: str) -> Path:
    form, recipe = HEALTHY[name]
    model, tokenizer = qtutor.load_decoder()
    qtutor.quantize(model, qtutor.Recipe(**recipe), progress=False)
    return qtutor.export(model, Path(mkdtemp()) / "out", form, tokenizer)


def damaged(tmp_path: Path, name: str, *changes) -> Path:
    """A damaged copy. Each of ``changes`` is a function that changes the folder."""
    folder = shutil.copytree(healthy(name), tmp_path / "damaged")
    for change in changes:
        change(folder)
    return folder


def tensors(change):
    """A change of the folder: it applies ``change`` to the dict of tensors."""
    return lambda folder: edit_tensors(folder, change)


def setting(**values):
    return lambda folder: edit_settings(folder, lambda settings: settings.update(values))


def config(file: str = "config.json", **values):
    def change(folder):
        path = folder / file
        found = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(found | values))

    return change


def each(kind: str, change):
    """A change of the folder: it applies ``change`` to every tensor whose name ends in ``kind``."""

    def all_of_them(found):
        for name in [name for name in found if name.endswith(kind)]:
            found[name] = change(found[name])

    return tensors(all_of_them)


def plainly(words):
    """AWQ's words packed in the plain order."""
    return to_words(awq._straight(words, words.shape[1] * 8), 4)


def interleaved(words):
    """GPTQ's words packed in AWQ's order, along the inputs."""
    return awq._interleaved(from_words(words.T, 4, words.shape[0] * 8)).T


def swapped(data):
    """Swap the two nibbles of every byte."""
    return (data << 4) | (data >> 4)

"""Damaged checkpoints: each kind of damage changes a folder (or a GGUF file) with the help of a random generator.

Every change depends only on a :class:`random.Random`, so the same seed makes the same damage.
"""

import copy
import json
import random
import struct
from collections.abc import Callable
from pathlib import Path

from qtutor.gguf import read
from qtutor.gguf.writer import Tensor, write

# Replacements for a value of a JSON file: different types, different signs, huge numbers, names in code, odd texts.
STRANGE = (
    *(None, True, False, 0, 1, -1, 3, 2.5, 1e308, 10**7, 10**12, 2**63, 2**64, -(10**30), float("nan"), float("inf")),
    *("", "x", "load", "forward", "__class__", "a/b", "../x", "\x1b[31mred\x1b[0m\x07", "ü" * 40, "0" * 70_000),
    *([], [1], [[]], {}, {"x": 1}, {"": {}}, [None] * 3, ["\x00"], "float16", "int8", "nf4", "sdpa", "eager"),
)


def json_edit(name: str) -> Callable[[Path, random.Random], str]:
    """Exchange, remove, rename or double one value of the JSON file ``name``, or add one."""

    def damage(folder: Path, rng: random.Random) -> str:
        path = folder / name
        whole = json.loads(path.read_text(encoding="utf-8"))
        where, said = _one_edit(whole, rng)
        path.write_text(json.dumps(whole), encoding="utf-8")
        return f"{name}: {where} {said}"

    return damage


def _one_edit(whole, rng: random.Random) -> tuple[str, str]:
    """Change one value somewhere in ``whole``. Returns which value was changed, and how."""
    places = list(_places(whole, ""))
    holder, key, where = rng.choice(places)
    kind = rng.choice(["exchange"] * 6 + ["remove", "rename", "double", "add"])
    if kind == "remove":
        del holder[key]
        return where, "removed"
    if kind == "rename" and isinstance(holder, dict):
        other = rng.choice(["forward", "x", "../up", "model", "", "model.layers.0", "lm_head", "training", "\x1b[2J"])
        holder[other] = holder.pop(key)
        return where, f"renamed to {other!r}"
    if kind == "double" and isinstance(holder, list):
        holder.append(holder[key])
        return where, "doubled"
    if kind == "add" and isinstance(holder, dict):
        other, value = rng.choice(["_attn_implementation", "auto_map", "x", "dtype", "per_layer_config"]), "a/b"
        holder[other] = value
        return where, f"and {other} = {value!r} beside it"
    holder[key] = copy.deepcopy(rng.choice(STRANGE))
    return where, f"= {str(holder[key])[:40]!r}"


def _places(value, path: str):
    if len(path) > 400:
        return
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for number, (key, inner) in enumerate(items):
        if number > 40 and number % 97:
            continue  # a few entries of a vocabulary are enough
        yield value, key, f"{path}/{str(key)[:40]}"
        yield from _places(inner, f"{path}/{str(key)[:40]}")


def bytes_of(name: str, first: int | None = None) -> Callable[[Path, random.Random], str]:
    """Flip bits of a file, cut out, insert or zero some bytes, cut off its end, or empty it.

    first: the damage begins within this many bytes at the start.
    """

    def damage(folder: Path, rng: random.Random) -> str:
        path = folder / name
        data = bytearray(path.read_bytes())
        room = min(len(data), first or len(data))
        kind = rng.choice(["flip"] * 4 + ["cut", "insert", "truncate", "zero", "empty"])
        at = rng.randrange(room)
        if kind == "flip":
            for _ in range(rng.choice([1, 1, 2, 8])):
                data[rng.randrange(room)] ^= 1 << rng.randrange(8)
        elif kind == "cut":
            del data[at : at + rng.randrange(1, 200)]
        elif kind == "insert":
            data[at:at] = rng.randbytes(rng.randrange(1, 50))
        elif kind == "truncate":
            del data[at:]
        elif kind == "zero":
            data[at : at + 16] = bytes(min(16, len(data) - at))
        else:
            data = bytearray()
        path.write_bytes(data)
        return f"{name}: {kind} at {at}"

    return damage


def whole_text(name: str) -> Callable[[Path, random.Random], str]:
    """Make a JSON file what it should never be: in a different encoding, nested deeply, not an object, or very long."""

    def damage(folder: Path, rng: random.Random) -> str:
        path = folder / name
        text = path.read_text(encoding="utf-8")
        kind, data = rng.choice(
            [
                ("UTF-16", text.encode("utf-16")),
                ("a byte order mark", text.encode("utf-8-sig")),
                ("Latin-1", (text[:-2] + ', "ü": 1}').encode("latin-1")),
                ("nested deeply", b"[" * 200_000),
                (
                    "nested deeply in a key",
                    text.rstrip()[:-1].encode() + b', "x": ' + b"[" * 9_000 + b"]" * 9_000 + b"}",
                ),
                ("a list", b"[1, 2]"),
                ("a number", b"17"),
                ("null", b"null"),
                ("a long number", b'{"layout": 1' + b"0" * 10_000 + b"}"),
                ("spaces", b" " * 100_000),
                ("a key twice", b'{"layout": 2, "model_type": "x",' + text.lstrip()[1:].encode()),
                ("a text", b'"' + b"\x1b[31m" + b'"'),
            ]
        )
        path.write_bytes(data)
        return f"{name}: {kind}"

    return damage


def file_names(folder: Path, rng: random.Random) -> str:
    """A file is missing, has a wrong name or another file's content, is a folder, or is a link out of the folder."""
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    path, other = rng.sample(paths, 2)
    kind = rng.choice(["remove", "rename", "exchange", "folder", "link", "dangling"])
    if kind == "remove":
        path.unlink()
    elif kind == "rename":
        path.rename(path.with_name("x" + path.name))
    elif kind == "exchange":
        path.write_bytes(other.read_bytes())
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    else:
        outside = folder.parent / f"outside-{path.name}"
        path.rename(outside)
        path.symlink_to(outside if kind == "link" else folder.parent / "nowhere")
    return f"{path.name}: {kind}"


def stored_tensors(folder: Path, rng: random.Random) -> str:
    """One tensor of model.safetensors is missing, renamed, doubled, of a wrong dtype or shape, or has wrong numbers."""
    import torch
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    name = rng.choice(sorted(tensors))
    tensor = tensors.pop(name)
    kind = rng.choice(["missing", "renamed", "dtype", "dtype", "shape", "transposed", "numbers", "numbers", "extra"])
    if kind == "renamed":
        tensors[rng.choice(["x", name + ".x", name.replace("0", "7"), "forward", "lm_head.x"])] = tensor
    elif kind == "dtype":
        dtypes = [torch.bool, torch.int8, torch.int16, torch.uint8, torch.float16, torch.bfloat16, torch.float64]
        dtype = rng.choice([dtype for dtype in dtypes if dtype != tensor.dtype])
        tensors[name], kind = tensor.to(dtype), f"as {dtype}"
    elif kind == "shape":
        tensors[name] = rng.choice(
            [tensor[None], tensor.flatten()[:1], tensor[..., None], tensor.flatten()[1:]]
        ).clone()
    elif kind == "transposed":
        tensors[name] = tensor.T.contiguous() if tensor.dim() == 2 else tensor.flatten()[:0].clone()
    elif kind == "numbers" and tensor.is_floating_point():
        value = rng.choice([float("nan"), float("inf"), -float("inf"), "negative"])
        if value == "negative":
            tensor = -tensor.abs()
        else:
            tensor.view(-1)[rng.randrange(tensor.numel())] = value
        tensors[name], kind = tensor, f"{kind} {value}"
    elif kind == "extra":
        tensors |= {name: tensor, rng.choice(["x", name + "2", "model.layers.0.mlp.up_proj.extra"]): tensor.clone()}
    save_file(tensors, path, metadata={"format": "pt"})
    return f"tensor {name}: {kind}"


def header_edit(folder: Path, rng: random.Random) -> str:
    """Edit one value in the header of model.safetensors. The stored length of the header stays right."""
    path = folder / "model.safetensors"
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    where, said = _one_edit(header, rng)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    return f"header: {where} {said}"


def gguf_config(path: Path, rng: random.Random) -> str:
    """Edit one value of the config in the metadata of a GGUF file."""
    file = read(path)
    metadata = dict(file.metadata)
    config = json.loads(metadata["qtutor.config"])
    where, said = _one_edit(config, rng)
    metadata["qtutor.config"] = json.dumps(config)
    _write_again(path, file, metadata)
    return f"qtutor.config: {where} {said}"


def gguf_key(path: Path, rng: random.Random) -> str:
    """One value of the metadata is missing, or is replaced by the value of another key."""
    file = read(path)
    metadata = dict(file.metadata)
    key, other = rng.sample(sorted(metadata), 2)
    if rng.random() < 0.4:
        del metadata[key]
        said = "missing"
    else:
        metadata[key], said = metadata[other], f"as {other}"
    _write_again(path, file, metadata)
    return f"{key}: {said}"


def _write_again(path: Path, file, metadata: dict) -> None:
    tensors = [Tensor(name, info.shape, info.type.name, file.data(name).copy()) for name, info in file.tensors.items()]
    metadata.pop("general.alignment", None)
    write(path, metadata, tensors)


OURS = (
    *[json_edit("qtutor.json")] * 6,
    *[json_edit("config.json")] * 6,
    *[whole_text("qtutor.json"), whole_text("config.json")],
    *[stored_tensors] * 4,
    *[file_names] * 2,
    *[bytes_of("model.safetensors", 3000), bytes_of("qtutor.json"), bytes_of("config.json"), header_edit],
)
FLOAT = (
    *[json_edit("config.json")] * 4,
    *[json_edit("tokenizer_config.json"), json_edit("generation_config.json"), json_edit("tokenizer.json")] * 2,
    *[whole_text("config.json"), whole_text("tokenizer_config.json"), whole_text("generation_config.json")],
    *[stored_tensors] * 3,
    *[file_names] * 2,
    *[bytes_of("model.safetensors", 2000), bytes_of("tokenizer.json"), bytes_of("config.json"), header_edit],
)
GGUF = (*[gguf_config] * 4, gguf_key)

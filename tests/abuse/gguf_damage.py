"""Damage to other tools' GGUF files, which hold only what llama.cpp reads: keys, tokens, tensors, parts.

Each function takes a folder with one file, or with the parts of one, and a random generator, as in :mod:`.damage`.
"""

import random
import warnings
from pathlib import Path

import numpy as np

import qtutor
from qtutor.gguf import read, write
from qtutor.gguf.writer import Tensor
from tests.abuse.damage import bytes_of
from tests.gguf.small_tokenizers import sentencepiece
from tests.models import tiny

# Replacements for a value: different types, different signs, huge numbers, odd texts, lists.
STRANGE = (
    *(np.uint32(0), np.uint32(1), np.uint32(3), np.uint32(2**32 - 1), np.int32(-1), np.int8(-7), np.uint64(2**63)),
    *(np.float32(0), np.float32(-1), np.float32("nan"), np.float32("inf"), np.float32(1e30), np.float64(2.5)),
    *(True, False, "", "x", "llama", "yarn", "none", "gpt-2", "\x1b[31mred\x1b[0m\x07", "ü" * 40, "0" * 70_000),
    *(np.array([], np.int32), np.array([1, 2], np.int32), np.zeros(3, np.float32), np.zeros(50_000, np.int32)),
    *(["a"], ["a", "a"], [""], ["\x00"], ["e Ш"], [" "], np.array([True])),
)
NAMES = (
    *("x", "forward", "blk.0.attn_q.bias", "blk.7.attn_q.weight", "rope_freqs.weight", "blk.0.attn_qkv.weight"),
    *("output.weight", "blk.x.attn_q.weight", "\x1b[2J", "token_embd.weight.x", "blk.0.exp_probs_b.bias"),
)


def whole(folder: Path) -> list[Path]:
    """Folders with files as other tools write them.

    They hold the embedded decoder (a Llama), whole and in parts; a small Qwen2; a small Llama with Llama 3's rope.
    """
    model, tokenizer = qtutor.load(device="cpu")
    made = [_stripped(model, tokenizer, folder / "llama", "Q8_0")]
    file = read(made[0] / "model.gguf")
    (folder / "parts").mkdir()
    tensors = _tensors(file)
    for number in range(3):
        keys = {
            "split.no": np.uint16(number),
            "split.count": np.uint16(3),
            "split.tensors.count": np.int32(len(tensors)),
        }
        path = folder / "parts" / f"model-0000{number + 1}-of-00003.gguf"
        write(path, (file.metadata if number == 0 else {}) | keys, tensors[number::3])
    made.append(folder / "parts")
    for family, rope in (("qwen2", None), ("llama", "llama3")):
        small, words = tiny(family), sentencepiece()
        small.resize_token_embeddings(len(words))
        if rope:
            ends = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
            small.config.rope_parameters = {"rope_type": rope, "rope_theta": 1e4, "factor": 8.0} | ends
            small = type(small)(small.config).eval()
        made.append(_stripped(small, words, folder / f"small-{family}", "F16"))
    return made


def _stripped(model, tokenizer, folder: Path, type: str) -> Path:
    with warnings.catch_warnings(action="ignore"):
        path = qtutor.export(model, folder, format="gguf", type=type, pure=type == "Q8_0", tokenizer=tokenizer)
    file = read(path)
    _write(path, {key: value for key, value in file.metadata.items() if not key.startswith("qtutor.")}, _tensors(file))
    return folder


def _tensors(file) -> list[Tensor]:
    return [Tensor(name, info.shape, info.type.name, file.data(name).copy()) for name, info in file.tensors.items()]


def _write(path: Path, metadata: dict, tensors: list[Tensor]) -> None:
    metadata = dict(metadata)
    metadata.pop("general.alignment", None)
    path.unlink()
    write(path, metadata, tensors)


def _some_file(folder: Path, rng: random.Random) -> Path:
    return rng.choice(sorted(folder.glob("*.gguf")))


def key(folder: Path, rng: random.Random) -> str:
    """One value of the metadata is missing, strange, or replaced by the value of another key."""
    path = _some_file(folder, rng)
    file = read(path)
    metadata = dict(file.metadata)
    name, other = rng.sample(sorted(metadata), 2)
    kind = rng.choice(["missing", "strange", "strange", "strange", "another's"])
    if kind == "missing":
        del metadata[name]
    else:
        metadata[name] = rng.choice(STRANGE) if kind == "strange" else metadata[other]
        kind = f"{str(metadata[name])[:30]!r}"
    _write(path, metadata, _tensors(file))
    return f"{name}: {kind}"


def tokens(folder: Path, rng: random.Random) -> str:
    """One entry of a list in the metadata is missing, doubled, exchanged or strange, or the list is cut off there."""
    path = sorted(folder.glob("*.gguf"))[0]
    file = read(path)
    metadata = dict(file.metadata)
    name = rng.choice([name for name, value in metadata.items() if isinstance(value, list | np.ndarray) and len(value)])
    values = list(metadata[name])
    at, other = rng.randrange(len(values)), rng.randrange(len(values))
    kind = rng.choice(["missing", "doubled", "exchanged", "strange", "strange", "cut"])
    if kind == "missing":
        del values[at]
    elif kind == "doubled":
        values.insert(at, values[at])
    elif kind == "exchanged":
        values[at], values[other] = values[other], values[at]
    elif kind == "cut":
        del values[at:]
    elif isinstance(values[at], str):
        values[at] = rng.choice(["", " ", "a", "a b c", "\x00", "ü", "\ud7ff", "x" * 9000, "<0x41>"])
    else:
        values[at] = type(values[at])(rng.choice([0, -1, 7, 100, 10**6]))
    metadata[name] = values if isinstance(metadata[name], list) else np.array(values, metadata[name].dtype)
    _write(path, metadata, _tensors(file))
    return f"{name}[{at}]: {kind}"


def tensor(folder: Path, rng: random.Random) -> str:
    """One tensor is missing, renamed, added, of a wrong shape or type, or has wrong numbers; or the order changes."""
    path = _some_file(folder, rng)
    file = read(path)
    held = _tensors(file)
    at = rng.randrange(len(held))
    one, kind = held[at], rng.choice(["missing", "renamed", "extra", "shape", "type", "numbers", "order"])
    if kind == "missing":
        del held[at]
    elif kind == "renamed":
        name = rng.choice([name for name in NAMES if name not in file.tensors])
        held[at] = Tensor(name, one.shape, one.type, one.data)
    elif kind == "extra":
        name = rng.choice([name for name in NAMES if name not in file.tensors])
        shape = rng.choice([(1,), (8,), (32,), (4, 32), (1, 1, 1, 32)])
        held.append(Tensor(name, shape, "F32", np.ones(4 * int(np.prod(shape)), np.uint8)))
    elif kind == "shape":
        size = int(np.prod(one.shape))
        held[at] = Tensor(one.name, (size // 32, 32) if rng.random() < 0.5 else (1, *one.shape), one.type, one.data)
    elif kind == "type":
        rows = np.ones(one.shape, np.float32) if rng.random() < 0.5 else np.zeros(one.shape, np.int8)
        held[at] = Tensor(
            one.name, one.shape, "F32" if rows.dtype == np.float32 else "I8", rows.reshape(-1).view(np.uint8)
        )
    elif kind == "order":
        rng.shuffle(held)
    else:
        held[at] = Tensor(one.name, one.shape, one.type, np.full_like(one.data, rng.choice([0, 255, 127, 128])))
    _write(path, file.metadata, held)
    return f"tensor {one.name}: {kind}"


def files(folder: Path, rng: random.Random) -> str:
    """A file is missing, has a wrong name or another file's content, is a folder or a link; or there is one more."""
    path = _some_file(folder, rng)
    kind = rng.choice(["remove", "rename", "folder", "exchange", "more", "no suffix", "link"])
    if kind == "remove":
        path.unlink()
    elif kind == "rename":
        path.rename(path.with_name(f"x{path.name}"))
    elif kind == "no suffix":
        path.rename(path.with_suffix(""))
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    elif kind == "exchange":
        path.write_bytes(_some_file(folder, rng).read_bytes())
    elif kind == "more":
        path.with_name("more.gguf").write_bytes(path.read_bytes())
    else:
        path.rename(folder.parent / f"outside-{path.name}")
        path.symlink_to(folder.parent / f"outside-{path.name}")
    return f"{path.name}: {kind}"


def some_bytes(folder: Path, rng: random.Random) -> str:
    """Some of the first bytes of a file are damaged (see :func:`.damage.bytes_of`)."""
    return "bytes of " + bytes_of(_some_file(folder, rng).name, rng.choice([100, 2000, 40_000]))(folder, rng)


OTHERS = (*[key] * 5, *[tokens] * 3, *[tensor] * 3, *[some_bytes] * 3, files)

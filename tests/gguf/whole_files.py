"""Whole small models to quantize, which use every rule of llama.cpp's mixes, and the expected results.

``whole_files.json`` holds the results of llama.cpp's own ``llama_model_quantize`` for them, so that types and bytes are
also compared if llama.cpp is not installed; ``benchmarks/gguf_whole_files.py`` writes this file.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from qtutor.decoder import EMBEDDED
from qtutor.gguf import TYPES
from qtutor.gguf.architecture import permute, tensor_name
from qtutor.gguf.mixes import MIXES, file_type, tensor_types
from tests.gguf import inputs

GOLDEN = Path(__file__).with_suffix(".json")
REFUSED = "refused"


@dataclass(frozen=True)
class Model:
    """The sizes of a decoder. missing: tensors without an entry in its importance matrix."""

    about: str
    width: int
    mlp: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool
    architecture: str = "llama"
    missing: tuple[str, ...] = ()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """GGUF name -> shape as torch has it."""
        head = self.width // self.heads
        block = {
            "attn_norm.weight": (self.width,),
            "attn_q.weight": (self.width, self.width),
            "attn_k.weight": (self.kv_heads * head, self.width),
            "attn_v.weight": (self.kv_heads * head, self.width),
            "attn_output.weight": (self.width, self.width),
            "ffn_norm.weight": (self.width,),
            "ffn_gate.weight": (self.mlp, self.width),
            "ffn_up.weight": (self.mlp, self.width),
            "ffn_down.weight": (self.width, self.mlp),
        }
        if self.architecture == "qwen2":
            block |= {f"attn_{kind}.bias": block[f"attn_{kind}.weight"][:1] for kind in "qkv"}
        if self.architecture == "qwen3":
            block |= {"attn_q_norm.weight": (head,), "attn_k_norm.weight": (head,)}
        shapes = {"token_embd.weight": (self.vocabulary, self.width), "output_norm.weight": (self.width,)}
        if not self.tied:
            shapes["output.weight"] = (self.vocabulary, self.width)
        return shapes | {f"blk.{i}.{name}": shape for i in range(self.layers) for name, shape in block.items()}

    def metadata(self) -> dict:
        """The smallest set of keys that llama.cpp's quantizer accepts."""
        sizes = {
            "context_length": 64,
            "embedding_length": self.width,
            "block_count": self.layers,
            "feed_forward_length": self.mlp,
            "attention.head_count": self.heads,
            "attention.head_count_kv": self.kv_heads,
            "attention.layer_norm_rms_epsilon": 1e-6,
        }
        tokens = {
            "model": "gpt2",
            "pre": "gpt-2",
            "tokens": [f"t{i}" for i in range(self.vocabulary)],
            "merges": ["t 0"],
        }
        metadata = {"general.architecture": self.architecture}
        metadata |= {f"{self.architecture}.{key}": value for key, value in sizes.items()}
        return metadata | {f"tokenizer.ggml.{key}": value for key, value in tokens.items()}


MODELS = {
    "embedded": Model("the embedded decoder", 256, 512, 2, 4, 2, 1024, tied=True),
    "grouped": Model("8 query heads on one key head, 17 layers", 256, 256, 17, 8, 1, 256, tied=False),
    "odd": Model("widths 288 and 520", 288, 520, 9, 4, 4, 160, tied=True),
    "odd, untied": Model(
        "Qwen2 with widths 288 and 512, importance of one tensor missing", 288, 512, 2, 4, 1, 96, tied=False,
        architecture="qwen2", missing=("blk.1.ffn_up.weight",),
    ),
    "70B": Model("80 layers, narrow", 32, 32, 80, 4, 2, 64, tied=False),
    "72B": Model("80 layers of Qwen2, narrow", 32, 32, 80, 4, 4, 64, tied=False, architecture="qwen2"),
    "Qwen3": Model("80 layers of Qwen3, narrow", 32, 32, 80, 4, 2, 64, tied=False, architecture="qwen3"),
}  # fmt: skip
DIGESTED = ("embedded", "odd, untied")  # the models whose bytes are in whole_files.json


@cache
def weights(model: str) -> dict[str, np.ndarray]:
    """Every tensor in float32: the embedded decoder's weights, and random numbers for the other models."""
    if model == "embedded":
        return embedded_weights()
    shapes = MODELS[model].shapes()
    seeds = range(1000 * (1 + list(MODELS).index(model)), 10**9, 20)
    return {
        name: inputs.gaussian(1, int(np.prod(shape)), seed).reshape(shape) + np.float32(len(shape) == 1)
        for (name, shape), seed in zip(shapes.items(), seeds)
    }


def embedded_weights() -> dict[str, np.ndarray]:
    """The weights in the decoder's file, with GGUF's names and with the rows of q and k in llama.cpp's order."""
    heads = {"attn_q": MODELS["embedded"].heads, "attn_k": MODELS["embedded"].kv_heads}
    found = {}
    with safe_open(EMBEDDED / "model.safetensors", "pt") as file:
        for parameter in file.keys():  # noqa: SIM118 (the file is no dict)
            name, rows = tensor_name(parameter), file.get_tensor(parameter).to(torch.float32).numpy()
            kind = name.split(".")[-2]
            found[name] = permute(rows, heads[kind]) if kind in heads else rows
    assert {name: rows.shape for name, rows in found.items()} == MODELS["embedded"].shapes()
    return found


@cache
def importances(model: str) -> dict[str, np.ndarray]:
    """Random mean squares, as in an importance matrix: one per input column of each matrix that is multiplied."""
    shapes = MODELS[model].shapes()
    embedding = () if MODELS[model].tied else ("token_embd.weight",)  # looked up, not multiplied
    return {
        name: (inputs.uniform(shape[-1], 7 + number) ** 4).astype(np.float32)
        for number, (name, shape) in enumerate(shapes.items())
        if len(shape) == 2 and name not in embedding + MODELS[model].missing
    }


@dataclass(frozen=True)
class Case:
    """How a file is made: a mix or (pure) a block type, with or without an importance matrix."""

    mix: str
    importance: bool = False
    pure: bool = False

    def __str__(self):
        return ("pure " if self.pure else "") + self.mix + (", importance" if self.importance else "")

    @property
    def file_type(self) -> int:
        return file_type(self.mix, self.pure)

    def types(self, model: str) -> dict[str, str]:
        sizes = MODELS[model]
        return tensor_types(
            self.mix, sizes.shapes(), heads=sizes.heads, kv_heads=sizes.kv_heads, architecture=sizes.architecture,
            importance=self.importance, pure=self.pure,
        )  # fmt: skip


NEWER = ("NVFP4", "Q1_0", "Q2_0")  # newer than the llama.cpp that made whole_files.json; see test_newer_mixes.py
PURE = [name for name in TYPES if name not in NEWER]
OLDER = [mix for mix in MIXES if mix not in NEWER]
CASES = [Case(mix, importance) for mix in OLDER for importance in (False, True)] + [Case(t, pure=True) for t in PURE]


def summary(types: dict[str, str]) -> dict[str, str]:
    """Types in readable form: "2 Q6_K, 1 Q4_K" (in the order of the layers) -> the kinds of matrices with them."""
    layers: dict[str, list[tuple[int, str]]] = {}
    for name, type in types.items():
        if type == "F32" and name.endswith(("_norm.weight", ".bias")):
            continue  # always so
        parts = name.split(".")
        layer, kind = (int(parts[1]), ".".join(parts[2:])) if parts[0] == "blk" else (0, name)
        layers.setdefault(kind.removesuffix(".weight"), []).append((layer, type))
    found: dict[str, list[str]] = {}
    for kind, along in sorted(layers.items()):
        runs = [(type, len(list(run))) for type, run in groupby(type for _, type in sorted(along))]
        text = runs[0][0] if len(runs) == 1 else ", ".join(f"{count} {type}" for type, count in runs)
        found.setdefault(text, []).append(kind)
    return {text: " ".join(kinds) for text, kinds in found.items()}


def digest(data: np.ndarray) -> str:
    return hashlib.sha256(data.tobytes()).hexdigest()[:16]


def golden() -> dict:
    return json.loads(GOLDEN.read_text())

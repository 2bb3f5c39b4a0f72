"""transformers' config from any GGUF file, whoever wrote it: the way back from :mod:`.hyperparameters`.

    config_values(read_whole("model.gguf"))     # {"model_type": "llama", "hidden_size": 576, ...}

Settings that are missing in the file are as in llama.cpp: its defaults, and the values that are built into an
architecture. Settings that llama.cpp does not read for this architecture are not read here either. Two settings get
another form with the same results. Llama 3's positions, which a file holds as a tensor of factors, become parameters
(:mod:`.llama3_rope`). A sliding window in an architecture that has none in llama.cpp makes Llama a Mistral: both
compute the same for texts up to the length of the window.

Left out: mixtures of experts, encoders, and settings that differ from block to block.
"""

import math

import numpy as np

from qtutor.errors import QtutorError, shown
from qtutor.gguf import longrope
from qtutor.gguf.architecture import ARCHITECTURES, Architecture
from qtutor.gguf.llama3_rope import ROPE, rope_of
from qtutor.gguf.reader import GGUFFile

LARGEST = 1 << 31  # the limit of a size
WITH_WINDOW = {"llama": "mistral"}  # families that differ only in a window
MEND = "The file is damaged: fetch or convert it again."
ELSEWHERE = "Run the file in llama.cpp."
NEEDED = object()  # instead of a default: the key must be there


def config_values(file: GGUFFile) -> dict:
    """Keys and values of transformers' config.

    Raises :class:`QtutorError` naming a key that is missing or damaged, and for a model that cannot be computed here.
    """
    keys = Keys(file)
    architecture, blocks = keys.architecture, keys.size("block_count")
    hidden, heads = keys.size("embedding_length"), keys.size("attention.head_count")
    dim = keys.size("attention.key_length", hidden // heads)
    if keys.size("attention.value_length", hidden // heads) != dim:
        raise keys.wrong("attention.value_length", f"{dim}, as attention.key_length (or hidden size / heads)")
    context = keys.size("context_length")
    values = {
        "model_type": architecture.model_types[0],
        "vocab_size": _vocabulary(file),
        "hidden_size": hidden,
        "intermediate_size": keys.size("feed_forward_length"),
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "num_key_value_heads": keys.size("attention.head_count_kv", heads),
        "head_dim": dim,
        "max_position_embeddings": context,
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "rope_parameters": _ropes(keys, dim, context),
        "tie_word_embeddings": "output.weight" not in file.tensors,
    }
    values |= {ours: keys.number(key) for key, ours in architecture.keys.items() if keys.has(key)}
    for name, key in (("attention_bias", "attn"), ("mlp_bias", "ffn")):
        values[name] = any(name.endswith(".bias") and f".{key}_" in name for name in file.tensors)
    if values["rope_parameters"].get("rope_type") == longrope.KIND:  # Phi-3's config has it in two places
        values["original_max_position_embeddings"] = values["rope_parameters"]["original_max_position_embeddings"]
    for name in ("bos", "eos"):
        number = file.metadata.get(f"tokenizer.ggml.{name}_token_id")
        values[f"{name}_token_id"] = int(number) if isinstance(number, np.integer) else None
    values["pad_token_id"] = None  # the default of a family may be outside this vocabulary
    return _with_window(keys, values) | architecture.built_in(values)


class Keys:
    """The keys of a file's architecture, without its name in front; each value is checked before it is used."""

    def __init__(self, file: GGUFFile):
        self.file = file
        self.name = file.metadata.get("general.architecture")
        kind = file.metadata.get("general.type", "model")
        if not isinstance(kind, str) or kind != "model":
            raise QtutorError(
                f"{file.path}: general.type is {shown(kind)}, expected 'model': a file with a whole decoder in it."
            )
        if not isinstance(self.name, str) or self.name not in ARCHITECTURES:
            raise QtutorError(
                f"{file.path}: general.architecture is {shown(self.name)}, but of llama.cpp's architectures "
                f"qtutor runs only {', '.join(ARCHITECTURES)}. {ELSEWHERE}"
            )
        self.architecture: Architecture = ARCHITECTURES[self.name]
        if self.has("expert_count") and self.size("expert_count", least=0):
            raise self.wrong("expert_count", "none: mixtures of experts are not known to qtutor", ELSEWHERE)
        if self.has("attention.causal") and self.found("attention.causal") is not True:
            raise self.wrong("attention.causal", "true: qtutor runs decoders, no encoders", ELSEWHERE)

    def has(self, key: str) -> bool:
        return f"{self.name}.{key}" in self.file.metadata

    def found(self, key: str):
        return self.file.metadata.get(f"{self.name}.{key}")

    def wrong(self, key: str, wanted: str, mend: str = MEND) -> QtutorError:
        value = self.found(key)
        value = value[:9].tolist() if isinstance(value, np.ndarray) else getattr(value, "item", lambda: value)()
        found = shown(value) if self.has(key) else "not there"
        return QtutorError(f"{self.file.path}: {self.name}.{key} is {found}, expected {wanted}. {mend}")

    def size(self, key: str, default=NEEDED, least: int = 1) -> int:
        """A whole number; a list with a number for every block is accepted if all of them are the same."""
        if not self.has(key) and default is not NEEDED:
            return default
        value = self.found(key)
        if isinstance(value, np.ndarray) and value.size and value.dtype.kind in "iu":
            if (value != value[0]).any():
                raise self.wrong(key, "the same for all blocks: qtutor runs no others", ELSEWHERE)
            value = value[0]
        if not isinstance(value, np.integer) or not least <= value <= LARGEST:
            raise self.wrong(key, f"a whole number from {least} to {LARGEST:,}")
        return int(value)

    def number(self, key: str, default=NEEDED) -> float:
        """A float32 as the shortest decimal number that gives it: 1e-05, not 9.999999747378752e-06."""
        if not self.has(key) and default is not NEEDED:
            return default
        value = self.found(key)
        if not isinstance(value, np.floating | np.integer) or not np.isfinite(value):
            raise self.wrong(key, "a number")
        return float(str(value))

    def text(self, key: str, default: str) -> str:
        value = self.found(key) if self.has(key) else default
        if not isinstance(value, str):
            raise self.wrong(key, "a text")
        return value


def _vocabulary(file: GGUFFile) -> int:
    """How many tokens there are, by the tensor that embeds them and by the tokenizer."""
    info, tokens = file.tensors.get("token_embd.weight"), file.metadata.get("tokenizer.ggml.tokens")
    if info is None:
        raise QtutorError(f"{file.path}: tensor 'token_embd.weight' is not there. {MEND}")
    if isinstance(tokens, list) and len(tokens) != info.shape[0]:
        raise QtutorError(
            f"{file.path}: tokenizer.ggml.tokens has {len(tokens)} tokens, and the tensor 'token_embd.weight' embeds "
            f"{info.shape[0]}. {MEND}"
        )
    return info.shape[0]


def _with_window(keys: Keys, values: dict) -> dict:
    """``values`` with the file's sliding window, if the file has one that is shorter than its context."""
    window, context = keys.size("attention.sliding_window", 0, least=0), values["max_position_embeddings"]
    period = keys.architecture.window
    if period:
        pattern = "attention.sliding_window_pattern"
        if keys.has(pattern) and keys.found(pattern) != period:
            raise keys.wrong(pattern, f"{period}: qtutor runs no others", ELSEWHERE)
        default = NEEDED if keys.architecture.local_rope else 4096  # without it, Gemma 3 is another graph there
        return values | {"sliding_window": keys.size("attention.sliding_window", default)}
    if not 0 < window < context:
        return values
    family = WITH_WINDOW.get(values["model_type"])
    if family and not (values["attention_bias"] or values["mlp_bias"]):
        return values | {"model_type": family, "sliding_window": window}
    return values | {"max_position_embeddings": window}


def _ropes(keys: Keys, dim: int, context: int) -> dict:
    """transformers' ``rope_parameters``; one set for each kind of block if blocks with a window have their own."""
    rope = _rope(keys, dim, context)
    if not keys.architecture.local_rope:
        return rope
    base = keys.number("rope.freq_base_swa", 10000.0)
    return {"full_attention": rope, "sliding_attention": {"rope_type": "default", "rope_theta": base}}


def _rope(keys: Keys, dim: int, context: int) -> dict:
    """The ``rope_parameters`` of one kind of block."""
    base = keys.number("rope.freq_base", 10000.0)
    kind = keys.text("rope.scaling.type", "linear")
    factor = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 0.0)) or 1.0
    rotated, more = keys.size("rope.dimension_count", dim), keys.number("rope.scaling.attn_factor", 1.0)
    rope = {"rope_theta": base, "rope_type": "default"}
    if rotated != dim:
        if rotated > dim or not keys.architecture.partial:
            raise keys.wrong("rope.dimension_count", f"{dim}, all of a head")
        rope["partial_rotary_factor"] = rotated / dim
    if base <= 0 or factor <= 0:
        raise keys.wrong("rope.freq_base" if base <= 0 else "rope.scaling.factor", "a number above 0")
    if ROPE in keys.file.tensors and "llama3" in keys.architecture.scalings:
        if kind not in ("none", "linear") or (kind == "linear" and factor != 1):
            raise keys.wrong("rope.scaling.type", f"none, since there is the tensor {ROPE!r}")
        return rope | rope_of(
            _factors(keys.file, rotated, ROPE).astype(np.float64), base, rotated, context, str(keys.file.path)
        )
    if longrope.TENSORS.keys() & keys.file.tensors.keys() and longrope.KIND in keys.architecture.scalings:
        tensors = {name: _factors(keys.file, rotated, name) for name in longrope.TENSORS}
        original = keys.size(f"rope.{longrope.CONTEXT}", context)
        return rope | longrope.rope_of(tensors, original, keys.number(f"rope.{longrope.SHARPER}", 1.0))
    if kind == "none" or (factor == 1 and kind in ("linear", "yarn") and more == 1):
        return rope
    if kind not in keys.architecture.scalings or (kind != "yarn" and more != 1):
        known = ", ".join(name for name in keys.architecture.scalings if name != "llama3")
        raise keys.wrong("rope.scaling.type", f"one of none, {known}; attn_factor only with yarn", ELSEWHERE)
    rope |= {"rope_type": kind, "factor": factor}
    if kind == "yarn":
        rope["original_max_position_embeddings"] = keys.size("rope.scaling.original_context_length", context)
        if more != 1:  # llama.cpp multiplies what transformers replaces
            rope["attention_factor"] = more * (0.1 * math.log(factor) + 1)
    return rope


def _factors(file: GGUFFile, dim: int, name: str) -> np.ndarray:
    """The divisors of the frequencies in the tensor ``name``, float32 ``[dim / 2]``."""
    if name not in file.tensors:
        raise QtutorError(f"{file.path}: tensor {name!r} is not there. {MEND}")
    factors = file.weight(name).ravel()
    if factors.shape != (dim // 2,) or not np.isfinite(factors).all() or factors.min() <= 0:
        raise QtutorError(
            f"{file.path}: tensor {name!r} is {shown(factors[:9].tolist())}, expected {dim // 2} numbers above 0. "
            f"{MEND}"
        )
    return factors

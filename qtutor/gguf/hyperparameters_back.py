"""transformers' config out of a GGUF file by whomever: the way back from :mod:`.hyperparameters`.

    config_values(read_whole("model.gguf"))     # {"model_type": "llama", "hidden_size": 576, ...}

What a file does not say is as in llama.cpp: its defaults, and what an architecture has built in. What a file says and
llama.cpp does not read (of this architecture) is not read here either. Two things are told otherwise, and computed
alike: Llama 3's positions, which a file holds as a tensor of factors (:func:`llama3_of`); and a sliding window in
an architecture where llama.cpp has none, which makes Llama a Mistral: as long as the window, both compute the same.

Left out: mixtures of experts, encoders, and what differs from block to block.
"""

import math
from itertools import pairwise

import numpy as np

from qtutor.errors import QtutorError, shown
from qtutor.gguf.architecture import ARCHITECTURES, Architecture
from qtutor.gguf.hyperparameters import ROPE, llama3_factors
from qtutor.gguf.reader import GGUFFile

LARGEST = 1 << 31  # of a size
WITH_WINDOW = {"llama": "mistral"}  # families that are the same but for a window
MEND = "The file is damaged: fetch or convert it again."
ELSEWHERE = "Run the file in llama.cpp."
NEEDED = object()  # in place of a default


def config_values(file: GGUFFile) -> dict:
    """Keys and values of transformers' config.

    Raises :class:`QtutorError` naming the key where one is missing or damaged, and for what cannot be computed here.
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
        "rope_parameters": _rope(keys, dim, context),
        "tie_word_embeddings": "output.weight" not in file.tensors,
    }
    values |= {ours: keys.number(key) for key, ours in architecture.keys.items() if keys.has(key)}
    for name, key in (("attention_bias", "attn"), ("mlp_bias", "ffn")):
        values[name] = any(name.endswith(".bias") and f".{key}_" in name for name in file.tensors)
    for name in ("bos", "eos"):
        number = file.metadata.get(f"tokenizer.ggml.{name}_token_id")
        values[f"{name}_token_id"] = int(number) if isinstance(number, np.integer) else None
    return _with_window(keys, values) | architecture.built_in(values)


class Keys:
    """The keys of a file's architecture, without its name in front; each is looked at before it is believed."""

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
                f"{file.path}: general.architecture is {shown(self.name)}, and of llama.cpp's architectures qtutor "
                f"runs {', '.join(ARCHITECTURES)}. {ELSEWHERE}"
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
        found = shown(self.found(key)) if self.has(key) else "not there"
        return QtutorError(f"{self.file.path}: {self.name}.{key} is {found}, expected {wanted}. {mend}")

    def size(self, key: str, default=NEEDED, least: int = 1) -> int:
        """A whole number; one for every block is taken where all are the same."""
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
        """A float32 as the shortest decimal number that stands for it: 1e-05, not 9.999999747378752e-06."""
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
    """How many tokens there are, which the tensor says that embeds them."""
    info = file.tensors.get("token_embd.weight")
    if info is None:
        raise QtutorError(f"{file.path}: tensor 'token_embd.weight' is not there. {MEND}")
    return info.shape[0]


def _with_window(keys: Keys, values: dict) -> dict:
    """With the file's sliding window, where it has one that is shorter than its context."""
    window, context = keys.size("attention.sliding_window", 0, least=0), values["max_position_embeddings"]
    if keys.architecture.window and window:
        return values | {"sliding_window": window}
    if not 0 < window < context:
        return values
    family = WITH_WINDOW.get(values["model_type"])
    if family and not (values["attention_bias"] or values["mlp_bias"]):
        return values | {"model_type": family, "sliding_window": window}
    return values | {"max_position_embeddings": window}


def _rope(keys: Keys, dim: int, context: int) -> dict:
    """transformers' ``rope_parameters``."""
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
        return rope | llama3_of(_factors(keys.file, rotated), base, rotated, str(keys.file.path))
    if kind == "none" or (factor == 1 and kind in ("linear", "yarn") and more == 1):
        return rope
    if kind not in keys.architecture.scalings or (kind != "yarn" and more != 1):
        known = ", ".join(name for name in keys.architecture.scalings if name != "llama3")
        raise keys.wrong("rope.scaling.type", f"one of none, {known}, without attn_factor but for yarn", ELSEWHERE)
    rope |= {"rope_type": kind, "factor": factor}
    if kind == "yarn":
        rope["original_max_position_embeddings"] = keys.size("rope.scaling.original_context_length", context)
        if more != 1:  # llama.cpp multiplies what transformers replaces
            rope["attention_factor"] = more * (0.1 * math.log(factor) + 1)
    return rope


def _factors(file: GGUFFile, dim: int) -> np.ndarray:
    factors = file.weight(ROPE).astype(np.float64).ravel()
    if factors.shape != (dim // 2,) or not np.isfinite(factors).all() or factors.min() <= 0:
        raise QtutorError(
            f"{file.path}: tensor {ROPE!r} is {shown(factors)}, expected {dim // 2} numbers above 0. {MEND}"
        )
    return factors


def llama3_of(factors: np.ndarray, base: float, dim: int, where: str) -> dict:
    """The parameters of Llama 3's scaling with which :func:`.hyperparameters.llama3_factors` gives ``factors``.

    factors: float64 ``[dim / 2]``, what each frequency is divided by: 1 for fast frequencies, the largest for slow
    ones, and between them along a line in the turns that a frequency takes in the original context. Where the context
    and both ends of the line are doubled, all factors stay the same; so the context is always Llama 3's, 8192 tokens.
    """
    if np.allclose(factors, 1, rtol=1e-6):
        return {}
    largest, context = float(str(np.float32(factors.max()))), 8192
    turns = context * base ** -(np.arange(0, dim, 2) / dim) / (2 * math.pi)
    with np.errstate(all="ignore"):
        low, high = _ends_of_line(turns, (1 / factors - 1 / largest) / (1 - 1 / largest))
        found = {"factor": largest, "low_freq_factor": low, "high_freq_factor": high}
        found |= {"rope_type": "llama3", "original_max_position_embeddings": context}
        if low < high and np.allclose(llama3_factors(found | {"rope_theta": base}, dim), factors, rtol=1e-5):
            return found
    raise QtutorError(
        f"{where}: tensor {ROPE!r} divides frequencies by {shown(factors, 120)}, which is no scaling of Llama 3's, and "
        f"no other one is known here. {ELSEWHERE}"
    )


def _ends_of_line(turns: np.ndarray, fast: np.ndarray) -> tuple[float, float]:
    """Where the line reaches 0 and 1 that ``fast`` follows between its ends; NaN where there is none.

    Millionths are rounded off: what comes of 1 and 4 shall be 1 and 4.
    """
    between = np.flatnonzero((fast > 1e-6) & (fast < 1 - 1e-6))
    if len(between) >= 2:
        slope, at_zero = np.polyfit(turns[between], fast[between], 1)
    else:  # of the lines to the nearest point of each end the steepest, which leaves both ends as they are
        points = [*np.flatnonzero(fast >= 1 - 1e-6)[-1:], *between, *np.flatnonzero(fast <= 1e-6)[:1]]
        slopes = [(fast[a] - fast[b]) / (turns[a] - turns[b]) for a, b in pairwise(points)]
        steepest = int(np.argmax(slopes)) if slopes else 0
        slope = slopes[steepest] if slopes else math.nan
        at_zero = fast[points[steepest]] - slope * turns[points[steepest]] if slopes else math.nan
    return round(float(-at_zero / slope), 6), round(float((1 - at_zero) / slope), 6)

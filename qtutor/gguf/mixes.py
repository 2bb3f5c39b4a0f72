"""Which tensor of a file gets which block type: the difference between "Q4_K_M" and "Q4_K".

    types = tensor_types("Q4_K_M", shapes, heads=32, kv_heads=8)  # {"blk.0.attn_v.weight": "Q6_K", ...}

A mix is a type for most tensors and a better type for tensors whose errors hurt more: the attention's values, the MLP's
output matrix, the output; in all layers or in some. :data:`MIXES` holds the mixes as llama.cpp's
``src/llama-quant.cpp`` does (``llama_tensor_get_type_impl``, ``tensor_type_fallback``): the rules were found by
experiment, not derived.

Left out: mixture-of-experts and the architectures whose rules differ (Falcon, GLM), and the mixes whose block types
qtutor does not encode (IQ1, IQ2, IQ3). llama-quantize has no mix for NVFP4, because it gets such weights only from
ModelOpt; our NVFP4 mix follows the rules that hold for all mixes.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from qtutor.gguf.container import GGUFError
from qtutor.gguf.layout import TYPES

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "olmo2", "granite", "smollm3")


@dataclass(frozen=True)
class Place:
    """The place of a tensor in the model: all that a rule may look at."""

    layer: int
    layers: int
    grouped: bool  # four or more query heads share one value head: attn_v is small, and more bits for it cost little
    huge: bool  # llama.cpp treats it as a model of 70 billion weights
    importance: bool  # whether the file is made with an importance matrix


def always(place: Place) -> bool:
    """Every layer."""
    return True


def in_grouped(place: Place) -> bool:
    """The layers of models whose query heads share keys and values in groups."""
    return place.grouped


def in_first_eighth(place: Place) -> bool:
    """The first eighth of the layers."""
    return place.layer < place.layers // 8


def more_bits(place: Place) -> bool:
    """The first and the last eighth of the layers, and every third between them."""
    eighth = place.layers // 8
    return place.layer < eighth or place.layer >= 7 * place.layers // 8 or (place.layer - eighth) % 3 == 2


Rules = tuple[tuple[str, Callable[[Place], bool]], ...]  # (type, where): the first rule that applies decides


@dataclass(frozen=True)
class Mix:
    """``number``: the value of ``general.file_type``. ``base``: the type of every matrix that no rule names."""

    number: int
    base: str
    attn_v: Rules = ()
    ffn_down: Rules = ()
    attn_output: Rules = ()
    token_embd: Rules = ()  # if the output has a tensor of its own


_UNGUIDED = (("Q5_K", lambda place: in_first_eighth(place) and not place.importance),)
_GUIDED_4 = (("Q4_1", lambda place: in_first_eighth(place) and place.importance),)
_GUIDED_5 = (("Q5_1", lambda place: in_first_eighth(place) and place.importance),)
_Q6_MORE = (("Q6_K", more_bits),)

MIXES = {
    "F32": Mix(0, "F32"),
    "F16": Mix(1, "F16"),
    "BF16": Mix(32, "BF16"),
    "Q8_0": Mix(7, "Q8_0"),
    "Q6_K": Mix(18, "Q6_K"),
    "Q5_K_M": Mix(17, "Q5_K", attn_v=_Q6_MORE, ffn_down=_Q6_MORE),
    "Q5_K_S": Mix(16, "Q5_K"),
    "Q5_1": Mix(9, "Q5_1"),
    "Q5_0": Mix(8, "Q5_0", ffn_down=_GUIDED_5),
    "Q4_K_M": Mix(15, "Q4_K", attn_v=_Q6_MORE, ffn_down=_Q6_MORE),
    "Q4_K_S": Mix(
        14, "Q4_K", attn_v=(("Q5_K", lambda place: place.layer < 4),), ffn_down=(("Q5_K", in_first_eighth),)
    ),
    "Q4_1": Mix(3, "Q4_1"),
    "Q4_0": Mix(2, "Q4_0", ffn_down=_GUIDED_4),
    "IQ4_NL": Mix(25, "IQ4_NL", attn_v=(("Q5_K", in_grouped),), ffn_down=_UNGUIDED),
    "IQ4_XS": Mix(30, "IQ4_XS", attn_v=(("Q5_K", in_grouped),), ffn_down=_UNGUIDED),
    "Q3_K_L": Mix(
        13, "Q3_K", attn_v=(("Q5_K", always),), ffn_down=(("Q5_K", always),), attn_output=(("Q5_K", always),)
    ),
    "Q3_K_M": Mix(
        12, "Q3_K",
        attn_v=(("Q5_K", lambda place: place.layer < 2), ("Q4_K", always)),
        ffn_down=(("Q5_K", lambda place: place.layer < place.layers // 16), ("Q4_K", always)),
        attn_output=(("Q4_K", always),),
    ),
    "Q3_K_S": Mix(11, "Q3_K"),
    "Q2_K": Mix(
        10, "Q2_K",
        attn_v=(("Q4_K", in_grouped), ("Q3_K", always)),
        ffn_down=(("Q3_K", always),),
        attn_output=(("Q3_K", always),),
    ),
    "Q2_K_S": Mix(21, "Q2_K", attn_v=(("Q4_K", in_grouped),), ffn_down=(("Q4_K", in_first_eighth),)),
    "TQ2_0": Mix(37, "TQ2_0", token_embd=(("Q4_K", always),)),
    "TQ1_0": Mix(36, "TQ1_0", token_embd=(("Q4_K", always),)),
    "MXFP4_MOE": Mix(38, "Q8_0"),  # MXFP4 is for experts, and there are none here
    "NVFP4": Mix(39, "NVFP4"),
    "Q1_0": Mix(40, "Q1_0"),
    "Q2_0": Mix(41, "Q2_0", token_embd=(("Q4_K", always),)),
}  # fmt: skip
PURE = {"MXFP4": 38}  # the number of a type that is the base of no mix here

ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}  # as in llama-quantize

# Blocks of 64 to 256 need rows whose width they divide. If only 32 divides the width, these types replace them; each is
# a little larger. llama.cpp has no replacement for NVFP4 and Q1_0, and gives up.
NARROW = {
    "Q2_K": "Q4_0", "Q3_K": "Q4_0", "TQ1_0": "Q4_0", "TQ2_0": "Q4_0", "IQ4_XS": "IQ4_NL", "Q4_K": "Q5_0",
    "Q5_K": "Q5_1", "Q6_K": "Q8_0", "Q2_0": "Q4_0", "NVFP4": "Q4_0", "Q1_0": "Q4_0",
}  # fmt: skip

_IN_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.weight")
_MATRICES = (
    *("token_embd", "attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output"),
    *("ffn_gate", "ffn_up", "ffn_down", "output"),
)


def tensor_types(
    mix: str,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    heads: int,
    kv_heads: int,
    architecture: str = "llama",
    importance: bool = False,
    pure: bool = False,
) -> dict[str, str]:
    """The block type of every tensor in ``shapes`` (GGUF name -> shape as torch has it), as llama.cpp chooses it.

    importance: whether the file is made with an importance matrix. pure: every matrix gets the one type called ``mix``.
    Embeddings count as tied if there is no ``output.weight``. Norms, biases and other vectors stay F32. Raises
    :class:`GGUFError` for an unknown mix or architecture, a matrix that no rule is known for, and for Q2_K_S without
    importance, which llama.cpp refuses, too.

    >>> shapes = {"token_embd.weight": (1024, 256), "blk.0.attn_v.weight": (128, 256), "blk.0.attn_norm.weight": (256,)}
    >>> tensor_types("Q4_K_M", shapes, heads=4, kv_heads=2)
    {'token_embd.weight': 'Q6_K', 'blk.0.attn_v.weight': 'Q6_K', 'blk.0.attn_norm.weight': 'F32'}
    """
    chosen = Mix(0, _block_type(mix)) if pure else find_mix(mix)
    if architecture not in ARCHITECTURES:
        raise GGUFError(f"architecture = {architecture!r}: mixes are known for {', '.join(ARCHITECTURES)}.")
    tied = "output.weight" not in shapes
    layers = 1 + max((int(match[1]) for match in map(_IN_LAYER.fullmatch, shapes) if match), default=-1)
    grouped = heads // max(kv_heads, 1) >= 4
    huge = layers == 80 and (architecture == "qwen2" or (architecture == "llama" and heads != kv_heads))
    types = {}
    for name, shape in shapes.items():
        kind, layer = _kind(name, shape)
        if kind is None:
            types[name] = "F32"
        else:
            place = Place(layer, layers, grouped, huge, importance)
            wanted = chosen.base if pure else _wanted(chosen, kind, shape[-1], tied, place)
            types[name] = fitting(wanted, shape[-1])
    if mix == "Q2_K_S" and not importance:
        _refuse_unguided(types)
    return types


def find_mix(name: str) -> Mix:
    """The mix called ``name``, or the mix of the alias ``name``; :class:`GGUFError` lists the known ones."""
    name = ALIASES.get(name, name)
    if name not in MIXES:
        hint = f" {name} is a block type, not a mix: pure=True accepts it." if name in TYPES else ""
        raise GGUFError(f"mix = {name!r} is none that qtutor knows. Choose from {', '.join(MIXES)}.{hint}")
    return MIXES[name]


def file_type(mix: str, pure: bool = False) -> int:
    """The number ``general.file_type`` of a mix, or of a file of one type; readers only show it."""
    if pure and _block_type(mix) in PURE:
        return PURE[mix]
    return find_mix(mix).number


def fitting(type: str, width: int) -> str:
    """``type``, or its replacement if its blocks do not divide rows of ``width`` weights.

    >>> fitting("Q4_K", 512), fitting("Q4_K", 288), fitting("Q4_K", 100)
    ('Q4_K', 'Q5_0', 'F16')
    """
    for candidate in (type, NARROW.get(type, type)):
        if width % TYPES[candidate].values == 0:
            return candidate
    return "F16"


def _block_type(name: str) -> str:
    if name not in TYPES:
        raise GGUFError(f"mix = {name!r} is no block type, and pure=True needs one. Choose from {', '.join(TYPES)}.")
    return name


def _kind(name: str, shape: tuple[int, ...]) -> tuple[str | None, int]:
    """The kind of a matrix ("attn_v", "output" ...) and its layer; ``None`` for a tensor that is never quantized."""
    if math.prod(shape[:-1]) < 2 or not name.endswith(".weight") or name.endswith("_norm.weight"):
        return None, 0  # to ggml a matrix of one row is a vector, too
    match = _IN_LAYER.fullmatch(name)
    kind, layer = (match[2], int(match[1])) if match else (name.removesuffix(".weight"), 0)
    if kind not in _MATRICES or len(shape) != 2:
        raise GGUFError(
            f"tensor {name!r} of shape {list(shape)}: no rule says which type it gets. Known are matrices called "
            f"KIND.weight or blk.N.KIND.weight with KIND one of {', '.join(_MATRICES)}."
        )
    return kind, layer


def _wanted(mix: Mix, kind: str, width: int, tied: bool, place: Place) -> str:
    """The type that a matrix would have if its width fitted."""
    if mix.base in ("F32", "F16", "BF16"):
        return mix.base
    if kind == "output" or (kind == "token_embd" and tied):  # no later layer can compensate for its errors
        return "Q8_0" if mix.base == "Q8_0" or width % TYPES[mix.base].values else "Q6_K"
    kind = "attn_v" if kind == "attn_qkv" else kind  # it holds the values
    rules = getattr(mix, kind, ())
    wanted = next((better for better, where in rules if where(place)), mix.base)
    if place.huge and kind == "attn_v" and wanted in ("Q3_K", "Q4_K"):  # there it has an eighth of attn_q's size
        return "Q5_K"
    return wanted


def _refuse_unguided(types: dict[str, str]) -> None:
    for name, type in types.items():
        if type == "Q2_K" and name not in ("token_embd.weight", "output.weight"):
            raise GGUFError(
                f"mix = 'Q2_K_S' stores nearly everything in Q2_K, {name!r} first, and llama.cpp refuses that without "
                "an importance matrix: calibrate and give one, or choose Q2_K."
            )

"""llama.cpp's architectures, one row each: the names in a block, which settings are keys, and which are built in.

Most rows are Llama's row with a difference. Source: llama.cpp's ``src/models/*.cpp`` for the tensors and keys that it
reads, ``llama_model_rope_type`` for the rotation.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from qtutor.families import Family


@dataclass(frozen=True)
class Names:
    """llama.cpp's names for the parts of a :class:`~qtutor.families.Half`; a part that a family lacks has no tensor."""

    norm: str
    readers: tuple[str, ...]
    last: str
    after: str


ATTENTION = Names("attn_norm", ("attn_q", "attn_k", "attn_v"), "attn_output", "post_attention_norm")
MLP = Names("ffn_norm", ("ffn_gate", "ffn_up"), "ffn_down", "post_ffw_norm")
QKV, OUTPUT = ATTENTION.readers, (ATTENTION.last,)


def _silu(values: Mapping) -> dict:
    return {"hidden_act": "silu"}


def _full_heads(values: Mapping) -> dict:
    return _silu(values) | {"head_dim": values["hidden_size"] // values["num_attention_heads"]}


def _gemma(values: Mapping, period: int, widest: int) -> dict:
    """Every ``period``-th block sees all of the text. Queries are scaled by the width of a head, except in the decoder
    of ``widest`` blocks, Google's largest."""
    share = values["hidden_size"] // values["num_attention_heads"]
    kinds = ["sliding_attention"] * (period - 1) + ["full_attention"]
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": share if values["num_hidden_layers"] == widest else values["head_dim"],
        "layer_types": [kinds[block % period] for block in range(values["num_hidden_layers"])],
        "attention_bias": False,
    }


def _gemma2(values: Mapping) -> dict:
    return _gemma(values, period=2, widest=46)


def _gemma3(values: Mapping) -> dict:
    return _gemma(values, period=6, widest=62)


def _smollm3(values: Mapping) -> dict:
    """Every fourth block has no positions, and none has a window."""
    blocks = range(values["num_hidden_layers"])
    plain = {"no_rope_layers": [int((block + 1) % 4 != 0) for block in blocks]}
    return _silu(values) | plain | {"layer_types": ["full_attention" for _ in blocks]}


@dataclass(frozen=True)
class Architecture:
    """One of llama.cpp's architectures; "the config's" means a key of transformers' config.

    name: in the file, ``general.architecture``. model_types: the families that are written as this architecture.
    halves: names in a block, attention and MLP. extra_norms: names of a family's extra norms, in its order. biases: the
    layers whose bias is added; llama.cpp would ignore any other bias without a message. neighbours: whether it rotates
    neighbours. scalings: the ways to scale positions that it computes, by the config's ``rope_type``. partial: whether
    it can leave a part of each head as it is (the config's ``partial_rotary_factor``). window: one block in ``window``
    blocks sees all of the text, and the others see a sliding window; 0 if there are no windows: the context of a file
    then ends where the window does. local_rope: whether blocks with a window have positions of their own. output: "own"
    or "tied" if llama.cpp reads only one of the two, a separate matrix after the last norm or the embedding. keys:
    further settings from the config, key of the file -> key of the config, all of them numbers. needed: keys that must
    be a number in the config, because llama.cpp uses its own numbers if the file has none. built_in: values that
    llama.cpp computes with, whatever the file says: a function from the config's sizes (hidden size, blocks, heads ...)
    to the config's keys and values.
    """

    name: str
    model_types: tuple[str, ...]
    halves: tuple[Names, Names] = (ATTENTION, MLP)
    extra_norms: tuple[str, ...] = ("attn_q_norm", "attn_k_norm")
    biases: tuple[str, ...] = QKV
    neighbours: bool = False
    scalings: tuple[str, ...] = ("default", "linear", "yarn")
    partial: bool = False
    window: int = 0
    local_rope: bool = False
    output: str = "either"
    keys: Mapping[str, str] = field(default_factory=dict)
    needed: tuple[str, ...] = ()
    built_in: Callable[[Mapping], dict] = _silu

    def names_in_block(self, family: Family) -> dict[str, str]:
        """llama.cpp's names of the modules of a block, by the family's."""
        names = dict(zip(family.extra_norms, self.extra_norms))
        for half, ours in zip(family.halves, self.halves):
            parts = {half.norm: ours.norm, half.last: ours.last, half.after: ours.after}
            names |= parts | dict(zip(half.readers, ours.readers, strict=True))
        names.pop(None, None)  # a norm that the family lacks
        return names


ALL = (*QKV, *OUTPUT, *MLP.readers, MLP.last)
SOFT_CAPS = {key: key for key in ("attn_logit_softcapping", "final_logit_softcapping")}
TABLE = (
    Architecture(
        "llama", ("llama", "mistral"), neighbours=True, biases=ALL, scalings=("default", "linear", "yarn", "llama3"),
    ),
    Architecture("qwen2", ("qwen2",), built_in=_full_heads),
    Architecture("qwen3", ("qwen3",)),
    Architecture(
        "gemma2", ("gemma2",), biases=(), scalings=("default", "linear"), window=2, output="tied", keys=SOFT_CAPS,
        needed=(*SOFT_CAPS, "sliding_window"), built_in=_gemma2,
    ),
    Architecture(
        "gemma3", ("gemma3_text",), biases=(), scalings=("default", "linear"), window=6, local_rope=True,
        keys={"final_logit_softcapping": "final_logit_softcapping"}, needed=("sliding_window",), built_in=_gemma3,
    ),
    Architecture(
        "phi3", ("phi3",), (replace(ATTENTION, readers=("attn_qkv",)), replace(MLP, readers=("ffn_up",))), biases=(),
        scalings=("default", "longrope"), partial=True, built_in=_full_heads,
    ),
    Architecture("olmo2", ("olmo2",), biases=(), output="own", built_in=_full_heads),
    Architecture(
        "granite", ("granite",), neighbours=True, biases=ALL, scalings=("default", "linear", "yarn"),
        keys={
            "logit_scale": "logits_scaling", "residual_scale": "residual_multiplier",
            "embedding_scale": "embedding_multiplier", "attention.scale": "attention_multiplier",
        },
    ),
    Architecture("smollm3", ("smollm3",), neighbours=True, built_in=_smollm3),
)  # fmt: skip
ARCHITECTURES = {row.name: row for row in TABLE}
OF_FAMILY = {model_type: row for row in TABLE for model_type in row.model_types}

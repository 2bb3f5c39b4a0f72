"""The one place where transformers is given what a checkpoint's files say. No code from a checkpoint is ever run.

transformers by itself asks whether to run code that a folder brings along (``auto_map``), fetches kernels that a config
names (``_attn_implementation: "owner/kernel"``), adds adapters, reads pickles, and hands weights that are quantized to
the library of another tool. Here a config is made of the keys that say what a decoder of a known family computes, and
of no others; a key that asks for more is refused and named. Models are built from shapes alone, on torch's device
"meta", and get the tensors that were compared with them (:func:`filled`). What is left for transformers to read itself
is a tokenizer's files.
"""

import contextlib
import io
import math

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from qtutor.errors import QtutorError, naming, said, shown
from qtutor.families import embedding_scale, family_called, family_of, head_dim
from qtutor.formats.config_values import (
    MEND,
    OURS,
    SPECIAL_TOKENS,
    check_keys,
    check_special_tokens,
    check_values,
    wrong,
)

# Keys that transformers reads though a family's config does not list them.
OLDER = ("torch_dtype", "rope_theta", "rope_scaling", "partial_rotary_factor", "original_max_position_embeddings")
BESIDE = ("head_dim", "tokenizer_class")
OLDER_OF_FAMILY = {"gemma3_text": ("rope_local_base_freq", "sliding_window_pattern")}
# Keys that every config has, and that change what a model returns or say nothing of a decoder.
NOT_READ = (
    *("output_hidden_states", "output_attentions", "return_dict", "is_encoder_decoder", "chunk_size_feed_forward"),
    *("id2label", "label2id", "problem_type", "_name_or_path"),
)
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def config_of(values: dict, where: str, blocks: int):
    """transformers' config of what a file says. where: the file. blocks: so many have tensors in the checkpoint.

    Raises :class:`QtutorError` for a family that is not known, a key that asks for code or names another tool, and a
    number with which nothing can be computed.
    """
    with naming(where):
        family = family_called(values.get("model_type"), values)
    check_keys(values, family.model_type, where)
    check_values(values, where, blocks)
    try:
        usual = AutoConfig.for_model(family.model_type)
        known = set(usual.to_dict()) | {*OLDER, *BESIDE, OURS, *OLDER_OF_FAMILY.get(family.model_type, ())}
        known -= {*NOT_READ, "transformers_version"}
        config = type(usual).from_dict({key: value for key, value in values.items() if key in known})
        _check_config(config, where)
    except QtutorError:
        raise
    except Exception as error:  # its own checks raise errors of many kinds
        raise QtutorError(f"{where} is no config that transformers understands ({_detail(error)}). {MEND}") from error
    return config


def _detail(error: Exception) -> str:
    """transformers' validation errors say only in their second line what is wrong."""
    lines = [line.strip() for line in str(error)[:2000].splitlines() if line.strip()]
    return said(ValueError(" ".join(lines[:2]))) if lines else type(error).__name__


def _check_config(config, where: str) -> None:
    """What follows from several values together, and from what a config has by itself where a file says nothing."""
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    dim = head_dim(config)
    if heads % kv_heads:
        raise wrong(where, "num_key_value_heads", kv_heads, f"a divisor of the {heads} heads")
    if dim % 2 or not dim:
        raise wrong(where, "head_dim (or hidden_size / num_attention_heads)", dim, "an even number")


def shapes_alone(config) -> nn.Module:
    """The decoder of a config, of shapes alone; transformers raises errors of many kinds where there is none."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False).eval()


def empty_model(config, where: str) -> nn.Module:
    """The decoder of a config, of shapes alone: nothing is allocated. where: the file that the config is from."""
    try:
        return shapes_alone(config)
    except Exception as error:  # KeyError for an unknown hidden_act, RuntimeError for a size beyond 2^63, and more
        raise QtutorError(f"{where}: no decoder can be made of this config ({_detail(error)}). {MEND}") from error


def as_transformers_loads(folder) -> nn.Module:
    """The decoder in ``folder`` as transformers itself loads it, in float32 on the CPU, with the package of its format.

    For folders that our own reader took before: they name no code and no other files. Raises what transformers raises.
    """
    with contextlib.redirect_stderr(io.StringIO()):  # bars for every step
        return AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, device_map="cpu", local_files_only=True, trust_remote_code=False
        ).eval()


def filled(model: nn.Module, tensors: dict[str, torch.Tensor], where: str, device: str | None) -> nn.Module:
    """An empty model with ``tensors`` in place of its shapes, which they have, on ``device`` (by itself: the GPU).

    Of tied matrices one may be missing. Position angles, which no file holds, are computed from the config.
    """
    model.load_state_dict(with_tied(model, tensors, where), strict=True, assign=True)
    if model.config.tie_word_embeddings:
        model.tie_weights()
    _compute(model, where)
    left = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
    if left:
        raise QtutorError(
            f"{where}: this version of transformers wants {', '.join(left[:3])}, which no checkpoint holds."
        )
    return model.to(usual_device(device)).eval()


def outlined(model: nn.Module, dtype: torch.dtype, where: str, device: str | None) -> nn.Module:
    """An empty model of ``dtype`` that stays empty, for whoever brings its blocks in one by one; with position angles.

    Everything but the blocks can be run once its weights are there (:mod:`qtutor.formats.streamed`).
    """
    model = model.to(dtype).requires_grad_(False).eval()  # shapes alone: costs nothing, and tied ones stay tied
    _compute(model, where)
    model.model.rotary_emb.to(usual_device(device))
    return model


def _compute(model: nn.Module, where: str) -> None:
    """Put what no file holds into an empty model: angles of positions, and what Gemma multiplies embeddings by."""
    model.model.rotary_emb = _angles(model, where)
    embedding = model.get_submodule(family_of(model).embedding)
    if hasattr(embedding, "embed_scale"):
        embedding.embed_scale = torch.tensor(embedding_scale(embedding))


def usual_device(device: str | None) -> str:
    """``device``, or where models go by themselves: the GPU if there is one."""
    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def with_tied(model: nn.Module, tensors: dict[str, torch.Tensor], where: str) -> dict[str, torch.Tensor]:
    """``tensors`` with both names of a tied matrix, where the config says that it is one.

    Raises :class:`QtutorError` where there are two that differ.
    """
    family = family_of(model)
    embedding, head = f"{family.embedding}.weight", f"{family.head}.weight"
    if not model.config.tie_word_embeddings:
        return tensors
    if {embedding, head} <= tensors.keys() and not torch.equal(tensors[embedding], tensors[head]):
        raise QtutorError(
            f"{where} says that {head} is the same as {embedding} (tie_word_embeddings), and the checkpoint holds two "
            "different ones. Set tie_word_embeddings to false if both are meant."
        )
    return {embedding: tensors[head]} | tensors if head in tensors else {head: tensors[embedding]} | tensors


def take_generation(model: nn.Module, values: dict, where: str) -> None:
    """What greedy text depends on, out of a generation_config.json: where it ends, and a penalty for repeating.

    Nothing else in it is read: it can ask for other ways to search, some of which transformers fetches from the hub.
    """
    check_special_tokens(values, where)
    for key in SPECIAL_TOKENS:
        if values.get(key) is not None:
            setattr(model.generation_config, key, values[key])
    penalty = values.get("repetition_penalty")
    if penalty is not None:
        if type(penalty) not in (int, float) or not 0 < penalty < 100:
            raise wrong(where, "repetition_penalty", penalty, "a number above 0")
        model.generation_config.repetition_penalty = float(penalty)


def angles_in(module: nn.Module) -> dict[str, torch.Tensor]:
    """The angles a position that ``module`` itself holds, by name; a decoder with two kinds of rope has two.

    As they were made of the config: where scaling depends on the length of a text, they change while it is read.
    """
    held = dict(module.named_buffers(recurse=False))
    return {name: angles for name, angles in held.items() if name.endswith("original_inv_freq")}


def _angles(model: nn.Module, where: str) -> nn.Module:
    """The module that turns positions into angles, with values. Raises :class:`QtutorError` for useless ones."""
    rope = shown(model.config.rope_parameters, 160)
    try:
        rotary = type(model.model.rotary_emb)(model.config)
        useful = all(bool(((angles > 0) & angles.isfinite()).all()) for angles in angles_in(rotary).values())
        scalings = [value for key, value in vars(rotary).items() if key.endswith("attention_scaling")]
        useful = useful and bool(scalings) and all(map(math.isfinite, scalings))
    except Exception as error:  # a kind of scaling that is not known, a parameter that is missing or no number
        raise QtutorError(f"{where}: rope_parameters = {rope} give no angles ({_detail(error)}). {MEND}") from error
    if not useful:
        raise QtutorError(f"{where}: rope_parameters = {rope} give angles that are zero or infinite. {MEND}")
    return rotary

"""The one place where the contents of a checkpoint's files are passed to transformers. No code from them is ever run.

transformers by itself asks whether to run code from a folder (``auto_map``), downloads kernels that a config names
(``_attn_implementation: "owner/kernel"``), adds adapters, reads pickles, and passes quantized weights to the library of
another tool. Here a config is made only of the keys that say what a decoder of a known family computes; a key with any
further request is refused and named. Models are built from shapes alone, on torch's device "meta", and get the tensors
that were compared with them (:func:`filled`). Only a tokenizer's files are still read by transformers itself.
"""

import contextlib
import io
import math

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from qtutor.errors import QtutorError, naming, said, shown
from qtutor.families import Family, embedding_scale, family_called, family_of, head_dim
from qtutor.formats.config_values import (
    MEND,
    OURS,
    SPECIAL_TOKENS,
    check_keys,
    check_special_tokens,
    check_values,
    wrong,
)

# Keys that transformers reads although a family's config does not list them.
OLDER = ("torch_dtype", "rope_theta", "rope_scaling", "partial_rotary_factor", "original_max_position_embeddings")
BESIDE = ("head_dim", "tokenizer_class")
OLDER_OF_FAMILY = {"gemma3_text": ("rope_local_base_freq", "sliding_window_pattern")}
# Keys of every config that change what a model returns, or say nothing about a decoder.
NOT_READ = (
    *("output_hidden_states", "output_attentions", "return_dict", "is_encoder_decoder", "chunk_size_feed_forward"),
    *("id2label", "label2id", "problem_type", "_name_or_path"),
)
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def config_of(values: dict, where: str, blocks: int):
    """transformers' config for the values in a file. where: the file. blocks: how many have tensors in the checkpoint.

    Raises :class:`QtutorError` for an unknown family, for a key that names code or another tool, and for a number with
    which nothing can be computed.
    """
    family = family_in(values, where)
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


def family_in(values: dict, where: str) -> Family:
    """The family that the values of a config name. Raises :class:`QtutorError`, beginning with ``where``."""
    with naming(where):
        return family_called(values.get("model_type"), values)


def _detail(error: Exception) -> str:
    """The text of an error of transformers: its validation errors say only in their second line what is wrong."""
    lines = [line.strip() for line in str(error)[:2000].splitlines() if line.strip()]
    return said(ValueError(" ".join(lines[:2]))) if lines else type(error).__name__


def _check_config(config, where: str) -> None:
    """Check values that depend on each other, and defaults of a config for values that a file does not have."""
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    dim = head_dim(config)
    if heads % kv_heads:
        raise wrong(where, "num_key_value_heads", kv_heads, f"a divisor of the {heads} heads")
    if dim % 2 or not dim:
        raise wrong(where, "head_dim (or hidden_size / num_attention_heads)", dim, "an even number")


def shapes_alone(config) -> nn.Module:
    """The decoder of a config, of shapes alone; if there is none, transformers raises errors of many kinds."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False).eval()


def empty_model(config, where: str) -> nn.Module:
    """The decoder of a config, of shapes alone: nothing is allocated. where: the file that holds the config."""
    try:
        return shapes_alone(config)
    except Exception as error:  # KeyError for an unknown hidden_act, RuntimeError for a size beyond 2^63, and more
        raise QtutorError(f"{where}: no decoder can be made of this config ({_detail(error)}). {MEND}") from error


def as_transformers_loads(folder) -> nn.Module:
    """The decoder in ``folder`` as transformers itself loads it, in float32 on the CPU, with the package of its format.

    Only for folders that our own reader accepted before: they name no code and no other files. Raises transformers'
    errors.
    """
    with contextlib.redirect_stderr(io.StringIO()):  # hides the progress bars
        return AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, device_map="cpu", local_files_only=True, trust_remote_code=False
        ).eval()


def filled(model: nn.Module, tensors: dict[str, torch.Tensor], where: str, device: str | None) -> nn.Module:
    """An empty model filled with ``tensors`` of the same shapes, on ``device`` (by default the GPU, if there is one).

    One of two tied matrices may be missing. Position angles, which no file holds, are computed from the config.
    """
    model.load_state_dict(with_tied(model, tensors, where), strict=True, assign=True)
    if model.config.tie_word_embeddings:
        model.tie_weights()
    _compute(model, where)
    left = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
    if left:
        raise QtutorError(
            f"{where}: this version of transformers expects {', '.join(left[:3])}, which no checkpoint holds."
        )
    return model.to(usual_device(device)).eval()


def outlined(model: nn.Module, dtype: torch.dtype, where: str, device: str | None) -> nn.Module:
    """An empty model of ``dtype`` with position angles; it stays empty, and the caller brings its blocks in one by one.

    Everything except the blocks can be run once its weights are there (:mod:`qtutor.formats.streamed`).
    """
    model = model.to(dtype).requires_grad_(False).eval()  # costs nothing for shapes alone, and tied ones stay tied
    _compute(model, where)
    model.base_model.rotary_emb.to(usual_device(device))
    return model


def _compute(model: nn.Module, where: str) -> None:
    """Put values that no file holds into an empty model: position angles, and Gemma's factor for embeddings."""
    model.base_model.rotary_emb = _angles(model, where)
    embedding = model.get_submodule(family_of(model).embedding)
    if hasattr(embedding, "embed_scale"):
        embedding.embed_scale = torch.tensor(embedding_scale(embedding))


def usual_device(device: str | None) -> str:
    """``device``, or the default for models: the GPU if there is one."""
    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def with_tied(model: nn.Module, tensors: dict[str, torch.Tensor], where: str) -> dict[str, torch.Tensor]:
    """``tensors`` with both names of a tied matrix, if the config says that it is tied.

    Raises :class:`QtutorError` if there are two that differ.
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
    """Take the settings of greedy text from a generation_config.json: where it ends, and a penalty for repeating.

    Nothing else in the file is used: it can name other ways to search, some of which transformers downloads from the
    hub.
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
    """The angles per position that ``module`` itself holds, by name; a decoder with two kinds of rope has two.

    The angles are those computed from the config. If scaling depends on the length of a text, the angles in use change
    while the text is read.
    """
    held = dict(module.named_buffers(recurse=False))
    return {name: angles for name, angles in held.items() if name.endswith("original_inv_freq")}


def _angles(model: nn.Module, where: str) -> nn.Module:
    """The module that turns positions into angles, with values. Raises :class:`QtutorError` for useless ones."""
    rope = shown(model.config.rope_parameters, 160)
    try:
        rotary = type(model.base_model.rotary_emb)(model.config)
        useful = all(bool(((angles > 0) & angles.isfinite()).all()) for angles in angles_in(rotary).values())
        scalings = [value for key, value in vars(rotary).items() if key.endswith("attention_scaling")]
        useful = useful and bool(scalings) and all(map(math.isfinite, scalings))
    except Exception as error:  # an unknown kind of scaling, or a parameter that is missing or no number
        raise QtutorError(f"{where}: rope_parameters = {rope} give no angles ({_detail(error)}). {MEND}") from error
    if not useful:
        raise QtutorError(f"{where}: rope_parameters = {rope} give angles that are zero or infinite. {MEND}")
    return rotary

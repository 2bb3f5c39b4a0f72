"""Which values of a config.json are allowed, checked before transformers is called: no code, no absurd size.

Everything here checks plain values from a file; :mod:`.transformers_files` makes a config of those that pass.
"""

from qtutor.errors import QtutorError, shown, warn
from qtutor.families import FAMILIES

# Keys of a config that would make it another model, or name code: what they would do, and what the user can do.
REFUSED = {
    "auto_map": "asks for code of its own, and no code from a checkpoint is ever run. If its decoder is a plain "
    "{family}, remove the key",
    "quantization_config": "is quantized already, by {by}, and qtutor reads float checkpoints and its own. Take the "
    "float checkpoint that it was made of",
    "compression_config": "is quantized already, by {by}, and qtutor reads float checkpoints and its own. Take the "
    "float checkpoint that it was made of",
    "transformers_weights": "names another file of weights. Call that file model.safetensors and remove the key",
    "configuration_files": "names other configs. Put the one that is meant in its place",
    "per_layer_config": "has layers that differ from each other, which is not known here. Choose another checkpoint",
    "fusion_config": "changes how layers are joined, which is not known here. Remove the key",
}
# Classes that checkpoints of a family include as code although transformers has them, under the same names.
COPIES = {"phi3": ("Phi3Config", "Phi3ForCausalLM")}
OURS = "prompts_begin_with_bos"  # a key of ours: see qtutor.measure.generation
SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "max_position_embeddings"),
)
# Numbers that something is multiplied or divided by; null in a config means that there is none.
FACTORS = (
    *("residual_multiplier", "embedding_multiplier", "attention_multiplier", "logits_scaling"),  # Granite
    *("query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping"),  # Gemma
    *("rope_theta", "rope_local_base_freq", "partial_rotary_factor"),
)
# Keys that every config of these families has; for a missing one, transformers would use another model's number.
NEEDED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "rms_norm_eps")
LARGEST = 1 << 31  # of a size, and of a token's id
OF_FACTORS = 1e-12, 1e12  # beyond these factors, float32 states become zero or infinite when they are squared
SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
KINDS_OF_LAYERS = ("full_attention", "sliding_attention")  # each may have its own angles
MOST_BLOCKS = 1000  # the largest decoders have some 130; each takes time to build, even if it has no weights
MEND = "The file is damaged: copy, download or export it again."
DTYPES = ("float32", "float16", "bfloat16")


def check_keys(values: dict, family: str, where: str) -> None:
    """Refuse keys that name code, or turn the config into another model than ``family``'s."""
    for key in REFUSED.keys() & values.keys():
        if values[key] is not None and not (key == "auto_map" and _is_copy(values[key], family, where)):
            by = values[key].get("quant_method") if isinstance(values[key], dict) else None
            what = REFUSED[key].format(family=family, by=shown(by) if by else "another tool")
            raise QtutorError(f"{where} {what}. (Found {key}: {shown(values[key], 120)}.)")
    if family == "mistral" and values.get("layer_types") is not None:
        raise QtutorError(
            f"{where} has layer_types, so transformers takes it for a 'ministral'. qtutor knows: {', '.join(FAMILIES)}."
        )


def _is_copy(auto_map, family: str, where: str) -> bool:
    """Whether the code that ``auto_map`` names copies transformers' classes, as Phi-3's does. Warns, runs none."""
    own = COPIES.get(family, ())
    # A tokenizer is read from its own files, so its entry here does not matter.
    named = [n for key, n in auto_map.items() if key != "AutoTokenizer"] if isinstance(auto_map, dict) else []
    if not named or not all(isinstance(name, str) and name.rpartition(".")[2] in own for name in named):
        return False
    warn(
        f"{where} has auto_map, which names code of its own ({shown(named[0])}). It is not run: transformers has "
        f"{' and '.join(own)} itself, and qtutor uses these."
    )
    return True


def check_values(values: dict, where: str, blocks: int) -> None:
    """Check that numbers are numbers, and that no size is absurd; the tensors' real sizes are compared later."""
    for key in NEEDED:
        if values.get(key) is None:
            raise QtutorError(f"{where}: {key} is missing. {MEND}")
    for key in SIZES:
        size = values.get(key)
        if size is not None and (type(size) is not int or not 1 <= size <= LARGEST):
            raise wrong(where, key, size, f"a whole number from 1 to {LARGEST:,}")
    if values.get("num_hidden_layers") not in (None, blocks):
        said_to_be = shown(values["num_hidden_layers"])
        raise QtutorError(f"{where}: there are {blocks} blocks, and its config says {said_to_be}. {MEND}")
    if blocks > MOST_BLOCKS:
        raise QtutorError(f"{where}: there are {blocks:,} blocks, and qtutor reads decoders of up to {MOST_BLOCKS:,}.")
    window = values.get("sliding_window")
    if window is not None and (type(window) is not int or not 1 <= window <= LARGEST):
        raise wrong(where, "sliding_window", window, f"a whole number from 1 to {LARGEST:,}, or null")
    check_special_tokens(values, where, -1)  # Llama 1 says -1 if it has no pad
    for name in ("rope_parameters", "rope_scaling"):
        rope = values.get(name) if isinstance(values.get(name), dict) else {}
        for key in (key for key, own in rope.items() if isinstance(own, dict) and key not in KINDS_OF_LAYERS):
            raise wrong(where, name, key, f"parameters, or those of {' and '.join(KINDS_OF_LAYERS)}")
    for key in ("dtype", "torch_dtype"):
        if values.get(key) is not None and values[key] not in DTYPES:
            raise wrong(where, key, values[key], f"one of {', '.join(DTYPES)}")
    epsilon = values.get("rms_norm_eps", 1e-6)
    if type(epsilon) not in (int, float) or not 0 <= epsilon < 1:
        raise wrong(where, "rms_norm_eps", epsilon, "a number from 0 to 1")
    for key in FACTORS:
        factor = values.get(key, 1)
        low, high = OF_FACTORS
        if factor is not None and (type(factor) not in (int, float) or not low <= factor <= high):
            raise wrong(where, key, factor, f"a number above 0, from {low:g} to {high:g}")
    ropes = values.get("no_rope_layers")
    if ropes is not None and not (
        isinstance(ropes, list) and len(ropes) >= blocks and set(map(str, ropes)) <= {"0", "1"}
    ):
        raise wrong(where, "no_rope_layers", ropes, f"0 or 1 for each of the {blocks} blocks")
    for key in ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window", OURS):
        if type(values.get(key, False)) is not bool:
            raise wrong(where, key, values[key], "true or false")


def check_special_tokens(values: dict, where: str, lowest: int = 0) -> None:
    """Tokens that begin, end and pad texts have to be token ids; several may end a text. ``None``: there is none."""
    for key in SPECIAL_TOKENS:
        ids = values.get(key)
        several = ids if isinstance(ids, list) and ids and key == "eos_token_id" else [ids]
        if ids is not None and not all(type(number) is int and lowest <= number <= LARGEST for number in several):
            raise wrong(where, key, ids, "the number of a token")


def wrong(where: str, key: str, found, wanted: str) -> QtutorError:
    """The error for an impossible value."""
    return QtutorError(f"{where}: {key} is {shown(found)}, expected {wanted}. {MEND}")

"""A tokenizer as GGUF metadata, so that llama.cpp makes the same tokens of a text as transformers does.

Two kinds are known. Byte-level BPE (``tokenizer.ggml.model = "gpt2"``) keeps its merges; the way it cuts a text into
words before merging is only *named* in the file (``tokenizer.ggml.pre``, see :mod:`.pre_tokenizers`). BPE in
SentencePiece's manner (``"llama"``) has scores instead of merges, and byte tokens for text outside the vocabulary.

Both defaults of llama.cpp for missing keys are traps: without bos or eos it uses token 11 (1 and 2 in SentencePiece's
manner), and without ``pre`` it uses an expression of its own. So all of these keys are always written.

Left out: normalization (Qwen2's NFC: llama.cpp uses a text as it is). The rules of added tokens for spaces around them
(lstrip, rstrip, single_word) have no place in the file; a warning says so. Source: llama.cpp's ``src/llama-vocab.cpp``;
tokenizers' JSON.
"""

import json
from collections import Counter

import numpy as np

from qtutor.errors import QtutorError, warn
from qtutor.gguf.pre_tokenizers import APPROXIMATE, GPT2_SPLIT, PRE_TOKENIZERS, name_of

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPACE = "▁"
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
PREPEND = {"type": "Prepend", "prepend": SPACE}
BYTES = "bytes"  # the step at which a byte-level pre-tokenizer turns words into letters that represent bytes


def tokenizer_metadata(tokenizer, vocabulary: int, config=None) -> dict:
    """The ``tokenizer.*`` keys for ``tokenizer`` (transformers', backed by tokenizers), for ``vocabulary`` embeddings.

    config: the model's, used for bos and eos if the tokenizer has none. Rows of the embedding beyond the tokenizer are
    named [PADn] and marked unused. Raises :class:`QtutorError` for a tokenizer that llama.cpp does not reproduce, and
    names the part.
    """
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise QtutorError(
            f"tokenizer is a {type(tokenizer).__name__}: a GGUF file carries its tokenizer, so pass the one that "
            "transformers' AutoTokenizer (backed by a tokenizer.json) loads for this model."
        )
    data = json.loads(tokenizer.backend_tokenizer.to_str())
    model = data["model"]
    if model["type"] != "BPE":
        raise _unknown("model", model["type"], "BPE, byte-level or in SentencePiece's manner")
    if any(model.get(key) for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix")):
        raise _unknown("model", {k: v for k, v in model.items() if k not in ("vocab", "merges")}, "plain BPE")
    tokens, types = _tokens(data, vocabulary)
    keys = _sentencepiece(data, tokens, types) if model.get("byte_fallback") else _byte_level(data)
    keys |= {"tokens": tokens, "token_type": np.array(types, np.int32)} | _special(tokenizer, config)
    entries = {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
    template = _chat_template(tokenizer)
    _warn_of_spaces(data["added_tokens"])
    return entries | ({"tokenizer.chat_template": template} if template else {})


def _tokens(data: dict, vocabulary: int) -> tuple[list[str], list[int]]:
    """Texts and types by id; llama.cpp would abort if two tokens had the same text."""
    texts = {number: (text, NORMAL) for text, number in data["model"]["vocab"].items()}
    for token in data["added_tokens"]:
        texts[token["id"]] = (token["content"], CONTROL if token["special"] else USER_DEFINED)
    if max(texts, default=-1) >= vocabulary:
        raise QtutorError(
            f"the tokenizer has ids up to {max(texts)}, the model embeds {vocabulary}: they do not belong together, or "
            "tokens were added and model.resize_token_embeddings was forgotten."
        )
    listed = [texts.get(number, (f"[PAD{number}]", UNUSED)) for number in range(vocabulary)]
    tokens = [text for text, _ in listed]
    bad = [text for text, count in Counter(tokens).items() if count > 1 or not text or "\0" in text]
    if bad:
        raise QtutorError(
            f"the tokenizer's token {bad[0]!r} is empty, there twice, or holds a zero byte, at which a text ends for "
            "llama.cpp, which needs tokens of different texts. Remove it from the vocabulary."
        )
    return tokens, [kind for _, kind in listed]


def _byte_level(data: dict) -> dict:
    """Merges, and the name of the expression that cuts words."""
    normalizer = data["normalizer"]
    if normalizer is not None and normalizer["type"] != "NFC":
        raise _unknown("normalizer", normalizer, "none, or NFC")
    *expressions, last = _steps(data["pre_tokenizer"]) or [None]
    ignore_merges = bool(data["model"].get("ignore_merges"))
    if last != BYTES:
        raise _unknown("pre_tokenizer", data["pre_tokenizer"], "those that end in ByteLevel")
    pre = name_of(tuple(expressions), ignore_merges, data["model"]["vocab"])
    if pre is None:
        found = {"split": tuple(expressions), "ignore_merges": ignore_merges}
        raise _unknown("pre_tokenizer", found, ", ".join(PRE_TOKENIZERS.values()))
    if pre in APPROXIMATE:
        _warn(
            f"llama.cpp cuts most words as {pre} does, but not all: {APPROXIMATE[pre]}, or with accents that "
            "are characters of their own, may become other tokens there."
        )
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in data["model"]["merges"]]
    return {"model": "gpt2", "pre": pre, "merges": merges}


def _steps(step: dict | None) -> list[str]:
    """The expressions that a pre-tokenizer cuts by, in order, and the step at which it turns text into bytes."""
    match step:
        case {"type": "Sequence", "pretokenizers": steps}:
            return [found for inner in steps for found in _steps(inner)]
        case {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}:
            return [expression]
        case {"type": "Digits", "individual_digits": alone}:
            return [r"\p{N}" if alone else r"\p{N}+"]
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": own}:
            return [GPT2_SPLIT, BYTES] if own else [BYTES]
    known = "a Sequence of Split (by a Regex, isolated), Digits and ByteLevel (without a space in front)"
    raise _unknown("pre_tokenizer", step, known)


def _sentencepiece(data: dict, tokens: list[str], types: list[int]) -> dict:
    """Scores instead of merges: llama.cpp joins the pair whose joint token has the highest. Sets types of bytes."""
    prefix, always = _space_in_front(data["normalizer"], data["pre_tokenizer"])
    if prefix and not always:
        _warn(
            "llama.cpp puts a space in front of every text. This tokenizer does not if a text begins with a "
            "space, or goes on after a special token: such texts get one more space token in llama.cpp."
        )
    vocab = data["model"]["vocab"]
    scores = np.full(len(tokens), -1e6, np.float32)
    added = {token["content"] for token in data["added_tokens"]}
    for rank, token in enumerate(_joined(data["model"], added)):
        scores[vocab[token]] = -rank
    for byte in range(256):
        name = f"<0x{byte:02X}>"
        if name not in vocab:
            raise _unknown("model", f"byte_fallback without {name}", "a token for each of 256 bytes")
        types[vocab[name]] = BYTE
    unknown = data["model"].get("unk_token")
    if unknown in vocab:
        types[vocab[unknown]] = UNKNOWN
    return {"model": "llama", "pre": "default", "scores": scores, "add_space_prefix": prefix}


def _space_in_front(normalizer: dict | None, pre_tokenizer: dict | None) -> tuple[bool, bool]:
    """Whether a text gets a space in front, and whether always, as in llama.cpp, or only if it begins with none."""
    match normalizer, pre_tokenizer:
        case {"type": "Sequence", "normalizers": steps}, None if steps == [PREPEND, REPLACE]:
            return True, True
        case _, None if normalizer in (REPLACE, {"type": "Sequence", "normalizers": [REPLACE]}):
            return False, True
        case None, {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}:
            return scheme != "never", False
    known = "Prepend and Replace of ▁, or Metaspace without splitting"
    raise _unknown("normalizer and pre_tokenizer", [normalizer, pre_tokenizer], known)


def _joined(model: dict, added: set[str]) -> list[str]:
    """Tokens in the order of their merges.

    Scores can express this order only if a token has all possible merges, in one run: llama.cpp joins any two
    neighbours whose texts together are a token, but a BPE may have been trained with fewer merges.
    """
    vocab, joined, last = model["vocab"], {}, None
    for merge in model["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        token = left + right
        if token != last and token in joined:
            raise _unknown("merges", f"those of {token!r} in different places", "merges ordered by the token they make")
        joined.setdefault(token, set()).add(left)
        last = token
    for token in vocab.keys() - added:
        for at in range(1, len(token)):
            if token[:at] in vocab and token[at:] in vocab and token[:at] not in joined.get(token, ()):
                found = f"no merge of {token[:at]!r} and {token[at:]!r} to the token {token!r}"
                raise _unknown("merges", found, "all merges that the tokens allow")
    return list(joined)


def _special(tokenizer, config) -> dict:
    """Ids of bos, eos, unk and pad, and whether a text gets bos in front and eos behind, found by experiment."""
    bos, eos = (_id_of(name, tokenizer, config) for name in ("bos_token_id", "eos_token_id"))
    if eos is None:
        raise QtutorError(
            "the tokenizer has no eos_token, and llama.cpp would end texts at token 11 (or 2): name the token that "
            "ends a text with tokenizer.eos_token = '...'."
        )
    plain, whole = (tokenizer("a", add_special_tokens=added)["input_ids"] for added in (False, True))
    at = next((at for at in range(len(whole)) if whole[at : at + len(plain)] == plain), None)
    before, behind = (whole[:at], whole[at + len(plain) :]) if at is not None else (whole, [])
    if before not in ([], [bos]) or behind not in ([], [eos]):
        raise _unknown("post_processor", f"{before} before and {behind} behind a text", "bos before and eos behind it")
    ids = {"bos": eos if bos is None else bos, "eos": eos, "unknown": tokenizer.unk_token_id}
    ids |= {"padding": tokenizer.pad_token_id}
    keys = {f"{name}_token_id": np.uint32(number) for name, number in ids.items() if number is not None}
    return keys | {"add_bos_token": bool(before), "add_eos_token": bool(behind)}


def _id_of(name: str, tokenizer, config) -> int | None:
    """The tokenizer's id, or else the config's; the first one if there are several."""
    found = getattr(tokenizer, name)
    found = getattr(config, name, None) if found is None else found
    return found[0] if isinstance(found, list) else found


def _chat_template(tokenizer) -> str | None:
    """The chat template for the file: if there are several, the one that is called "default"."""
    template = tokenizer.chat_template
    if not isinstance(template, dict):
        return template
    if "default" not in template and template:
        _warn(
            f'it has chat templates called {", ".join(map(repr, template))}, but a GGUF file holds one, "default": '
            "none is written. Choose one with tokenizer.chat_template = tokenizer.chat_template[name]."
        )
    return template.get("default")


def _warn_of_spaces(added: list[dict]) -> None:
    """Warn of added tokens that take spaces with them, or are not found inside a word: a file cannot say this."""
    for rule, effect in (
        ("lstrip", "the spaces in front of it"),
        ("rstrip", "the spaces behind it"),
        ("single_word", "whole words alone"),
    ):
        names = [token["content"] for token in added if token[rule]]
        if names:
            more = f" (and {len(names) - 3} more)" if len(names) > 3 else ""
            _warn(
                f"the added token {', '.join(map(repr, names[:3]))}{more} takes {effect} ({rule}), which a GGUF file "
                "cannot say: next to this token, llama.cpp makes other tokens of spaces and letters."
            )


def _warn(text: str) -> None:
    warn(f"tokenizer: {text}")


def _unknown(part: str, found, known: str) -> QtutorError:
    return QtutorError(
        f"the tokenizer's {part} is {str(found)[:300]}. Known here: {known}. With these, llama.cpp makes the same "
        "tokens of a text; with another one, convert the model with llama.cpp's own convert_hf_to_gguf.py."
    )

"""A tokenizer from GGUF metadata, for transformers: the way back from :mod:`qtutor.gguf.tokenizer`.

    tokenizer = tokenizer_of(qtutor.gguf.read("out.gguf").metadata)

It makes the tokens that llama.cpp makes with the same file, whoever wrote it. If the file says less than the original
tokenizer did, the two may differ. A text is not normalized (Qwen2's NFC). In SentencePiece's manner, a space comes in
front of every text or of none. A tokenizer without bos gets the bos that was written for it. Of several chat templates,
only one is left. Added tokens take no spaces with them (except Phi-3's, which llama.cpp recognises by the model's
name). (For the names in :data:`.pre_tokenizers.APPROXIMATE` it makes the tokens of the model's own tokenizer;
llama.cpp's are nearly the same.) Left out: the maximum length of a text (``model_max_length``). Source: llama.cpp's
``src/llama-vocab.cpp``.
"""

import json

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from qtutor.errors import QtutorError, is_failure, one_line, said
from qtutor.gguf.pre_tokenizers import BEGIN_WITH_BOS, cuts_of
from qtutor.gguf.tokenizer import CONTROL, NORMAL, PREPEND, REPLACE, SPACE, UNKNOWN, UNUSED, USER_DEFINED

CUTS = cuts_of()
ADDED = (CONTROL, UNKNOWN, USER_DEFINED)  # these are found in a text before any other step
# Tokens that end a text or a turn, whatever type a file gives them.
ENDS = (
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>"),
    *("<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<eos>"),
    *("<end_of_utterance>", "<｜end▁of▁sentence｜>"),
)
NO_SPACES_BEHIND = ("phi-3", "phi3"), ("<unk>", "<s>", "<|endoftext|>")  # models, and their tokens that take no spaces
ELSEWHERE = "Take the original model's with transformers' AutoTokenizer, or run the file in llama.cpp."


def tokenizer_of(metadata: dict) -> PreTrainedTokenizerFast:
    """The tokenizer in ``metadata``, a GGUF file's keys and values as :func:`qtutor.gguf.read` gives them.

    Raises :class:`QtutorError` for a kind of tokenizer that is not known here, and for keys that are missing or
    damaged, or that do not fit each other.
    """
    prefix = "tokenizer.ggml."
    keys = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}
    kinds = {"gpt2": _byte_level, "llama": _sentencepiece}
    model = kinds[_one_of(kinds, keys, "model")]
    tokens, types = _tokens(keys)
    rstrip = _takes_spaces(metadata)
    vocab = {token: number for number, token in enumerate(tokens) if types[number] != UNUSED}
    ids = _special_ids(keys, len(tokens))
    data = model(keys, vocab, types) | {
        "added_tokens": [_added(token, number, types[number], rstrip) for token, number in vocab.items()
                         if types[number] in ADDED],
        "post_processor": _around(keys, tokens, ids),
    }  # fmt: skip
    try:
        backend = Tokenizer.from_str(json.dumps({"version": "1.0", "truncation": None, "padding": None} | data))
    except BaseException as error:  # tokenizers raises plain Exception if a merge makes no token, and panics
        if not is_failure(error):
            raise
        raise _damaged("merges", said(error), "pairs of tokens whose joint text is a token") from error
    # If a token has a name, transformers looks for it in texts, which is right for added tokens alone.
    named = {f"{name}_token": tokens[number] for name, number in ids.items() if types[number] in ADDED}
    template = metadata.get("tokenizer.chat_template")
    if not isinstance(template, str | None):
        raise _damaged("chat_template", template, "a text", "tokenizer")
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template, **named)


def text_ends(metadata: dict) -> list[int]:
    """The tokens at which llama.cpp ends a text: eos, the ends of a turn and of a message, and :data:`ENDS`."""
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not _texts(tokens):
        return []
    named = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    ends = [int(number) for number in named if isinstance(number, np.integer) and 0 <= number < len(tokens)]
    known = set(ENDS)
    ends += [number for number, token in enumerate(tokens) if token in known]
    found = {tokens[number] for number in ends}
    if found & {"<|call|>", "<|calls|>"} and found & {"<|return|>", "<|flush|>"}:
        ends = [number for number in ends if tokens[number] != "<|end|>"]  # there it ends one message of several
    return list(dict.fromkeys(ends))


def _takes_spaces(metadata: dict) -> bool:
    """Whether added tokens take the spaces behind them; llama.cpp decides this by the model's name."""
    name = metadata.get("general.name")
    return isinstance(name, str) and any(model in name.lower() for model in NO_SPACES_BEHIND[0])


def _tokens(keys: dict) -> tuple[list[str], list[int]]:
    """Texts and types by id. Without types, all tokens are ordinary; tokens that end texts are never ordinary."""
    tokens, types = keys.get("tokens"), keys.get("token_type")
    if not _texts(tokens) or len(set(tokens)) < len(tokens):
        raise _damaged("tokens", tokens, "a list of different texts")
    if types is None:
        types = np.full(len(tokens), NORMAL)  # as in files of 2023
    if not _numbers(types, len(tokens)):
        raise _damaged("token_type", types, f"{len(tokens)} numbers, one for each token")
    tokens = [token or f"[EMPTY_{number}]" for number, token in enumerate(tokens)]
    ends, types = set(ENDS), types.tolist()
    types = [CONTROL if kind == NORMAL and token in ends else kind for token, kind in zip(tokens, types)]
    return tokens, types


def _byte_level(keys: dict, vocab: dict[str, int], types: list[int]) -> dict:
    """Merges as they are written, and the expressions of the name ``pre``."""
    expressions, ignore_merges = CUTS[_one_of(CUTS, keys, "pre")]
    if not _texts(keys.get("merges")):
        raise _damaged("merges", keys.get("merges"), "a list of texts, two tokens with a space between in each")
    steps = [
        {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}
        for expression in expressions
    ]
    letters = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*steps, letters]},
        "decoder": letters,
        "model": _bpe(vocab, keys["merges"], ignore_merges=ignore_merges),
    }


def _sentencepiece(keys: dict, vocab: dict[str, int], types: list[int]) -> dict:
    """Merges from scores, ▁ for spaces, and a space in front of a text, which decoding removes again."""
    scores, space_in_front = keys.get("scores"), _flag(keys, "add_space_prefix", True)  # the default is llama.cpp's
    if not _numbers(scores, len(types)):
        raise _damaged("scores", scores, f"{len(types)} numbers, one for each token")
    unknown = next((token for token, number in vocab.items() if types[number] == UNKNOWN), None)
    back = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        *([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if space_in_front else []),
    ]
    normal = {token: number for token, number in vocab.items() if types[number] == NORMAL}
    return {
        "normalizer": {"type": "Sequence", "normalizers": [PREPEND, REPLACE] if space_in_front else [REPLACE]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": back},
        "model": _bpe(vocab, _merges(normal, scores), unk_token=unknown, fuse_unk=True, byte_fallback=True),
    }


def _merges(normal: dict[str, int], scores: np.ndarray) -> list[tuple[str, str]]:
    """Every way to make a token from two others, tokens of high scores first: llama.cpp joins any two that make one.

    >>> _merges({"a": 0, "b": 1, "ab": 2, "ba": 3, "aba": 4}, np.array([0.0, 0, -1, -0.5, -2]))
    [('b', 'a'), ('a', 'b'), ('a', 'ba'), ('ab', 'a')]
    """
    by_score = sorted(normal, key=lambda token: -scores[normal[token]])
    splits = ((token[:at], token[at:]) for token in by_score for at in range(1, len(token)))
    return [(left, right) for left, right in splits if left in normal and right in normal]


def _bpe(vocab: dict[str, int], merges: list, **options) -> dict:
    return {"type": "BPE", "vocab": vocab, "merges": merges} | options


def _added(token: str, number: int, kind: int, rstrip: bool) -> dict:
    spaces = {"lstrip": False, "rstrip": rstrip and token not in NO_SPACES_BEHIND[1]}
    return {
        "id": number,
        "content": token,
        "special": kind != USER_DEFINED,
        "single_word": False,
        "normalized": False,
    } | spaces


def _special_ids(keys: dict, count: int) -> dict[str, int]:
    """The ids of bos, eos, unk and pad in the file, under transformers' names."""
    ids = {}
    for name, ours in (("bos", "bos"), ("eos", "eos"), ("unknown", "unk"), ("padding", "pad")):
        number = keys.get(f"{name}_token_id")
        if number is not None:
            if not isinstance(number, int | np.integer) or not 0 <= number < count:
                raise _damaged(f"{name}_token_id", number, f"a token, 0 to {count - 1}")
            ids[ours] = int(number)
    return ids


def _around(keys: dict, tokens: list[str], ids: dict[str, int]) -> dict:
    """bos in front of a text and eos behind it if the file says so; if it says nothing, as llama.cpp does."""
    own = {"bos": keys["model"] == "llama" or keys.get("pre") in BEGIN_WITH_BOS, "eos": False}
    wanted = [name for name in own if _flag(keys, f"add_{name}_token", own[name])]
    for name in wanted:
        if name not in ids:
            raise _damaged(f"{name}_token_id", None, f"a token, which add_{name}_token needs")
    pieces = {name: {"SpecialToken": {"id": tokens[ids[name]], "type_id": 0}} for name in wanted}

    def text(sequence: str, kind: int) -> list[dict]:
        parts = pieces.get("bos"), {"Sequence": {"id": sequence, "type_id": kind}}, pieces.get("eos")
        return [part for part in parts if part]

    return {
        "type": "TemplateProcessing",
        "single": text("A", 0),
        "pair": text("A", 0) + text("B", 1),
        "special_tokens": {
            token: {"id": token, "ids": [number], "tokens": [token]}
            for token, number in ((tokens[ids[name]], ids[name]) for name in wanted)
        },
    }


def _texts(value) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _numbers(value, count: int) -> bool:
    return isinstance(value, np.ndarray) and value.ndim == 1 and len(value) >= count and value.dtype.kind in "iuf"


def _flag(keys: dict, key: str, default: bool) -> bool:
    if not isinstance(keys.get(key, default), bool):
        raise _damaged(key, keys[key], "true or false")
    return keys.get(key, default)


def _one_of(known: dict, keys: dict, key: str) -> str:
    found = keys.get(key)
    if isinstance(found, str) and found in known:
        return found
    raise QtutorError(
        f"tokenizer.ggml.{key} is {_shown(found)}, and qtutor cannot rebuild such a tokenizer from a file: it knows "
        f"{', '.join(known)}. {ELSEWHERE}"
    )


def _damaged(key: str, found, wanted: str, group: str = "tokenizer.ggml") -> QtutorError:
    return QtutorError(
        f"{group}.{key} is {_shown(found)}; expected {wanted}. The file is damaged: fetch or export it again. "
        f"{ELSEWHERE}"
    )


def _shown(found) -> str:
    return "not there" if found is None else one_line(" ".join(str(found)[:100].split()), 100)

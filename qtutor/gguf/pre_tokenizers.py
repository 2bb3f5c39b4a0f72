"""How words are cut before they are merged: the expressions, and llama.cpp's names for them.

A GGUF file only *names* the expressions (``tokenizer.ggml.pre``), and llama.cpp has the expressions of each name built
in. :func:`name_of` finds the name for the expressions in a ``tokenizer.json``, :func:`cuts_of` is the way back. A wrong
name still gives the same tokens for simple words, but other tokens for digits, contractions and indented code.

The table contains what tests/gguf/test_in_llama_cpp.py proves: tokenizers that merge across every cut make the same
tokens in llama.cpp. Three names are :data:`APPROXIMATE`: llama.cpp distinguishes capitals from small letters only in
ASCII, or not at all. Left out are falcon (which cuts once more after the text became bytes), tiny_aya (llama.cpp finds
other borders of words), afmoe, kimi-k2 (cut by programs of their own), and chameleon. Source: llama.cpp's
``src/llama-vocab.cpp``.
"""

import unicodedata
from functools import cache

GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WITH_DIGITS = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|%s|" + _REST
QWEN2_SPLIT = _WITH_DIGITS % r"\p{N}"
LLAMA3_SPLIT = _WITH_DIGITS % r"\p{N}{1,3}"
# GPT-4's spelling of LLAMA3_SPLIT, as dbrx and Phi-4 have it
_CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)

_CAPITAL, _SMALL = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def _cased(contractions: str, digits: str) -> str:
    """A word ends where a capital follows a small letter."""
    front = r"[^\r\n\p{L}\p{N}]?"
    words = rf"{front}{_CAPITAL}*{_SMALL}+{contractions}|{front}{_CAPITAL}+{_SMALL}*{contractions}"
    return rf"{words}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"


_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_HAN_AND_KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
# Letters that have a capital and a small form, as DeepSeek lists them
_CASED_LETTERS = (
    "A-Za-z\xb5\xc0-\xd6\xd8-\xf6\xf8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376\u0377"
    "\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556"
    "\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a"
    "\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4"
    "\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc"
    "\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f"
    "\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b"
    "\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a"
    "\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2"
    "\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_DEEPSEEK_LLM = (
    r"[\r\n]",
    rf"\s?[{_CASED_LETTERS}]+",
    "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
    r"\s+$",
    _CJK,
)
_DEEPSEEK_WORDS = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+"""
)
_SPACES = r"|\s+(?!\S)|\s+"
_SENTENCES = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
_YOUTU = (
    "[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f"
    "\ufe30-\ufe4f]+|[\u3105-\u312f]+|" + _HAN_AND_KANA
)
_LONG_SPACES = "|".join(rf"\s{{{count}}}(?!\S)" for count in (512, 256, 128, 64, 32, 16, 8, 4))

# (expressions, applied one after the other, ignore_merges) -> llama.cpp's name
PRE_TOKENIZERS = {
    ((GPT2_SPLIT,), False): "gpt-2",
    ((LLAMA3_SPLIT,), True): "llama-bpe",
    ((LLAMA3_SPLIT,), False): "smaug-bpe",
    ((QWEN2_SPLIT,), False): "qwen2",
    ((r"\p{N}", GPT2_SPLIT), False): "smollm",
    ((_cased("", r"\p{N}"),), True): "tekken",
    ((_cased(f"{_CONTRACTIONS}?", r"\p{N}{1,3}"),), False): "gpt-4o",
    ((_YOUTU, _cased(f"{_CONTRACTIONS}?", r"\p{N}")), True): "youtu",
    ((*_DEEPSEEK_LLM, r"\p{N}+"), False): "deepseek-llm",
    ((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}"), False): "deepseek-coder",
    ((r"\p{N}{1,3}", _HAN_AND_KANA, _DEEPSEEK_WORDS + r"[\r\n]*|\s*[\r\n]+" + _SPACES), False): "deepseek-v3",
    ((r"\p{N}{1,3}", _HAN_AND_KANA, _DEEPSEEK_WORDS + r"|[\r\n]" + _SPACES, r"\p{N}"), False): "spark2_5",
    ((_CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}|" + _REST.replace(r"\p{L}", r"\p{L}\p{M}"),), False):
        "qwen35",
    ((r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|" + _REST,), False): "ufakzeka",
    ((r"[^\n]+|[\n]+", QWEN2_SPLIT), False): "laguna",
    ((r"\p{N}{1,3}", _WITH_DIGITS % r"\p{N}+"), True): "minicpm5",
    ((_CL100K.replace("{1,3}", ""),), False): "bailingmoe",
    (
        (_CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",), False
    ): "seed-coder",
    (
        (_CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?"
         r"|\s*[\r\n]|\s+(?!\S)|\s+",), False
    ): "exaone-moe",
    ((LLAMA3_SPLIT.removesuffix(r"\s+(?!\S)|\s+") + _LONG_SPACES + r"|\s{1,2}(?!\S)|\s{1}",), False): "jais-2",
    ((r"\p{N}+", r"(?=(\d{3})+(?!\d))"), False): "superbpe",
    ((_SENTENCES,), False): "poro-chat",
    ((_SENTENCES, r"\p{N}"), False): "viking",
}  # fmt: skip
OTHER_SPELLINGS = {((_CL100K,), True): "llama-bpe", ((_CL100K,), False): "smaug-bpe"}
DIGITS_APART = {((*_DEEPSEEK_LLM, r"\p{N}"), False): "deepseek-llm"}  # llama.cpp leaves the digits to the merges
# The words that llama.cpp may cut in other places than the tokenizer
APPROXIMATE = {
    **dict.fromkeys(("tekken", "gpt-4o"), "a word with capitals outside of ASCII in its middle"),
    "youtu": "a word with capitals behind small letters (camelCase)",
}

# Other names of the same entry in llama.cpp; names for which texts begin with bos by default come first.
_LIKE_LLAMA3 = ("llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano")
SYNONYMS = {
    "gpt-2": ("mpt", "olmo", "jais", "trillion", "granite-docling", "phi-2", "jina-es", "jina-de", "gigachat",
              "jina-v2-es", "jina-v2-de", "a.x-4.0", "mellum", "modern-bert", "exaone4"),
    "llama-bpe": (*_LIKE_LLAMA3, "glm4", "glm5"),
    "smaug-bpe": ("dbrx", "chatglm-bpe"),
    "qwen2": ("deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan", "solar-open", "grok-2"),
    "smollm": ("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"),
    "gpt-4o": ("llama4", "kanana2", "talkie", "minimax-m2"),
    "deepseek-v3": ("hunyuan-dense", "joyai-llm", "hy_v4"),
    "bailingmoe": ("bailingmoe2", "llada-moe"),
    "poro-chat": ("bloom", "gpt3-finnish"),
}  # fmt: skip
BEGIN_WITH_BOS = ("llama-bpe", *_LIKE_LLAMA3, "tekken")


def name_of(expressions: tuple[str, ...], ignore_merges: bool, vocab: dict[str, int]) -> str | None:
    """llama.cpp's name for a tokenizer that cuts by ``expressions``, or ``None``. vocab: byte-level tokens."""
    # A tokenizer.json may hold a line end in place of \r and \n.
    key = tuple(expression.replace("\r", r"\r").replace("\n", r"\n") for expression in expressions), ignore_merges
    if key in DIGITS_APART and not joins_numbers(vocab):
        return DIGITS_APART[key]
    return (PRE_TOKENIZERS | OTHER_SPELLINGS).get(key)


def cuts_of() -> dict[str, tuple[tuple[str, ...], bool]]:
    """Every name that llama.cpp has for an entry of the table -> (expressions, ignore_merges)."""
    known = {name: key for key, name in PRE_TOKENIZERS.items()}
    return known | {other: known[name] for name, others in SYNONYMS.items() for other in others}


def joins_numbers(vocab: dict[str, int]) -> bool:
    """Whether some byte-level token holds two numbers side by side, or a part of a number next to one."""
    letters = letter_bytes()
    for token in vocab:
        if len(token) > 1 and all(letter in letters for letter in token):
            text = bytes(letters[letter] for letter in token).decode("utf-8", errors="replace")
            number = [unicodedata.category(character).startswith("N") for character in text]
            part = [character == "\ufffd" for character in text]  # a part of a character, perhaps of a number
            if any((number[i] or part[i]) and (number[i + 1] or part[i + 1]) and (number[i] or number[i + 1])
                   for i in range(len(text) - 1)):  # fmt: skip
                return True
    return False


@cache
def letter_bytes() -> dict[str, int]:
    """GPT-2's alphabet: letter -> the byte that it represents. A printable character represents itself.

    >>> letter_bytes()["a"], letter_bytes()["Ġ"]
    (97, 32)
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}

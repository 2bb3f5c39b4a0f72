"""Small tokenizers of every kind that can be written to GGUF, trained when needed and always the same."""

import itertools
import json
from functools import cache
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

import qtutor
from qtutor.gguf.pre_tokenizers import OTHER_SPELLINGS, PRE_TOKENIZERS

BOS, EOS, CALL = "<|begin|>", "<|endoftext|>", "<tool_call>"

# Texts that show wrong pre-tokenizers, lost spaces and lost bytes.
STRINGS = (
    "Hello, world!",
    "a",
    " a",
    "  two  spaces  ",
    "0 1 12 123 1234 12345 123456 1234567",
    "3.14159, 1e-05 and 0xFF; 2**10 = 1024",
    "it's, we're, I've, I'm, they'll, he'd, can't",
    "IT'S, WE'RE, I'VE, I'M, THEY'LL, HE'D, CAN'T",
    "def mean(values):\n    return sum(values) / len(values)\n",
    "class A:\n    def f(self):\n        if self:\n            return None\n\n\n\n",
    "for i in range(10):\n\tprint(i)\n\t\tpass",
    "x = [1, 2, 3]  # three   spaces\n\n\n    y = x\n",
    "line one\r\nline two\r\n\r\nline four\r",
    "\n",
    "\n\n   \n \n",
    "   ",
    "\t \t \n\t",
    "tab\tbetween\tall",
    "emoji 🙂🙃 and 👩‍👩‍👧‍👦, flags 🇩🇪",
    "naïve café, Ünïcödé, ß",
    "Привет, мир! Как дела?",
    "数学は楽しい。東京 2024年",
    "مرحبا بالعالم ١٢٣",
    "e\u0301 is not é; ﬁ ½ ² Ⅳ",
    "zero\x00byte and \x00\x00 more",
    "\x01\x02 control \x7f \u200b\ufeff",
    "non\u00a0breaking\u2003spaces\u3000wide",
    "https://example.org/a_b-c?d=e&f=%20#g",
    '{"key": [1, 2.5, null], "text": "quote \\" inside"}',
    "!!! ... ??? --- === ///*** <<>> @@ ~~ ``` '''",
    "snake_case camelCase PascalCase SCREAMING_CASE __dunder__",
    "mixed1digits2in3words and words4",
    "กินข้าว ที่นี่, עברית שָׁלוֹם",
    "a 漢字かな交じりA文 12345 1,234,567.89 ㄅㄆ 한국어",
    "ab\n\n  // x\n/\n and/or\r\n/",
    "a  \n  b   c     d         e                 f",
    "x?!\n\n(y)...\nz: $5+€6=7^8",
    "!abc ?Def .ghi-jkl",
)
# Texts for which a few of llama.cpp's expressions differ from those of the tokenizers.
CASED_STRINGS = ("ÉCOLE École éCOLE ДомДОМ ÄÖüß", "दिल्ली किताब का", "e\u0301cole nin\u0303o")
SPECIAL_STRINGS = (f"{EOS}one{EOS}{BOS}two", f"call {CALL} it{CALL}", f"{EOS}", f"a {EOS} b\n{EOS}\n")


@cache
def _text() -> tuple[str, ...]:
    sources = sorted(Path(qtutor.__file__).parent.glob("*.py"))[:12]
    lines = [line for path in sources for line in path.read_text().splitlines(keepends=True)]
    return (*(STRINGS + CASED_STRINGS) * 5, *lines)


def _split(*expressions: str) -> pre_tokenizers.PreTokenizer:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    splits = [pre_tokenizers.Split(Regex(expression), "isolated") for expression in expressions]
    return pre_tokenizers.Sequence([*splits, byte_level])


def _in_its_own_words(kind: str) -> pre_tokenizers.PreTokenizer | None:
    """The pre-tokenizers of gpt-2 and smollm as their tokenizer.json has them; ``None`` for the other kinds."""
    steps = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    if kind == "smollm":
        steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    return pre_tokenizers.Sequence(steps) if kind in ("gpt-2", "smollm") else None


# Kind -> (pre-tokenizer, ignore_merges, llama.cpp's name)
BYTE_LEVEL = {
    name: (_in_its_own_words(name) or _split(*expressions), ignore_merges, name)
    for (expressions, ignore_merges), name in PRE_TOKENIZERS.items()
} | {
    f"{name}, other spelling": (_split(*expressions), ignore_merges, name)
    for (expressions, ignore_merges), name in OTHER_SPELLINGS.items()
}


def byte_level(kind: str = "qwen2", vocabulary: int = 1200, bos: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer of one of the kinds in :data:`BYTE_LEVEL`. bos: texts begin with bos.

    It is trained without cutting texts, so it has merges across every cut. A cut in a wrong place changes the tokens.
    """
    cut, ignore_merges, _ = BYTE_LEVEL[kind]
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - 3, initial_alphabet=alphabet, show_progress=False, special_tokens=[]
    )
    tokenizer.train_from_iterator(_text(), trainer)
    if ignore_merges:  # then a third of the tokens are found only as whole words
        model = json.loads(tokenizer.to_str())["model"]
        merges = [tuple(merge) for number, merge in enumerate(model["merges"]) if number % 3]
        tokenizer.model = models.BPE(model["vocab"], merges, ignore_merges=True)
    tokenizer.pre_tokenizer = cut
    tokenizer.add_special_tokens([BOS, EOS])
    tokenizer.add_tokens([AddedToken(CALL, normalized=False)])
    return _wrapped(tokenizer, bos)


def _wrapped(tokenizer: Tokenizer, bos: bool, **names: str) -> PreTrainedTokenizerFast:
    if bos:
        front = [(BOS, tokenizer.token_to_id(BOS))]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=front
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, **names)


def sentencepiece(vocabulary: int = 700, prefix: str = "prepend", bos: bool = True) -> PreTrainedTokenizerFast:
    """BPE with ▁ for spaces, 256 byte tokens and all merges that the tokens allow, as for converted SentencePiece.

    prefix: "prepend" (Llama 2), "first" (Metaspace, transformers' own) or "none".
    """
    first = Tokenizer(models.BPE())
    first.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    trainer = trainers.BpeTrainer(vocab_size=vocabulary - 260, show_progress=False)
    first.train_from_iterator([text.replace("\x00", "") for text in _text()], trainer)
    learned = sorted(first.get_vocab(), key=first.token_to_id)
    tokens = ["<unk>", BOS, EOS, CALL, *[f"<0x{byte:02X}>" for byte in range(256)], *learned]
    vocab = {token: number for number, token in enumerate(tokens)}
    merges = []
    for token in learned:
        splits = [(token[:at], token[at:]) for at in range(1, len(token))]
        merges += sorted((a, b) for a, b in splits if a in vocab and b in vocab)
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if prefix == "first":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        steps = [normalizers.Prepend("▁")] if prefix == "prepend" else []
        tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(["<unk>", BOS, EOS])
    tokenizer.add_tokens([AddedToken(CALL, normalized=False)])
    return _wrapped(tokenizer, bos, unk_token="<unk>")


def letters(vocabulary: int = 256) -> PreTrainedTokenizerFast:
    """One token per byte, for models with a tiny vocabulary."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [EOS, *itertools.islice(alphabet, vocabulary - 1)]
    tokenizer = Tokenizer(models.BPE({name: number for number, name in enumerate(names)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([EOS])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS)

"""Which tokenizers are recognised, and what is written for them; no other tokenizer is guessed."""

import contextlib
import json

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import GPT2Tokenizer, LlamaConfig, LlamaTokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer

import qtutor
from qtutor.errors import QtutorError
from qtutor.gguf.pre_tokenizers import APPROXIMATE, DIGITS_APART, QWEN2_SPLIT, joins_numbers
from qtutor.gguf.tokenizer import tokenizer_metadata
from tests.gguf.small_tokenizers import BOS, BYTE_LEVEL, CALL, EOS, byte_level, letters, sentencepiece


def keys(tokenizer, vocabulary: int | None = None, config=None) -> dict:
    entries = tokenizer_metadata(tokenizer, vocabulary or len(tokenizer), config)
    return {key.removeprefix("tokenizer.ggml."): value for key, value in entries.items()}


@pytest.mark.parametrize("kind", BYTE_LEVEL)
def test_byte_level(kind):
    tokenizer, name = byte_level(kind), BYTE_LEVEL[kind][2]
    with pytest.warns(UserWarning, match="but not all") if name in APPROXIMATE else contextlib.nullcontext():
        found = keys(tokenizer, len(tokenizer) + 2)
    assert (found["model"], found["pre"]) == ("gpt2", name)
    assert found["tokens"] == [*tokenizer.convert_ids_to_tokens(range(1200)), "[PAD1200]", "[PAD1201]"]
    types = dict(zip(found["tokens"], found["token_type"].tolist(), strict=True))
    assert [types[name] for name in ("a", BOS, EOS, CALL, "[PAD1200]")] == [1, 3, 3, 4, 5]
    assert found["token_type"].dtype == np.int32
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    assert [merge.split(" ") for merge in found["merges"]] == [list(merge) for merge in model["merges"]]
    assert (found["bos_token_id"], found["eos_token_id"]) == (1197, 1198)
    assert (found["add_bos_token"], found["add_eos_token"]) == (False, False)


def with_digits_one_by_one(kept) -> PreTrainedTokenizerFast:
    """A tokenizer that cuts texts like DeepSeek LLM's. It keeps a merge if ``kept`` is true for the joined token."""
    ((expressions, _),) = DIGITS_APART
    tokenizer = byte_level("deepseek-llm")
    steps = [pre_tokenizers.Split(Regex(expression), "isolated") for expression in expressions[:-1]]
    steps += [pre_tokenizers.Digits(individual_digits=True)]
    steps += [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"] if kept("".join(merge))]
    joined = {left + right for left, right in merges}
    vocab = [token for token in model["vocab"] if len(token) == 1 or token in joined]
    merges = [pair for pair in merges if set(pair) <= set(vocab)]
    tokenizer.backend_tokenizer.model = models.BPE({token: at for at, token in enumerate(vocab)}, merges)
    return tokenizer


def test_digits_one_by_one_where_no_token_joins_them():
    """llama.cpp's deepseek-llm does not cut between digits. The tokens are the same if no merge joins digits."""
    apart = with_digits_one_by_one(lambda token: not joins_numbers({token: 0}))
    assert keys(apart, 1300)["pre"] == "deepseek-llm"
    with pytest.raises(QtutorError, match=r"pre_tokenizer is .*Known here: gpt-2"):
        keys(with_digits_one_by_one(lambda token: True), 1300)


def test_which_tokens_join_numbers():
    for token in ("12", "a12", "Â½", "a1b", "Ġ1", "é", "ä¸Ģ", "1"):
        assert joins_numbers({token: 0}) == ("12" in token), token
    assert joins_numbers({"1Â": 0}) and joins_numbers({"½2": 0})  # a part of ½ beside a digit


def test_sentencepiece():
    tokenizer = sentencepiece()
    found = keys(tokenizer)
    assert (found["model"], found["add_space_prefix"], found["add_bos_token"]) == ("llama", True, True)
    assert found["scores"].dtype == np.float32 and len(found["scores"]) == len(tokenizer)
    assert found["token_type"][:5].tolist() == [2, 3, 3, 4, 6] and (found["token_type"][4:260] == 6).all()
    assert found["unknown_token_id"] == 0
    joined = [token for token in found["tokens"][260:] if len(token) > 1]
    scores = [found["scores"][found["tokens"].index(token)] for token in joined]
    assert scores == [-rank for rank in range(len(joined))]  # in the order in which they were learned
    assert keys(sentencepiece(prefix="none"))["add_space_prefix"] is False


def test_those_that_transformers_makes_itself():
    model = json.loads(byte_level("qwen2").backend_tokenizer.to_str())["model"]
    vocab, merges = model["vocab"] | {EOS: 1197}, [tuple(merge) for merge in model["merges"]]
    assert keys(Qwen2Tokenizer(vocab=vocab, merges=merges))["pre"] == "qwen2"
    assert keys(GPT2Tokenizer(vocab=vocab, merges=merges))["pre"] == "gpt-2"
    model = json.loads(sentencepiece().backend_tokenizer.to_str())["model"]
    names = {BOS: "<s>", EOS: "</s>"}
    vocab = {names.get(token, token): number for token, number in model["vocab"].items()}
    tokenizer = LlamaTokenizer(vocab=vocab, merges=[tuple(merge) for merge in model["merges"]])
    with pytest.warns(UserWarning, match="puts a space in front of every text"):
        assert keys(tokenizer)["model"] == "llama"
    assert keys(qtutor.load_decoder()[1])["pre"] == "qwen2"


def with_front(tokenizer, front: str, behind: str = ""):
    ids = [(name, tokenizer.convert_tokens_to_ids(name)) for name in (BOS, EOS, CALL)]
    single = f"{front} $A {behind}".strip()
    template = processors.TemplateProcessing(single=single, pair=f"{single} $B", special_tokens=ids)
    tokenizer.backend_tokenizer.post_processor = template
    return tokenizer


def test_bos_and_eos_are_found_by_trying():
    found = keys(with_front(byte_level(), BOS, EOS))
    assert (found["add_bos_token"], found["add_eos_token"]) == (True, True)
    with pytest.raises(QtutorError, match=r"post_processor is \[1199\] before and \[\] behind"):
        keys(with_front(byte_level(), CALL))


def test_bos_and_eos_are_always_written():
    tokenizer = byte_level()
    tokenizer.bos_token = None
    assert keys(tokenizer)["bos_token_id"] == keys(tokenizer)["eos_token_id"] == 1198
    tokenizer.eos_token = None
    with pytest.raises(
        QtutorError, match=r"no eos_token, and llama.cpp would end texts at token 11.*tokenizer.eos_token ="
    ):
        keys(tokenizer)
    found = keys(tokenizer, config=LlamaConfig(bos_token_id=5, eos_token_id=[7, 8]))
    assert (found["bos_token_id"], found["eos_token_id"], found["add_bos_token"]) == (5, 7, False)


def test_chat_template():
    tokenizer = byte_level()
    assert "tokenizer.chat_template" not in tokenizer_metadata(tokenizer, 1200)
    for template in ("{{ messages }}", {"default": "{{ messages }}", "tools": "{{ tools }}"}):
        tokenizer.chat_template = template
        assert tokenizer_metadata(tokenizer, 1200)["tokenizer.chat_template"] == "{{ messages }}"
    tokenizer.chat_template = {"rag": "{{ documents }}", "tools": "{{ tools }}"}
    with pytest.warns(UserWarning, match=r"chat templates called 'rag', 'tools', but .* none is written. Choose one"):
        assert "tokenizer.chat_template" not in tokenizer_metadata(tokenizer, 1200)


@pytest.mark.parametrize("rule, effect", [
    ("lstrip", "the spaces in front of it"), ("rstrip", "the spaces behind it"), ("single_word", "whole words alone"),
])  # fmt: skip
def test_what_added_tokens_do_with_spaces_is_warned_about(rule, effect):
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken("<mask>", normalized=False, **{rule: True})])
    with pytest.warns(UserWarning, match=rf"added token '<mask>' takes {effect} \({rule}\)"):
        keys(tokenizer)


def test_a_plain_tokenizer_is_written_without_a_warning(recwarn):
    keys(byte_level())
    keys(qtutor.load_decoder()[1])
    assert not recwarn


def changed(part: str, value, base=byte_level):
    """A tokenizer in which one part is replaced."""
    tokenizer = base()
    setattr(tokenizer.backend_tokenizer, part, value)
    return tokenizer


def edited(base, **changes):
    """A tokenizer whose model has changed settings."""
    data = json.loads(base().backend_tokenizer.to_str())
    data["model"] |= changes
    tokenizer = Tokenizer.from_str(json.dumps(data))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS)


def merges_of(base) -> list:
    return json.loads(base().backend_tokenizer.to_str())["model"]["merges"]


def one_more(token: str):
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken(token, normalized=False)])
    return tokenizer


def split(expression: str, **options) -> pre_tokenizers.PreTokenizer:
    steps = [pre_tokenizers.Split(Regex(expression), options.pop("behavior", "isolated"), **options)]
    return pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


REFUSED = {
    "no tokenizer": (lambda: "gpt2", "tokenizer is a str: a GGUF file carries its tokenizer"),
    "another model": (
        lambda: PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, "a")), eos_token="a"),
        "model is WordLevel. Known here: BPE",
    ),
    "another expression": (lambda: changed("pre_tokenizer", split(r"\d+|\w+")), r"'split': .*w\+.*Known here: gpt-2"),
    "kept out": (lambda: changed("pre_tokenizer", split(r"\s", behavior="removed")), "Removed.*Known here: a Sequence"),
    "inverted": (lambda: changed("pre_tokenizer", split(r"\s", invert=True)), "'invert': True"),
    "no bytes": (lambda: changed("pre_tokenizer", split(QWEN2_SPLIT)[0]), "Known here: those that end in"),
    "bytes first": (
        lambda: changed("pre_tokenizer", pre_tokenizers.Sequence([split(QWEN2_SPLIT)[1], split(QWEN2_SPLIT)[0]])),
        "Known here: those that end in ByteLevel",
    ),
    "bytes twice": (
        lambda: changed("pre_tokenizer", pre_tokenizers.Sequence([split(QWEN2_SPLIT)[1], split(QWEN2_SPLIT)])),
        "'split': .'bytes'.*Known here: gpt-2",
    ),
    "by spaces": (lambda: changed("pre_tokenizer", pre_tokenizers.Whitespace()), "'Whitespace'"),
    "a space in front": (lambda: changed("pre_tokenizer", pre_tokenizers.ByteLevel()), "'add_prefix_space': True"),
    "small letters": (lambda: changed("normalizer", normalizers.Lowercase()), "normalizer is .*Lowercase"),
    "NFKC": (lambda: changed("normalizer", normalizers.NFKC()), "normalizer is .*NFKC.*Known here: none, or NFC"),
    "ignore_merges": (lambda: edited(byte_level, ignore_merges=True), "'ignore_merges': True"),
    "suffixes": (lambda: edited(letters, end_of_word_suffix="</w>"), "model is .*'</w>'"),
    "a zero byte": (lambda: one_more("a\0b"), r"token 'a\\x00b' is empty, there twice, or holds a zero byte"),
    "a taken name": (lambda: one_more("[PAD1201]"), r"token '\[PAD1201\]' is empty, there twice"),
    "merges without order": (
        lambda: edited(sentencepiece, merges=merges_of(sentencepiece)[::2] + merges_of(sentencepiece)[1::2]),
        "merges is those of .* in different places",
    ),
    "a merge less": (
        lambda: edited(sentencepiece, merges=merges_of(sentencepiece)[1:]), "merges is no merge of .* to the token",
    ),
    "split words": (
        lambda: changed("pre_tokenizer", pre_tokenizers.Metaspace(), sentencepiece),
        "normalizer and pre_tokenizer is .*Metaspace.*without splitting",
    ),
}  # fmt: skip


@pytest.mark.parametrize("label", REFUSED)
def test_others_are_refused_with_the_part_that_is_not_known(label):
    make, message = REFUSED[label]
    with pytest.raises(QtutorError, match=message):
        tokenizer_metadata(make(), 1202)


def test_a_tokenizer_of_another_model():
    with pytest.raises(QtutorError, match=r"ids up to 1199, the model embeds 1000: .*resize_token_embeddings"):
        keys(byte_level(), 1000)

"""Tokenizers that were written into a file come back and make the same tokens; unknown ones are not guessed."""

import numpy as np
import pytest
from tokenizers import decoders

import qtutor
from qtutor.errors import QtutorError
from qtutor.gguf import read, write
from qtutor.gguf.tokenizer import UNUSED, tokenizer_metadata
from qtutor.gguf.tokenizer_back import tokenizer_of
from tests.gguf.small_tokenizers import (
    BOS,
    BYTE_LEVEL,
    CALL,
    EOS,
    SPECIAL_STRINGS,
    STRINGS,
    byte_level,
    letters,
    sentencepiece,
)

TEMPLATE = "{% for m in messages %}<|begin|>{{ m['content'] }}<|endoftext|>\n{% endfor %}"
PADDED = 7  # rows of the embedding without a token


def as_llama_2(**options):
    """With Llama 2's decoder, which removes the space that was added in front."""
    tokenizer = sentencepiece(**options)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.backend_tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


KINDS = {
    "embedded": lambda: qtutor.load_decoder()[1],
    **{kind: lambda kind=kind: byte_level(kind) for kind in BYTE_LEVEL},
    "with bos": lambda: byte_level("llama-bpe", bos=True),
    "prepend": as_llama_2,
    "none": lambda: sentencepiece(prefix="none"),
    "without bos": lambda: sentencepiece(prefix="none", bos=False),
}


def keys_of(tokenizer) -> dict:
    return tokenizer_metadata(tokenizer, len(tokenizer) + PADDED)


@pytest.mark.filterwarnings("ignore:.*but not all:UserWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_written_comes_back(tmp_path, kind):
    tokenizer = KINDS[kind]()
    tokenizer.chat_template = TEMPLATE
    keys = keys_of(tokenizer)
    write(tmp_path / "a.gguf", keys)
    again = tokenizer_of(read(tmp_path / "a.gguf").metadata)

    assert len(STRINGS) >= 30
    for text in STRINGS + SPECIAL_STRINGS:
        for special in (True, False):
            ids = tokenizer(text, add_special_tokens=special).input_ids
            assert again(text, add_special_tokens=special).input_ids == ids, text
            assert again.decode(ids, skip_special_tokens=special) == tokenizer.decode(ids, skip_special_tokens=special)
    assert again("one", "two").input_ids == tokenizer("one", "two").input_ids

    assert (again.bos_token, again.eos_token) == (tokenizer.bos_token, tokenizer.eos_token)
    assert again.unk_token == tokenizer.unk_token and again.all_special_ids == tokenizer.all_special_ids
    assert again.get_vocab() == tokenizer.get_vocab()  # without [PADn]
    assert again.chat_template == TEMPLATE
    messages = [{"role": "user", "content": "Hello"}]
    told = tokenizer.apply_chat_template(messages).input_ids
    assert again.apply_chat_template(messages).input_ids == told and len(told) > 3

    rewritten = keys_of(again)
    assert rewritten.keys() == keys.keys()
    assert all(np.array_equal(rewritten[key], keys[key]) for key in keys)


def test_eos_behind_a_text_and_a_token_to_pad_with():
    tokenizer = sentencepiece()
    tokenizer.pad_token = CALL
    keys = keys_of(tokenizer) | {"tokenizer.ggml.add_eos_token": True}
    again = tokenizer_of(keys)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    plain = tokenizer("text", add_special_tokens=False).input_ids
    assert again("text").input_ids == [bos, *plain, eos]
    assert again("text", "text").input_ids == [bos, *plain, eos] * 2
    assert (again.pad_token, again.pad_token_id) == (CALL, tokenizer.pad_token_id)


@pytest.mark.parametrize("eos", [False, True])
def test_the_second_of_two_texts_is_told_apart(eos):
    """The tokens of the second text have type 1. Special tokens around the texts have type 0."""
    tokenizer = sentencepiece()
    again = tokenizer_of(keys_of(tokenizer) | {"tokenizer.ggml.add_eos_token": eos})
    first, second = (len(tokenizer(text, add_special_tokens=False).input_ids) for text in ("one longer text", "two"))
    assert first != second
    assert again("one longer text", return_token_type_ids=True).token_type_ids == [0] * (1 + first + eos)
    types = [0] + [0] * first + [0] * eos + [0] + [1] * second + [0] * eos
    assert again("one longer text", "two", return_token_type_ids=True).token_type_ids == types


def test_a_space_only_where_none_is_comes_back_as_in_llama_cpp():
    tokenizer = sentencepiece(prefix="first")
    with pytest.warns(UserWarning, match="one more space token"):
        again = tokenizer_of(keys_of(tokenizer))
    one_more = 0
    for text in STRINGS:
        expected = tokenizer(text).input_ids
        if text.startswith(" "):
            expected.insert(1, tokenizer.convert_tokens_to_ids("▁"))
            one_more += 1
        assert again(text).input_ids == expected, text
    assert one_more >= 2


def test_an_ordinary_token_that_ends_texts_is_not_looked_for_in_them():
    """eos may come from the config and be an ordinary token. As eos_token, it would be cut out of words."""
    keys = keys_of(byte_level())
    letter = keys["tokenizer.ggml.tokens"].index("e")
    again = tokenizer_of(keys | {"tokenizer.ggml.eos_token_id": np.uint32(letter)})
    assert again.eos_token is None
    assert again("where there is one").input_ids == byte_level()("where there is one").input_ids


@pytest.mark.parametrize("model, bos", [("gpt2", False), ("llama", True)])
def test_what_a_file_does_not_say_is_as_in_llama_cpp(model, bos):
    tokenizer = byte_level() if model == "gpt2" else sentencepiece()
    keys = keys_of(tokenizer)
    for name in ("add_bos_token", "add_eos_token", "add_space_prefix", "padding_token_id", "unknown_token_id"):
        keys.pop(f"tokenizer.ggml.{name}", None)
    ids = tokenizer("a b", add_special_tokens=False).input_ids
    assert tokenizer_of(keys)("a b").input_ids == ([tokenizer.bos_token_id] if bos else []) + ids


@pytest.mark.filterwarnings("ignore:.*but not all:UserWarning")
@pytest.mark.parametrize("pre, bos", [("llama3", True), ("tekken", True), ("glm4", False), ("stablelm2", False)])
def test_other_names_of_llama_cpp_are_read(pre, bos):
    """For some of them, every text begins with bos if the file does not say."""
    kind = {"llama3": "llama-bpe", "glm4": "llama-bpe", "stablelm2": "qwen2"}.get(pre, pre)
    tokenizer = byte_level(kind)
    keys = keys_of(tokenizer) | {"tokenizer.ggml.pre": pre}
    del keys["tokenizer.ggml.add_bos_token"]
    again = tokenizer_of(keys)
    for text in STRINGS:
        expected = tokenizer(text, add_special_tokens=False).input_ids
        assert again(text).input_ids == [tokenizer.bos_token_id] * bos + expected, text


ELSEWHERE = ".*AutoTokenizer, or run the file in llama.cpp"
REFUSED = {
    "a name that is not known": (byte_level, {"pre": "kimi-k2"}, "pre is kimi-k2, .*it knows gpt-2, llama-b"),
    "no name": (byte_level, {"pre": None}, "pre is not there, .*it knows gpt-2"),
    "another model": (byte_level, {"model": "bert"}, "model is bert, .*it knows gpt2, llama"),
    "no model": (byte_level, {"model": None}, "model is not there, "),
    "no tokens": (byte_level, {"tokens": None}, "tokens is not there; expected a list of different texts"),
    "numbers for tokens": (letters, {"tokens": np.arange(256)}, "tokens is .*expected a list of different texts"),
    "a token twice": (byte_level, {"tokens": ["a"] * 1207}, r"tokens is \['a', 'a'.*expected a list of different"),
    "types of others": (byte_level, {"token_type": np.ones(3, np.int32)}, "token_type is .*expected 1207 numbers"),
    "no merges": (byte_level, {"merges": None}, "merges is not there; expected a list of texts"),
    "half a merge": (byte_level, {"merges": ["a"]}, "merges is .*expected pairs of tokens"),
    "merges of others": (byte_level, {"merges": ["e Ш"]}, "merges is .*expected pairs of tokens"),
    "no scores": (sentencepiece, {"scores": None}, "scores is not there; expected 707 numbers"),
    "few scores": (sentencepiece, {"scores": np.zeros(5, np.float32)}, "scores is .*expected 707 numbers"),
    "a token too high": (byte_level, {"eos_token_id": np.uint32(1207)}, "eos_token_id is 1207; expected a token, 0 to"),
    "a text for a number": (byte_level, {"bos_token_id": "<s>"}, "bos_token_id is <s>; expected a token"),
    "a number for a flag": (sentencepiece, {"add_space_prefix": np.ones(2)}, "add_space_prefix is .*true or false"),
    "numbers for a name": (byte_level, {"pre": np.ones(2)}, "pre is .1. 1...* and qtutor cannot rebuild such"),
    "no bos to begin with": (sentencepiece, {"bos_token_id": None}, "bos_token_id is not there.*add_bos_token needs"),
}  # fmt: skip


def test_ids_without_tokens_stay_without():
    keys = keys_of(sentencepiece())
    types, hole = keys["tokenizer.ggml.token_type"].copy(), keys["tokenizer.ggml.tokens"].index(CALL)
    types[hole] = UNUSED
    again = tokenizer_of(keys | {"tokenizer.ggml.token_type": types})
    assert again.get_vocab() == {token: at for token, at in sentencepiece().get_vocab().items() if token != CALL}
    assert again(f"a{CALL}b{EOS}").input_ids[-1] == again.eos_token_id and hole not in again(CALL).input_ids


@pytest.mark.parametrize("label", REFUSED)
def test_what_is_not_known_or_damaged_is_told(label):
    make, changes, message = REFUSED[label]
    keys = keys_of(make()) | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    keys = {key: value for key, value in keys.items() if value is not None}
    with pytest.raises(QtutorError, match=message + ELSEWHERE):
        tokenizer_of(keys)


def test_tokens_of_every_type_come_back_as_what_they_were():
    again = tokenizer_of(keys_of(byte_level()))
    added = {token.content: token.special for token in again.added_tokens_decoder.values()}
    assert added == {BOS: True, EOS: True, CALL: False}
    assert again.decode(again(f"a{EOS}{CALL}b").input_ids, skip_special_tokens=True) == f"a{CALL}b"


def test_a_chat_template_that_is_no_text_is_told():
    with pytest.raises(QtutorError, match=r"tokenizer\.chat_template is 7; expected a text"):
        tokenizer_of(keys_of(byte_level()) | {"tokenizer.chat_template": np.uint32(7)})

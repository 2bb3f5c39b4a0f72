"""The first token of a prompt, the end of a text, and prompts that cannot be continued."""

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import qtutor
from qtutor import evaluate
from qtutor.errors import QtutorError
from qtutor.measure import generation
from tests.gguf.small_tokenizers import BOS, byte_level, sentencepiece


def small(vocabulary: int, context: int = 64, **options) -> LlamaForCausalLM:
    torch.manual_seed(1)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = LlamaConfig(vocab_size=vocabulary, max_position_embeddings=context, **sizes, **options)
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("make", [lambda bos: byte_level("llama-bpe", bos=bos), lambda bos: sentencepiece(bos=bos)])
def test_the_tokenizer_alone_decides_whether_a_prompt_begins_with_bos(make, bos):
    tokenizer = make(bos)
    model = small(len(tokenizer), bos_token_id=tokenizer.bos_token_id)
    seen = []
    model.register_forward_pre_hook(lambda _, __, kw: seen.append(kw["input_ids"][0].tolist()), with_kwargs=True)
    evaluate.generate(model, tokenizer, "def f", max_new_tokens=1)
    assert seen == [tokenizer("def f").input_ids]
    assert seen[0].count(tokenizer.bos_token_id) == bos


def test_a_config_may_say_that_prompts_begin_with_bos():
    tokenizer = byte_level()
    model = small(len(tokenizer), bos_token_id=tokenizer.bos_token_id, prompts_begin_with_bos=True)
    plain = tokenizer("def f").input_ids
    assert generation.prompt_tokens(model, tokenizer, "def f") == [tokenizer.bos_token_id, *plain]
    assert generation.prompt_tokens(model, tokenizer, f"{BOS}def f") == [
        tokenizer.bos_token_id,
        *plain,
    ]  # no second one is added
    assert generation.prompt_tokens(model, tokenizer, "") == [tokenizer.bos_token_id]


def test_prompts_of_the_embedded_decoder_begin_with_bos_wherever_it_is_loaded_from(tmp_path):
    model, tokenizer = qtutor.load()
    assert generation.prompt_tokens(model, tokenizer, ">>> 1") == [0, *tokenizer(">>> 1").input_ids]
    qtutor.export(model, tmp_path / "a.gguf", format="gguf", type="Q8_0", tokenizer=tokenizer)
    qtutor.quantize(model, qtutor.Recipe(), progress=False)
    qtutor.export(model, tmp_path / "ours", tokenizer=tokenizer)
    for source in ("a.gguf", "ours"):
        assert generation.prompt_tokens(*qtutor.load(tmp_path / source), ">>> 1")[0] == 0


def test_any_of_several_tokens_ends_a_text():
    tokenizer = byte_level()
    model = small(len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    ids = torch.tensor([generation.prompt_tokens(model, tokenizer, "def f")])
    written = model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)[0, ids.shape[1] :].tolist()
    end = written[4]
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, end]
    expected = tokenizer.decode(written[: written.index(end)])
    assert evaluate.generate(model, tokenizer, "def f", 12) == "def f" + expected
    several = evaluate.generate_batch(model, tokenizer, ["def f", "x = [1, 2"], 12)
    assert several[0] == "def f" + expected


@pytest.mark.parametrize("source", ["ours", "a.gguf"])
def test_the_ends_of_texts_are_kept_when_a_model_is_saved(tmp_path, source):
    model, tokenizer = qtutor.load()
    model.generation_config.eos_token_id = [0, 5, 7]
    if source == "ours":
        qtutor.quantize(model, qtutor.Recipe(), progress=False)
        qtutor.export(model, tmp_path / source, tokenizer=tokenizer)
    else:
        qtutor.export(model, tmp_path / source, format="gguf", type="Q8_0", tokenizer=tokenizer)
    again, _ = qtutor.load(tmp_path / source)
    assert again.generation_config.eos_token_id == [0, 5, 7]


@pytest.mark.parametrize("ends, kept", [([0, 5, 99999], [0, 5]), ([0, 1024], [0]), (5000, 0), ([1024, 5000], 0)])
def test_ends_beyond_the_vocabulary_are_left_out_and_told(tmp_path, ends, kept):
    """The model cannot write them, and a file with such numbers would be refused as damaged when it is read."""
    model, tokenizer = qtutor.load()
    model.generation_config.eos_token_id = ends
    with pytest.warns(UserWarning, match=r"eos_token_id is .*the vocabulary has 1024 tokens.*left out"):
        qtutor.export(model, tmp_path / "a.gguf", format="gguf", type="Q8_0", tokenizer=tokenizer)
    assert qtutor.load(tmp_path / "a.gguf")[0].generation_config.eos_token_id == kept
    qtutor.quantize(model, qtutor.Recipe(), progress=False)
    with pytest.warns(UserWarning, match="left out"):
        qtutor.export(model, tmp_path / "ours", tokenizer=tokenizer)
    assert qtutor.load(tmp_path / "ours")[0].generation_config.eos_token_id == kept


def test_settings_that_the_config_gives_back_are_not_written(tmp_path):
    model, tokenizer = qtutor.load()
    path = qtutor.export(model, tmp_path / "a.gguf", format="gguf", type="Q8_0", tokenizer=tokenizer)
    assert "qtutor.generation_config" not in qtutor.gguf.read(path).metadata
    qtutor.quantize(model, qtutor.Recipe(), progress=False)
    assert not (qtutor.export(model, tmp_path / "ours", tokenizer=tokenizer) / "generation_config.json").exists()


@pytest.mark.parametrize("text, message", [
    ("{", "is damaged"), ("[1]", "is damaged"), ('{"eos_token_id": [0, 5000]}', r"eos_token_id is \[0, 5000\]; exp"),
    ('{"eos_token_id": "x"}', "eos_token_id is x"), ('{"eos_token_id": true}', "eos_token_id is True"),
])  # fmt: skip
def test_damaged_settings_are_told(tmp_path, text, message):
    model, tokenizer = qtutor.load()
    qtutor.quantize(model, qtutor.Recipe(), progress=False)
    qtutor.export(model, tmp_path / "ours", tokenizer=tokenizer)
    (tmp_path / "ours" / "generation_config.json").write_text(text)
    with pytest.raises(QtutorError, match=f"generation_config.json.*{message}"):
        qtutor.load_quantized(tmp_path / "ours")


def test_prompts_that_cannot_be_continued():
    tokenizer = byte_level()
    model = small(len(tokenizer))
    with pytest.raises(QtutorError, match="the prompt '' has no tokens"):
        evaluate.generate(model, tokenizer, "")
    with pytest.raises(QtutorError, match="no text that can be written as UTF-8"):
        evaluate.generate(model, tokenizer, "a \udcff b")
    with pytest.raises(QtutorError, match=r"the prompt is a list, and a text is needed.*generate_batch"):
        evaluate.generate(model, tokenizer, ["a", "b"])
    for number in (0, -1, 2.5, True):
        with pytest.raises(QtutorError, match=f"max_new_tokens is {number}; expected a whole number, at least 1"):
            evaluate.generate(model, tokenizer, "a", number)
    tokenizer.add_tokens(["<new>"])
    with pytest.raises(QtutorError, match="token '<new>', number 1200, and the model embeds 1200: 0 to 1199"):
        evaluate.generate(model, tokenizer, "a <new> b")


def test_a_short_context_leaves_functions_out(monkeypatch):
    _, tokenizer = qtutor.load()
    lengths = [len(tokenizer(f"\n\n{text}").input_ids) for text in qtutor.decoder.corpus.held_out_functions()[:20]]
    model = small(1024, context=128 + 8)
    assert len(generation.functions(model, tokenizer, 20, 60)) == sum(length + 60 <= 136 for length in lengths) < 20
    assert 0 <= evaluate.ast_validity(model, tokenizer, 20, 60) <= 1
    with pytest.raises(QtutorError, match="context of 24 tokens is too short for a function and 96 tokens"):
        evaluate.ast_validity(small(1024, context=24), tokenizer, 20)
    with pytest.raises(QtutorError, match="context of 8 tokens is too short for a question of kind 'sum'"):
        evaluate.task_accuracy(small(1024, context=8), tokenizer, ("sum",), 4)


def test_the_embedded_decoders_config_is_what_training_writes():
    from qtutor.decoder import EMBEDDED, training

    written = json.loads((EMBEDDED / "config.json").read_text())
    assert written["prompts_begin_with_bos"] is training.new_model(0).config.prompts_begin_with_bos is True


@pytest.mark.parametrize("source", ["ours", "a.gguf"])
def test_of_stored_settings_only_ends_and_a_penalty_are_taken(tmp_path, source):
    """Other settings could choose a different search method, and transformers downloads some of these from a hub."""
    model, tokenizer = qtutor.load()
    model.generation_config.eos_token_id, model.generation_config.repetition_penalty = [0, 5], 1.25
    model.generation_config.penalty_alpha = 0.6
    if source == "ours":
        qtutor.quantize(model, qtutor.Recipe(), progress=False)
        qtutor.export(model, tmp_path / source, tokenizer=tokenizer)
    else:
        qtutor.export(model, tmp_path / source, format="gguf", type="Q8_0", tokenizer=tokenizer)
    found = qtutor.load(tmp_path / source)[0].generation_config
    assert (found.eos_token_id, found.repetition_penalty) == ([0, 5], 1.25) and found.penalty_alpha is None

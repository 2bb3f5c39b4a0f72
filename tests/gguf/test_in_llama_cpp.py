"""Exported files in the real llama.cpp: it computes what transformers computes, from the same tokens."""

import copy
import re
import unicodedata

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import qtutor
from qtutor.gguf import TYPES, Tensor, read, write
from qtutor.gguf.imatrix import importance
from qtutor.gguf.mixes import MIXES
from qtutor.gguf.pre_tokenizers import APPROXIMATE
from tests.gguf import llama_cpp, small_tokenizers
from tests.models import FAMILIES, some_ids, tiny

pytestmark = pytest.mark.skipif(
    llama_cpp.library() is None, reason="llama.cpp itself comes with xllamacpp, which is not installed here"
)

PROMPTS = (
    *["def mean(values):\n", "class Stack:\n    def __init__(self):\n", "import os\nimport sys\n\n"],
    *["for i in range(10):\n", "x = {", "assert ", "with open(path) as file:\n", "if __name__ == ", "def test_"],
    *[">>> 37 + 48\n", ">>> 91 - 17\n", ">>> 6 * 7\n", ">>> max(3, 9, 4)\n", ">>> sorted([3, 1, 2])\n", ">>> 5 < 3\n"],
    *["# Copyright", '"""A module that', "try:\n    value = int(text)\nexcept", "    return self."],
    "while True:\n    line = ",
)


@pytest.fixture(scope="module")
def decoder():
    return qtutor.load_decoder()


@pytest.fixture(scope="module")
def imatrix(decoder):
    return importance(decoder[0], some_ids(4, 64))


@torch.inference_mode()
def logits(model, ids: list[int]) -> np.ndarray:
    return model(torch.tensor([ids])).logits[0].float().numpy()


def assert_near(found: np.ndarray, expected: np.ndarray) -> None:
    """Equal to 1e-4 of the largest logit, as in :func:`assert_agree`: rounding errors of float32 grow with the logits.

    In :func:`test_families`, the largest logits are 0.6 to 1.3, and differences were up to 6e-6 of them.
    """
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def assert_likeliest(chosen: list[int], expected: np.ndarray) -> None:
    """Every token of ``chosen`` is the likeliest one in ``expected``, the logits of the texts that end before it.

    Another token counts as the likeliest one if its logit is less by no more than the error of logits in
    :func:`assert_agree`: rounding errors then decide which of the two comes first.
    """
    best = expected.max(axis=-1)
    assert (expected[np.arange(len(chosen)), chosen] >= best - 1e-4 * np.abs(expected).max()).all()


def assert_agree(found: np.ndarray, expected: np.ndarray, prompt: int) -> None:
    """Equal to 1e-5 of the largest logit in the prompt, and to 1e-4 of it in the tokens generated after the prompt.

    Both limits are for rounding errors of float32. These errors grow with the logits, and they add up over the
    positions. The decoder's largest logits are 28 to 48. In the prompt, transformers' logits differ by up to 1.1e-4
    from those that it computes in float64, and llama.cpp's by up to 2e-5. After 64 more tokens, differences are up to
    1e-3. On another CPU, these numbers can be different by half.
    """
    difference, largest = np.abs(found - expected), np.abs(expected).max()
    assert difference[:prompt].max() < 1e-5 * largest
    assert difference.max() < 1e-4 * largest


def test_the_decoder_in_float(tmp_path, decoder):
    model, tokenizer = decoder
    path = qtutor.export(model, tmp_path / "f32.gguf", format="gguf", type="F32", tokenizer=tokenizer)
    assert len(set(PROMPTS)) == 20
    with llama_cpp.Model(path) as engine:
        assert engine.warnings == ""
        for prompt in PROMPTS:
            ids = tokenizer(prompt).input_ids
            assert engine.tokenize(prompt) == ids
            chosen = engine.greedy(ids, 64)
            expected = logits(model, ids + chosen)
            assert_likeliest(chosen, expected[len(ids) - 1 : -1])
            engine.forget()
            assert_agree(engine.logits(ids + chosen), expected, len(ids))


def changed(family: str = "llama", tied: bool = False, **changes):
    """A random decoder with large q and k, so that attention depends on positions. Otherwise it is nearly uniform."""
    model = tiny(family, tied)
    config = copy.deepcopy(model.config)
    for name, value in changes.items():
        setattr(config, name, value)
    torch.manual_seed(1)
    model = type(model)(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif "q_proj" in name or "k_proj" in name:
                parameter.mul_(20)
    return model


LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
MODELS = {
    **{f"{family}, tied": (family, True, {}) for family in FAMILIES},
    **{f"{family}, separate": (family, False, {}) for family in FAMILIES},
    "Llama 3's rope": ("llama", False, {"rope_parameters": LLAMA3}),
    "another rope_theta": ("llama", True, {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
    "linear rope": ("llama", True, {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
    "yarn": ("llama", True, {"rope_parameters": YARN}),
    "yarn, qwen2": ("qwen2", True, {"rope_parameters": YARN}),
    "yarn, qwen3": ("qwen3", False, {"rope_parameters": YARN | {"beta_fast": 32.0, "beta_slow": 1.0}}),
    "wide heads": ("llama", False, {"head_dim": 32}),
    "wide heads, qwen3": ("qwen3", True, {"head_dim": 32}),
    "every bias": ("llama", True, {"attention_bias": True, "mlp_bias": True}),
    "one head for all": ("mistral", False, {"num_key_value_heads": 1}),
    "a window": ("mistral", False, {"sliding_window": 60}),
}


@pytest.mark.parametrize("label", MODELS)
def test_families(tmp_path, label):
    family, tied, changes = MODELS[label]
    model = changed(family, tied, **changes)
    path = qtutor.export(model, tmp_path, format="gguf", type="F32", tokenizer=small_tokenizers.letters())
    ids = some_ids(1, 60)[0].tolist()  # within the window, where llama.cpp computes the same
    with llama_cpp.Model(path) as engine:
        found = engine.logits(ids)
    assert_near(found, logits(model, ids))
    if "rope_parameters" in changes:  # the change has to have a visible effect
        assert np.abs(found - logits(changed(family, tied), ids)).max() > 0.02


def test_the_order_of_rows_shows(tmp_path):
    """A check of the comparison above: with q's rows in transformers' order, llama.cpp's logits are different."""
    model, ids = changed(), some_ids(1, 60)[0].tolist()
    path = qtutor.export(model, tmp_path, format="gguf", type="F32", tokenizer=small_tokenizers.letters())
    file, name = read(path), "blk.0.attn_q.weight"
    rows = model.model.layers[0].self_attn.q_proj.weight.detach().numpy()
    unpermuted = Tensor(name, rows.shape, "F32", rows.view(np.uint8))
    write(path, file.metadata, [unpermuted if tensor.name == name else tensor for tensor in as_float32(file)])
    with llama_cpp.Model(path) as engine:
        assert np.abs(engine.logits(ids) - logits(model, ids)).max() > 0.02


def as_float32(file) -> list[Tensor]:
    """The tensors of a file, decoded."""
    return [
        Tensor(name, info.shape, "F32", np.ascontiguousarray(file.weight(name)).view(np.uint8))
        for name, info in file.tensors.items()
    ]


@pytest.mark.parametrize("pure, name", [(False, name) for name in MIXES] + [(True, name) for name in TYPES])
def test_every_type_loads_generates_and_holds_the_weights_that_we_decode(tmp_path, decoder, imatrix, pure, name):
    model, tokenizer = decoder
    given = imatrix if name in ("Q2_K_S", "Q3_K_M", "IQ4_XS") else None
    options = {"type": name, "pure": pure, "tokenizer": tokenizer, "importance": given}
    path = qtutor.export(model, tmp_path / "small.gguf", format="gguf", **options)
    ids = tokenizer(PROMPTS[0]).input_ids
    with llama_cpp.Model(path) as engine:
        chosen = engine.greedy(ids, 16)
        engine.forget()
        assert len(chosen) == 16 and np.isfinite(engine.logits(ids)).all()
    file = read(path)
    write(tmp_path / "f32.gguf", file.metadata, as_float32(file))
    with llama_cpp.Model(tmp_path / "f32.gguf") as engine:
        found = engine.logits(ids + chosen)
    assert_agree(found, logits(qtutor.load_quantized(path), ids + chosen), len(ids))


@pytest.mark.filterwarnings("ignore:.*but not all:UserWarning")
@pytest.mark.parametrize("kind", [*small_tokenizers.BYTE_LEVEL, "with bos", "prepend", "none"])
def test_tokens_are_the_same(tmp_path, kind):
    if kind in ("prepend", "none"):
        tokenizer = small_tokenizers.sentencepiece(prefix=kind)
    elif kind == "with bos":
        tokenizer = small_tokenizers.byte_level("llama-bpe", bos=True)
    else:
        tokenizer = small_tokenizers.byte_level(kind)
    assert len(small_tokenizers.STRINGS) >= 36
    strings = small_tokenizers.STRINGS + small_tokenizers.SPECIAL_STRINGS + small_tokenizers.CASED_STRINGS
    if kind in APPROXIMATE:
        strings = [text for text in strings if not any(map(cased_beyond_ascii, text))]
        if kind == "youtu":  # there, llama.cpp begins no new word at a capital
            strings = [text for text in strings if not re.search("[a-z][A-Z]", text)]
        assert len(strings) >= 33
    path = vocabulary_only(tmp_path / "a.gguf", tokenizer)
    with llama_cpp.Model(path) as engine:
        assert engine.warnings == ""
        assert engine.special() == (tokenizer.bos_token_id, tokenizer.eos_token_id)
        for text in strings:
            expected = tokenizer(text).input_ids
            assert engine.tokenize(text) == expected, text
            plain = tokenizer(text, add_special_tokens=False).input_ids
            assert engine.tokenize(text, special=False) == plain, text
        text = "def mean(values):\n    return 12  # é 🙂"
        assert engine.detokenize(tokenizer(text, add_special_tokens=False).input_ids) == text


def cased_beyond_ascii(character: str) -> bool:
    """Characters that some of llama.cpp's expressions do not distinguish from other letters."""
    return character > "\x7f" and unicodedata.category(character) in ("Lu", "Lt", "Mn", "Mc", "Me")


def vocabulary_only(path, tokenizer, **changes):
    """A file for a model of one tiny block."""
    config = copy.deepcopy(tiny().config)
    config.vocab_size, config.num_hidden_layers = len(tokenizer) + 7, 1  # seven rows without a token
    qtutor.export(AutoModelForCausalLM.from_config(config), path, format="gguf", type="F16", tokenizer=tokenizer)
    if changes:
        file = read(path)
        keys = {key: value for key, value in (file.metadata | changes).items() if value is not None}
        write(path, keys, as_float32(file))
    return path


@pytest.mark.parametrize("kind, other", [
    ("gpt-2", "qwen2"), ("gpt-2", "smollm"), ("llama-bpe", "qwen2"), ("llama-bpe", "smaug-bpe"), ("qwen2", "llama-bpe"),
    ("smollm", "gpt-2"), ("qwen2", None), ("deepseek-llm", "deepseek-coder"), ("deepseek-v3", "qwen35"),
    ("exaone-moe", "qwen2"), ("poro-chat", "viking"), ("superbpe", "deepseek-llm"),
])  # fmt: skip
def test_a_wrong_pre_tokenizer_or_none_makes_other_tokens(tmp_path, kind, other):
    """A check of the comparison above: it distinguishes each expression from the others."""
    tokenizer = small_tokenizers.byte_level(kind)
    path = vocabulary_only(tmp_path / "a.gguf", tokenizer, **{"tokenizer.ggml.pre": other})
    with llama_cpp.Model(path) as engine:
        different = [text for text in small_tokenizers.STRINGS if engine.tokenize(text) != tokenizer(text).input_ids]
        assert len(different) >= 3
        assert ("GENERATION QUALITY" in engine.warnings) == (other is None)


def test_without_bos_and_eos_llama_cpp_takes_token_11(tmp_path):
    """This is why both are always written."""
    absent = {"tokenizer.ggml.bos_token_id": None, "tokenizer.ggml.eos_token_id": None}
    with llama_cpp.Model(vocabulary_only(tmp_path / "a.gguf", small_tokenizers.byte_level(), **absent)) as engine:
        assert engine.special() == (11, 11)


def test_the_chat_template_arrives(tmp_path):
    tokenizer = small_tokenizers.byte_level()
    tokenizer.chat_template = "{% for m in messages %}<|begin|>{{ m['content'] }}<|endoftext|>\n{% endfor %}"
    with llama_cpp.Model(vocabulary_only(tmp_path / "a.gguf", tokenizer)) as engine:
        assert engine.chat_template() == tokenizer.chat_template


def test_sentencepiece_with_a_space_only_where_none_is(tmp_path):
    """The only known difference is one more space token, and a warning announces it."""
    tokenizer = small_tokenizers.sentencepiece(prefix="first")
    with pytest.warns(UserWarning, match="one more space token"):
        path = vocabulary_only(tmp_path / "a.gguf", tokenizer)
    with llama_cpp.Model(path) as engine:
        for text in small_tokenizers.STRINGS:
            expected, found = tokenizer(text).input_ids, engine.tokenize(text)
            if text.startswith(" "):
                assert found == [*expected[:1], tokenizer.convert_tokens_to_ids("▁"), *expected[1:]], text
            else:
                assert found == expected, text


@pytest.mark.parametrize("name", ["F32", "F16", "Q8_0", "Q4_0", "Q4_K_M", "Q5_K_M", "Q3_K_M", "Q2_K"])
def test_transformers_loads_it_back(tmp_path, decoder, name):
    for package in ("gguf", "accelerate"):
        pytest.importorskip(package, reason=f"transformers reads GGUF with {package}, which is not installed here")
    model, tokenizer = decoder
    qtutor.export(model, tmp_path, format="gguf", type=name, tokenizer=tokenizer)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    ours = qtutor.load_quantized(tmp_path, device="cpu")
    assert again.state_dict().keys() == ours.state_dict().keys()
    for key, weight in ours.state_dict().items():
        assert torch.equal(again.state_dict()[key], weight), key
    ids = tokenizer(PROMPTS[0]).input_ids
    assert np.array_equal(logits(again, ids), logits(ours, ids))


def test_a_family_with_biases_comes_back_in_transformers(tmp_path):
    for package in ("gguf", "accelerate"):
        pytest.importorskip(package, reason=f"transformers reads GGUF with {package}, which is not installed here")
    model = changed("qwen2", tied=False)
    qtutor.export(model, tmp_path, format="gguf", type="F32", tokenizer=small_tokenizers.letters())
    again = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    ids = some_ids(1, 30)[0].tolist()
    assert np.array_equal(logits(again, ids), logits(model, ids))

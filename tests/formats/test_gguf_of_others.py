"""Files of other tools: logits and tokens are the same as in llama.cpp, and refusals of files give the reason."""

import copy
import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import qtutor
from qtutor.errors import QtutorError
from qtutor.formats.gguf import save
from qtutor.gguf import Tensor, read, write
from qtutor.gguf.llama3_rope import factors_of
from qtutor.gguf.parts import read_whole
from qtutor.gguf.tokenizer import SPACE
from tests.gguf import llama_cpp, small_tokenizers
from tests.gguf.test_in_llama_cpp import assert_near, changed, logits
from tests.models import some_ids, tiny

others = pytest.importorskip("tests.gguf.others", reason="gguf is not installed here")
if llama_cpp.library() is None:
    pytest.skip("llama.cpp itself comes with xllamacpp, which is not installed here", allow_module_level=True)

IDS = some_ids(1, 60)[0].tolist()


def test_nvfp4_with_a_number_for_each_matrix(tmp_path):
    """llama.cpp's converter writes ModelOpt's weights like this: decoded blocks times the number, also in llama.cpp."""
    model = tiny(tied=False)
    save(model, tmp_path / "plain.gguf", small_tokenizers.letters(), type="NVFP4", pure=True)
    file = read(tmp_path / "plain.gguf")
    tensors = [Tensor(name, info.shape, info.type.name, file.data(name)) for name, info in file.tensors.items()]
    for stem in ("blk.0.ffn_down", "blk.1.attn_q"):
        assert file.tensors[f"{stem}.weight"].type.name == "NVFP4"
        tensors.append(Tensor(f"{stem}.scale", (1,), "F32", np.array([3.0], np.float32).view(np.uint8)))
        tensors.append(Tensor(f"{stem}.input_scale", (1,), "F32", np.array([0.5], np.float32).view(np.uint8)))
    write(tmp_path / "scaled.gguf", file.metadata, tensors)
    plain, scaled = (qtutor.load(tmp_path / f"{name}.gguf", device="cpu")[0] for name in ("plain", "scaled"))
    for name, weight in plain.named_parameters():
        factor = 3 if name in ("model.layers.0.mlp.down_proj.weight", "model.layers.1.self_attn.q_proj.weight") else 1
        assert torch.equal(scaled.get_parameter(name), factor * weight), name
    with llama_cpp.Model(tmp_path / "scaled.gguf") as theirs:
        found = torch.from_numpy(theirs.logits(IDS))
    with torch.inference_mode():
        near, far = ((one(torch.tensor([IDS])).logits[0] - found).square().mean() for one in (scaled, plain))
    assert near < 0.05 * far  # llama.cpp rounds inputs to 8 bits, so they are not equal


LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}  # fmt: skip
FACTORS = factors_of(LLAMA3, 16)
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}


def of_llama(values: dict, scaling: dict, tensors: dict | None = None):
    return "llama", {"rope_parameters": values}, scaling, tensors or {}


# Label -> family, changes of its config, the keys that describe them, additional tensors.
CASES = {
    "llama": ("llama", {}, {}, {}),
    "an output of its own": ("llama", {"tie_word_embeddings": False}, {}, {}),
    "wide heads": ("llama", {"head_dim": 32}, {"attention.key_length": 32, "attention.value_length": 32}, {}),
    "every bias": ("llama", {"attention_bias": True, "mlp_bias": True}, {}, {}),
    "one key for all heads": ("llama", {"num_key_value_heads": 4}, {"attention.head_count_kv": None}, {}),
    "a number for each block": ("llama", {}, {"attention.head_count_kv": [2, 2], "attention.head_count": [4, 4]}, {}),
    "another rope_theta": of_llama({"rope_type": "default", "rope_theta": 500.0}, {"rope.freq_base": 500.0}),
    "linear rope": of_llama(
        {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
        {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
    ),
    "linear rope in an old file": of_llama(
        {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}, {"rope.scale_linear": 2.0}
    ),
    "a factor that is not used": of_llama(
        {"rope_type": "default", "rope_theta": 1e4}, {"rope.scaling.type": "none", "rope.scaling.factor": 4.0}
    ),
    "yarn": of_llama(
        YARN,
        {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 16},
    ),
    "yarn, with a factor for attention": of_llama(
        YARN | {"attention_factor": 1.25 * (0.1 * np.log(4) + 1)},
        {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 16,
         "rope.scaling.attn_factor": 1.25},
    ),
    "Llama 3's rope": of_llama(LLAMA3, {}, {"rope_freqs.weight": FACTORS}),
    "factors that are all 1": of_llama(
        {"rope_type": "default", "rope_theta": 1e4}, {}, {"rope_freqs.weight": np.ones(8, np.float32)}
    ),
    "qwen2, with its biases": ("qwen2", {}, {}, {}),
    "qwen3": ("qwen3", {}, {"attention.key_length": 16, "attention.value_length": 16}, {}),
}  # fmt: skip


def random_model(family: str, changes: dict):
    model = changed(family, **changes)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    return model


@pytest.mark.parametrize("label", CASES)
def test_what_llama_cpp_computes(tmp_path, label):
    family, changes, keys, more = CASES[label]
    model = random_model(family, changes)
    path = others.write(tmp_path / "theirs.gguf", model, keys=keys, tensors=others.tensors_of(model) | more)
    found, _ = qtutor.load(path, device="cpu")
    assert found.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, found.state_dict()[name]) for name, value in model.state_dict().items())
    with llama_cpp.Model(path) as engine:
        exact = engine.logits(IDS)
    assert_near(logits(found, IDS), exact)
    assert np.abs(logits(found, IDS) - logits(model, IDS)).max() < 1e-5 * np.abs(exact).max()
    if keys and "rope_parameters" in changes and changes["rope_parameters"]["rope_type"] != "default":
        plain = random_model(family, {})
        assert np.abs(logits(found, IDS) - logits(plain, IDS)).max() > 0.02  # the change has a visible effect


def test_one_matrix_for_q_k_and_v(tmp_path):
    model = random_model("llama", {"attention_bias": True})
    tensors = others.tensors_of(model)
    for number, kind in itertools.product(range(2), ("weight", "bias")):
        parts = [tensors.pop(f"blk.{number}.attn_{part}.{kind}") for part in "qkv"]
        tensors[f"blk.{number}.attn_qkv.{kind}"] = np.concatenate(parts)
    path = others.write(tmp_path / "theirs.gguf", model, tensors=tensors)
    found, _ = qtutor.load(path, device="cpu")
    assert all(torch.equal(value, found.state_dict()[name]) for name, value in model.state_dict().items())
    with llama_cpp.Model(path) as engine:
        assert_near(engine.logits(IDS), logits(found, IDS))


@pytest.mark.parametrize("family, left_out", [("qwen2", "attn"), ("llama", "attn_output"), ("qwen3", "attn_output")])
def test_a_bias_that_is_not_there_is_zero(tmp_path, family, left_out):
    model = random_model(family, {} if family == "qwen2" else {"attention_bias": True})
    tensors = {n: t for n, t in others.tensors_of(model).items() if not (n.endswith("bias") and f".{left_out}" in n)}
    keys = {"attention.key_length": 16, "attention.value_length": 16}
    path = others.write(tmp_path / "theirs.gguf", model, tensors=tensors, keys=keys)
    found, _ = qtutor.load(path, device="cpu")
    assert not found.model.layers[1].self_attn.state_dict().get("o_proj.bias", torch.zeros(1)).any()
    with llama_cpp.Model(path) as engine:
        assert_near(engine.logits(IDS), logits(found, IDS))


def test_block_types(tmp_path):
    """Each matrix has a different type. The decoded weights are llama.cpp's, and so are the logits with them."""
    model = changed("llama", False, hidden_size=256, intermediate_size=256, head_dim=64)
    kinds = {"attn_q": "Q4_K", "attn_k": "Q6_K", "attn_v": "Q5_K", "attn_output": "BF16", "ffn_gate": "Q3_K",
             "ffn_up": "IQ4_XS", "ffn_down": "Q2_K", "token_embd": "F16", "output.": "Q8_0"}  # fmt: skip
    path = others.write(tmp_path / "theirs.gguf", model, types=kinds)
    found, _ = qtutor.load(path, device="cpu")
    file = read(path)
    assert {info.type.name for info in file.tensors.values()} == {*kinds.values(), "F32"}
    plain = {}
    for name, info in file.tensors.items():
        data, kind = file.data(name).copy(), info.type.name
        rows = file.weight(name) if kind in ("F32", "F16", "BF16") else llama_cpp.decode(data, kind)
        plain[name] = np.ascontiguousarray(rows.reshape(info.shape))
    up = torch.from_numpy(plain["blk.1.ffn_up.weight"])
    assert torch.equal(found.model.layers[1].mlp.up_proj.weight, up)
    whole = others.write(tmp_path / "f32.gguf", model, tensors=plain)
    with llama_cpp.Model(whole) as engine:
        exact = engine.logits(IDS)
    assert_near(logits(found, IDS), exact)
    half, _ = qtutor.load(path, torch.bfloat16, "cpu")
    assert half.dtype == torch.bfloat16 and torch.equal(half.model.layers[1].mlp.up_proj.weight, up.bfloat16())


def test_written_again_it_keeps_its_name_and_its_ends(tmp_path):
    model = changed("llama", True)
    path = others.write(tmp_path / "theirs.gguf", model, general={"general.name": "Somebody's own"}, split=0)
    found, tokenizer = qtutor.load(path, device="cpu")
    again = qtutor.export(found, tmp_path / "ours.gguf", format="gguf", type="F32", tokenizer=tokenizer)
    assert read(again).metadata["general.name"] == "Somebody's own"
    loaded, _ = qtutor.load(again, device="cpu")
    assert loaded.generation_config.eos_token_id == found.generation_config.eos_token_id == 0
    assert np.array_equal(logits(loaded, IDS), logits(model, IDS))


def test_split_files(tmp_path):
    model = changed()
    first = others.write(tmp_path / "theirs.gguf", model, split=7)
    parts = sorted(tmp_path.glob("*.gguf"))
    assert first == parts[0] and len(parts) == 3 and first.name == "theirs-00001-of-00003.gguf"
    with llama_cpp.Model(first) as engine:
        exact = engine.logits(IDS)
    for source in (*parts, tmp_path):  # any part may be named
        assert_near(logits(qtutor.load(source, device="cpu")[0], IDS), exact)
    whole = read_whole(parts[1])
    assert len(whole.parts) == 3 and whole.metadata["general.architecture"] == "llama"

    def told(words: str) -> None:
        with pytest.raises(QtutorError, match=words):
            qtutor.load(parts[1])

    kept = parts[2].read_bytes()
    parts[2].write_bytes(parts[1].read_bytes())
    told("split.no and split.count are 1 and 3, but by its name it is part 3 of 3")
    file = read(parts[1])
    tensors = [Tensor(name, info.shape, info.type.name, file.data(name).copy()) for name, info in file.tensors.items()]
    keys = file.metadata | {"split.no": np.uint16(2)}
    write(parts[2], keys, tensors[:1])
    told(f"tensor '{tensors[0].name}' is in two parts of the file")
    write(parts[2], keys, [replace(tensors[0], name="blk.9.attn_q.weight")])
    told(r"theirs-00001-of-00003\.gguf: split.tensors.count is 21, and the 3 parts hold 15 tensors")
    parts[2].unlink()
    told(r"of its 3 parts these are not here: theirs-00003-of-00003\.gguf\. Put them into the same folder")
    parts[2].write_bytes(kept)
    parts[1].rename(tmp_path / "renamed.gguf")
    with pytest.raises(QtutorError, match=r"renamed.gguf is part 2 of 3 .* under another name.*NAME-00001-of-00003"):
        qtutor.load(tmp_path / "renamed.gguf")


def test_a_window_makes_a_mistral_of_it(tmp_path):
    """llama.cpp has no window in this architecture. Both compute the same until a text is longer than the window."""
    model = changed("mistral", sliding_window=32)
    path = others.write(tmp_path / "theirs.gguf", model, keys={"attention.sliding_window": 32})
    found, _ = qtutor.load(path, device="cpu")
    assert (found.config.model_type, found.config.sliding_window) == ("mistral", 32)
    assert np.array_equal(logits(found, IDS), logits(model, IDS))
    with llama_cpp.Model(path) as engine:
        exact = engine.logits(IDS)
    ours = logits(found, IDS)
    assert_near(ours[:32], exact[:32])
    assert np.abs(ours - exact)[40:].max() > 0.01
    model = changed("qwen2")
    path = others.write(tmp_path / "qwen2.gguf", model, keys={"attention.sliding_window": 32})
    assert qtutor.load(path, device="cpu")[0].config.max_position_embeddings == 32


def small_vocabulary(tokenizer, kind: str, **changes) -> dict:
    """The keys for a tokenizer of the tests, written without qtutor's code."""
    own = tokenizer.backend_tokenizer
    tokens = sorted(own.get_vocab(), key=own.get_vocab().get)
    types = dict.fromkeys(tokens, 1) | {small_tokenizers.BOS: 3, small_tokenizers.EOS: 3, small_tokenizers.CALL: 4}
    keys = {"model": kind, "bos_token_id": tokens.index(small_tokenizers.BOS), "add_bos_token": True}
    keys |= {"eos_token_id": tokens.index(small_tokenizers.EOS)}
    if kind == "llama":
        merged = json.loads(own.to_str())["model"]["merges"]
        joined = list(dict.fromkeys("".join(pair) for pair in merged))
        keys["scores"] = [-float(joined.index(token)) if token in joined else -1e5 for token in tokens]
        types |= {token: 6 for token in tokens if token.startswith("<0x")} | {"<unk>": 2}
        keys["unknown_token_id"] = tokens.index("<unk>")
    keys |= {"tokens": tokens, "token_type": [types[token] for token in tokens]}
    return {f"tokenizer.ggml.{key}": value for key, value in (keys | changes).items()}


@pytest.mark.parametrize("prefix", [True, False, None])
def test_sentencepiece(tmp_path, prefix):
    """None: the file does not say. Then llama.cpp puts a space and bos in front of a text."""
    tokenizer = small_tokenizers.sentencepiece(prefix="none" if prefix is False else "prepend")
    changes = {"add_space_prefix": prefix} | ({"add_bos_token": None} if prefix is None else {})
    path = with_tokenizer(tmp_path, tokenizer, small_vocabulary(tokenizer, "llama", **changes))
    _, found = qtutor.load(path, device="cpu")
    with llama_cpp.Model(path) as engine:
        for text in (*small_tokenizers.STRINGS, *small_tokenizers.SPECIAL_STRINGS):
            assert engine.tokenize(text) == found(text).input_ids == tokenizer(text).input_ids, text
        text = "def mean(values):\n    return 12  # é 🙂"
        ids = found(text, add_special_tokens=False).input_ids
        assert found.decode(ids) == text and engine.detokenize(ids).strip() == text.strip()
    assert found.convert_tokens_to_ids(SPACE) == tokenizer.convert_tokens_to_ids(SPACE)


@pytest.mark.parametrize("changes", [
    {}, {"add_bos_token": False}, {"add_bos_token": None}, {"add_eos_token": True}, {"pre": "smollm"},
    {"pre": "llama3", "add_bos_token": None}, {"token_type": None}, {"eot_token_id": 300}, {"a token is": ""},
], ids=str)  # fmt: skip
def test_byte_level(tmp_path, changes):
    tokenizer = small_tokenizers.byte_level("qwen2")
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    own = {"pre": "qwen2", "merges": [" ".join(pair) for pair in model["merges"]]}
    empty = "a token is" in changes
    changes = {key: value for key, value in changes.items() if key != "a token is"}
    keys = small_vocabulary(tokenizer, "gpt2", **(own | changes))
    if empty:  # the last learned token; its merge is removed
        keys["tokenizer.ggml.tokens"][-4], keys["tokenizer.ggml.merges"] = "", keys["tokenizer.ggml.merges"][:-1]
    path = with_tokenizer(tmp_path, tokenizer, keys | {"tokenizer.chat_template": "{{ messages[0]['content'] }}"})
    model, found = qtutor.load(path, device="cpu")
    with llama_cpp.Model(path) as engine:
        for text in (*small_tokenizers.STRINGS, *small_tokenizers.SPECIAL_STRINGS):
            assert engine.tokenize(text) == found(text).input_ids, text
            assert engine.tokenize(text, special=False) == found(text, add_special_tokens=False).input_ids, text
        assert engine.chat_template() == found.chat_template
        ends = [number for number in range(len(found)) if engine.ends(number)]
    assert sorted(np.atleast_1d(model.generation_config.eos_token_id).tolist()) == ends
    assert 300 in ends or "eot_token_id" not in changes
    number = len(keys["tokenizer.ggml.tokens"]) - 4
    assert (found.convert_ids_to_tokens(number) == f"[EMPTY_{number}]") == empty  # llama.cpp's name for it


def test_phi_3_is_known_by_its_name(tmp_path):
    """In Phi-3, added tokens include the spaces after them, with three exceptions."""
    tokenizer = small_tokenizers.sentencepiece()
    keys = small_vocabulary(tokenizer, "llama")
    called = {small_tokenizers.BOS: "<s>", keys["tokenizer.ggml.tokens"][-1]: "</s>"}
    keys["tokenizer.ggml.tokens"] = [called.get(token, token) for token in keys["tokenizer.ggml.tokens"]]
    keys["tokenizer.ggml.token_type"][-1] = 3
    texts = [f"a{token}{space}b{token}" for token in ("<s>", "</s>", "<|endoftext|>", "<tool_call>")
             for space in ("", " ", "  ", "\n", " \n\t ")]  # fmt: skip
    different = 0
    for name in ("Phi-3 mini", "another"):
        path = with_tokenizer(tmp_path, tokenizer, keys | {"general.name": name})
        _, found = qtutor.load(path, device="cpu")
        with llama_cpp.Model(path) as engine:
            assert [text for text in texts if engine.tokenize(text) != found(text).input_ids] == []
            tokens = [found(text).input_ids for text in texts]
        different += sum(map(len, tokens)) * (1 if name == "another" else -1)
    assert different >= 8


def with_tokenizer(tmp_path, tokenizer, keys: dict):
    config = copy.deepcopy(tiny().config)
    config.vocab_size, config.num_hidden_layers = len(tokenizer), 1
    torch.manual_seed(0)
    return others.write(tmp_path / "theirs.gguf", type(tiny())(config).eval(), tokenizer=keys)


TENSORS = others.tensors_of(tiny())
WITHOUT_UP = {name: rows for name, rows in TENSORS.items() if "1.ffn_up" not in name}
WITHOUT_EMBEDDING = {name: rows for name, rows in TENSORS.items() if name != "token_embd.weight"}
SINKS = TENSORS | {"blk.0.attn_sinks.weight": np.ones(4, np.float32)}
INTEGERS = TENSORS | {"output.weight": np.ones((256, 64), np.int8)}
LETTERS = others.letters_keys()
# Label -> what is written differently, and the message after the file's name.
REFUSED = {
    "an adapter": ({"general": {"general.type": "adapter"}}, "general.type is 'adapter', expected 'model'"),
    "another architecture": (
        {"general": {"general.architecture": "gptneox"}},
        "general.architecture is 'gptneox', but of llama.cpp's architectures qtutor runs only llama, qwen2",
    ),
    "experts": ({"keys": {"expert_count": 8}}, "llama.expert_count is 8, expected none: mixtures of experts"),
    "an encoder": ({"keys": {"attention.causal": False}}, "llama.attention.causal is False, expected true"),
    "blocks that differ": (
        {"keys": {"attention.head_count_kv": [2, 1]}},
        "llama.attention.head_count_kv is \\[2, 1\\], expected the same for all blocks",
    ),
    "longrope": (
        {"keys": {"rope.scaling.type": "longrope", "rope.scaling.factor": 2.0}},
        "llama.rope.scaling.type is 'longrope', expected one of none, default, linear, yarn",
    ),
    "part of a head": ({"keys": {"rope.dimension_count": 8}}, "dimension_count is 8, expected 16, all of a head"),
    "other values": ({"keys": {"attention.value_length": 8}}, "llama.attention.value_length is 8, expected 16"),
    "no epsilon": (
        {"keys": {"attention.layer_norm_rms_epsilon": None}},
        "llama.attention.layer_norm_rms_epsilon is not there, expected a number",
    ),
    "a text for a size": ({"keys": {"embedding_length": "64"}}, "embedding_length is '64', expected a whole number"),
    "no heads": ({"keys": {"attention.head_count": 0}}, "head_count is 0, expected a whole number from 1"),
    "too many blocks": ({"keys": {"block_count": 2_000_000_000}}, "2 blocks, and its config says 2000000000"),
    "a wide matrix": (
        {"keys": {"feed_forward_length": 1 << 30}},
        r"6 tensors are of another shape: blk.0.ffn_\w+.weight \(\[128, 64\], expected \[1073741824, 64\]\)",
    ),
    "a tensor less": ({"tensors": WITHOUT_UP}, "1 tensor is missing: blk.1.ffn_up.weight"),
    "a tensor more": ({"tensors": SINKS}, "1 tensor is not expected: blk.0.attn_sinks.weight"),
    "no embedding": ({"tensors": WITHOUT_EMBEDDING}, "tensor 'token_embd.weight' is not there"),
    "factors of another kind": (
        {"tensors": TENSORS | {"rope_freqs.weight": np.arange(1, 9, dtype=np.float32)}},
        r"tensor 'rope_freqs.weight' divides frequencies by .*, which is no scaling of Llama 3's",
    ),
    "factors of another size": (
        {"tensors": TENSORS | {"rope_freqs.weight": np.ones(4, np.float32)}},
        "tensor 'rope_freqs.weight' is .*, expected 8 numbers above 0",
    ),
    "an integer matrix": (
        {"tensors": INTEGERS}, "1 of its tensors are I8, the first of them 'output.weight', which qtutor does not"
    ),
    "another tokenizer": (
        {"tokenizer": LETTERS | {"tokenizer.ggml.model": "t5"}}, "tokenizer.ggml.model is t5, .*it knows gpt2, llama"
    ),
    "another pre-tokenizer": (
        {"tokenizer": LETTERS | {"tokenizer.ggml.pre": "tiny_aya"}}, "tokenizer.ggml.pre is tiny_aya, .*it knows gpt-2"
    ),
    "a token less than rows": (
        {"tokenizer": LETTERS | {"tokenizer.ggml.tokens": LETTERS["tokenizer.ggml.tokens"][:-1]}},
        "tokenizer.ggml.tokens has 255 tokens, and the tensor 'token_embd.weight' embeds 256",
    ),
}  # fmt: skip


@pytest.mark.parametrize("label", REFUSED)
def test_what_cannot_be_read_is_named(tmp_path, label, monkeypatch):
    """No tensor is decoded before the refusal, except the factors of positions."""
    given, words = REFUSED[label]
    path = others.write(tmp_path / "theirs.gguf", tiny(), **given)
    if "factors" not in label:
        monkeypatch.setattr("qtutor.gguf.reader.decode", None)
    with pytest.raises(QtutorError, match=rf"^{path}: .*{words}"):
        qtutor.load(path)

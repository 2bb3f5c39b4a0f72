"""Models of unsupported kinds are refused by name, before any work; the message says what they would need."""

import json

import pytest
import torch
from transformers import (
    BertConfig,
    BertLMHeadModel,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

import qtutor
from qtutor import cli, families
from qtutor.errors import QtutorError
from qtutor.families.refused import KINDS
from tests.families import small

EXPERTS, ENCODER, BOTH = "is a mixture of experts", "is an encoder", "is an encoder with a decoder"
IMAGES, STATES, CONV1D = "reads images or sound", "is a state space model", "matrices of the kind Conv1D"
REFUSED = {
    **dict.fromkeys(["mixtral", "qwen2_moe", "qwen3_moe", "granitemoe", "olmoe", "gpt_oss", "deepseek_v3"], EXPERTS),
    **dict.fromkeys(["deepseek_v2", "phimoe", "llama4_text", "dbrx"], EXPERTS),
    **dict.fromkeys(["bert", "roberta", "distilbert", "modernbert", "deberta-v2", "xlm-roberta", "electra"], ENCODER),
    **dict.fromkeys(["t5", "mt5", "bart", "mbart", "pegasus", "marian", "whisper", "t5gemma"], BOTH),
    **dict.fromkeys(["llava", "llava_next", "qwen2_vl", "qwen2_5_vl", "qwen3_vl_moe", "gemma3", "mllama"], IMAGES),
    **dict.fromkeys(["paligemma", "idefics3", "llama4", "mistral3", "phi4_multimodal", "internvl"], IMAGES),
    **dict.fromkeys(["mamba", "mamba2", "falcon_mamba", "jamba", "zamba2", "rwkv", "qwen3_next"], STATES),
    **dict.fromkeys(["gpt2", "openai-gpt"], CONV1D),
}


@pytest.mark.parametrize("model_type", REFUSED)
def test_each_by_its_name(model_type):
    with pytest.raises(QtutorError) as caught:
        families.family_called(model_type)
    text = str(caught.value)
    assert text.startswith(f"the model family {model_type!r} is not known here. It ") and REFUSED[model_type] in text
    assert "It would need" in text and "quantized: llama, mistral, qwen2, qwen3, gemma2" in text
    if REFUSED[model_type] == ENCODER:
        assert "with a decoder" not in text


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.what)
def test_all_names_and_parts_of_names_are_those_of_transformers(kind):
    names = CONFIG_MAPPING_NAMES.keys()
    assert set(kind.names) <= names
    assert not [name for name in kind.names for part in kind.parts if part in name]  # the part is enough
    assert not [part for part in kind.parts if not any(part in name for name in names)]
    for name in kind.names:
        with pytest.raises(QtutorError, match=rf"^the model family {name!r} is not known here\. It "):
            families.family_called(name)


KEYS = {  # of configs, each with a family whose config has it
    **{"vision_config": "llava", "audio_config": "qwen2_audio", "is_encoder_decoder": "t5", "mamba_d_state": "bamba"},
    **{"ssm_state_size": "nemotron_h", "state_size": "mamba", "num_local_experts": "mixtral"},
    **{"num_experts": "qwen3_moe", "n_routed_experts": "deepseek_v3", "moe_num_experts": "ernie4_5_moe"},
    "use_bidirectional_attention": "gemma3_text",
}


def test_all_keys_are_those_of_transformers():
    assert {key for kind in KINDS for key in kind.keys} == KEYS.keys()
    for key, name in KEYS.items():
        assert hasattr(CONFIG_MAPPING[name](), key), key


def test_a_name_in_capitals_is_that_name():
    with pytest.raises(QtutorError, match=f"the model family 'Qwen9-MoE' is not known here. It {EXPERTS}"):
        families.family_called("Qwen9-MoE")


@pytest.mark.parametrize(
    "values, words",
    [
        ({"n_routed_experts": 64}, EXPERTS),
        ({"num_local_experts": 8, "vision_config": {"hidden_size": 8}}, IMAGES),
        ({"is_encoder_decoder": True}, BOTH),
        ({"mamba_d_state": 128, "num_experts": 0}, STATES),
        ({"num_experts": 0, "num_local_experts": None}, None),
    ],
)
def test_others_by_what_their_config_says(values, words):
    with pytest.raises(QtutorError) as caught:
        families.family_called("somebody_s", values)
    text = str(caught.value)
    assert (words in text) if words else ("describe its blocks in qtutor/families/known.py" in text)


def test_a_known_family_is_refused_for_nothing():
    assert not {name for kind in KINDS for name in kind.names} & families.FAMILIES.keys()
    for name, family in families.FAMILIES.items():
        assert families.family_called(name, {"num_experts": 8}) is family


@pytest.mark.parametrize("name", [None, 7, ["llama"], "x" * 100_000, "\x1b[31mbert"])
def test_names_that_are_none(name):
    with pytest.raises(QtutorError) as caught:
        families.family_called(name)
    assert len(str(caught.value)) < 800 and str(caught.value).isprintable()


@pytest.fixture
def no_weights(tmp_path):
    """A function that makes a model folder with damaged weights: reading the weights would fail."""

    def made(**values):
        (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 64} | values))
        (tmp_path / "model.safetensors").write_bytes(b"no weights")
        return tmp_path

    return made


@pytest.mark.parametrize("model_type", ["mixtral", "bert", "t5", "gemma3", "mamba", "gpt2"])
def test_in_a_folder_before_its_weights_are_looked_at(no_weights, model_type):
    folder = no_weights(model_type=model_type)
    with pytest.raises(QtutorError, match=rf"config\.json: the model family '{model_type}' is not known here\. It "):
        qtutor.load(folder)


@pytest.mark.parametrize("command", ["quantize", "eval", "generate"])
def test_on_the_command_line(no_weights, tmp_path, capsys, command):
    folder = no_weights(model_type="qwen3_moe")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    rest = {"quantize": [str(tmp_path / "out")], "eval": [], "generate": ["def"]}[command]
    assert cli.main([command, str(folder), *rest]) == 2
    error = capsys.readouterr().err
    assert "'qwen3_moe' is not known here" in error and EXPERTS in error and not (tmp_path / "out").exists()


def test_from_the_hub_before_weights_are_fetched(no_weights, monkeypatch):
    folder, fetched = no_weights(model_type="mixtral"), []

    def download(source, allow_patterns, **others):
        fetched.extend(allow_patterns)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(QtutorError, match="'mixtral' is not known here"):
        qtutor.load("somebody/mixtral")
    assert "config.json" in fetched and not any(name.endswith(".safetensors") for name in fetched)


def some_models():
    """Whole models of these kinds, with shapes but without values: no value may be needed."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"vocab_size": 64}
    with torch.device("meta"):
        yield MixtralForCausalLM(MixtralConfig(**sizes, num_key_value_heads=1, num_local_experts=2))
        yield BertLMHeadModel(BertConfig(**sizes, is_decoder=True))
        yield T5ForConditionalGeneration(
            T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=2)
        )
        vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
        yield Gemma3ForConditionalGeneration(
            Gemma3Config(text_config=sizes | {"head_dim": 16, "num_key_value_heads": 1}, vision_config=vision)
        )
        yield MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, state_size=4))
        yield GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=32))


@pytest.mark.parametrize("number, words", list(enumerate([EXPERTS, ENCODER, BOTH, IMAGES, STATES, CONV1D])))
def test_in_quantize_and_export(tmp_path, number, words):
    model = list(some_models())[number]
    for work in (
        lambda: qtutor.quantize(model, qtutor.Recipe("gptq"), torch.zeros(4, 8, dtype=torch.int64)),
        lambda: qtutor.export(model, tmp_path / "out"),
        lambda: qtutor.export(model, tmp_path / "out.gguf", format="gguf"),
    ):
        with pytest.raises(QtutorError, match=words):
            work()
    assert not list(tmp_path.iterdir())


def test_what_is_no_model_of_transformers():
    with pytest.raises(QtutorError, match="family 'Linear' is not known"):
        families.decoder_blocks(torch.nn.Linear(2, 2))


def test_a_gemma_that_reads_in_both_directions():
    model = small.new("gemma3_text", use_bidirectional_attention=True)
    with pytest.raises(QtutorError, match="use_bidirectional_attention"):
        qtutor.quantize(model, qtutor.Recipe(), progress=False)

"""Checkpoints of others: their code never runs, no weights are made up, and every problem gets a short message."""

import ast
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import qtutor
from qtutor import cli
from qtutor.decoder import EMBEDDED
from qtutor.errors import QtutorError, one_line, said, shown
from qtutor.formats import checkpoint, hub_gguf, tokenizers_files
from qtutor.formats.gguf_files import located
from qtutor.formats.headers import read_header
from qtutor.gguf import Tensor, read, write
from tests.families import small
from tests.formats.test_native import quantized
from tests.models import FAMILIES, some_ids, tiny

PACKAGE = Path(qtutor.__file__).parent


@pytest.fixture
def folder(tmp_path):
    """The embedded decoder's checkpoint, to be changed."""
    return Path(shutil.copytree(EMBEDDED, tmp_path / "checkpoint"))


def change(path: Path, **values) -> None:
    """Set keys of a JSON file; ``None`` removes a key."""
    found = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in found.items() if value is not None}))


def refused(source, *words: str, load=qtutor.load) -> str:
    with pytest.raises(QtutorError) as caught:
        load(source, device="cpu")
    text = str(caught.value)
    assert all(word in text for word in words), text
    assert len(text) < 1500 and text.isprintable(), text
    return text


def logits(source) -> torch.Tensor:
    model = qtutor.load(source, device="cpu")[0]
    with torch.inference_mode():
        return model(some_ids()).logits


# Code


@pytest.mark.parametrize(
    "name, value",
    [
        ("config.json", {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}),
        ("config.json", {"AutoModelForCausalLM": "someone/else--evil.Model"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["evil.Tokenizer", None]}),
        ("tokenizer_config.json", ["evil.Tokenizer", None]),
    ],
)
@pytest.mark.parametrize("ours", [False, True])
def test_code_of_a_folder_is_refused_without_a_question(tmp_path, folder, monkeypatch, name, value, ours):
    if ours:
        model, tokenizer = qtutor.load(device="cpu")
        qtutor.quantize(model, qtutor.Recipe(), progress=False)
        folder = qtutor.export(model, tmp_path / "ours", tokenizer=tokenizer)
    asked = []
    monkeypatch.setattr("builtins.input", lambda *words: asked.append(words) or "yes")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nraise SystemExit\n")
    change(folder / name, auto_map=value)
    refused(folder, name, "auto_map", "No code" if name[0] == "t" else "no code")
    assert not asked and not (tmp_path / "ran").exists()


def test_yes_to_all_questions_on_the_command_line(tmp_path, folder):
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nraise SystemExit\n")
    change(folder / "config.json", auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"})
    program = f"import sys; from qtutor.cli import main; sys.exit(main(['generate', {str(folder)!r}, 'x']))"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, input="yes\n" * 9, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2 and "auto_map" in done.stderr and "config.json" in done.stderr, done.stderr
    assert "y/N" not in done.stdout + done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "ran").exists()


KERNELS = {
    "_attn_implementation": "someone/kernel",
    "attn_implementation": "someone/kernel",
    "_attn_implementation_internal": "someone/kernel",
    "_experts_implementation": "someone/kernel",
    "experts_implementation": "someone/kernel",
    "kernel_config": {"RMSNorm": "someone/kernel:RMSNorm"},
    "use_kernels": True,
    "distributed_config": {"tp_size": 2},
}


@pytest.mark.parametrize("format", ["float", "qtutor", "gguf"])
def test_kernels_that_a_config_names_are_not_looked_for(tmp_path, folder, monkeypatch, format):
    def looked_for(*_arguments, **_keywords):
        raise AssertionError("a kernel was looked for")

    for name in ("load_and_register_attn_kernel", "lazy_load_kernel", "get_kernel"):
        monkeypatch.setattr(f"transformers.integrations.hub_kernels.{name}", looked_for, raising=False)
    if format == "float":
        source, path = folder, folder / "config.json"
    else:
        model, tokenizer = qtutor.load(device="cpu")
        if format == "qtutor":
            qtutor.quantize(model, qtutor.Recipe(), progress=False)
            source = qtutor.export(model, tmp_path / "ours", tokenizer=tokenizer)
            path = source / "config.json"
        else:
            config = model.config.to_dict() | {"dtype": "float32"} | KERNELS
            monkeypatch.setattr(type(model.config), "to_json_string", lambda *_, **__: json.dumps(config))
            source = qtutor.export(
                model, tmp_path / "a.gguf", format="gguf", type="F32", pure=True, tokenizer=tokenizer
            )
            path = None
    if path is not None:
        expected = logits(source)
        change(path, **KERNELS)
        assert torch.equal(logits(source), expected)
    else:
        assert torch.equal(logits(source), logits("embedded"))
    config = qtutor.load(source, device="cpu")[0].config
    assert config._attn_implementation in ("sdpa", "eager") and not hasattr(config, "kernel_config")


def test_every_call_of_transformers_that_reads_a_folder_is_in_one_of_two_modules():
    """The calls are found by name. A new call belongs in these two modules, where code is never trusted."""
    allowed = {"formats/transformers_files.py", "formats/tokenizers_files.py"}
    readers = {"from_pretrained", "from_config", "from_json_file", "snapshot_download", "for_model", "_from_config"}
    found = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = node.func.attr if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else ""
            name = node.id if isinstance(node, ast.Name) and node.id.startswith("Auto") else name
            if name in readers or (name.startswith("Auto") and name[4:5].isupper()):
                found.setdefault(path.relative_to(PACKAGE).as_posix(), set()).add(name)
            if isinstance(node, ast.Call) and name in ("from_pretrained", "from_config"):
                trust = [word.value for word in node.keywords if word.arg == "trust_remote_code"]
                assert len(trust) == 1 and isinstance(trust[0], ast.Constant) and trust[0].value is False, path
    assert set(found) == allowed, found
    words = [
        path
        for path in PACKAGE.rglob("*.py")
        if "torch.load(" in path.read_text() or "import pickle" in path.read_text()
    ]
    assert words == []


@pytest.mark.parametrize(
    "name, values, words",
    [
        ("config.json", {"quantization_config": {"quant_method": "aqlm"}}, ["by 'aqlm', which is not read"]),
        ("config.json", {"compression_config": {"format": "pack"}}, ["config_groups is missing"]),
        ("config.json", {"transformers_weights": "../other.safetensors"}, ["names another file", "'../other.safeten"]),
        ("config.json", {"configuration_files": ["config.4.json"]}, ["names other configs"]),
        ("config.json", {"model_type": "gpt2"}, ["family 'gpt2' is not known"]),
        ("config.json", {"dtype": "load"}, ["dtype is 'load', expected one of float32"]),
        ("config.json", {"num_attention_heads": 0}, ["num_attention_heads is 0, expected a whole number"]),
        ("config.json", {"num_hidden_layers": 10**6}, ["there are 2 blocks, and its config says 1000000"]),
        ("config.json", {"hidden_size": 10**7}, ["of another shape or dtype: ", "expected F16 or BF16"]),
        ("config.json", {"vocab_size": 2**30}, ["model.embed_tokens.weight (BF16 [1024, 256]"]),
        ("config.json", {"head_dim": 63}, ["even"]),
        ("config.json", {"num_key_value_heads": 3}, ["a divisor of the 4 heads"]),
        ("config.json", {"hidden_act": "os.system"}, ["no decoder can be made", "os.system"]),
        ("config.json", {"rope_parameters": {"rope_type": "default", "rope_theta": 0}}, ["rope_parameters"]),
        ("config.json", {"rope_parameters": {"rope_type": "\x1b[2J" * 9000, "rope_theta": 1e4}}, ["\\x1b[2J"]),
        ("config.json", {"rope_parameters": {"full": {"rope_theta": 1e6}}}, ["rope_parameters is 'full', exp"]),
        ("config.json", {"rope_scaling": {"x": {"factor": 8.0}}}, ["rope_scaling is 'x', expected parameters, or"]),
        ("config.json", {"rms_norm_eps": float("nan")}, ["rms_norm_eps is nan"]),
        ("config.json", {"bos_token_id": 2**63}, ["bos_token_id is 9223372036854775808, expected the number of a"]),
        ("config.json", {"eos_token_id": [0, 10**400]}, ["eos_token_id is [0, 1000", "expected the number of a token"]),
        ("config.json", {"pad_token_id": -2}, ["pad_token_id is -2, expected the number of a token"]),
        ("tokenizer_config.json", {"tokenizer_class": "AutoModelForCausalLM"}, ["tokenizer_class", "is no tokenizer"]),
        ("tokenizer_config.json", {"tokenizer_class": "AutoTokenizerFast"}, ["is no tokenizer"]),
        ("tokenizer_config.json", {"tokenizer_class": "pipeline"}, ["is no tokenizer"]),
        ("tokenizer_config.json", {"fast_tokenizer_files": ["../tokenizer.4.0.json"]}, ["fast_tokenizer_files"]),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": 1}}, ["tokenizer cannot be loaded"]),
        ("generation_config.json", {"eos_token_id": "x" * 70_000}, ["eos_token_id", "the number of a token"]),
        ("generation_config.json", {"eos_token_id": [0, 10**20]}, ["eos_token_id is [0, 100000000000000000000], exp"]),
        ("generation_config.json", {"bos_token_id": -1}, ["bos_token_id is -1, expected the number of a token"]),
        ("generation_config.json", {"repetition_penalty": -1}, ["repetition_penalty is -1"]),
    ],
)  # fmt: skip
def test_keys_that_would_make_it_another_model_are_named(folder, name, values, words):
    change(folder / name, **values)
    start = time.process_time()
    refused(folder, name if "shape" not in words[0] and "embed" not in words[0] else "checkpoint", *words)
    assert time.process_time() - start < 20


@pytest.mark.parametrize("value", [2**63, 10**400, 1e308, 1e-308, 5e-324, float("nan"), float("inf")])
@pytest.mark.parametrize("family, key", [
    ("granite", "residual_multiplier"),
    ("granite", "embedding_multiplier"),
    ("granite", "attention_multiplier"),
    ("granite", "logits_scaling"),
    ("gemma2", "query_pre_attn_scalar"),
    ("gemma2", "attn_logit_softcapping"),
    ("gemma2", "final_logit_softcapping"),
])  # fmt: skip
def test_factors_with_which_nothing_can_be_computed(tmp_path, family, key, value):
    """torch fails beyond 64 bits. A factor near the ends of float32's range makes zeros or infinities."""
    small.random(family).save_pretrained(tmp_path)
    small.put_tokenizer(tmp_path)
    change(tmp_path / "config.json", **{key: value})
    refused(tmp_path, f"{key} is {str(value)[:19]}", "expected a number above 0, from 1e-12 to 1e+12")


@pytest.mark.parametrize("window", [2**31 + 1, 2**63, 10**400])
def test_windows_that_no_text_reaches(tmp_path, window):
    """torch counts positions in 64 bits."""
    small.random("gemma2").save_pretrained(tmp_path)
    small.put_tokenizer(tmp_path)
    change(tmp_path / "config.json", sliding_window=window)
    refused(tmp_path, "config.json: sliding_window is ", "expected a whole number from 1 to 2,147,483,648")
    change(tmp_path / "config.json", sliding_window=2**31)
    assert logits(tmp_path).isfinite().all()


def test_minus_one_is_no_token_that_begins_a_prompt(folder):
    """Llama 1 writes -1 for a token that it does not have. No text can begin with it."""
    change(folder / "config.json", pad_token_id=-1)
    model, tokenizer = qtutor.load(folder, device="cpu")
    assert qtutor.evaluate.generate(model, tokenizer, "x = 1", 2).startswith("x = 1")
    change(folder / "config.json", bos_token_id=-1)
    model, tokenizer = qtutor.load(folder, device="cpu")
    with pytest.raises(
        QtutorError, match=r"the prompt has the token -1, which does not exist: bos_token_id in config\.json"
    ):
        qtutor.evaluate.generate(model, tokenizer, "x = 1", 2)


def test_of_a_generation_config_only_ends_and_a_penalty_are_read(folder):
    change(folder / "generation_config.json", eos_token_id=[0, 7], repetition_penalty=1.25, penalty_alpha=0.6, top_k=4,
           cache_implementation="someone/cache", custom_generate="someone/else")  # fmt: skip
    found = qtutor.load(folder, device="cpu")[0].generation_config
    assert (found.eos_token_id, found.repetition_penalty) == ([0, 7], 1.25)
    assert found.penalty_alpha is None and found.cache_implementation is None and not hasattr(found, "custom_generate")


TEMPLATE = {
    "type": "TemplateProcessing",
    "pair": [],
    "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
}


@pytest.mark.parametrize(
    "broken, said",
    [
        ({"post_processor": TEMPLATE | {"single": []}}, "no tokens"),
        ({"post_processor": TEMPLATE | {"single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}]}}, "special ones"),
        ({"normalizer": {"type": "Replace", "pattern": {"Regex": r"[\s\S]"}, "content": ""}}, "no tokens"),
    ],
)  # fmt: skip
def test_a_tokenizer_that_loses_text_is_refused(folder, broken, said):
    tokens = json.loads((folder / "tokenizer.json").read_text("utf-8"))["added_tokens"]
    first = next(token["content"] for token in tokens if token["special"])
    change(folder / "tokenizer.json", **json.loads(json.dumps(broken).replace("<s>", first)))
    refused(folder, "its tokenizer loses text", said, "tokenizer.json")


# Files


def shard(folder: Path) -> dict[str, str]:
    """Replace model.safetensors by two files and an index, and return the index's map."""
    tensors = load_file(folder / "model.safetensors")
    names, mapped = sorted(tensors), {}
    for number, some in enumerate((names[:7], names[7:]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in some}, folder / file, metadata={"format": "pt"})
        mapped |= dict.fromkeys(some, file)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": mapped}))
    return mapped


def test_files_in_pieces_and_names_without_prefix(folder):
    expected = logits(folder)
    mapped = shard(folder)
    assert torch.equal(logits(folder), expected)
    for file in set(mapped.values()):
        tensors = load_file(folder / file)
        save_file({name.removeprefix("model."): tensor.clone() for name, tensor in tensors.items()}, folder / file)
    plain = {name.removeprefix("model."): file for name, file in mapped.items()}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": plain}))
    assert torch.equal(logits(folder), expected)


@pytest.mark.parametrize(
    "name",
    [
        "../outside.safetensors",
        "/etc/passwd",
        "weights.bin",
        "a/b.safetensors",
        "\x1b[2J.safetensors",
        "..\\x.safetensors",
        "",
    ],
)
def test_an_index_names_files_of_its_folder_only(folder, name):
    mapped = shard(folder)
    shutil.copy(folder / "model-00001-of-00002.safetensors", folder.parent / "outside.safetensors")
    mapped["model.norm.weight"] = name
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": mapped}))
    refused(folder, "model.safetensors.index.json" if name else "index.json", shown(name) if name else "''")


def test_an_index_and_its_files_agree(folder):
    mapped = shard(folder)
    first, second = (folder / file for file in sorted(set(mapped.values())))
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": mapped | {"model.norm.weight": first.name}}))
    refused(folder, "says that 'model.norm.weight' is in", "and it is not")
    index.write_text(json.dumps({"weight_map": mapped}))
    save_file(load_file(first) | {"model.norm.weight": torch.ones(256, dtype=torch.bfloat16)}, first)
    refused(folder, "'model.norm.weight' is in", second.name)
    first.unlink()
    refused(folder, first.name, "not in the folder")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"])
def test_links_lead_nowhere_else(folder, name):
    outside, expected = folder.parent / f"outside-{name}", logits(folder)
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside)
    refused(folder, name, "leads out of the folder")
    (folder / name).unlink()
    outside.rename(folder / "inside")
    (folder / name).symlink_to("inside")
    assert torch.equal(logits(folder), expected)


def test_a_folder_of_the_hub_s_cache_holds_links(tmp_path, folder, monkeypatch):
    """huggingface_hub's layout: file names are links to blobs in another folder. It is found without a network."""
    pytest.importorskip("huggingface_hub")
    revision = "0123456789abcdef0123456789abcdef01234567"
    expected, home = logits(folder), tmp_path / "cache" / "models--someone--decoder"
    snapshot = home / "snapshots" / revision
    for place in (snapshot, home / "blobs", home / "refs"):
        place.mkdir(parents=True)
    (home / "refs" / "main").write_text(revision)
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(home / "blobs" / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    assert torch.equal(logits(snapshot), expected)
    model, tokenizer = qtutor.load("someone/decoder", dtype="float32", device="cpu")
    assert model.config.name_or_path == "someone/decoder" and len(tokenizer) == 1024
    refused("someone/other", "someone/other: no such folder here")
    refused("../decoder", "no hub id")


@pytest.mark.parametrize("split", [False, True])
def test_a_gguf_file_of_the_hub_is_named_by_its_type(tmp_path, split, monkeypatch, capsys):
    """Upper or lower case, in a subfolder or not, whole or split. If a type is missing, the message lists the files."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    revision = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "cache" / "models--someone--decoder-GGUF" / "snapshots" / revision
    (snapshot.parents[1] / "refs").mkdir(parents=True)
    (snapshot.parents[1] / "refs" / "main").write_text(revision)
    model, tokenizer = qtutor.load(device="cpu")
    for type, name in (("Q8_0", "Decoder-Q8_0.gguf"), ("Q4_0", "low/decoder.q4_0.gguf"), ("F16", "mmproj-F16.gguf")):
        qtutor.export(model, snapshot / name, "gguf", tokenizer, type=type)
    if split:
        in_two(snapshot / "Decoder-Q8_0.gguf")
    for place in ("constants", "_snapshot_download.constants"):
        monkeypatch.setattr(f"huggingface_hub.{place}.HF_HUB_CACHE", str(tmp_path / "cache"))
    hub_gguf.file.cache_clear()
    for type in ("Q8_0", "q8_0"):
        name = "Decoder-Q8_0-00001-of-00002.gguf" if split else "Decoder-Q8_0.gguf"
        assert located(f"someone/decoder-GGUF:{type}") == snapshot / name
    assert torch.equal(logits("someone/decoder-GGUF:Q4_0"), logits(snapshot / "low" / "decoder.q4_0.gguf"))
    assert cli.main(["quantize", "someone/decoder-GGUF:Q8_0", str(tmp_path / "out")]) == 2  # it was rounded before
    assert "holds weights that were rounded before (Q8_0" in " ".join(capsys.readouterr().err.split())
    refused("someone/decoder-GGUF:F16", "No GGUF file of that type was found there")
    refused("someone/decoder-GGUF", "has no config.json, so it holds no checkpoint")
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda *_: ["README.md", "Decoder-Q8_0.gguf"])
    refused("someone/decoder-GGUF:Q2_K", "holds these GGUF files: 'Decoder-Q8_0.gguf'. Name one by its type")
    refused("someone/other:Q8_0", "no such file here, and it could not be fetched from the hub")


def in_two(file: Path) -> None:
    """Cut a GGUF file into two, with names and keys as in llama.cpp."""
    whole, stem = read(file), file.with_suffix("")
    tensors = [Tensor(name, info.shape, info.type.name, whole.data(name)) for name, info in whole.tensors.items()]
    for number in (0, 1):
        split = {"split.no": np.uint16(number), "split.count": np.uint16(2), "split.tensors.count": len(tensors)}
        keys = whole.metadata if number == 0 else {}
        write(f"{stem}-0000{number + 1}-of-00002.gguf", keys | split, tensors[number::2])
    file.unlink()


def test_weights_that_are_pickles_an_adapter_or_not_there(folder):
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/else"}')
    refused(folder, "holds an adapter", "merge_and_unload")
    (folder / "adapter_config.json").unlink()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(folder, "as pickles ('pytorch_model.bin')", "save_pretrained")
    (folder / "pytorch_model.bin").unlink()
    refused(folder, "model.safetensors does not exist", "Copy, download")


# Weights


def test_missing_unexpected_and_misshapen_tensors_are_listed(folder):
    path = folder / "model.safetensors"
    tensors, expected = load_file(path), logits(folder)
    up = tensors.pop("model.layers.0.mlp.up_proj.weight")
    save_file(tensors, path)
    refused(folder, "1 tensor is missing: model.layers.0.mlp.up_proj.weight. ")
    save_file(tensors | {"model.layers.0.mlp.up_proj.weight": up.T.contiguous(), "x": up, "y": up.clone()}, path)
    refused(folder, "2 tensors are not expected: x, y. ", "up_proj.weight (BF16 [256, 512], expected", "[512, 256])")
    save_file(tensors | {"model.layers.0.mlp.up_proj.weight": up.to(torch.float8_e4m3fn)}, path)
    refused(folder, "up_proj.weight (F8_E4M3 [512, 256], expected F16 or BF16 or F32 or F64 [512, 256])")
    angles = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(32) for i in range(2)}  # of older versions
    save_file(tensors | angles | {"model.layers.0.mlp.up_proj.weight": up}, path)
    assert torch.equal(logits(folder), expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_transformers_saves_comes_back(tmp_path, family, tied, dtype):
    """The same weights and logits, bit by bit, as transformers itself loads them."""
    from transformers import AutoModelForCausalLM

    model = tiny(family, tied=tied, dtype=dtype)
    model.save_pretrained(tmp_path / "a")
    again = checkpoint.load(tmp_path / "a", "auto", "cpu")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "a").eval()
    assert again.dtype == dtype and again.config.to_dict() == theirs.config.to_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    with torch.inference_mode():
        assert torch.equal(again(some_ids()).logits, theirs(some_ids()).logits)
    assert (again.lm_head.weight is again.model.embed_tokens.weight) == tied
    assert all(parameter.requires_grad for parameter in again.parameters())
    assert again.generation_config.to_dict() == theirs.generation_config.to_dict() | {
        name: getattr(again.generation_config, name) for name in ("_from_model_config", "transformers_version")
    }


def test_of_tied_matrices_one_may_be_missing_and_both_have_to_agree(folder):
    path = folder / "model.safetensors"
    tensors, expected = load_file(path), logits(folder)
    table = tensors.pop("model.embed_tokens.weight")
    save_file(tensors | {"lm_head.weight": table}, path)
    assert torch.equal(logits(folder), expected)
    save_file(tensors | {"lm_head.weight": table, "model.embed_tokens.weight": table.clone()}, path)
    assert torch.equal(logits(folder), expected)
    save_file(tensors | {"lm_head.weight": table.flip(0).contiguous(), "model.embed_tokens.weight": table}, path)
    refused(folder, "tie_word_embeddings", "two different ones")
    change(folder / "config.json", tie_word_embeddings=False)
    assert not torch.equal(logits(folder), expected)
    save_file(tensors, path)
    refused(folder, "2 tensors are missing: model.embed_tokens.weight, lm_head.weight")


def test_numbers_that_are_none_are_found_before_rounding(folder):
    for name in ("model.norm.weight", "model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight"):
        model = qtutor.load_decoder(device="cpu")[0]
        with torch.no_grad():
            model.get_parameter(name).view(-1)[3] = float("nan")
        with pytest.raises(QtutorError, match=rf"{name.removesuffix('.weight')}.*NaN"):
            qtutor.quantize(model, qtutor.Recipe(), progress=False)


@pytest.mark.parametrize("number", [float("nan"), float("-inf")])
def test_numbers_that_are_none_are_not_measured_or_talked_with(folder, number):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"][3] = number
    save_file(tensors, path)
    refused(folder, str(folder), "'model.norm.weight' holds 1 numbers that are NaN or infinite")


def test_numbers_that_the_loaded_dtype_does_not_hold(folder):
    path = folder / "model.safetensors"
    tensors = {name: tensor.float() for name, tensor in load_file(path).items()}
    tensors["model.norm.weight"][3] = 65_520.0  # the smallest number that is rounded to infinity
    save_file(tensors, path)
    change(folder / "config.json", dtype="float16")
    refused(folder, "'model.norm.weight' holds numbers beyond 65,504, the largest of torch.float16")
    assert qtutor.load(folder, dtype="float32", device="cpu")[0].model.norm.weight[3] == 65_520
    tensors["model.norm.weight"][3] = 65_519.0
    save_file(tensors, path)
    assert qtutor.load(folder, device="cpu")[0].model.norm.weight[3] == 65_504


# Our own folders


def test_an_export_without_its_description_is_no_float_checkpoint(tmp_path):
    folder = qtutor.export(quantized(), tmp_path / "out")
    (folder / "qtutor.json").unlink()
    refused(folder, "an export of qtutor whose qtutor.json is missing")
    (folder / "qtutor.json").mkdir()
    refused(folder, "an export of qtutor whose qtutor.json is missing")
    refused(folder, "qtutor.json", load=qtutor.load_quantized)


UP = "model.layers.0.mlp.up_proj"
DESCRIPTIONS = [
    ({"layout": 2}, "layout 2, but this version reads 1"),
    ({"layout": True}, "layout is True; expected a number"),
    ({"dtype": "load"}, "dtype is 'load'; expected float32"),
    ({"layers": None}, "layers is None; expected layers by name"),
    ({"layers": {}}, "layers is {}"),
    ({"recipe": 3}, "recipe is 3"),
    ({"recipe": {"method": "x"}}, "recipe cannot be followed"),
    ({"recipe": {"layers": {"model.layers.0": "float"}}}, "no layer is called 'model.layers.0'"),
    ({"recipe": {"layers": {"*.mlp": {"bits": 3}}}}, "no layer is called '*.mlp'"),
    ({"recipe": {"method": "nf4", "group_size": 32}}, "by the recipe in the file it is nf4, groups of 32"),
    ({"recipe": {"bits": 3, "group_size": 32}}, "stored as 4 bits asymmetric, groups of 32, and by the recipe"),
]
LAYERS = [
    ({"kind": None}, "kind is None; expected linear or int8 linear or fp8 linear or scaled linear or embedding"),
    ({"kind": "embedding"}, "kind is 'embedding', on the grid 'integers' in the place of a Linear"),
    ({"kind": "int8 linear"}, "kind is 'int8 linear', on the grid 'integers'"),
    ({"grid": "int8"}, "bits is 4; expected 8 on the grid int8"),
    ({"grid": "nf4"}, "symmetric is False; expected true on the grid nf4"),
    ({"grid": ["nf4"]}, "grid is ['nf4']; expected integers or nf4"),
    ({"grid": "nf5"}, "grid is 'nf5'; expected integers or nf4"),
    ({"bits": 4.0}, "bits is 4.0; expected 2 to 8"),
    ({"bits": 10**30}, "bits is 1000000000000000000000000000000"),
    ({"bits": 9}, "bits is 9; expected 2 to 8"),
    ({"bits": True}, "bits is True"),
    ({"symmetric": "no"}, "symmetric is 'no'"),
    ({"symmetric": True}, "1 tensor is not expected: model.layers.0.mlp.up_proj.zeros"),
    ({"group_size": 48}, "groups of 48 do not divide"),
    ({"group_size": -2}, "group_size is -2; expected -1 or more"),
    ({"group_size": 32.0}, "group_size is 32.0; expected -1 or more"),
    ({"group_size": 16}, "model.layers.0.mlp.up_proj.scales (F16 [128, 2], expected F16 [128, 4])"),
    ({"shape": [128, 10**7]}, "shape is [128, 10000000]; expected [128, 64], as in the config"),
    ({"shape": [128.0, 64]}, "shape is [128.0, 64]; expected [128, 64], as in the config"),
    ({"shape": "x" * 70_000}, "shape is 'xxx"),
    ({"nested": True}, "nested is True; expected false"),
    ({"bias": True}, "bias is True; expected false, as in the config"),
    ({"threshold": 6.0}, "threshold is 6.0; expected null, or a number from 0"),
    ({"threshold": 10**400}, "threshold is 1000"),
]  # fmt: skip


def test_a_threshold_beyond_64_bits_is_a_number_like_any_other(tmp_path):
    """torch cannot compare a tensor with such a large integer."""
    model, _ = qtutor.load(device="cpu")
    qtutor.quantize(model, qtutor.Recipe("int8"), progress=False)
    folder = qtutor.export(model, tmp_path / "out")
    about = json.loads((folder / "qtutor.json").read_text())
    for layer in about["layers"].values():
        layer["threshold"] = 2**64
    (folder / "qtutor.json").write_text(json.dumps(about))
    found = qtutor.load_quantized(folder, "cpu")
    name = next(iter(about["layers"]))
    assert found.get_submodule(name).threshold == 2.0**64
    with torch.inference_mode():
        assert found(some_ids()).logits.isfinite().all()


@pytest.mark.parametrize("value", [None, 0, 1e30, 6.5, -0.1, 1.1e30, float("inf"), True, "6", [6]], ids=str)
def test_a_threshold_is_a_number_from_0_or_none_at_all(tmp_path, value):
    folder = qtutor.export(quantized(method="int8"), tmp_path / "out")
    about = json.loads((folder / "qtutor.json").read_text())
    about["layers"][UP]["threshold"] = value
    (folder / "qtutor.json").write_text(json.dumps(about))
    if value in (None, 0, 1e30, 6.5):
        assert qtutor.load_quantized(folder, "cpu").get_submodule(UP).threshold == value
    else:
        refused(folder, f"{UP} is damaged: threshold is ", "null, or a number from 0", load=qtutor.load_quantized)


@pytest.mark.parametrize("values, words", [*DESCRIPTIONS, *[({"layer": layer}, words) for layer, words in LAYERS]])
def test_what_describes_a_layer_is_compared_with_all_the_rest(tmp_path, values, words):
    folder = qtutor.export(quantized(), tmp_path / "out")
    path = folder / "qtutor.json"
    about = json.loads(path.read_text())
    about["recipe"] = None if "layer" in values else about["recipe"]
    about["layers"][UP] |= values.pop("layer", {})
    path.write_text(json.dumps(about | values))
    refused(folder, words, str(folder), load=qtutor.load_quantized)


@pytest.mark.parametrize("inside", [False, True])
def test_what_does_not_describe_a_layer_at_all_is_missing(tmp_path, inside):
    folder = qtutor.export(quantized(), tmp_path / "out")
    path = folder / "qtutor.json"
    text = path.read_text()
    about = json.loads(text)
    keys = (about["layers"][UP].keys() if inside else about.keys()) - {"recipe", "files", "threshold"}  # of newer ones
    assert {"kind", "bits", "group_size"} <= keys if inside else {"layout", "dtype", "layers"} == keys
    for key in keys:
        about = json.loads(text)
        del (about["layers"][UP] if inside else about)[key]
        path.write_text(json.dumps(about))
        refused(folder, f"is damaged: {key} is missing; expected ", str(folder), load=qtutor.load_quantized)


@pytest.mark.parametrize(
    "name",
    [
        "forward",
        "",
        "model",
        "model.layers",
        "model.norm",
        "lm_head.x",
        "\x1b[2J" * 9000,
        "model.layers.0.self_attn",
        "training",
    ],
)
def test_layers_that_are_none_of_the_decoder(tmp_path, name):
    folder = qtutor.export(quantized(), tmp_path / "out")
    about = json.loads((folder / "qtutor.json").read_text())
    about["layers"][name] = about["layers"][UP]
    (folder / "qtutor.json").write_text(json.dumps(about))
    refused(folder, "is no layer of this decoder that can be packed", load=qtutor.load_quantized)


def test_fp4_is_not_taken_for_nf4(tmp_path):
    """Both are stored in the same way, so only the recipe distinguishes them."""
    folder = qtutor.export(quantized(method="nf4"), tmp_path / "out")
    path = folder / "qtutor.json"
    path.write_text(path.read_text().replace('"grid": "nf4"', '"grid": "fp4"'))
    refused(folder, "stored as fp4, groups of 32, and by the recipe in the file it is nf4", load=qtutor.load_quantized)


TENSORS = [
    ("packed", lambda t: t.bool(), "packed (BOOL [128, 32], expected U8 [128, 32])"),
    ("packed", lambda t: t.to(torch.int16), "packed (I16 [128, 32], expected U8"),
    ("packed", lambda t: t[:, :16].contiguous(), "packed (U8 [128, 16], expected U8 [128, 32])"),
    ("scales", lambda t: t.to(torch.int16), "scales (I16 [128, 2], expected F16 [128, 2])"),
    ("scales", lambda t: t.float(), "scales (F32 [128, 2], expected F16"),
    ("scales", lambda t: -t, "has a scale of -"),
    ("scales", lambda t: t * float("nan"), "up_proj.scales' holds 256 numbers that are NaN"),
    ("scales", lambda t: t * float("inf"), "up_proj.scales' holds 256 numbers that are NaN or infinite"),
    ("zeros", lambda t: t.to(torch.float16), "zeros (F16 [128, 1], expected U8 [128, 1])"),
]


@pytest.mark.parametrize("kind, edit, words", TENSORS)
def test_tensors_are_compared_with_what_the_layers_are_stored_as(tmp_path, kind, edit, words):
    folder = qtutor.export(quantized(), tmp_path / "out")
    tensors = load_file(folder / "model.safetensors")
    tensors[f"{UP}.{kind}"] = edit(tensors[f"{UP}.{kind}"])
    save_file(tensors, folder / "model.safetensors")
    refused(folder, words, "model.safetensors", load=qtutor.load_quantized)


def test_a_scale_may_be_0(tmp_path):
    """Then a group is 0 as a whole."""
    folder = qtutor.export(quantized(), tmp_path / "out")
    tensors = load_file(folder / "model.safetensors")
    tensors[f"{UP}.scales"][0] = 0
    save_file(tensors, folder / "model.safetensors")
    layer = qtutor.load_quantized(folder, device="cpu").get_submodule(UP)
    weight = layer.quantized().dequantize()
    assert (weight[0] == 0).all() and weight[1].any()


def test_norms_are_numbers_and_nested_scales_are_not_negative(tmp_path):
    folder = qtutor.export(quantized(method="nf4"), tmp_path / "out")
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"model.norm.weight": torch.full((64,), float("nan"))}, folder / "model.safetensors")
    refused(folder, "'model.norm.weight' holds 64 numbers that are NaN", load=qtutor.load_quantized)
    save_file(tensors | {f"{UP}.scale_absmax": -tensors[f"{UP}.scale_absmax"]}, folder / "model.safetensors")
    refused(folder, "has a scale of -", load=qtutor.load_quantized)


def test_nothing_is_allocated_for_a_promise(tmp_path):
    """A million layers or ten million columns are refused quickly, from the headers alone."""
    folder = qtutor.export(quantized(), tmp_path / "out")
    for values, words in (
        ({"num_hidden_layers": 10**6}, "there are 2 blocks"),
        ({"hidden_size": 10**7}, "shape is [64, 64]; expected [64, 10000000], as in the config"),
        ({"vocab_size": 2**31}, "model.embed_tokens.weight (F32 [256, 64], expected"),
        ({"vocab_size": 2**40}, "vocab_size is 1099511627776"),
        ({"tie_word_embeddings": False}, "1 tensor is missing: lm_head.weight"),
    ):
        before = (folder / "config.json").read_text()
        change(folder / "config.json", **values)
        start = time.process_time()
        refused(folder, words, load=qtutor.load_quantized)
        assert time.process_time() - start < 20
        (folder / "config.json").write_text(before)


def test_thousands_of_blocks_without_weights(tmp_path):
    """A header can name thousands of empty tensors. Blocks are counted before anything is built."""
    folder = qtutor.export(quantized(), tmp_path / "out")
    nothing = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header(folder / "model.safetensors", {f"model.layers.{i}.x": nothing for i in range(3_000)})
    change(folder / "config.json", num_hidden_layers=3_000)
    start = time.process_time()
    refused(folder, "there are 3,000 blocks", load=qtutor.load_quantized)
    assert time.process_time() - start < 20


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 2.0},
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
        {"rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": 16}
        | {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8},
        {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 16}
        | {"low_freq_factor": 1.0, "high_freq_factor": 4.0},
    ],
    ids=lambda rope: rope["rope_type"],
)
@pytest.mark.parametrize("older", [False, True])
def test_angles_are_those_of_transformers(tmp_path, rope, older):
    """Files do not store the angles. Older configs describe them in a different way."""
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    config = LlamaConfig(**sizes, **heads, rope_parameters=rope | {"rope_theta": 5e4})
    LlamaForCausalLM(config).save_pretrained(tmp_path / "a")
    if older:
        kind = {"type" if key == "rope_type" else key: value for key, value in rope.items()}
        old = {
            "rope_theta": 5e4,
            "rope_scaling": kind,
            "torch_dtype": "float32",
            "rope_parameters": None,
            "dtype": None,
        }
        change(tmp_path / "a" / "config.json", **old)
    ours = checkpoint.load(tmp_path / "a", "auto", "cpu")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "a").eval()
    assert ours.config.to_dict() == theirs.config.to_dict()
    with torch.inference_mode():
        assert torch.equal(ours(some_ids()).logits, theirs(some_ids()).logits)


def test_keys_of_a_gguf_file_and_its_config_say_the_same(tmp_path):
    model, tokenizer = qtutor.load(device="cpu")
    path = qtutor.export(model, tmp_path / "a.gguf", format="gguf", type="Q8_0", pure=True, tokenizer=tokenizer)
    file = read(path)
    tensors = [Tensor(name, t.shape, t.type.name, file.data(name).copy()) for name, t in file.tensors.items()]
    config = json.loads(file.metadata["qtutor.config"])

    def with_config(**values) -> Path:
        return write_gguf(tmp_path / "b.gguf", file.metadata | {"qtutor.config": json.dumps(config | values)}, tensors)

    assert torch.equal(logits(with_config(auto_map=None)), logits(path))
    refused(with_config(rms_norm_eps=1e-5), "llama.attention.layer_norm_rms_epsilon is", "it is 1e-05")
    refused(with_config(num_attention_heads=2, num_key_value_heads=1, head_dim=128), "llama.attention.head_count is")
    refused(with_config(rope_parameters={"rope_type": "linear", "rope_theta": 1e4}), "rope_parameters")
    refused(with_config(rope_parameters={"rope_type": "default", "rope_theta": 2e4}), "llama.rope.freq_base is")
    refused(with_config(auto_map={"AutoConfig": "evil.Config"}), "asks for code of its own")
    refused(with_config(quantization_config={"quant_method": "bitsandbytes"}), "'bitsandbytes'")
    refused(with_config(num_attention_heads=0), "num_attention_heads is 0")
    refused(
        write_gguf(tmp_path / "c.gguf", file.metadata | {"llama.block_count": np.arange(3)}, tensors), "block_count"
    )


def write_gguf(path: Path, metadata: dict, tensors: list) -> Path:
    write(path, metadata, tensors)
    return path


# Texts


@pytest.mark.parametrize("name", ["config.json", "qtutor.json"])
@pytest.mark.parametrize(
    "data, words",
    [
        ("{}".encode("utf-16"), "no JSON"),
        (b"[" * 200_000, "damaged"),
        (b"[]", "it holds [], and has to hold an object"),
        (b'{"layout": 1' + b"0" * 10_000 + b"}", "damaged"),
        (b'{"layout": 1, "layout": 2}', "the key 'layout' is there twice"),
        (b"", "no JSON"),
    ],
)
def test_texts_that_are_none(tmp_path, name, data, words):
    folder = qtutor.export(quantized(), tmp_path / "out")
    (folder / name).write_bytes(data)
    refused(folder, name, words, load=qtutor.load_quantized)


def test_names_and_values_of_files_are_cut_and_escaped():
    assert shown("\x1b[31m") == r"'\x1b[31m'" and shown(float("nan")) == "nan" and shown([1, "a"]) == "[1, 'a']"
    assert (
        len(shown("x" * 10**6)) <= 80
        and len(shown([["x" * 99] * 99] * 99)) <= 80
        and len(shown({"x" * 10**5: 1})) <= 80
    )
    assert shown("\u202eabc") == r"'\u202eabc'"
    assert said(ValueError("first.\nsecond")) == "first" and said(KeyError()) == "KeyError"
    assert said(ValueError("x" * 10**6)) == "x" * 197 + "..."
    assert one_line("a\tb\x07", 9) == r"a\tb\x07"


def test_a_library_that_gives_up_is_told_too(folder, monkeypatch):
    class PanicException(BaseException):
        """What pyo3 raises if Rust code panics; it is not an Exception."""

    def panics(*_arguments, **_keywords):
        raise PanicException("called `Option::unwrap()` on a `None` value")

    def stopped(*_arguments, **_keywords):
        raise KeyboardInterrupt

    monkeypatch.setattr(tokenizers_files.AutoTokenizer, "from_pretrained", panics)
    refused(folder, "its tokenizer cannot be loaded (called `Option::unwrap()`")
    monkeypatch.setattr(tokenizers_files.AutoTokenizer, "from_pretrained", stopped)
    with pytest.raises(KeyboardInterrupt):
        qtutor.load(folder, device="cpu")


@pytest.mark.parametrize("source", ["", "a\0b", "x" * 5000, "no such folder", "owner/name/more", 3, None])
def test_names_of_no_checkpoint(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(QtutorError) as caught:
        qtutor.load(source)
    assert len(str(caught.value)) < 6000 and str(caught.value).isprintable()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(folder):
    (folder / "config.json").chmod(0)
    refused(folder, "config.json cannot be read", "who may read it")


def header(path: Path, entries: dict, data: bytes = b"") -> Path:
    text = json.dumps(entries).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


@pytest.mark.parametrize(
    "entry, words",
    [
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 9]}, "8 bytes, as F32 [2] takes"),
        ({"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}, "'F99', expected a dtype"),
        ({"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}, "a shape"),
        ({"dtype": "F32", "shape": [True, 2], "data_offsets": [0, 8]}, "a shape"),
        ({"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 8]}, "takes"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}, "to begin at byte 0"),
        ({"dtype": "F32", "shape": [2], "data_offsets": "xy"}, "two offsets"),
        ({"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}, "a dtype"),
        ({"shape": [2], "data_offsets": [0, 8]}, "dtype, shape and data_offsets"),
        ([], "dtype, shape and data_offsets"),
    ],
)
def test_headers_that_do_not_add_up(tmp_path, entry, words):
    path = header(tmp_path / "a.safetensors", {"\x1b[31mx": entry}, bytes(8))
    with pytest.raises(QtutorError) as caught:
        read_header(path)
    assert words in str(caught.value) and str(caught.value).isprintable() and str(path) in str(caught.value)


def test_inspect_keeps_names_short_and_quiet(tmp_path, capsys):
    from qtutor import inspection

    entry = {"dtype": "F32", "shape": [1] * 60, "data_offsets": [0, 4]}
    entries = {"__metadata__": {"\x1b[2J": "x" * 70_000}, "\x07" + "n" * 70_000: entry}
    inspection.show(header(tmp_path / "a.safetensors", entries, bytes(4)))
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) < 500 and out.replace("\n", "").isprintable()


def test_inspect_waits_for_no_torch(folder):
    code = (
        "import sys; from pathlib import Path; from qtutor import inspection; inspection.show(Path(sys.argv[1]));"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True)
    assert done.stdout.endswith("\n[]\n"), done.stderr


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "num_attention_heads", "rms_norm_eps"])
def test_what_is_missing_in_a_config_is_not_taken_from_another_model(folder, key):
    change(folder / "config.json", **{key: None})
    refused(folder, f"{key} is missing")

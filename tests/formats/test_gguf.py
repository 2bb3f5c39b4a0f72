"""Export to GGUF: names, sizes, order of rows, types, and refusals; llama.cpp itself is not needed."""

import copy
import errno
import json
import os
import signal
import subprocess
import sys
import tracemalloc
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import qtutor
from qtutor.budget import block_types
from qtutor.cli import main
from qtutor.errors import QtutorError
from qtutor.families import head_dim
from qtutor.formats.gguf import planned
from qtutor.gguf import Tensor, encode, read, write
from qtutor.gguf.architecture import permute, tensor_name, unpermute
from qtutor.gguf.hyperparameters import rope_tensors
from qtutor.gguf.imatrix import importance
from qtutor.gguf.llama3_rope import ROPE
from qtutor.methods.scaling import fold_model
from tests.disks import needs_mount
from tests.gguf.small_tokenizers import letters
from tests.models import FAMILIES, some_ids, tiny

BLOCK = ["attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down"]
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}  # fmt: skip


YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}


def export(model, path, **options):
    return qtutor.export(model, path, format="gguf", **{"tokenizer": letters(), "type": "F32"} | options)


def changed(model, **changes):
    """A new model of the same class, with a changed config."""
    config = copy.deepcopy(model.config)
    for name, value in changes.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    return type(model)(config).eval()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_names_sizes_and_weights(tmp_path, family, tied):
    model = tiny(family, tied)
    path = export(model, tmp_path / "out")
    assert path == tmp_path / "out" / "model.gguf"
    file = read(path)
    block = BLOCK + (["attn_q_norm", "attn_k_norm"] if family == "qwen3" else [])
    names = {f"blk.{i}.{name}.weight" for i in range(2) for name in block}
    names |= {f"blk.{i}.attn_{name}.bias" for i in range(2) for name in "qkv" if family == "qwen2"}
    names |= {"token_embd.weight", "output_norm.weight"} | (set() if tied else {"output.weight"})
    assert file.tensors.keys() == names

    arch = {"mistral": "llama"}.get(family, family)
    assert file.metadata["general.architecture"] == arch
    sizes = {"vocab_size": 256, "context_length": 64, "embedding_length": 64, "block_count": 2, "rope.freq_base": 1e4,
             "feed_forward_length": 128, "attention.head_count": 4, "attention.head_count_kv": 2,
             "attention.key_length": 16, "attention.value_length": 16, "rope.dimension_count": 16,
             "attention.layer_norm_rms_epsilon": np.float32(1e-6)}  # fmt: skip
    assert {key.removeprefix(f"{arch}."): v for key, v in file.metadata.items() if key.startswith(f"{arch}.")} == sizes

    attention = model.model.layers[1].self_attn
    q, k = attention.q_proj.weight.detach().numpy(), attention.k_proj.weight.detach().numpy()
    if arch == "llama":
        q, k = by_hand(q, heads=4), by_hand(k, heads=2)
    assert np.array_equal(file.weight("blk.1.attn_q.weight"), q)
    assert np.array_equal(file.weight("blk.1.attn_k.weight"), k)
    assert np.array_equal(file.weight("blk.1.attn_v.weight"), attention.v_proj.weight.detach().numpy())
    again = qtutor.load_quantized(tmp_path / "out", device="cpu")
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in model.state_dict().items())
    with torch.inference_mode():
        assert torch.equal(again(some_ids()).logits, model(some_ids()).logits)


def by_hand(rows: np.ndarray, heads: int) -> np.ndarray:
    """Row j of a head's first half and row j of its second half become rows 2 j and 2 j + 1."""
    out, dim = np.empty_like(rows), len(rows) // heads
    for head in range(heads):
        for j in range(dim // 2):
            out[head * dim + 2 * j] = rows[head * dim + j]
            out[head * dim + 2 * j + 1] = rows[head * dim + dim // 2 + j]
    return out


def test_permutation_and_its_inverse():
    rows = np.arange(48 * 5).reshape(48, 5)
    assert np.array_equal(permute(rows, 3), by_hand(rows, 3))
    assert np.array_equal(unpermute(permute(rows, 3), 3), rows)
    assert np.array_equal(permute(rows[:, 0], 4), by_hand(rows[:, 0], 4))


def test_biases_and_wide_heads_come_back(tmp_path):
    model = changed(tiny("llama", False), attention_bias=True, mlp_bias=True, head_dim=32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    file = read(export(model, tmp_path / "a.gguf"))
    bias = model.model.layers[0].self_attn.q_proj.bias.detach().numpy()
    assert np.array_equal(file.weight("blk.0.attn_q.bias").ravel(), by_hand(bias, 4))
    assert file.metadata["llama.attention.key_length"] == 32
    again = qtutor.load_quantized(tmp_path / "a.gguf", device="cpu")
    assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in model.state_dict().items())


def test_llama_3_slows_down_what_transformers_slows_down(tmp_path):
    model = changed(tiny(), rope_parameters=LLAMA3)
    factors = rope_tensors(model.config)[ROPE]
    plain = LLAMA3["rope_theta"] ** -(np.arange(0, 16, 2) / 16)
    np.testing.assert_allclose(plain / factors, model.model.rotary_emb.inv_freq.numpy(), rtol=1e-6)
    assert factors.min() == 1 and factors.max() == 8 and ((factors > 1) & (factors < 8)).any()
    file = read(export(model, tmp_path / "a.gguf"))
    assert np.array_equal(file.weight("rope_freqs.weight").ravel(), factors)
    again = qtutor.load_quantized(tmp_path / "a.gguf", device="cpu")
    assert torch.equal(again.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq)
    assert rope_tensors(tiny().config) == {}


def test_scaled_positions_and_windows_are_told(tmp_path):
    keys = read(export(changed(tiny("qwen2"), rope_parameters=YARN), tmp_path / "a.gguf")).metadata
    assert keys["qwen2.rope.scaling.type"] == "yarn" and keys["qwen2.rope.scaling.factor"] == 4
    assert keys["qwen2.rope.scaling.original_context_length"] == 16
    keys = read(export(changed(tiny("mistral"), sliding_window=48), tmp_path / "a.gguf")).metadata
    assert keys["llama.context_length"] == keys["llama.attention.sliding_window"] == 48
    assert head_dim(tiny().config) == 16


def test_a_window_is_told_once_and_to_the_caller(tmp_path):
    """Choosing types and planning a file do not warn. Only the caller that writes the file gets the warning."""
    model, tokenizer = changed(tiny("mistral"), sliding_window=48), letters()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        types = block_types.choose(model, some_ids(4, 32), tokenizer, bits=6)
        assert sum(planned(model, tokenizer, types=types).values()) > 0 and not heard
        qtutor.export(model, tmp_path / "a.gguf", "gguf", tokenizer, types=types)
    assert [Path(one.filename) for one in heard if "sliding_window = 48" in str(one.message)] == [Path(__file__)]


@pytest.mark.parametrize("given", [True, False, 3])
def test_an_importance_that_is_none_is_refused(tmp_path, given):
    with pytest.raises(QtutorError, match="importance is a "):
        qtutor.export(tiny(), tmp_path / "a.gguf", "gguf", importance=given)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_encoded_is_what_the_float_weights_encode_to(tmp_path, dtype):
    model, tokenizer = qtutor.load_decoder(dtype=dtype)
    file = read(export(model, tmp_path / "a.gguf", type="Q4_K_M", tokenizer=tokenizer))
    assert file.metadata["general.file_type"] == 15
    types = {name: info.type.name for name, info in file.tensors.items()}
    assert types["token_embd.weight"] == types["blk.1.ffn_down.weight"] == "Q6_K"
    assert types["blk.0.ffn_down.weight"] == types["blk.1.attn_q.weight"] == "Q4_K"
    assert types["blk.0.attn_norm.weight"] == "F32"
    rows = model.model.layers[1].mlp.down_proj.weight.detach().float().numpy()
    assert np.array_equal(file.data("blk.1.ffn_down.weight"), encode(rows, "Q6_K"))
    rows = permute(model.model.layers[1].self_attn.q_proj.weight.detach().float().numpy(), 4)
    assert np.array_equal(file.data("blk.1.attn_q.weight"), encode(rows, "Q4_K"))
    pure = read(export(model, tmp_path / "a.gguf", type="Q4_0", pure=True, tokenizer=tokenizer))
    assert {info.type.name for info in pure.tensors.values()} == {"Q4_0", "F32"}


def test_a_quantized_model_is_written_as_what_its_codes_stand_for(tmp_path):
    model = tiny("qwen2", tied=False)
    recipe = qtutor.Recipe(bits=4, group_size=32, embeddings=True, lm_head=True)
    qtutor.quantize(model, recipe, progress=False)
    again = qtutor.load_quantized(export(model, tmp_path / "a.gguf"), device="cpu")
    weight = model.model.layers[0].mlp.up_proj.quantized().dequantize()
    assert torch.equal(again.model.layers[0].mlp.up_proj.weight, weight)
    assert torch.equal(again.model.embed_tokens.weight, model.model.embed_tokens.quantized().dequantize())
    with torch.inference_mode():
        torch.testing.assert_close(again(some_ids()).logits, model(some_ids()).logits, rtol=1e-5, atol=1e-5)


def test_importance_of_columns(tmp_path):
    model, tokenizer = qtutor.load_decoder()
    imatrix = importance(model, some_ids(2, 32))
    options = {"type": "Q3_K_S", "tokenizer": tokenizer}
    plain = read(export(model, tmp_path / "plain.gguf", **options))
    weighted = read(export(model, tmp_path / "weighted.gguf", importance=imatrix, **options))
    name, rows = "blk.1.ffn_up.weight", model.model.layers[1].mlp.up_proj.weight.detach().numpy()
    expected = encode(rows, "Q3_K", imatrix.importance_of(name, 256))
    assert np.array_equal(weighted.data(name), expected) and not np.array_equal(plain.data(name), expected)
    mapping = {name: imatrix.importance_of(name, 256)}
    mapped = read(export(model, tmp_path / "mapped.gguf", importance=mapping, **options))
    assert np.array_equal(mapped.data(name), expected)
    assert np.array_equal(mapped.data("blk.0.ffn_up.weight"), plain.data("blk.0.ffn_up.weight"))
    with pytest.raises(QtutorError, match=r"entries for 'model.layers.0.*'blk.0.attn_q.weight'"):
        export(model, tmp_path / "a.gguf", importance={"model.layers.0.mlp.up_proj": np.ones(256)}, **options)
    with pytest.raises(QtutorError, match=r"'blk.1.ffn_up.weight' as Q3_K: importance has shape \[7\]"):
        export(model, tmp_path / "a.gguf", importance={name: np.ones(7, np.float32)}, **options)
    assert not (tmp_path / "a.gguf").exists()


@pytest.mark.parametrize("family", FAMILIES)
def test_folded_awq_scales_change_weights_but_not_what_is_computed(tmp_path, family):
    model = tiny(family, dtype=torch.bfloat16)
    before, ids = copy.deepcopy(model).float(), some_ids(4, 24)
    assert fold_model(model, ids, group_size=16) is model and model.dtype == torch.float32
    different = [
        not torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.state_dict().values(), strict=True)
    ]
    assert sum(different) >= 8  # norms, and the layers after them
    with torch.inference_mode():
        torch.testing.assert_close(model(ids).logits, before(ids).logits, rtol=1e-4, atol=1e-5)
    export(model, tmp_path / "a.gguf", type="Q4_0", pure=True)
    assert np.isfinite(read(tmp_path / "a.gguf").weight("blk.0.ffn_down.weight")).all()


def test_awq_brings_better_rounding_to_a_decoder_with_outliers(tmp_path):
    model, tokenizer = qtutor.load_decoder()
    qtutor.add_outliers(model)
    tokens = qtutor.evaluate.held_out_tokens(tokenizer)[:2048]
    options = {"type": "Q4_0", "pure": True, "tokenizer": tokenizer}
    plain = qtutor.load_quantized(export(model, tmp_path / "a.gguf", **options), device="cpu")
    fold_model(model, tokens[:1024].reshape(4, 256))
    folded = qtutor.load_quantized(export(model, tmp_path / "b.gguf", **options), device="cpu")
    assert qtutor.perplexity(folded, tokens[1024:]) < 0.9 * qtutor.perplexity(plain, tokens[1024:])


def test_one_tensor_in_memory_at_a_time(tmp_path):
    model = changed(tiny(tied=False), num_hidden_layers=24, hidden_size=256, intermediate_size=1024, head_dim=64)
    largest = 1024 * 256 * 4
    tracemalloc.start()
    export(model, tmp_path / "a.gguf", type="Q8_0")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (tmp_path / "a.gguf").stat().st_size > 20 * largest
    assert peak < 4 * largest


REFUSED = {
    "another family": (lambda: not_known(), "family 'gpt2' is not known"),
    "another activation": (lambda: changed(tiny(), hidden_act="gelu"), "hidden_act = 'gelu': llama.cpp computes silu"),
    "dynamic rope": (
        lambda: changed(tiny(), rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
        "rope_parameters = .*'dynamic'.*'linear' and plain 'yarn'",
    ),
    "yarn of one's own": (
        lambda: changed(tiny(), rope_parameters={**YARN, "beta_fast": 16.0}),
        "beta_fast in rope_parameters = 16.0: llama.cpp computes 32.0",
    ),
    "Llama 3's rope": (lambda: changed(tiny("qwen3"), rope_parameters=LLAMA3), "'llama3' for Llama and Mistral"),
    "a bias more": (lambda: changed(tiny("qwen3"), attention_bias=True), r"o_proj\.bias: llama.cpp has no such tensor"),
    "heads that do not fill qwen2": (
        lambda: changed(tiny("qwen2"), head_dim=32),
        "head_dim = 32: llama.cpp computes 16",
    ),
    "a module more": (lambda: with_adapter(), r"mlp\.adapter\.weight is \[4, 4\], and the model's config"),
    "no values": (lambda: tiny().to("meta"), r"model\.embed_tokens\.weight has a shape and no values .*Load the"),
    "a broken weight": (lambda: with_nan(), r"'blk.1.attn_v.weight' as Q4_0: the weight in row 3, column 4 is nan"),
}


def not_known():
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=256, n_embd=32, n_layer=1, n_head=2))


def with_adapter():
    model = tiny()
    model.model.layers[0].mlp.adapter = torch.nn.Linear(4, 4)
    return model


def with_nan():
    model = tiny()
    model.model.layers[1].self_attn.v_proj.weight.data[3, 4] = torch.nan
    return model


@pytest.mark.parametrize("label", REFUSED)
def test_what_cannot_be_written_is_named(tmp_path, label):
    make, message = REFUSED[label]
    (tmp_path / "a.gguf").write_bytes(b"old")
    with pytest.raises(QtutorError, match=message):
        export(make(), tmp_path / "a.gguf", type="Q4_0", pure=True, overwrite=True)
    assert os.listdir(tmp_path) == ["a.gguf"] and (tmp_path / "a.gguf").read_bytes() == b"old"


def test_bad_calls(tmp_path):
    with pytest.raises(QtutorError, match="tokenizer is a NoneType: a GGUF file carries its tokenizer"):
        export(tiny(), tmp_path / "a.gguf", tokenizer=None)
    with pytest.raises(QtutorError, match="mix = 'Q4_K_L' is none that qtutor knows"):
        export(tiny(), tmp_path / "a.gguf", type="Q4_K_L")
    with pytest.raises(
        QtutorError,
        match=r"type = 'Q4_K_M': the format 'qtutor' has no such option \(it has none\).* belongs to format = 'gguf'",
    ):
        qtutor.export(tiny(), tmp_path / "out", type="Q4_K_M")
    with pytest.raises(QtutorError, match=r"model.adapter.weight: llama.cpp has no such"):
        tensor_name("model.adapter.weight")
    assert os.listdir(tmp_path) == []


def test_files_of_others_and_damaged_ones_are_told(tmp_path):
    path = export(tiny(), tmp_path / "a.gguf")
    file = read(path)
    tensors = [Tensor(name, info.shape, "F32", file.data(name)) for name, info in file.tensors.items()]
    keys = dict(file.metadata)
    config = keys["qtutor.config"]
    write(path, keys | {"qtutor.config": np.uint32(7)}, tensors)
    with pytest.raises(QtutorError, match=r"qtutor.config is damaged: it is .*7.*, expected a text"):
        qtutor.load_quantized(path)
    for own in ({"qtutor.config": config}, {}):  # the same for files of other tools
        keys = {key: value for key, value in file.metadata.items() if key != "qtutor.config"} | own
        write(path, keys, tensors[:-1])
        with pytest.raises(QtutorError, match=r"1 tensor is missing: output_norm.weight\. Its config"):
            qtutor.load_quantized(path)
        write(path, keys, [*tensors, Tensor("more", (1,), "F32", np.zeros(4, np.uint8))])
        with pytest.raises(QtutorError, match=r"1 tensor is not expected: more\."):
            qtutor.load_quantized(path)
        write(path, keys, [*tensors[:-1], Tensor("output_norm.weight", (32,), "F32", np.zeros(128, np.uint8))])
        with pytest.raises(QtutorError, match=r"of another shape: output_norm.weight \(\[32\], expected \[64\]\)"):
            qtutor.load_quantized(path)
    keys = dict(file.metadata)
    for size, message in (
        ("num_hidden_layers", "2 blocks, and its config says 1000000000"),
        ("intermediate_size", "ffn"),
    ):
        write(path, keys | {"qtutor.config": json.dumps(json.loads(config) | {size: 10**9})}, tensors)
        with pytest.raises(QtutorError, match=message):  # instead of running out of memory
            qtutor.load_quantized(path)


# If writing fails, the old file stays as it is, and no other file is left beside it, except after a kill. If a test
# needs a separate process, this process runs only the writer, because torch and transformers take seconds to import.


def test_an_interrupted_export_leaves_the_old_file(tmp_path, monkeypatch):
    path = export(tiny(), tmp_path / "a.gguf")
    before, encoded = path.read_bytes(), []

    def interrupted(rows, *rest):
        encoded.append(len(rows))
        if len(encoded) == 9:
            raise KeyboardInterrupt
        return encode(rows, *rest)

    monkeypatch.setattr("qtutor.formats.gguf_contents.encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(tiny(seed=1), path)
    assert len(encoded) == 9 and path.read_bytes() == before and os.listdir(tmp_path) == ["a.gguf"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("moment", ["qtutor.gguf.writer._bytes_of", "os.fsync", "os.replace"])
def test_what_the_system_refuses_is_one_paragraph(tmp_path, monkeypatch, moment, code):
    path = export(tiny(), tmp_path / "a.gguf")
    before = path.read_bytes()

    def fails(*_arguments):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch, pytest.raises(QtutorError, match=r"a\.gguf cannot be written: ") as told:
        patch.setattr(moment, fails)
        export(tiny(seed=1), path)
    assert os.strerror(code) in str(told.value) and "\n" not in str(told.value)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.gguf"]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for out in ("file", "file/deep", "file/a.gguf", "file/deep/a.gguf"):
        with pytest.raises(QtutorError, match=r"file is a file, and .*gguf needs a folder there: choose another"):
            export(tiny(), tmp_path / out)
    assert (tmp_path / "file").read_text() == "in the way" and os.listdir(tmp_path) == ["file"]


def of_others(path):
    """Files that a user may have under that name: a description -> the bytes."""
    write(path, {"general.architecture": "llama"}, [Tensor("a", (4,), "F32", np.zeros(16, np.uint8))])
    theirs = path.read_bytes()
    export(tiny(), path, overwrite=True)
    ours = path.read_bytes()
    return {"another's GGUF file": theirs, "a text": b"my notes", "half of ours": ours[: len(ours) // 2]}


@pytest.mark.parametrize("name", ["another's GGUF file", "a text", "half of ours"])
@pytest.mark.parametrize("out", ["a.gguf", "folder"])
def test_a_file_that_qtutor_did_not_write_is_replaced_only_when_that_is_asked_for(tmp_path, name, out):
    path = tmp_path / "a.gguf" if out == "a.gguf" else tmp_path / "folder" / "model.gguf"
    path.parent.mkdir(exist_ok=True)
    before = of_others(path)[name]
    path.write_bytes(before)
    with pytest.raises(QtutorError, match=r"gguf exists, and qtutor did not write it .*--force .*overwrite=True"):
        export(tiny(), tmp_path / out)
    assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]
    assert export(tiny(), tmp_path / out, overwrite=True) == path
    assert "qtutor.config" in read(path).metadata
    export(tiny(seed=1), tmp_path / out)  # now it is a file of qtutor


def test_an_empty_file_is_nobodys(tmp_path):
    (tmp_path / "a.gguf").touch()  # as tempfile makes them
    assert "qtutor.config" in read(export(tiny(), tmp_path / "a.gguf")).metadata


def test_files_beside_it_stay(tmp_path):
    (tmp_path / "MY_NOTES.txt").write_text("mine")
    for _ in range(2):
        export(tiny(), tmp_path)
    assert (tmp_path / "MY_NOTES.txt").read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["MY_NOTES.txt", "model.gguf"]


def test_a_disk_without_room_is_told_before_a_weight_is_encoded(tmp_path, monkeypatch):
    size = sum(info.nbytes for info in read(export(tiny(), tmp_path / "a.gguf")).tensors.values())
    monkeypatch.setattr(
        "qtutor.files.target.shutil.disk_usage", lambda base: SimpleNamespace(total=10**9, free=size - 1)
    )
    monkeypatch.setattr("qtutor.formats.gguf_contents.encode", None)
    with pytest.raises(QtutorError, match=f"b.gguf will take at least {size:,} bytes, and {size - 1:,} are free"):
        export(tiny(), tmp_path / "b.gguf")
    with pytest.raises(QtutorError, match="at least"):
        export(tiny(), tmp_path / "not" / "yet")
    assert os.listdir(tmp_path) == ["a.gguf"]


PROGRAM = """
import os, signal, sys
import numpy as np
from qtutor.gguf.writer import GGUFError, Tensor, write
def data():
    if "kill" in sys.argv: os.kill(os.getpid(), signal.SIGKILL)
    return np.ones(100_000, np.uint8)
a, b = Tensor("a", (100_000,), "I8", np.zeros(100_000, np.uint8)), Tensor("b", (100_000,), "I8", data)
try: write(sys.argv[1], {}, [a, b])
except GGUFError as error: print(error)
"""


def write_elsewhere(path, *words: str, mount: str = "") -> subprocess.CompletedProcess:
    """Write two tensors to ``path`` in a new process. mount: run first, in a namespace; the folder is shown last."""
    command = [sys.executable, "-c", PROGRAM, str(path), *words]
    if mount:
        script = f'{mount} && "$@" && ls -A {path.parent} && cat {path}'
        command = ["unshare", "-rm", "sh", "-c", script, "sh", *command]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_kill_leaves_the_old_file(tmp_path):
    (tmp_path / "a.gguf").write_text("the old file")
    done = write_elsewhere(tmp_path / "a.gguf", "kill")
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (tmp_path / "a.gguf").read_text() == "the old file"
    assert all(name.startswith(".a.gguf.") for name in os.listdir(tmp_path) if name != "a.gguf")


@needs_mount
def test_a_full_disk_leaves_the_old_file(tmp_path):
    mount = f"mount -t tmpfs -o size=160k tmpfs {tmp_path} && printf 'the old file' > {tmp_path}/a.gguf"
    done = write_elsewhere(tmp_path / "a.gguf", mount=mount)
    assert done.returncode == 0, done.stderr
    message, *rest = done.stdout.splitlines()
    assert "cannot be written: No space left on device. Whatever was there before is untouched" in message
    assert rest == ["a.gguf", "the old file"]


@needs_mount
def test_a_read_only_folder_is_told(tmp_path):
    (tmp_path / "a.gguf").write_text("the old file")
    mount = f"mount --bind {tmp_path} {tmp_path} && mount -o remount,ro,bind {tmp_path}"
    done = write_elsewhere(tmp_path / "a.gguf", mount=mount)
    assert done.returncode == 0, done.stderr
    message, *rest = done.stdout.splitlines()
    assert "cannot be written: Read-only file system" in message
    assert rest == ["a.gguf", "the old file"]


def test_on_the_command_line(tmp_path, capsys):
    out, text = str(tmp_path / "a.gguf"), tmp_path / "text.txt"
    text.write_text("def mean(values):\n    return sum(values) / len(values)\n" * 60)
    assert main(["quantize", "embedded", out, "--format", "gguf", "--type", "Q3_K_S", "--calibration", str(text)]) == 0
    assert f"Written to {out}, {(tmp_path / 'a.gguf').stat().st_size:,} bytes" in capsys.readouterr().out
    model, tokenizer = qtutor.load_decoder(dtype="auto")
    plain = export(model, tmp_path / "b.gguf", type="Q3_K_S", tokenizer=tokenizer)
    assert read(out).tensors.keys() == read(plain).tensors.keys()
    name = "blk.0.ffn_up.weight"
    assert not np.array_equal(read(out).data(name), read(plain).data(name))  # the text had an effect
    assert np.array_equal(read(out).data("token_embd.weight"), read(plain).data("token_embd.weight"))
    for options, message in (
        ([out, "--format", "gguf", "--group-size", "32"], "--group-size does not go with --format gguf"),
        ([str(tmp_path / "folder"), "--type", "Q4_0"], "--type Q4_0 is one of llama.cpp's: it goes with --format gguf"),
    ):
        assert main(["quantize", "embedded", *options]) == 2
        assert message in " ".join(capsys.readouterr().err.split())

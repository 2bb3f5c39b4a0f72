"""qtutor.load: the model for each kind of source, its dtype, its device, and error messages."""

import shutil

import pytest
import torch

import qtutor
from qtutor import loading
from qtutor.decoder import EMBEDDED
from qtutor.formats import tokenizers_files
from qtutor.gguf.reader import read
from qtutor.runtime.kernels import cpu
from tests.gguf.small_tokenizers import letters
from tests.models import some_ids, tiny


def saved(folder, kind: str):
    """Save a tiny bf16 decoder with its tokenizer as a checkpoint of ``kind``; returns its path and the model."""
    model, tokenizer = tiny(dtype=torch.bfloat16), letters()
    if kind == "float":
        model.save_pretrained(folder / "float")
        tokenizer.save_pretrained(folder / "float")
        return folder / "float", model
    if kind == "ours":
        qtutor.quantize(model, qtutor.Recipe(group_size=32), progress=False)
        return qtutor.export(model, folder / "ours", tokenizer=tokenizer), model
    options = {"format": "gguf", "type": "F32", "tokenizer": tokenizer}
    return qtutor.export(model, folder / "model.gguf", **options), model


KINDS = ("float", "ours", "gguf")


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_names_a_decoder_loads_it_with_its_tokenizer(tmp_path, kind):
    source, model = saved(tmp_path, kind)
    for given in (source, str(source)):
        loaded, tokenizer = qtutor.load(given, device="cpu")
        assert not loaded.training and tokenizer("mean").input_ids == letters()("mean").input_ids
        expected = model.float()(some_ids()).logits
        assert torch.allclose(loaded.float()(some_ids()).logits, expected, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("kind", ("float", "gguf"))  # ours: loading checks values of scales, and meta has none
def test_it_comes_on_the_device_that_was_asked_for(tmp_path, kind):
    source, _ = saved(tmp_path, kind)
    loaded = [qtutor.load(source, device="meta")[0]]
    loaded += [] if kind == "float" else [qtutor.load_quantized(source, device="meta")]
    for model in loaded:
        assert all(parameter.is_meta for parameter in [*model.parameters(), *model.buffers()])


def test_dtypes(tmp_path):
    """By default, load gives the embedded decoder float32, others their own dtype; load_decoder gives float32."""
    source, _ = saved(tmp_path, "float")
    assert qtutor.load("embedded", device="cpu")[0].dtype == qtutor.load(device="cpu")[0].dtype == torch.float32
    assert qtutor.load("embedded", torch.bfloat16, "cpu")[0].dtype == torch.bfloat16
    assert qtutor.load("embedded", "auto", "cpu")[0].dtype == torch.bfloat16
    assert qtutor.load(source, device="cpu")[0].dtype == torch.bfloat16
    assert qtutor.load(source, torch.float16, "cpu")[0].dtype == torch.float16
    assert qtutor.load_decoder(source, device="cpu")[0].dtype == torch.float32
    assert qtutor.load_decoder(source, torch.float16, "cpu")[0].dtype == torch.float16


def test_weights_take_what_they_take_in_memory_or_in_their_file(tmp_path):
    source, model = saved(tmp_path, "ours")
    assert loading.weight_bytes(source, model) == qtutor.evaluate.model_bytes(model)
    path, _ = saved(tmp_path, "gguf")
    loaded, _ = qtutor.load(path, device="cpu")
    infos = read(path).tensors.values()
    assert len(infos) > 10 and loading.weight_bytes(path, loaded) == sum(4 * info.shape[0] * (info.shape[1:] or (1,))[0]
                                                                         for info in infos)  # fmt: skip


def test_a_folder_that_is_no_checkpoint_is_told_with_what_is_in_it(tmp_path):
    for number in range(20):
        (tmp_path / f"file_{number:02}.txt").touch()
    with pytest.raises(qtutor.QtutorError, match=r"the checkpoint cannot be loaded: .*model\.safetensors"):
        qtutor.load(tmp_path)
    with pytest.raises(qtutor.QtutorError, match=r"is a file, and a checkpoint is a folder with config\.json"):
        qtutor.load(tmp_path / "file_00.txt")


def test_a_gguf_file_is_named_where_its_tokenizer_cannot_be_had(tmp_path, monkeypatch):
    path, _ = saved(tmp_path, "gguf")

    def refuse(_metadata):
        raise qtutor.QtutorError("no such tokenizer.")

    monkeypatch.setattr(tokenizers_files, "tokenizer_of", refuse)
    with pytest.raises(qtutor.QtutorError, match=rf"^{path}: no such tokenizer\."):
        qtutor.load(path)


def test_a_folder_of_ours_comes_before_other_checkpoints_in_it(tmp_path):
    """A GGUF file may lie beside them. Beside a float checkpoint, only load_quantized reads the GGUF file."""
    shutil.copytree(EMBEDDED, tmp_path / "both")
    source, _ = saved(tmp_path, "gguf")
    shutil.copy(source, tmp_path / "both" / "model.gguf")
    assert qtutor.load(tmp_path / "both", device="cpu")[0].config.hidden_size == 256  # the float checkpoint
    assert qtutor.load_quantized(tmp_path / "both", device="cpu").config.hidden_size == 64  # what export wrote
    ours, _ = saved(tmp_path, "ours")
    shutil.copy(source, ours / "model.gguf")
    for loaded in (qtutor.load(ours, device="cpu")[0], qtutor.load_quantized(ours, device="cpu")):
        assert type(loaded.model.layers[0].mlp.up_proj).__name__ == "QuantLinear"


def test_what_is_loaded_in_inference_mode_is_as_fast(tmp_path):
    model = tiny()
    qtutor.quantize(model, qtutor.Recipe(bits=4, group_size=32), progress=False)
    folder = qtutor.export(model, tmp_path / "out", tokenizer=letters())
    x = torch.randn(1, 64)
    with torch.inference_mode():
        for loaded in (qtutor.load_quantized(folder, device="cpu"), qtutor.load(folder, device="cpu")[0]):
            layer = loaded.model.layers[0].self_attn.q_proj
            assert layer.kernel(x) is model.model.layers[0].self_attn.q_proj.kernel(x) is cpu
            assert not any(tensor.is_inference() for tensor in loaded.state_dict().values())

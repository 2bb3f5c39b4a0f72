"""Our folders hold the tensors that SGLang registers, by its source (python/sglang/srt/layers/quantization).

SGLang needs a GPU and does not run here. Each test names the file and the commit that were read. A layer has to have
exactly the tensors that create_weights registers, with the same shapes and dtypes. The loader would refuse any other
tensor.
"""

import pytest
import torch
from safetensors.torch import load_file

import qtutor
from qtutor.course.engines import settings_of
from qtutor.formats.ways import WAYS

LAYER, ROWS, COLUMNS = "model.layers.0.mlp.up_proj", 512, 256


def stored(tmp_path, form: str, **recipe) -> tuple[dict, dict]:
    """The shapes and dtypes of one layer's tensors, and the settings."""
    model, tokenizer = qtutor.load_decoder(device="cpu")
    qtutor.quantize(model, qtutor.Recipe(**recipe), progress=False)
    folder = qtutor.export(model, tmp_path / "out", form, tokenizer, target="sglang")
    tensors = load_file(folder / "model.safetensors")
    inside = {name.removeprefix(f"{LAYER}."): one for name, one in tensors.items() if name.startswith(f"{LAYER}.")}
    return {kind: (tuple(one.shape), one.dtype) for kind, one in inside.items()}, settings_of(folder)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [32, 64, 128, -1])
def test_integers_of_compressed_tensors(tmp_path, bits, symmetric, group_size):
    """compressed_tensors/schemes/compressed_tensors_wNa16.py at b4ea46ff, CompressedTensorsWNA16: 4 and 8 bits;
    weight_zero_point is packed along the outputs, and is registered only for asymmetric files.
    """
    found, settings = stored(tmp_path, "compressed-tensors", bits=bits, symmetric=symmetric, group_size=group_size)
    in_word, groups = 32 // bits, COLUMNS // (COLUMNS if group_size == -1 else group_size)
    wanted = {
        "weight_packed": ((ROWS, COLUMNS // in_word), torch.int32),
        "weight_scale": ((ROWS, groups), torch.float16),
        "weight_shape": ((2,), torch.int64),
    }
    zeros = {} if symmetric else {"weight_zero_point": ((ROWS // in_word, groups), torch.int32)}
    assert found == wanted | zeros
    weights = settings["config_groups"]["group_0"]["weights"]
    # Without a group size, this is the only strategy that it accepts.
    assert group_size != -1 or (weights["strategy"], weights.get("group_size")) == ("channel", None)
    assert weights.get("actorder") is None  # otherwise it expects weight_g_idx


def test_fp8_of_compressed_tensors(tmp_path):
    """compressed_tensors/schemes/compressed_tensors_w8a8_fp8.py at 787a422f: channel scales are float32 [out, 1]; an
    input_scale is registered only for static inputs.
    """
    found, settings = stored(tmp_path, "compressed-tensors", method="fp8")
    assert found == {
        "weight": ((ROWS, COLUMNS), torch.float8_e4m3fn), "weight_scale": ((ROWS, 1), torch.float32)
    }  # fmt: skip
    group = settings["config_groups"]["group_0"]
    assert group["weights"]["strategy"] == "channel" and group["input_activations"]["dynamic"] is True


@pytest.mark.parametrize("group_size", [32, 64])
def test_awq(tmp_path, group_size):
    """awq.py at 63070d3a, AWQLinearMethod.create_weights. By is_layer_skipped_awq, a layer stays in float if its name
    *contains* one of the names in modules_to_not_convert.
    """
    found, settings = stored(tmp_path, "awq", bits=4, group_size=group_size)
    groups = COLUMNS // group_size
    assert found == {
        "qweight": ((COLUMNS, ROWS // 8), torch.int32),
        "qzeros": ((groups, ROWS // 8), torch.int32),
        "scales": ((groups, ROWS), torch.float16),
    }
    assert (settings["bits"], settings["group_size"], settings["zero_point"]) == (4, group_size, True)
    assert not any(name in LAYER for name in settings["modules_to_not_convert"] or [])


@pytest.mark.parametrize("bits", [4, 8])
def test_gptq(tmp_path, bits):
    """gptq.py at ce22720e: GPTQMarlinConfig.from_config asks for these keys, and TYPE_MAP has these two kinds."""
    found, settings = stored(tmp_path, "gptq", bits=bits, symmetric=True, group_size=64)
    in_word = 32 // bits
    assert found == {
        "qweight": ((COLUMNS // in_word, ROWS), torch.int32),
        "qzeros": ((COLUMNS // 64, ROWS // in_word), torch.int32),
        "scales": ((COLUMNS // 64, ROWS), torch.float16),
        "g_idx": ((COLUMNS,), torch.int32),
    }
    assert {key: settings[key] for key in ("bits", "group_size", "desc_act", "sym")} == {
        "bits": bits, "group_size": 64, "desc_act": False, "sym": True
    }  # fmt: skip


def test_our_rules_are_those_of_the_sources():
    """WNA16_SUPPORTED_BITS; TYPE_MAP of gptq.py, which has only symmetric kinds; AWQConfig, which takes 4 bits."""
    kinds = {(way.format, way.grid): (way.bits, way.symmetric) for way in WAYS["sglang"]}
    assert kinds["compressed-tensors", "integers"] == ((4, 8), (True, False))
    assert kinds["gptq", "integers"] == ((4, 8), (True,))
    assert kinds["awq", "integers"][0] == (4,)

"""Folders written by the libraries are read, and our weights equal those that the libraries decode."""

import json

import pytest
import torch
from safetensors.torch import save_file

import qtutor
from qtutor.doctor import examine
from qtutor.families import linear_layers
from qtutor.formats import gptq
from qtutor.formats.foreign import resolved_zeros
from qtutor.runtime.linear import QuantLinear
from tests.gguf.small_tokenizers import letters
from tests.models import tiny


def float_folder(path):
    model = tiny()
    model.config.architectures = ["LlamaForCausalLM"]
    model.save_pretrained(path)
    letters().save_pretrained(path)
    return path


def packed_in(folder):
    """Our packed layers of a folder, by name.

    The doctor may complain only about the forward pass, since the weights are random, and about the tokenizer.
    """
    found = examine(folder).findings
    assert not [one for one in found if one.kind not in ("forward pass", "tokenizer")], found
    model = qtutor.load(folder, device="cpu")[0]
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, QuantLinear)}


@pytest.mark.parametrize("kind", ["nf4", "fp4", "nf4 double", "int8"])
def test_bitsandbytes(tmp_path, kind):
    functional = pytest.importorskip("bitsandbytes.functional")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    name, _, double = kind.partition(" ")
    options = {"load_in_8bit": True} if name == "int8" else {
        "load_in_4bit": True, "bnb_4bit_quant_type": name, "bnb_4bit_use_double_quant": bool(double)
    }  # fmt: skip
    theirs = AutoModelForCausalLM.from_pretrained(
        float_folder(tmp_path / "float"), quantization_config=BitsAndBytesConfig(**options), device_map="cpu"
    )
    theirs.save_pretrained(tmp_path / "out")
    letters().save_pretrained(tmp_path / "out")
    ours = packed_in(tmp_path / "out")
    assert len(ours) == 14
    for layer_name, layer in ours.items():
        module = theirs.get_submodule(layer_name)
        if name == "int8":
            assert torch.equal(module.weight.data.int() + 128, layer.quantized().codes.int())
            continue
        exact = functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
        assert torch.equal(layer.quantized().dequantize(exact.dtype), exact), layer_name


@pytest.mark.parametrize(
    ("bits", "symmetric", "group_size"),
    [(4, True, 32), (4, False, 32), (3, False, 32), (8, True, None), ("FP8_DYNAMIC", True, None)],
)
def test_compressed_tensors(tmp_path, bits, symmetric, group_size):
    """bits: a number, or the name of a scheme."""
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import ModelCompressor, decompress_module
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        apply_quantization_config,
        preset_name_to_scheme,
    )
    from compressed_tensors.quantization.utils import calculate_qparams

    if bits == "FP8_DYNAMIC":
        scheme, form = preset_name_to_scheme(bits, ["Linear"]), "float-quantized"
        args = scheme.weights
    else:
        strategy, form = "channel" if group_size is None else "group", "pack-quantized"
        args = QuantizationArgs(num_bits=bits, symmetric=symmetric, strategy=strategy, group_size=group_size)
        scheme = QuantizationScheme(targets=["Linear"], weights=args)
    config = QuantizationConfig(config_groups={"group_0": scheme}, ignore=["lm_head"], format=form)
    model = tiny()
    apply_quantization_config(model, config)
    for module in model.modules():
        if hasattr(module, "quantization_scheme"):
            grouped = module.weight.data.reshape(len(module.weight), -1, group_size or module.weight.shape[1])
            scale, zero = calculate_qparams(grouped.amin(-1), grouped.amax(-1), args)
            module.weight_scale.data.copy_(scale)
            if not symmetric:
                module.weight_zero_point.data.copy_(zero)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(tmp_path / "out")
    compressor.update_config(tmp_path / "out")
    letters().save_pretrained(tmp_path / "out")
    ours = packed_in(tmp_path / "out")
    assert len(ours) == 14
    for name, layer in ours.items():
        module = model.get_submodule(name)
        decompress_module(module)
        assert torch.equal(layer.quantized().dequantize(), module.weight.data.float()), name


@pytest.mark.parametrize(("bits", "symmetric", "version"), [(4, True, 1), (3, True, 1), (8, True, 2), (4, False, 2)])
def test_gptqmodel(tmp_path, monkeypatch, bits, symmetric, version):
    """gptqmodel's own code packs the layers and writes the settings. (It quantizes for minutes; this is left out.)"""
    pytest.importorskip("gptqmodel")
    monkeypatch.setenv("GPTQMODEL_DISABLE_PACK_EXT", "1")  # otherwise it compiles this extension first
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.quantization.config import QuantizeConfig
    from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module

    config = QuantizeConfig(bits=bits, group_size=32, sym=symmetric, desc_act=False, format=gptq.VERSIONS[version])
    model = tiny()
    tensors, exact = model.state_dict(), {}
    del tensors["lm_head.weight"]
    for name, linear in linear_layers(model).items():
        quantized = qtutor.rtn.quantize(linear.weight.detach(), qtutor.IntGrid(bits, symmetric), 32)
        linear.weight.data = quantized.dequantize()
        rows, columns = quantized.shape
        layer = TorchLinear(bits, 32, symmetric, False, columns, rows, False, register_buffers=True)
        zeros = resolved_zeros(quantized).int()
        layer.pack_block(linear, quantized.scales.float(), zeros, (torch.arange(columns) // 32).int())
        if version == 1:
            convert_gptq_v2_to_v1_format_module(layer, config)
        del tensors[f"{name}.weight"]
        tensors |= {f"{name}.{key}": tensor.contiguous() for key, tensor in layer.state_dict().items()}
        exact[name] = quantized.dequantize(torch.float16)
    folder = float_folder(tmp_path / "out")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    values = json.loads((folder / "config.json").read_text()) | {"quantization_config": config.to_dict()}
    (folder / "config.json").write_text(json.dumps(values))
    ours = packed_in(folder)
    assert ours.keys() == exact.keys()
    for name, layer in ours.items():
        assert torch.equal(layer.quantized().dequantize(torch.float16), exact[name]), name

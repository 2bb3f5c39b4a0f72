"""Negative controls: the comparisons in these tests detect each classic mistake in a file.

A comparison that also passes for a wrong file proves nothing. The libraries decode a wrong file to other weights.
Mistakes that only a model's text would show are also put into whole folders.
"""

import json
from dataclasses import replace

import pytest
import torch

import qtutor
from qtutor.formats import awq, compressed_settings, compressed_tensors, gptq
from qtutor.formats.foreign import Layout
from qtutor.formats.words import from_words, to_words
from tests.engines.matrices import encoded, matrix
from tests.engines.test_decoded import by_gptqmodel
from tests.engines.test_in_transformers import agreeing, in_float
from tests.formats.foreign_folders import edit_settings, edit_tensors


def one_more(words: torch.Tensor) -> torch.Tensor:
    """Add one to every 4-bit number in ``words [n, words]``; 15 stays 15."""
    codes = from_words(words.contiguous(), 4, words.shape[1] * 8)
    return to_words(torch.clamp(codes + 1, max=15), 4)


def turned(words: torch.Tensor) -> torch.Tensor:
    """Reverse the order of the eight 4-bit numbers of every word in ``words [n, words]``."""
    codes = from_words(words.contiguous(), 4, words.shape[1] * 8)
    return to_words(codes.reshape(len(codes), -1, 8).flip(-1).reshape(codes.shape).contiguous(), 4)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("mistake", ["zero points", "order of nibbles", "version"])
def test_gptqmodel_decodes_wrong_words_to_other_weights(symmetric, version, mistake):
    pytest.importorskip("gptqmodel")
    quantized = matrix(4, symmetric, 32)
    if not symmetric:
        quantized.zeros.clamp_(min=1)
    layout = Layout(quantized.grid, 32, gptq.VERSIONS[version])
    tensors, exact = encoded(gptq.FORMAT, quantized, layout), quantized.dequantize(torch.float16)
    assert torch.equal(by_gptqmodel(tensors, layout), exact)
    if mistake == "zero points":
        tensors["qzeros"] = one_more(tensors["qzeros"])
    elif mistake == "order of nibbles":
        tensors["qweight"] = turned(tensors["qweight"].T).T.contiguous()
    else:
        layout = replace(layout, kind=gptq.VERSIONS[3 - version])
    assert not torch.equal(by_gptqmodel(tensors, layout), exact)
    if symmetric and mistake != "order of nibbles":
        with pytest.raises(qtutor.QtutorError, match="all zero points are 8"):
            gptq.decode(tensors, layout, 64, 128)


def test_an_order_of_columns_without_its_index():
    """A file with desc_act: gptqmodel requires g_idx and decodes with it. We require it, too, but refuse the file."""
    pytest.importorskip("gptqmodel")
    quantized, order = matrix(4, True, 32), torch.randperm(128, generator=torch.Generator().manual_seed(0))
    layout = Layout(quantized.grid, 32, gptq.SECOND, ordered=True)
    tensors, exact = encoded(gptq.FORMAT, quantized, layout), quantized.dequantize(torch.float16)
    shuffled = replace(quantized, codes=quantized.codes[:, order].contiguous())
    tensors["qweight"] = encoded(gptq.FORMAT, shuffled, layout)["qweight"]
    plain, tensors["g_idx"] = tensors["g_idx"], tensors["g_idx"][order].contiguous()
    assert torch.equal(by_gptqmodel(tensors, layout), exact[:, order])
    assert not torch.equal(by_gptqmodel(tensors | {"g_idx": plain}, layout), exact[:, order])
    with pytest.raises(qtutor.QtutorError, match="g_idx, from desc_act"):
        gptq.decode(tensors, layout, 64, 128)
    del tensors["g_idx"]
    with pytest.raises(RuntimeError, match="g_idx"):
        by_gptqmodel(tensors, layout)
    assert not gptq.tensors_of_layer(layout, 64, 128)["g_idx"].optional


@pytest.mark.parametrize("which", ["qzeros", "qweight"])
def test_gptqmodel_decodes_wrong_awq_words_to_other_weights(which):
    """Zero points that are one too large, and nibbles in plain order."""
    packing = pytest.importorskip("gptqmodel.quantization.awq.utils.packing_utils")

    quantized = matrix(4, False, 32)
    tensors = encoded(awq.FORMAT, quantized, Layout(quantized.grid, 32, "gemm"))
    wrong = {"qzeros": one_more(tensors["qzeros"]), "qweight": to_words(quantized.codes.T.contiguous(), 4)}
    tensors[which] = wrong[which]
    back = packing.dequantize_gemm(tensors["qweight"], tensors["qzeros"], tensors["scales"], 4, 32)
    assert not torch.equal(back.T.to(torch.float16), quantized.dequantize(torch.float16))


@pytest.mark.parametrize("which", ["weight_zero_point", "weight_packed"])
def test_compressed_tensors_decodes_wrong_words_to_other_weights(which):
    base = pytest.importorskip("compressed_tensors.compressors.pack_quantized.base")
    from compressed_tensors.quantization import QuantizationScheme

    quantized = matrix(4, False, 32)
    layout = Layout(quantized.grid, 32, compressed_tensors.PACKED)
    scheme = QuantizationScheme(targets=["Linear"], **compressed_settings.scheme(layout))
    tensors = encoded(compressed_tensors.FORMAT, quantized, layout)
    if which == "weight_packed":
        tensors[which] = turned(tensors[which])
    else:
        tensors[which] = one_more(tensors[which].T).T.contiguous()
    back = base.PackedQuantizationCompressor.decompress(tensors, scheme)["weight"]
    assert not torch.equal(back, quantized.dequantize(torch.float16))


@pytest.mark.parametrize("mistake", ["zero points", "version"])
def test_a_whole_folder_talks_garbage_in_transformers(tmp_path, mistake):
    """An asymmetric GPTQ file: nothing in the file shows that its zero points are wrong."""
    pytest.importorskip("gptqmodel")
    pytest.importorskip("optimum")
    from transformers import AutoModelForCausalLM

    model, tokenizer = qtutor.load_decoder()
    qtutor.quantize(model, qtutor.Recipe(bits=4, group_size=32), progress=False)
    folder = qtutor.export(model, tmp_path / "out", format="gptq", tokenizer=tokenizer)
    if mistake == "zero points":
        edit_tensors(folder, lambda tensors: tensors.update(
            {name: one_more(words) for name, words in tensors.items() if name.endswith("qzeros")}
        ))  # fmt: skip
    else:
        wrong = {"checkpoint_format": gptq.FIRST, "format": gptq.FIRST}
        edit_settings(folder, lambda values: values.update(wrong))
        beside = folder / "quantize_config.json"
        beside.write_text(json.dumps(json.loads(beside.read_text()) | wrong))
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16, device_map="cpu")
    assert agreeing(in_float(model).half(), theirs) < 0.9

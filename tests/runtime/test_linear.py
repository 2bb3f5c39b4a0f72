"""A packed layer computes the same as its dequantized weights, keeps its bytes, and can be moved and cast."""

import pytest
import torch
from torch.nn.functional import linear

import qtutor
from qtutor import rtn
from qtutor.runtime.kernels import cpu, reference
from qtutor.runtime.linear import QuantEmbedding, QuantLinear

CASES = [(bits, symmetric, group) for bits in (2, 3, 4, 5, 8) for symmetric in (True, False) for group in (32, -1, 0)]


@pytest.mark.parametrize(("bits", "symmetric", "group"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_equals_the_product_with_dequantized_weights(bits, symmetric, group, dtype):
    """With more tokens than a kernel multiplies itself; tests/runtime/kernels/test_cpu.py has fewer tokens."""
    generator = torch.Generator().manual_seed(bits)
    quantized = rtn.quantize(torch.randn(40, 64, generator=generator), qtutor.IntGrid(bits, symmetric), group)
    bias = torch.randn(40, generator=generator)
    layer = QuantLinear.from_quantized(quantized, bias)
    x = torch.randn(2, cpu.MOST // 2 + 1, 64, generator=generator).to(dtype)
    expected = linear(x, quantized.dequantize(dtype)) + bias.to(dtype)
    assert layer(x).dtype == dtype
    assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("group", [32, 0])
def test_blocks_of_rows_join_to_the_whole(monkeypatch, group):
    quantized = rtn.quantize(torch.randn(50, 64), qtutor.IntGrid(3), group)
    state, x = reference.prepare(QuantLinear.from_quantized(quantized)), torch.randn(5, 64)
    whole = reference.run(x, state)
    monkeypatch.setattr(reference, "BLOCK_ROWS", 7)
    assert torch.allclose(reference.run(x, state), whole, atol=1e-5)  # different blocks may change the order of sums


def test_bytes_are_the_packed_ones():
    quantized = rtn.quantize(torch.randn(64, 256), qtutor.IntGrid(3), 64)
    layer = QuantLinear.from_quantized(quantized)
    assert QuantLinear(64, 256, quantized.grid, 64).bias is None  # unless one is asked for
    assert layer.nbytes == quantized.nbytes
    assert sum(buffer.nbytes for buffer in layer.state_dict().values()) == quantized.nbytes


@pytest.mark.parametrize(("bits", "symmetric", "group"), CASES)
def test_dtypes_are_those_of_the_files(bits, symmetric, group):
    quantized = rtn.quantize(torch.randn(8, 64), qtutor.IntGrid(bits, symmetric), group)
    layer = QuantLinear.from_quantized(quantized, torch.zeros(8, dtype=torch.bfloat16))
    dtypes = {"packed": torch.uint8, "scales": torch.float16, "zeros": torch.uint8, "bias": torch.bfloat16}
    if symmetric:
        del dtypes["zeros"]
    for module in (layer, layer.half().bfloat16()):
        assert {name: buffer.dtype for name, buffer in module.named_buffers()} == dtypes
    again = layer.quantized()
    assert again.codes.dtype == torch.uint8 and again.scales.dtype == torch.float16
    assert again.zeros is None if symmetric else again.zeros.dtype == torch.uint8
    table = QuantEmbedding.from_quantized(quantized, torch.bfloat16)
    assert {name: buffer.dtype for name, buffer in table.named_buffers()}.items() <= dtypes.items()
    assert table(torch.tensor([1])).dtype == torch.bfloat16


def test_casting_the_model_leaves_scales_alone():
    quantized = rtn.quantize(torch.randn(8, 64), qtutor.IntGrid(4), 16)
    layer = QuantLinear.from_quantized(quantized).to(torch.bfloat16).float().double()
    assert layer.scales.dtype == torch.float16
    assert torch.equal(layer.quantized().dequantize(), quantized.dequantize())


@pytest.mark.parametrize("group", [16, -1, 0])
@pytest.mark.parametrize("symmetric", [True, False])
def test_embedding_looks_up_dequantized_rows(group, symmetric):
    quantized = rtn.quantize(torch.randn(30, 64), qtutor.IntGrid(3, symmetric), group)
    table = QuantEmbedding.from_quantized(quantized, torch.float32)
    ids, twice = torch.tensor([3, 0]), QuantEmbedding.from_quantized(quantized, torch.float32, 2.0)
    assert torch.equal(twice(ids), 2 * table(ids))
    ids = torch.tensor([[3, 3, 29], [0, 7, 1]])
    assert torch.equal(table(ids), quantized.dequantize()[ids])


def test_empty_batch_and_empty_layer():
    layer = QuantLinear.from_quantized(rtn.quantize(torch.randn(8, 64), qtutor.IntGrid(4), 16))
    assert layer(torch.zeros(0, 64)).shape == (0, 8)
    nothing = QuantLinear.from_quantized(rtn.quantize(torch.zeros(0, 64), qtutor.IntGrid(4), 16))
    assert nothing(torch.zeros(2, 64)).shape == (2, 0)

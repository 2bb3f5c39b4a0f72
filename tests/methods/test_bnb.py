"""NF4, FP4, double quantization and LLM.int8: compared with their definitions, and with bitsandbytes if installed.

The comparison with bitsandbytes runs if `pip install -e .[engines]` was done (a wheel that works on a CPU); otherwise
it is skipped.
"""

from statistics import NormalDist

import pytest
import torch
from torch.nn.functional import linear

import qtutor
from qtutor import bnb, gptq, rtn
from qtutor.core import packing
from qtutor.core.codebooks import dynamic_map
from qtutor.runtime.int8 import Int8Linear
from qtutor.runtime.linear import QuantEmbedding, QuantLinear
from tests.methods.test_gptq import correlated, output_error, weights
from tests.models import FAMILIES, some_ids, tiny
from tests.reference import bnb as reference


def crafted() -> torch.Tensor:
    """Rows of 128 weights, with zeros, constants, outliers, exact levels, and borders between levels."""
    rows = weights(64, 128, seed=0)
    rows[0] = 0
    rows[1] = 0.3
    rows[2] = 0
    rows[2, 5] = -7.0
    rows[3] = 1e-30
    rows[4] = torch.tensor([1.0, -1.0]).repeat(64)
    rows[5, :16] = torch.tensor(bnb.NF4.values) * 2
    rows[5, 16:] = 0
    levels = torch.tensor(sorted(bnb.FP4.values))
    rows[6, :16], rows[6, 16:31], rows[6, 31:] = levels, (levels[1:] + levels[:-1]) / 2, 0.0
    rows[7] = torch.arange(-64, 64) / 127
    rows[8] *= 1e4
    rows[9] = -rows[9].abs()
    return rows


def test_nf4_are_quantiles_of_the_normal_distribution():
    """QLoRA, section 3: 8 positive and 7 negative quantiles and 0, divided by the largest; offset from bitsandbytes."""
    offset, quantile = 0.9677083, NormalDist().inv_cdf

    def quantiles(count: int) -> list[float]:
        return [quantile(offset + (0.5 - offset) * i / count) for i in range(count)]

    levels = sorted([*quantiles(8), 0.0, *(-q for q in quantiles(7))])
    expected = torch.tensor(levels) / max(levels)
    assert torch.allclose(torch.tensor(bnb.NF4.values), expected, atol=2e-7)
    # Normal weights use all of these levels about equally often, but not evenly spaced levels.
    weight = weights(256, 1024, seed=1)
    share = torch.bincount(bnb.quantize(weight).codes.flatten().long(), minlength=16) / weight.numel()
    even = torch.bincount(rtn.quantize(weight, qtutor.IntGrid(4), 64).codes.flatten().long(), minlength=16)
    assert share.max() / share.min() < 6 < (even.max() / even.min())


def test_fp4_is_a_float_with_two_bits_of_exponent():
    by_pattern = []
    for pattern in range(16):
        sign, exponent, mantissa = pattern >> 3, pattern >> 1 & 3, pattern & 1
        # As bitsandbytes numbers them: exponents 0 1 2 3 stand for subnormal, 8, 4, 2.
        size = {0: 0.0625 * mantissa, 1: 8 + 4 * mantissa, 2: 4 + 2 * mantissa, 3: 2 + mantissa}[exponent]
        by_pattern.append((-size if sign else size) / 12)
    assert torch.tensor(bnb.FP4.values).tolist() == torch.tensor(by_pattern).tolist()


@pytest.mark.parametrize("grid", [bnb.NF4, bnb.FP4, bnb.INT8], ids=lambda grid: grid.name)
def test_every_weight_gets_the_nearest_level(grid):
    weight = crafted()
    quantized = bnb.quantize(weight, grid, double=False)
    length = 128 if grid == bnb.INT8 else 64
    scale = weight.reshape(64, -1, length).abs().amax(-1, keepdim=True).double()
    levels = torch.tensor(grid.values, dtype=torch.float64)
    nearest = (weight.reshape(64, -1, length).double()[..., None] - scale[..., None] * levels).abs().amin(-1)
    error = (quantized.dequantize().double() - weight.double()).abs().reshape(nearest.shape)
    assert (error - nearest <= 1e-6 * scale).all()
    assert torch.equal(quantized.scales.double(), scale[..., 0]) and quantized.scales.dtype == torch.float32
    assert quantized.zeros is None and (quantized.dequantize()[0] == 0).all()


def test_true_bytes_with_and_without_double_quantization():
    weight = weights(64, 1024, seed=2)  # 1024 blocks of 64
    assert bnb.quantize(weight, double=False).bits_per_weight == 4.5
    nested = bnb.quantize(weight)
    assert nested.nbytes == 64 * 1024 // 2 + 1024 + 4 * (1024 // 256) + 4
    assert nested.bits_per_weight == pytest.approx(4.127, abs=1e-3)
    assert bnb.quantize(weight, bnb.INT8).nbytes == 64 * 1024 + 4 * 64
    assert torch.equal(nested.codes, bnb.quantize(weight, double=False).codes)


@pytest.mark.parametrize("rows", [1, 3, 64])
def test_double_quantization_costs_little(rows):
    weight = weights(rows, 256, seed=3)
    plain, nested = bnb.quantize(weight, double=False), bnb.quantize(weight)
    spread = (plain.scales - plain.scales.mean()).abs().max()
    assert (nested.scales - plain.scales).abs().max() <= 0.04 * spread  # half of the map's widest step, 0.07
    assert (nested.dequantize() - weight).norm() < 1.02 * (plain.dequantize() - weight).norm()
    values = torch.tensor(dynamic_map().values)
    assert len(values) == 256 and values.diff().max() < 0.071 and (values.diff() > 0).all()


@pytest.mark.parametrize("shape", [(0, 64), (4, 0), (1, 64)])
def test_empty_and_one_row(shape):
    for grid in (bnb.NF4, bnb.INT8):
        quantized = bnb.quantize(torch.randn(shape), grid, -1)
        assert quantized.dequantize().shape == shape and torch.isfinite(quantized.dequantize()).all()


def test_bad_input():
    with pytest.raises(qtutor.QtutorError, match=r"^groups of 64 do not divide rows of 96"):
        bnb.quantize(torch.zeros(2, 96))
    with pytest.raises(qtutor.QtutorError, match=r"^1 of 64 weights are NaN"):
        bnb.quantize(torch.full((1, 64), 1.0).index_fill(1, torch.tensor([3]), float("nan")))
    with pytest.raises(qtutor.QtutorError, match="bits = 3: method 'nf4' has 4 bits"):
        qtutor.Recipe(method="nf4", bits=3)
    with pytest.raises(qtutor.QtutorError, match="clip = 'mse': method 'int8' takes every group's whole range"):
        qtutor.Recipe(method="int8", clip="mse")
    recipe = qtutor.Recipe(method="int8")
    assert (recipe.bits, recipe.group_size, recipe.symmetric) == (8, -1, True)


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_layers_compute_with_the_dequantized_weights(double, dtype):
    quantized, x = bnb.quantize(weights(40, 128, seed=4), double=double), torch.randn(2, 3, 128).to(dtype)
    layer = QuantLinear.from_quantized(quantized, torch.randn(40)).to(torch.bfloat16).float()  # scales are not cast
    assert layer.nbytes - layer.bias.nbytes == quantized.nbytes
    assert torch.equal(layer.quantized().dequantize(), quantized.dequantize())
    product = linear(x.float(), quantized.dequantize()) + layer.bias
    # A kernel sums float32 in a different order; bfloat16 rounds the product, and then the sum with the bias.
    near = {"rtol": 1e-5, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 2**-7, "atol": 2**-6}
    torch.testing.assert_close(layer(x).float(), product, **near)
    table = QuantEmbedding.from_quantized(quantized, dtype)
    ids = torch.tensor([[3, 39], [0, 3]])
    assert torch.equal(table(ids), quantized.dequantize(dtype)[ids]) and table.nbytes == quantized.nbytes


def test_gptq_on_a_codebook():
    weight, x = weights(16, 128, seed=5), correlated(400, 128, seed=6)
    ours = gptq.quantize(weight, x.T @ x, bnb.NF4, 64)
    assert output_error(weight, ours, x) < 0.7 * output_error(weight, bnb.quantize(weight, double=False), x)


def test_int8_inputs_by_hand():
    x = torch.tensor([[1.0, -2.0, 8.0], [0.5, 0.25, 3.0]])
    codes, absmax, outliers = bnb.quantize_rows(x, threshold=6.0)
    assert outliers.tolist() == [False, False, True]
    assert absmax.tolist() == [2.0, 3.0]  # 8 does not count; 3, below 6, does
    assert codes.tolist() == [[64.0, -127.0, 0.0], [21.0, 11.0, 0.0]]


@pytest.mark.parametrize("threshold", [0.0, 2.5, 6.0, None])
def test_a_layer_in_int8_equals_the_slow_version(threshold):
    """Equal up to float32 rounding. With threshold 0, all inputs stay in float; with None, all are rounded."""
    generator = torch.Generator().manual_seed(13)
    weight, x = torch.randn(9, 24, generator=generator), torch.randn(7, 24, generator=generator)
    x[:, 5] *= 4
    x[2], x[3, 1] = 0.0, -6.0
    layer = Int8Linear.from_quantized(bnb.quantize(weight, bnb.INT8))
    assert layer.threshold == bnb.THRESHOLD
    layer.threshold = threshold
    expected = reference.layer(x.numpy(), weight.numpy(), float("inf") if threshold is None else threshold)
    assert torch.allclose(layer(x).double(), torch.from_numpy(expected), rtol=1e-6, atol=1e-6)
    exact = linear(x.double(), layer.quantized().dequantize().double())
    assert torch.allclose(layer(x).double(), exact, rtol=1e-5, atol=1e-5) == (threshold == 0)


def test_outliers_in_float_save_the_other_channels():
    generator = torch.Generator().manual_seed(7)
    weight, x = torch.randn(32, 128, generator=generator), torch.randn(50, 128, generator=generator)
    x[:, [3, 77]] *= 60
    layer = Int8Linear.from_quantized(bnb.quantize(weight, bnb.INT8))
    exact = linear(x, layer.quantized().dequantize())  # so only the rounding of inputs shows, not that of weights

    def all_in_int8(x):
        codes, absmax, _ = bnb.quantize_rows(x)
        return linear(codes * absmax[:, None] / 127, layer.quantized().dequantize())

    assert (layer(x) - exact).norm() < 0.2 * (all_in_int8(x) - exact).norm()
    assert (layer(x) - exact).norm() < 0.01 * exact.norm()
    assert layer(x.bfloat16()).dtype == torch.bfloat16
    assert layer(torch.zeros(0, 128)).shape == (0, 32) and (layer(torch.zeros(2, 128)) == 0).all()
    assert torch.equal(layer(x.reshape(5, 10, 128)).reshape(50, 32), layer(x))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["nf4", "fp4", "int8"])
def test_whole_models_and_back_from_disk(family, method, tmp_path):
    model = tiny(family)
    reference = tiny(family)
    report = qtutor.quantize(model, qtutor.Recipe(method=method, embeddings=True, lm_head=True), progress=False)
    assert len(report.rows) == 16
    assert type(model.model.layers[0].mlp.up_proj).__name__ == ("Int8Linear" if method == "int8" else "QuantLinear")
    assert qtutor.evaluate.compare(model, reference, some_ids(4)).kl < (1e-4 if method == "int8" else 3e-3)
    qtutor.export(model, tmp_path / "out")
    again = qtutor.load_quantized(tmp_path / "out", device="cpu")
    assert torch.equal(again(some_ids()).logits, model(some_ids()).logits)
    assert qtutor.evaluate.model_bytes(again) == qtutor.evaluate.model_bytes(model)


# Compared with bitsandbytes itself.


def theirs():
    return pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install -e .[engines]")


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("blocks", [64, 128])
def test_codes_and_scales_equal_bitsandbytes(kind, dtype, blocks):
    functional = theirs().functional
    weight = torch.cat([crafted(), weights(2000, 128, seed=8)]).to(dtype)
    ours = bnb.quantize(weight, {"nf4": bnb.NF4, "fp4": bnb.FP4}[kind], blocks, double=False)
    packed, state = functional.quantize_4bit(weight, blocksize=blocks, quant_type=kind)
    high_first = packing.pack(ours.codes.reshape(-1, 2).flip(1), 4)  # their first code is in the high nibble
    assert torch.equal(state.absmax, ours.scales.flatten())
    assert torch.equal(high_first.flatten(), packed.flatten())
    assert torch.equal(functional.dequantize_4bit(packed, state), ours.dequantize(dtype))


@pytest.mark.parametrize("rows", [1, 100, 2000])
def test_double_quantization_equals_bitsandbytes(rows):
    functional = theirs().functional
    weight = weights(rows, 128, seed=9)
    ours = bnb.quantize(weight)
    packed, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=True)
    assert torch.equal(torch.tensor(dynamic_map().values), state.state2.code)
    assert torch.equal(state.state2.absmax, ours.stored_scales.absmax) and torch.equal(
        state.offset, ours.stored_scales.offset
    )
    # Their CPU kernel looks codes up in a table, and sometimes misses the nearest by one; then ours must be nearer.
    nested, codes, exact = ours.stored_scales, state.absmax, bnb.quantize(weight, double=False).scales.flatten()
    missed = codes != nested.codes.flatten()
    assert missed.float().mean() < 3e-3 and ((codes.int() - nested.codes.flatten().int()).abs() <= 1).all()
    their_scales = functional.dequantize_blockwise(codes, state.state2) + state.offset
    assert ((nested.decode().flatten() - exact).abs() < (their_scales - exact).abs())[missed].all()
    assert torch.equal(nested.decode().flatten()[~missed], their_scales[~missed])
    same = ~missed.reshape(rows, 2).any(dim=1)
    assert torch.equal(functional.dequantize_4bit(packed, state)[same], ours.dequantize()[same])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_int8_codes_equal_bitsandbytes(dtype):
    functional = theirs().functional
    weight = torch.cat([crafted()[1:], weights(500, 128, seed=10)]).to(dtype).float()
    ours = bnb.quantize(weight, bnb.INT8)
    codes, absmax, _ = functional.int8_vectorwise_quant(weight.clone())
    assert torch.equal(absmax, ours.scales[:, 0])
    assert torch.equal(codes.int() + 128, ours.codes.int())


def test_int8_inputs_and_outliers_equal_bitsandbytes():
    functional = theirs().functional
    x = torch.randn(60, 128, generator=torch.Generator().manual_seed(11))
    x[:, [5, 90]] *= 9
    codes, absmax, outliers = bnb.quantize_rows(x, bnb.THRESHOLD)
    their_codes, their_absmax, columns = functional.int8_vectorwise_quant(x.clone(), threshold=bnb.THRESHOLD)
    assert outliers.nonzero().flatten().tolist() == columns.tolist() != []
    assert torch.equal(their_absmax, absmax) and torch.equal(their_codes.float(), codes)
    weight = weights(32, 128, seed=12)
    weight_codes, weight_absmax, _ = functional.int8_vectorwise_quant(weight.clone())
    product = torch.ops.bitsandbytes.int8_mixed_scaled_mm.default  # what their layer calls on a GPU
    expected, _ = product(x, their_codes, weight_codes, their_absmax, weight_absmax, columns)
    ours = Int8Linear.from_quantized(bnb.quantize(weight, bnb.INT8))(x)
    # They round the integer part to float16 before they add the outliers.
    assert (ours - expected).abs().max() <= 1e-3 * expected.abs().max()

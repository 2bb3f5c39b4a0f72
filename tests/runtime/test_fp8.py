"""FP8 layers against a slow layer that rounds inputs and weights to values in a list of all E4M3 values."""

import pytest
import torch

import qtutor
from qtutor import rtn, runtime
from qtutor.core.float_grid import FP8
from qtutor.runtime.fp8 import Fp8Linear
from qtutor.runtime.kernels import fp8
from qtutor.runtime.kinds import linear_for
from qtutor.runtime.linear import QuantLinear
from tests.models import some_ids, tiny
from tests.reference.fp8_inputs import Fp8Inputs, e4m3


def some(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("group_size", [-1, 0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_product_is_the_one_of_rounded_inputs(group_size, dtype):
    weight, x = some(24, 96, 0), some(7, 96, 1)
    x[2] = 0  # a token of zeros
    x[3] *= 1e4
    x[4, 5] = 300.0  # a token whose other inputs are small beside its largest
    quantized = rtn.quantize(weight, FP8, group_size)
    largest = weight.abs().amax(1, keepdim=True) if group_size else weight.abs().max()
    assert torch.equal(quantized.dequantize(), (e4m3(weight / (largest / 448)).float() * (largest / 448)))
    layer, slow = Fp8Linear.from_quantized(quantized), Fp8Inputs(quantized.dequantize())
    y, exact = layer(x.to(dtype)), slow(x.to(dtype))
    assert y.dtype == dtype
    # Products are exact. The float32 sums of 96 products and the rounding to x's dtype are not.
    step = 2.0**-7 if dtype == torch.bfloat16 else 1e-5
    size = x.abs().amax(1, keepdim=True) * weight.norm(dim=1)
    assert ((y.float() - exact.float()).abs() <= step * exact.float().abs() + 1e-6 * size).all()
    assert not y[2].any()


def test_shapes_blocks_of_rows_and_biases(monkeypatch):
    layer = Fp8Linear.from_quantized(rtn.quantize(some(24, 96, 0), FP8, -1), torch.arange(24.0))
    x = some(6, 96, 1)
    whole = layer(x)
    assert torch.equal(layer(x.reshape(2, 3, 96)).reshape(6, 24), whole) and layer(x[:0]).shape == (0, 24)
    monkeypatch.setattr(fp8, "BLOCK_ROWS", 7)
    assert torch.allclose(layer(x), whole, atol=1e-5)


def test_a_tokens_result_does_not_depend_on_its_neighbours():
    layer, x = Fp8Linear.from_quantized(rtn.quantize(some(24, 96, 0), FP8, -1)), some(6, 96, 1)
    alone = torch.cat([layer(token[None]) for token in x])
    assert torch.allclose(layer(x), alone, atol=1e-5)


def test_which_layer_is_made_of_it():
    model = tiny()
    report = qtutor.quantize(model, qtutor.Recipe("fp8"), progress=False)
    layers = [layer for layer in model.modules() if isinstance(layer, QuantLinear)]
    assert len(layers) == 14 and {type(layer) for layer in layers} == {Fp8Linear} == {linear_for(FP8)}
    assert {layer.group_size for layer in layers} == {-1} and torch.isfinite(model(some_ids()).logits).all()
    assert max(row.error for row in report.rows) < 0.04 and min(row.bits_per_weight for row in report.rows) > 8


def test_no_other_kernel_can_be_asked_for(capsys):
    model = tiny()
    qtutor.quantize(model, qtutor.Recipe("fp8"), progress=False)
    with pytest.raises(qtutor.QtutorError, match="no packed layer"):
        runtime.use(model, kernel="reference")
    layer = next(layer for layer in model.modules() if isinstance(layer, Fp8Linear))
    runtime.explain(layer)
    assert layer.kernel(torch.ones(1, 64)) is fp8
    assert capsys.readouterr().out.splitlines()[1:] == ["  fp8  used: layers of this kind have no other kernel"]

"""SINQ: what its scales do to a matrix, and what is rounded with them."""

import pytest
import torch

import qtutor
from qtutor import rtn
from qtutor.core.grid import IntGrid
from qtutor.methods import sinq
from qtutor.runtime.scaled import ScaledLinear
from tests.reference import sinq_package


def some(rows: int, columns: int, seed: int, size: float = 0.02) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * size


def uneven(rows: int = 64, columns: int = 128) -> torch.Tensor:
    """Some columns and rows are larger than the others."""
    weight = some(rows, columns, 0)
    weight[:, ::16] *= 5
    weight[::8] *= 3
    return weight


def test_scales_even_out_rows_and_columns():
    weight = uneven()
    rows, columns = sinq.balance(weight)
    after = sinq.imbalance(weight / rows[:, None] / columns)
    assert sinq.imbalance(weight) > 8 and after < 2
    assert columns[::16].min() > 2 * columns[1::16].max()


def test_imbalance_by_hand():
    weight = torch.tensor([[0.0, 2.0], [0.0, 4.0]])  # rows deviate by sqrt 2 and sqrt 8, columns by 0 and sqrt 2
    assert sinq.imbalance(weight[:, 1:] * torch.tensor([[1.0, -1.0]])) > 0
    assert sinq.imbalance(torch.tensor([[1.0, -1.0], [-2.0, 2.0]])) == pytest.approx(2.0)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [3, 4])
def test_uneven_weights_are_rounded_better(bits, symmetric):
    """The columns that are large here are so by a factor; what is measured is each weight's error over its column's."""
    weight, grid = uneven(), IntGrid(bits, symmetric)
    quantized, columns = sinq.quantize(weight, grid, 32)
    spread = weight.std(dim=0)
    errors = [
        ((back - weight) / spread).norm().item()
        for back in (quantized.dequantize() * columns, rtn.quantize(weight, grid, 32).dequantize())
    ]
    assert errors[0] < 0.8 * errors[1]


def test_an_even_matrix_and_single_rows_stay_as_they_are():
    assert all((scales == 1).all() for scales in sinq.balance(some(1, 64, 0)))
    quantized, columns = sinq.quantize(some(1, 64, 0), IntGrid(4), 32)
    assert torch.equal(quantized.codes, rtn.quantize(some(1, 64, 0), IntGrid(4), 32).codes) and (columns == 1).all()
    weight = some(64, 64, 1)
    quantized, columns = sinq.quantize(weight, IntGrid(4), 32)
    rounded = rtn.quantize(weight, IntGrid(4), 32)
    errors = [(back - weight).norm() for back in (quantized.dequantize() * columns, rounded.dequantize())]
    assert errors[0] < 1.1 * errors[1]


def test_a_layer_computes_with_it():
    weight, x = uneven(), some(5, 128, 3, 1.0)
    quantized, columns = sinq.quantize(weight, IntGrid(4), 32)
    layer = ScaledLinear.from_scaled(quantized, columns)
    assert torch.allclose(layer(x), x @ (quantized.dequantize() * columns).T, atol=1e-4)
    assert torch.allclose(layer.dequantized(), quantized.dequantize() * columns)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_scales_and_errors_are_those_of_the_package(bits):
    """By an independent page that follows its source, on uneven weights and on the embedded decoder's."""
    model, _ = qtutor.load_decoder(device="cpu")
    layers = model.model.layers
    for weight in (uneven(), layers[0].self_attn.q_proj.weight.detach(), layers[1].mlp.down_proj.weight.detach()):
        rows, columns = sinq.balance(weight)
        for ours, theirs in zip((rows, columns), sinq_package.scales(weight.numpy())):
            assert torch.allclose(ours.double(), torch.from_numpy(theirs), rtol=1e-4)
        quantized, columns = sinq.quantize(weight, IntGrid(bits), 64)
        theirs = torch.from_numpy(sinq_package.quantize(weight.numpy(), bits, 64))
        errors = [(back - weight).abs().mean().item() for back in (quantized.dequantize() * columns, theirs)]
        assert errors[0] == pytest.approx(errors[1], rel=2e-3)  # our scales are stored in 16 bits


def test_weights_that_are_no_numbers_are_refused():
    weight = uneven()
    weight[0, 0] = torch.inf
    with pytest.raises(qtutor.QtutorError, match="NaN or infinite"):
        sinq.quantize(weight, IntGrid(4), 32)

"""SINQ: the effect of its scales on a matrix, and rounding with them."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qtutor
from qtutor import cli, rtn
from qtutor.core.grid import IntGrid
from qtutor.doctor.patient import opened
from qtutor.methods import sinq
from qtutor.runtime.linear import QuantLinear
from qtutor.runtime.scaled import ScaledLinear
from tests.gguf.small_tokenizers import letters
from tests.models import some_ids, tiny
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
    """Some columns are larger by a factor. So each weight's error is divided by the spread of its column."""
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
    """The package is represented by an independent page that follows its source.

    Both are compared on uneven weights and on the embedded decoder's weights.
    """
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


def edges() -> torch.Tensor:
    """Weights with rows and columns of zeros or of one number, one outlier, and a row of tiny weights."""
    weight = uneven()
    weight[0], weight[1], weight[:, 0], weight[:, 1] = 0, 0.25, 0, -0.5
    weight[2, 5], weight[3] = 40.0, weight[3] * 1e-6
    return weight


@pytest.mark.parametrize("weight", [edges(), torch.zeros(8, 32), torch.full((8, 32), 0.3), edges() * 1e3])
def test_edges_stay_numbers(weight):
    quantized, columns = sinq.quantize(weight, IntGrid(8), 32)
    back = quantized.dequantize() * columns
    assert back.isfinite().all() and (columns > 0).all()
    largest = weight.reshape(len(weight), -1, 32).abs().amax(-1, keepdim=True) * columns.max() / columns.min()
    off = (back - weight).abs().reshape(len(weight), -1, 32)
    assert (off <= largest / 255 + 1e-4 + 1e-3 * largest).all()
    assert (back[(weight == 0).all(dim=1)] == 0).all()


@settings(deadline=None, max_examples=40)
@given(bits=st.integers(2, 8), symmetric=st.booleans(), seed=st.integers(0, 999), power=st.integers(-3, 3))
def test_no_weight_is_further_off_than_its_step(bits, symmetric, seed, power):
    """The error of a weight is at most half a step of its group, times its column's scale. It is a little larger with
    zero points and 16-bit scales, and a symmetric grid clips the largest weight by up to a whole step."""
    weight = some(6, 64, seed) * 2.0**power * (1 + 9 * (torch.arange(64) % 16 == 0))
    quantized, columns = sinq.quantize(weight, IntGrid(bits, symmetric), 16)
    step = quantized.scales.float().repeat_interleave(16, dim=1) * columns
    assert ((quantized.dequantize() * columns - weight).abs() <= 1.01 * step).all()


def test_a_recipe_makes_the_layers_of_the_function_and_counts_their_columns():
    model, ids = tiny("qwen2"), some_ids()  # with biases
    exact, report = copy.deepcopy(model), qtutor.quantize(model, qtutor.Recipe("sinq", group_size=32), progress=False)
    expected = copy.deepcopy(exact)
    for row in report.rows:
        before, layer = exact.get_submodule(row.name), model.get_submodule(row.name)
        quantized, columns = sinq.quantize(before.weight.detach(), IntGrid(4), 32)
        assert type(layer) is ScaledLinear and torch.equal(layer.input_scale, columns)
        assert torch.equal(layer.quantized().codes, quantized.codes)
        assert row.bytes_after == quantized.nbytes + 4 * len(columns)
        error = (quantized.dequantize() * columns - before.weight).norm() / before.weight.norm()
        assert row.error == pytest.approx(error.item(), rel=1e-5)
        expected.get_submodule(row.name).weight.data = quantized.dequantize() * columns
    torch.testing.assert_close(model(ids).logits, expected(ids).logits, rtol=1e-3, atol=1e-4)


def test_among_calibrated_layers_columns_are_multiplied_back():
    """The report's errors and the inputs of later layers come from the weights that the layer computes with."""
    model, ids = tiny(), some_ids(16, 32)
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight[:, ::8] *= 6
    exact, layers = copy.deepcopy(model), {"*.q_proj": {"method": "sinq"}}
    recipe = qtutor.Recipe("gptq", group_size=32, propagate=False, layers=layers)
    report = qtutor.quantize(model, recipe, ids, progress=False)
    for row in report.rows:
        layer, weight = model.get_submodule(row.name), exact.get_submodule(row.name).weight
        assert (type(layer) is ScaledLinear) == ("q_proj" in row.name)
        assert row.error == pytest.approx(((layer.dequantized() - weight).norm() / weight.norm()).item(), rel=1e-4)
    first = report.rows[0]
    assert first.name.endswith("0.self_attn.q_proj") and 0.5 * first.error < first.output_error < 2 * first.error


def test_a_folder_comes_back_and_other_formats_say_why_not(tmp_path):
    model, ids = tiny("qwen2", tied=False), some_ids()
    qtutor.quantize(model, qtutor.Recipe("sinq", group_size=32, symmetric=True, lm_head=True), progress=False)
    qtutor.export(model, tmp_path / "ours", tokenizer=letters())
    back = qtutor.load_quantized(tmp_path / "ours", device="cpu")
    assert torch.equal(back(ids).logits, model(ids).logits) and back.qtutor_recipe["method"] == "sinq"
    assert type(back.lm_head) is QuantLinear  # the output matrix is rounded to nearest by every method
    for form in ("compressed-tensors", "gptq", "awq", "modelopt", "mlx"):
        with pytest.raises(qtutor.QtutorError, match="inputs that are each multiplied by a number"):
            qtutor.export(model, tmp_path / form, format=form)
        assert not (tmp_path / form).exists()


def test_a_gguf_file_holds_the_weights_with_their_columns(tmp_path):
    model, ids = tiny(), some_ids()
    qtutor.quantize(model, qtutor.Recipe("sinq", group_size=32), progress=False)
    file = qtutor.export(model, tmp_path / "out.gguf", format="gguf", type="F32", tokenizer=letters())
    torch.testing.assert_close(
        qtutor.load_decoder(file, device="cpu")[0](ids).logits, model(ids).logits, atol=1e-4, rtol=0
    )


def test_the_command_line_writes_it_and_inspects_it(tmp_path, capsys):
    out = str(tmp_path / "out")
    assert cli.main(["quantize", "embedded", out, "--method", "sinq", "--bits", "3"]) == 0
    assert cli.main(["inspect", out]) == 0
    text = capsys.readouterr().out
    assert "3          64  asymmetric, columns" in text and "method = 'sinq'" in text
    embedded, model = (qtutor.load(name, device="cpu")[0] for name in ("embedded", out))
    for layer in opened(out, "embedded", None).layers():  # exact: FLOAT's weights, divided by the columns' scales
        assert (layer.quantized.dequantize() - layer.exact).norm() < 0.25 * layer.exact.norm()
        columns = model.get_submodule(layer.name).input_scale
        assert torch.allclose(layer.exact * columns, embedded.get_submodule(layer.name).weight, atol=1e-6)
    assert cli.main(["doctor", out, "--against", "embedded"]) == 0
    text = capsys.readouterr().out
    assert "healthy" in text and "is multiplied by its own number" not in text.split("Which engines take it")[0]

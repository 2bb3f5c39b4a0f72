"""The widget of chapter 06: its numbers are GPTQ's own, step by step, in any order of the columns."""

import json
import re
from html import unescape

import numpy as np
import pytest
import torch

from qtutor import gptq, rtn
from qtutor.core.grid import IntGrid
from qtutor.course.widgets.gptq import duel, duel_data, presets, trace
from qtutor.errors import QtutorError
from tests.reference import gptq as reference

WIDTH = 20
ORDERS = [list(range(WIDTH)), list(range(WIDTH))[::-1], torch.randperm(WIDTH, generator=torch.manual_seed(3)).tolist()]


@pytest.fixture(scope="module")
def layer():
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(300, 24, generator=generator) + torch.randn(300, 1, generator=generator)).double()
    x[:, 5] *= 8
    return torch.randn(12, 24, generator=generator), x


@pytest.fixture(scope="module")
def row(layer):
    weight, x = layer
    return weight[3, :WIDTH], x[:, :WIDTH]


@pytest.mark.parametrize("order", ORDERS, ids=["as stored", "reversed", "shuffled"])
@pytest.mark.parametrize("bits", [2, 4])
def test_the_steps_end_where_re_inverting_after_every_column_ends(row, bits, order):
    weight, x = row
    hessian = x.T @ x
    found = trace(weight, hessian, bits, order)
    expected = reference.quantize(
        weight[None].numpy(), hessian.numpy(), bits, False, WIDTH, gptq.DAMPING, order, static=True
    )
    assert np.allclose(found.states[-1].numpy(), expected[0], atol=1e-5)


def test_a_step_rounds_one_column_and_moves_those_that_are_left(row):
    weight, x = row
    order, nearest = ORDERS[2], rtn.quantize(weight[None], IntGrid(3), -1)
    levels = nearest.scales[0, 0].double() * (torch.arange(8) - nearest.zeros[0, 0].double())
    found = trace(weight, x.T @ x, 3, order)
    assert torch.equal(found.states[0], weight.double())
    for step, column in enumerate(order):
        before, after = found.states[step], found.states[step + 1]
        assert torch.equal(before[order[:step]], after[order[:step]])
        assert (levels - after[column]).abs().min() < 1e-6
        assert (before[order[step + 1 :]] != after[order[step + 1 :]]).all()


def test_the_errors_are_those_of_the_outputs(row):
    weight, x = row
    order, exact = ORDERS[2], x @ weight.double()
    found = trace(weight, x.T @ x, 3, order)
    nearest = rtn.quantize(weight[None], IntGrid(3), -1).dequantize()[0].double()
    for step in (0, 1, 11, WIDTH):
        mixed = weight.double().clone()
        mixed[order[:step]] = nearest[order[:step]]
        for errors, state in ((found.gptq, found.states[step]), (found.rtn, mixed)):
            error = (x @ state - exact).norm() / exact.norm()
            assert errors[step].item() == pytest.approx(error.item(), rel=1e-3, abs=1e-7)


def test_over_many_rows_gptq_wins(layer):
    """With a single row, rounding to nearest may win by chance."""
    weight, x = layer
    ends = [trace(row[:WIDTH], x.T[:WIDTH] @ x[:, :WIDTH], 3, ORDERS[0]) for row in weight]
    assert sum(of.gptq[-1] for of in ends) < 0.8 * sum(of.rtn[-1] for of in ends)


def test_independent_inputs_push_nothing(row):
    found = trace(row[0], torch.eye(WIDTH), 3, ORDERS[2])
    torch.testing.assert_close(found.gptq, found.rtn, rtol=1e-5, atol=1e-7)


def test_the_orders_of_the_buttons(row):
    orders = presets(row[1].T @ row[1])
    assert orders["as stored"] == list(range(WIDTH)) and orders["large inputs first"][0] == 5
    assert orders["small inputs first"] == orders["large inputs first"][::-1]
    assert all(sorted(order) == list(range(WIDTH)) for order in orders.values())


def test_what_the_page_gets_is_the_row_its_grid_and_both_matrices(row):
    weight, x = row
    hessian, nearest = x.T @ x, rtn.quantize(row[0][None], IntGrid(3), -1)
    data = duel_data(weight, hessian, 3, range(100, 120))
    assert json.loads(json.dumps(data)) == data  # plain lists and numbers
    assert data["inputs"] == list(range(100, 120)) and np.allclose(data["weights"], weight)
    damped = hessian + gptq.DAMPING * hessian.diagonal().mean() * torch.eye(WIDTH)
    assert np.allclose(data["inverse"], torch.linalg.inv(damped), rtol=1e-4, atol=1e-9)
    w = np.array(data["weights"])
    assert w @ np.array(data["hessian"]) @ w == pytest.approx(1)  # errors are relative to the row's output
    assert np.allclose(np.array(data["hessian"]) * data["hessian"][0][0] ** -1, hessian / hessian[0, 0], rtol=1e-6)
    assert max(data["sizes"]) == data["sizes"][5] == 1
    codes = np.clip(np.rint(w / data["scale"]) + data["zero"], 0, data["largest"])
    assert np.array_equal(codes, nearest.codes[0]) and data["largest"] == 7
    ends = [trace(weight, hessian, 3, order) for order in presets(hessian).values()]
    assert data["top"] == pytest.approx(max(max(of.gptq.max(), of.rtn.max()) for of in ends).item())


def test_the_widget_takes_the_row_and_the_inputs_that_it_is_told(layer):
    weight, x = layer
    hessian, inputs = x.T @ x, [1, 5, 7, 8, 11, 12, 20, 23]
    explorer = duel(weight, hessian, 4, inputs, frames={})
    bits, shown = explorer.children
    for width in (3, 2):
        bits.value = width
        data = json.loads(unescape(re.search(r'data-duel="([^"]*)"', shown.value)[1]))
        assert data == duel_data(weight[4, inputs], hessian[inputs][:, inputs], width, inputs)
        # A browser may run the script while it is still reading the page, so what the script changes comes before it.
        assert shown.value.index("class='play'") < shown.value.index("<style onload")
        assert f"Output 4 of the layer, 8 of its inputs, {width} bits" in shown.value


def test_without_scripts_a_table_says_how_every_order_ends(layer):
    weight, x = layer
    hessian, inputs = x.T @ x, list(range(WIDTH))
    explorer = duel(weight, hessian, 3, inputs)
    stored = json.loads(re.search(r'<script type="application/json">(.*?)</script>', explorer.still, re.DOTALL)[1])
    assert len(stored) == len(set(stored)) == 3 and len(explorer.still) < 200_000
    for bits, frame in zip((2, 3, 4), stored):
        cells = re.findall(r"<td[^>]*>(.*?)</td>", frame)
        for at, (name, order) in enumerate(presets(hessian[:WIDTH, :WIDTH]).items()):
            found = trace(weight[3, inputs], hessian[:WIDTH, :WIDTH], bits, order)
            assert cells[3 * at : 3 * at + 3] == [name, f"{found.gptq[-1]:.2%}", f"{found.rtn[-1]:.2%}"]


def test_inputs_and_rows_that_are_not_there_are_refused(layer):
    weight, x = layer
    for row, inputs in ((12, [0, 1]), (0, [3, 24]), (0, []), (-1, [0])):
        with pytest.raises(QtutorError, match="the layer has rows 0 to 11 and inputs 0 to 23"):
            duel(weight, x.T @ x, row, inputs)

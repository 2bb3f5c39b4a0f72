"""The widget of chapter 06: what it draws is GPTQ, step by step, and it answers at once."""

import json
import re
import time

import numpy as np
import pytest
import torch

from qtutor import gptq, rtn
from qtutor.core.grid import IntGrid
from qtutor.course.widgets.gptq import column_stepper, trace
from qtutor.errors import QtutorError
from tests.reference import gptq as reference


@pytest.fixture(scope="module")
def layer():
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(300, 24, generator=generator) + torch.randn(300, 1, generator=generator)).double()
    x[:, 5] *= 8
    return torch.randn(20, 24, generator=generator), x


def cells(html: str) -> list[str]:
    return re.findall(r"<td[^>]*>(.*?)</td>", html)


@pytest.mark.parametrize("largest_first", [False, True])
@pytest.mark.parametrize("bits", [2, 4])
def test_the_steps_end_where_re_inverting_after_every_column_ends(layer, bits, largest_first):
    weight, x = layer
    hessian = x.T @ x
    found = trace(weight, hessian, bits, largest_first)
    order = hessian.diagonal().argsort(descending=True).tolist() if largest_first else list(range(24))
    assert found.order.tolist() == order
    expected = reference.quantize(weight.numpy(), hessian.numpy(), bits, False, 24, gptq.DAMPING, order, static=True)
    assert np.allclose(found.states[-1].numpy(), expected[:, order], atol=1e-4)


def test_a_step_rounds_one_column_and_moves_those_on_its_right_alone(layer):
    weight, x = layer
    found = trace(weight, x.T @ x, 3)
    grid, nearest = IntGrid(3), rtn.quantize(weight, IntGrid(3), -1)
    for step in range(1, 25):
        before, after = found.states[step - 1], found.states[step]
        assert torch.equal(before[:, : step - 1], after[:, : step - 1])
        level = grid.decode(found.codes[:, step - 1], nearest.scales[:, 0], nearest.zeros[:, 0])
        torch.testing.assert_close(after[:, step - 1], level, rtol=0, atol=1e-5)
        if step < 24:
            assert (before[:, step:] != after[:, step:]).any()


def test_the_errors_are_those_of_the_outputs(layer):
    weight, x = layer
    found = trace(weight, x.T @ x, 3)
    exact = x @ weight.double().T
    nearest = rtn.quantize(weight, IntGrid(3), -1).dequantize().double()
    for step in (0, 1, 11, 24):
        by_gptq = (x @ found.states[step].double().T - exact).norm() / exact.norm()
        mixed = torch.cat([nearest[:, :step], weight.double()[:, step:]], dim=1)
        by_rtn = (x @ mixed.T - exact).norm() / exact.norm()
        assert found.gptq[step].item() == pytest.approx(by_gptq.item(), rel=1e-3, abs=1e-9)
        assert found.rtn[step].item() == pytest.approx(by_rtn.item(), rel=1e-3, abs=1e-9)
    assert found.gptq[-1] < 0.8 * found.rtn[-1]


def test_independent_inputs_push_nothing(layer):
    found = trace(layer[0], torch.eye(24), 3)
    assert torch.equal(found.codes, rtn.quantize(layer[0], IntGrid(3), -1).codes)
    torch.testing.assert_close(found.gptq, found.rtn, rtol=1e-5, atol=1e-9)


def test_the_widget_shows_the_step_that_its_controls_name(layer):
    weight, x = layer
    hessian = x.T @ x
    explorer = column_stepper(weight, hessian, columns=slice(2, 18), bits=3, frames={})
    step, bits, largest_first, shown = explorer.children
    part, inputs = weight[:16, 2:18], hessian[2:18, 2:18]
    seen = set()
    for settings in ((0, 3, False), (7, 3, False), (7, 2, False), (7, 2, True), (16, 8, True)):
        step.value, bits.value, largest_first.value = settings
        found = trace(part, inputs, *settings[1:])
        numbers = cells(shown.value)
        assert numbers[0] == f"{settings[0]} of 16"
        assert numbers[1] == (str(int(found.order[settings[0] - 1]) + 2) if settings[0] else "-")
        assert numbers[3:5] == [f"{found.gptq[settings[0]]:.2%}", f"{found.rtn[settings[0]]:.2%}"]
        assert f"after {settings[0]} steps of GPTQ at {settings[1]} bits" in shown.value
        seen.add(shown.value)
    assert len(seen) == 5


def test_it_starts_at_the_step_that_moves_the_others_most(layer):
    weight, x = layer
    explorer = column_stepper(weight, x.T @ x, columns=slice(0, 24), bits=2, frames={})
    moves = trace(weight[:16], x.T @ x, 2).states.diff(dim=0).square()
    most = max(range(24), key=lambda column: moves[column, :, column + 1 :].sum())
    assert explorer.children[0].value == most + 1


def test_without_a_kernel_there_are_frames_and_each_is_described(layer):
    explorer = column_stepper(layer[0], layer[1].T @ layer[1], columns=slice(0, 16))
    stored = json.loads(re.search(r'<script type="application/json">(.*?)</script>', explorer.still, re.DOTALL)[1])
    assert len(stored) == len(set(stored)) >= 15
    for frame in stored:
        assert len(re.search(r'<img alt="([^"]*)"', frame)[1]) > 100
        assert len(cells(frame)) == 6


def test_a_move_answers_at_once():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 64, generator=generator).double()
    weight = torch.randn(512, 64, generator=generator)
    explorer = column_stepper(weight, x.T @ x, frames={})
    step = explorer.children[0]
    spent = []
    for value in (3, 40, 11, 64):
        start = time.process_time()
        step.value = value
        spent.append(time.process_time() - start)
    assert min(spent) < 0.15  # of this process alone: other work on the machine does not count


def test_columns_that_are_not_there_are_refused(layer):
    with pytest.raises(QtutorError, match="columns 30 to 40"):
        column_stepper(layer[0], layer[1].T @ layer[1], columns=slice(30, 40))

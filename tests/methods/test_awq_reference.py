"""AWQ compared with the slow version, which computes with every number and every token in turn."""

import itertools

import pytest
import torch

from qtutor import IntGrid, awq, rtn
from qtutor.methods import clip
from tests.methods.test_awq import layer, with_outliers
from tests.reference import awq as slow


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("group", [8, 32])
def test_the_search_is_the_slow_one(bits, group):
    made, x = layer(6, 32, seed=bits), with_outliers(20, 32, seed=group, count=3)
    found = awq.search([made], [x[:7], x[7:]], x.abs().mean(dim=0), made, IntGrid(bits), group)
    ratios = [step / awq.RATIOS for step in range(awq.RATIOS)]
    for ratio in ratios:
        assert torch.allclose(awq.scale_of(x.abs().mean(0), ratio), torch.tensor(slow.scales(x.tolist(), ratio)))
    expected = slow.errors(made.weight.tolist(), x.tolist(), ratios, bits, group)
    assert found.errors == pytest.approx(expected, rel=1e-4)  # float32 and float64
    assert found.ratio == ratios[expected.index(min(expected))]


@pytest.mark.parametrize("group", [4, 16, 32])
@pytest.mark.parametrize("ratio", [0.05, 0.5, 0.95])
def test_duo_scales_are_the_slow_ones(ratio, group):
    weights, x = [layer(rows, 32, seed=rows).weight.data for rows in (6, 5)], with_outliers(20, 32, seed=1, count=3)
    weights[0][2, :group] = 0  # a group of zeros
    for tensor in weights:
        tensor[:, 9] = 0  # a column of zeros; column 5 gets inputs of zeros
    x[:, 5] = 0
    found = awq.scale_of(x.abs().mean(dim=0), ratio, weights, group)
    rows = [row for tensor in weights for row in tensor.tolist()]
    expected = torch.tensor(slow.duo_scales(x.tolist(), rows, ratio, group))
    assert torch.allclose(found, expected, rtol=1e-4)
    assert not torch.allclose(found, awq.scale_of(x.abs().mean(dim=0), ratio), rtol=1e-2)
    whole_rows = awq.scale_of(x.abs().mean(dim=0), ratio, weights, x.shape[1])
    assert torch.equal(awq.scale_of(x.abs().mean(dim=0), ratio, weights), whole_rows)


@pytest.mark.parametrize("bits", [2, 3])
def test_ranges_judged_group_by_group_are_the_cheapest_by_tokens(bits):
    """llm-awq's clipping: each group is judged by itself."""
    weight, x = layer(5, 32, seed=bits).weight.data, with_outliers(40, 32, seed=bits, count=3)
    own = torch.stack([x[:, start : start + 16].T @ x[:, start : start + 16] for start in (0, 16)])
    grouped, grid = weight.reshape(5, 2, 16), IntGrid(bits)
    scale, zero = clip.search(grouped, grid, lambda error: torch.einsum("ogi,gij,ogj->og", error, own, error))
    whole, _ = rtn.fit_groups(grouped, grid)
    error = grid.decode(rtn.encode_groups(grouped, scale, zero, grid), scale[..., None], zero[..., None]) - grouped
    narrowed = 0
    for row in range(5):
        for group in range(2):
            tokens = x[:, 16 * group : 16 * group + 16].double()
            cost, kept = slow.cheapest(grouped[row, group].tolist(), tokens.tolist(), bits)
            # Both choose the cheapest of the same 21 ranges. If two ranges cost nearly the same, sums in float32 may
            # choose a different one.
            assert (tokens @ error[row, group].double()).square().sum().item() == pytest.approx(cost, rel=1e-3)
            assert (kept < 1) == bool(scale[row, group] < whole[row, group])
            narrowed += kept < 1
    assert narrowed > 3


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_ranges_judged_in_turns_never_make_a_row_worse_than_whole_ranges(bits):
    weight, x = layer(12, 64, seed=bits).weight.data, with_outliers(200, 64, seed=bits)
    ours, whole = awq.quantize(weight, x.T @ x, IntGrid(bits), 16), rtn.quantize(weight, IntGrid(bits), 16)
    errors = [(x.double() @ (q.dequantize() - weight).double().T).square().sum(dim=0) for q in (ours, whole)]
    assert (errors[0] <= errors[1] * (1 + 1e-4)).all()
    assert errors[0].sum() < 0.9 * errors[1].sum()


@pytest.mark.parametrize("rounds", [0, 4])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_ranges_judged_in_turns_are_the_slow_ones_over_outputs(bits, rounds):
    """The slow version goes row by row and group by group. For each try, it rounds every number, and computes the
    output of every token."""
    weight, x, grid = layer(4, 24, seed=bits).weight.data, with_outliers(30, 24, seed=bits, count=2), IntGrid(bits)
    tries = []
    for turn in range(rounds + 1):
        factors, shifts = clip.neighbours(grid, turn)
        tries.append(list(zip(factors[:, 0].tolist(), shifts[:, 0].tolist())))
    scale, zero = clip.search_together(weight.reshape(4, 3, 8), (x.T @ x).double(), grid, rounds)
    same = 0
    for row in range(4):
        found = slow.in_turns(weight[row].tolist(), x.tolist(), bits, 8, tries)
        same += found == list(zip(scale[row].tolist(), zero[row].tolist()))
    assert (
        same >= 3
    )  # if two ranges cost nearly the same, sums in float32 may choose differently, and one choice changes others


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_other_groups_errors_may_be_multiplied_in_bfloat16(bits, monkeypatch):
    """The choice of a range depends mostly on the group's own part of the Hessian, which stays in float32."""
    weight, x, grid = layer(64, 192, seed=bits).weight.data, with_outliers(600, 192, seed=bits), IntGrid(bits)
    linear, seen, costs = torch.nn.functional.linear, set(), []
    monkeypatch.setattr(torch.nn.functional, "linear", lambda *given: (
        seen.update(factor.dtype for factor in given), linear(*given))[1])  # fmt: skip
    for dtype in (torch.float32, torch.bfloat16):
        seen.clear()
        found = awq.quantize(weight, (x.T @ x).double(), grid, 16, dtype)
        assert seen == {dtype}
        costs.append((x.double() @ (found.dequantize() - weight).double().T).square().sum())
    whole = rtn.quantize(weight, grid, 16).dequantize()
    costs.append((x.double() @ (whole - weight).double().T).square().sum())
    assert costs[1] < 1.01 * costs[0] and costs[1] < 0.9 * costs[2]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_more_rounds_never_cost_more(bits, symmetric, monkeypatch):
    """Each round begins with the result of the round before. The cost is that of whole rows, over all tokens."""
    monkeypatch.setattr(clip, "ROWS", 5)  # rows are searched in parts; the last part is smaller
    weight, x, grid = layer(12, 64, seed=bits).weight.data, with_outliers(200, 64, seed=bits), IntGrid(bits, symmetric)
    grouped, costs = weight.reshape(12, 4, 16), []
    ranges = [rtn.fit_groups(grouped, grid)] + [
        clip.search_together(grouped, x.T @ x, grid, rounds) for rounds in range(5)
    ]
    for scale, zero in ranges:
        error = clip.rounding_errors(grouped, scale, zero, grid).flatten(1).double()
        costs.append((x.double() @ error.T).square().sum(dim=0))
    for before, after in itertools.pairwise(costs):
        assert (after <= before * (1 + 1e-3)).all()  # sums in float32
    assert costs[-1].sum() < (0.8 if bits < 8 else 0.9) * costs[0].sum()

"""AWQ against the slow version that looks at every number and every token."""

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
    assert found.errors == pytest.approx(expected, rel=1e-4)  # float32 against float64
    assert found.ratio == ratios[expected.index(min(expected))]


@pytest.mark.parametrize("group", [4, 16, 32])
@pytest.mark.parametrize("ratio", [0.05, 0.5, 0.95])
def test_duo_scales_are_the_slow_ones(ratio, group):
    weights, x = [layer(rows, 32, seed=rows).weight.data for rows in (6, 5)], with_outliers(20, 32, seed=1, count=3)
    weights[0][2, :group] = 0  # a group of zeros
    for tensor in weights:
        tensor[:, 9] = 0  # a column of zeros, the inputs of another
    x[:, 5] = 0
    found = awq.scale_of(x.abs().mean(dim=0), ratio, weights, group)
    rows = [row for tensor in weights for row in tensor.tolist()]
    expected = torch.tensor(slow.duo_scales(x.tolist(), rows, ratio, group))
    assert torch.allclose(found, expected, rtol=1e-4)
    assert not torch.allclose(found, awq.scale_of(x.abs().mean(dim=0), ratio), rtol=1e-2)


@pytest.mark.parametrize("bits", [2, 3])
def test_ranges_judged_group_by_group_are_the_cheapest_by_tokens(bits):
    """llm-awq's clipping: each group by itself."""
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
            # Both are the least of the same 21; sums in float32 tell ranges that cost nearly the same apart otherwise.
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

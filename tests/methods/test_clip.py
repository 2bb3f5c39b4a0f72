"""The search for narrower ranges: for any cost, it is never worse than the whole range; and its effect in GPTQ."""

import pytest
import torch

import qtutor
from qtutor import gptq, rtn
from qtutor.core.grid import IntGrid, wider_ranges
from qtutor.core.quantized import PER_CHANNEL, PER_TENSOR
from qtutor.methods import clip
from tests.methods.test_gptq import correlated, output_error, weights


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_no_group_ends_above_what_its_whole_range_costs(bits, symmetric):
    grouped, grid = weights(12, 64, seed=bits).reshape(12, 4, 16), qtutor.IntGrid(bits, symmetric)
    importance = torch.rand(16, generator=torch.Generator().manual_seed(1)) ** 4

    def cost(error):
        return (error.square() * importance).sum(dim=-1)

    def total(scale, zero):
        codes = rtn.encode_groups(grouped, scale, zero, grid)
        return cost(grid.decode(codes, scale.unsqueeze(-1), zero.unsqueeze(-1)) - grouped)

    whole = rtn.fit_groups(grouped, grid)
    found = clip.search(grouped, grid, cost)
    assert (total(*found) <= total(*whole)).all()
    assert bits == 8 or (total(*found) < 0.98 * total(*whole)).any()
    assert all(torch.equal(a, b) for a, b in zip(clip.search(grouped, grid, lambda error: error[..., 0] * 0), whole))
    finer = clip.search(grouped, grid, cost, steps=40)  # every second of these ranges is one of the usual 20
    assert (total(*finer) <= total(*found)).all() and (total(*finer) < total(*found)).any()


@pytest.mark.parametrize("act_order", gptq.ACT_ORDERS)
@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize("group", [16, PER_CHANNEL, PER_TENSOR])
def test_gptq_clipped_by_its_own_count_on_independent_inputs(act_order, static, group):
    """H = diag(h): columns cannot compensate for each other, and an error e costs h e^2. So only the search matters."""
    weight, grid = weights(6, 64, seed=2), qtutor.IntGrid(3)
    importance = 0.1 + torch.rand(64, generator=torch.Generator().manual_seed(3))
    ours = gptq.quantize(
        weight, importance.diag(), grid, group, act_order=act_order, static_groups=static, clip="output", damping=0
    )
    if group == PER_TENSOR:  # a single range for the matrix is not narrowed
        assert torch.equal(ours.codes, rtn.quantize(weight, grid, group).codes)
        return
    grouped = weight.reshape(6, -1, 64 if group == PER_CHANNEL else group)
    counted = importance.reshape(grouped.shape[1:])
    scale, zero = clip.search(grouped, grid, lambda e: (e.square() * counted).sum(-1), shrink=0.6)  # down to 0.4
    same = (ours.scales == scale) & (ours.zeros == zero)
    assert same.float().mean() > 0.95  # the costs of two ranges may differ only in the last bit
    codes = rtn.encode_groups(grouped, ours.scales, ours.zeros, grid).reshape(6, 64)
    assert torch.equal(ours.codes, codes)


@pytest.mark.parametrize("bits", [2, 3])
def test_gptq_clipped_by_its_own_count_is_better_where_few_inputs_are_large(bits):
    """Plain "mse" narrows ranges even if the weight that is cut off is multiplied by a large input."""
    errors = {"none": 0.0, "mse": 0.0, "output": 0.0}
    for seed in range(6):
        weight, x = weights(48, 128, seed), correlated(512, 128, 400 + seed)
        x[:, torch.randperm(128, generator=torch.Generator().manual_seed(seed))[:6]] *= 10
        for how in errors:
            ours = gptq.quantize(weight, x.T @ x, qtutor.IntGrid(bits), 64, act_order="groups", clip=how)
            errors[how] += output_error(weight, ours, x)
    assert errors["output"] < min(errors["none"], errors["mse"])


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("symmetric", [False, True])
def test_first_narrower_ranges_then_smaller_and_smaller_parts_of_a_step(bits, symmetric):
    grid = IntGrid(bits, symmetric=symmetric)
    factors, shifts = clip.neighbours(grid, 0)
    narrower = factors[: 1 + len(clip.SHARES), 0].tolist()
    assert narrower[0] == 1 and narrower == sorted(narrower, reverse=True) and narrower[-1] > 0.5
    assert factors[1 + len(clip.SHARES) :, 0].tolist() == pytest.approx(wider_ranges(grid)) and not shifts.any()
    # How far the outermost level moves, in steps of the grid: more than one in the first of these rounds, then less.
    # A fourth round begins again.
    furthest = []
    for turn in (1, 2, 3, 4):
        factors, shifts = clip.neighbours(grid, turn)
        moved = (factors[:, 0] - 1) * (2**bits - 1)
        assert moved[0] == 0 and shifts[0] == 0  # first what the group has: if costs are equal, it stays
        assert torch.allclose(moved.sort().values, (-moved).sort().values, atol=1e-4)  # as far down as up
        assert set(shifts[:, 0].tolist()) == ({0} if symmetric else {-1, 0, 1})
        beside = [factors[shifts == shift] for shift in (-1, 1)]  # the zero is moved, too
        assert torch.equal(*beside)
        if not symmetric:  # below 4 bits a code is much of the range: more factors are tried for a moved zero
            assert beside[0][0] == 1 and (len(beside[0]) > 1) == (bits < 4)
        furthest.append(moved.max().item())
    assert furthest == pytest.approx([1.6, 0.8, 0.4, 1.6], abs=1e-4)


def test_a_zero_stays_a_code_even_where_more_would_help():
    """All weights are far from 0, on one side: a zero beyond the codes would make the steps finer."""
    x = correlated(200, 64, seed=3)
    for sign in (1, -1):
        grouped = sign * (20 + weights(12, 64, seed=1)).reshape(12, 4, 16)
        scale, zero = clip.search_together(grouped, x.T @ x, IntGrid(4))
        assert zero.dtype == torch.uint8 and zero.max() < 16
        codes = IntGrid(4).encode(grouped, scale.unsqueeze(-1), zero.unsqueeze(-1))
        assert codes.max() < 16 and ((zero == 0) if sign > 0 else (zero == 15)).any()


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3])
def test_a_scale_is_never_0_even_for_the_tiniest_weights(bits, symmetric):
    """At 2 bits a step down takes more than half of a scale, and half of float16's smallest number rounds to 0."""
    for seed in range(40):
        grouped, x = weights(4, 64, seed).reshape(4, 4, 16), correlated(80, 64, seed)
        grouped *= 2.0**-24 * (0.5 + seed % 5) / grouped.abs().mean()
        scale, _ = clip.search_together(grouped, x.T @ x, IntGrid(bits, symmetric=symmetric))
        assert (scale > 0).all() and scale.isfinite().all()


@pytest.mark.parametrize("size", [2.0**-100, 2.0**100])  # powers of two: not a bit may differ
def test_ranges_are_the_same_for_inputs_of_any_size(size):
    """A Hessian is a sum over tokens: float32 might not hold it, and only its proportions matter."""
    grouped, x = weights(6, 64, seed=1).reshape(6, 4, 16), correlated(80, 64, seed=1).double()
    expected = clip.search_together(grouped, x.T @ x, IntGrid(3))
    found = clip.search_together(grouped, x.T @ x * size, IntGrid(3))
    assert all(torch.equal(*pair) for pair in zip(found, expected))


def test_ranges_are_fitted_some_at_a_time(monkeypatch):
    """Otherwise all ranges of a large matrix would be in memory at once."""
    grouped, grid = weights(6, 64, seed=1).reshape(6, 4, 16), IntGrid(3)
    whole = [torch.cat(parts) for parts in zip(*clip.ranges(grouped, grid, 20, 0.5))]
    assert len(whole[0]) == 21 + len(wider_ranges(grid))
    for ends, together in ((1, 1), (5 * 48, 5), (5 * 48 + 47, 5)):  # a group has two ends
        monkeypatch.setattr(clip, "FITTED", ends)
        parts = list(clip.ranges(grouped, grid, 20, 0.5))
        assert {len(scales) for scales, _ in parts[:-1]} == {together}
        assert all(torch.equal(torch.cat(some), all) for some, all in zip(zip(*parts), whole))


@pytest.mark.parametrize(("steps", "shares"), [(0, [1.0]), (1, [1.0, 0.6]), (2, [1.0, 0.8, 0.6])])
def test_ranges_run_from_the_whole_one_to_the_narrowest(steps, shares):
    grid = IntGrid(4, symmetric=True)
    found = torch.cat([scales for scales, _ in clip.ranges(torch.tensor([[[7.0, -7.0]]]), grid, steps, 0.4)])
    expected = [*shares, *wider_ranges(grid)]
    assert found.flatten().tolist() == pytest.approx([share * found[0].item() for share in expected], rel=1e-3)


@pytest.mark.parametrize(("weight", "scale"), [(0.55, 0.8), (0.9, 0.9), (7.7, 1.1), (10.0, 1.2)])
def test_a_scale_moves_to_its_best_value_but_by_a_fifth_at_most(weight, scale):
    """The codes are 1 or 7, so the best scale is the weight or a seventh of it; a larger move would change codes."""
    judge = clip.Judge(torch.full((1, 16), weight), torch.eye(16), torch.zeros(1, 16), IntGrid(4, True))
    start, zero = torch.ones(1), torch.full((1,), 8, dtype=torch.uint8)
    found, same = judge.cheapest(start, zero, torch.tensor([[1.0], [30.0]]), torch.tensor([[0], [0]]))
    assert found.item() == pytest.approx(scale, rel=1e-3) and same.item() == 8

"""The compiled loops of GPTQ and of the range search, compared with their definitions in torch."""

import itertools
import operator

import pytest
import torch

import qtutor
from qtutor import gptq, rtn
from qtutor.core.codebooks import NF4
from qtutor.core.float_grid import MXFP4
from qtutor.core.quantized import PER_CHANNEL, PER_TENSOR
from qtutor.methods import clip, compiled
from tests.methods.test_gptq import correlated, output_error, weights

pytest.importorskip("numba")


@pytest.fixture
def in_torch(monkeypatch):
    """A function that calls another function without the compiled loops."""

    def call(function, *arguments, **options):
        with monkeypatch.context() as patched:
            patched.setattr(compiled, "takes", lambda *_: False)
            return function(*arguments, **options)

    return call


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("rows", [1, 63, 64, 200])
def test_a_block_is_rounded_as_by_the_definition(in_torch, bits, symmetric, rows):
    grid, work = qtutor.IntGrid(bits, symmetric), weights(rows, 40, seed=bits).T.contiguous()
    upper = gptq.prepare(correlated(200, 40, 7).T @ correlated(200, 40, 7), 8).upper
    scale, zero = (part.T.float().contiguous() for part in rtn.fit_groups(work.T[:, :32].reshape(rows, 32, 1), grid))
    scale = (scale.amax(0, keepdim=True)).expand(32, rows) * 3  # 32 of 40 columns are rounded, the others corrected
    zero = zero[:1].expand(32, rows)
    copies = work.clone(), work.clone()
    codes, errors = gptq.round_block(copies[0], upper, scale, zero, grid)
    plain_codes, plain_errors = in_torch(gptq.round_block, copies[1], upper, scale, zero, grid)
    assert codes.dtype == plain_codes.dtype == torch.uint8 and codes.shape == plain_codes.shape
    same = (codes == plain_codes).all(dim=0)  # after a tie that went the other way, the rest of a row differs
    assert same.float().mean() > 0.98
    # The tolerance is for 32 corrections of float32 weights up to 5, and for errors divided by U's diagonal.
    torch.testing.assert_close(errors[:, same], plain_errors[:, same], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(copies[0][:, same], copies[1][:, same], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fitted", [1, 2, 1 << 18])  # ranges at a time: several passes find the same cheapest
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("shape", [(1, 1, 8), (5, 3, 16), (130, 2, 32), (64, 1, 1)])
def test_the_range_found_is_the_definition_s(in_torch, monkeypatch, shape, bits, symmetric, fitted):
    monkeypatch.setattr(clip, "FITTED", fitted)
    grouped, grid = weights(shape[0], shape[1] * shape[2], seed=bits).reshape(shape), qtutor.IntGrid(bits, symmetric)
    importance = torch.rand(shape[1:], generator=torch.Generator().manual_seed(1)) ** 4
    for counts, options in itertools.product((None, importance), ({}, {"steps": 30, "shrink": 0.7})):
        factor = 1 if counts is None else counts
        ours = clip.search_squares(grouped, grid, counts, **options)
        plain = in_torch(clip.search_squares, grouped, grid, counts, **options)
        defined = clip.search(grouped, grid, lambda error, factor=factor: (error.square() * factor).sum(-1), **options)
        assert all(map(torch.equal, plain, defined))
        assert [part.dtype for part in ours] == [part.dtype for part in plain] == [torch.float16, torch.uint8]
        same = (ours[0] == plain[0]) & (ours[1] == plain[1])
        assert same.float().mean() > 0.97  # the costs of two ranges may differ only in the last bit
        errors = [clip.rounding_errors(grouped, *found, grid).square() for found in (ours, plain)]
        cost, plain_cost = ((error * factor).sum(-1) for error in errors)
        torch.testing.assert_close(cost, plain_cost, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_cheapest_range_is_the_same_for_weights_of_any_size(symmetric):
    """A power of two changes no digit of weights, scales and costs."""
    grid, grouped = qtutor.IntGrid(3, symmetric), weights(70, 64, seed=5).reshape(70, 4, 16)
    shares = torch.arange(20) / 20 + 0.1
    scales, zeros = zip(*(rtn.fit_groups(grouped * share, grid) for share in shares))
    scales, zeros = (torch.stack(parts).float().transpose(1, 2).contiguous() for parts in (scales, zeros))
    work, importance = grouped.permute(1, 2, 0).contiguous(), torch.rand(4, 16)
    found, costs = [], []
    for size in (1.0, 2.0**-16, 2.0**16):
        costs.append(torch.full((4, 70), torch.inf))
        found.append(compiled.cheapest(work * size, importance, scales * size, zeros, grid, costs[-1]))
        assert torch.equal(costs[-1] / size**2, costs[0]) and torch.equal(found[-1], found[0])
    assert len(found[0].unique()) > 5


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("rows", "length"), [(1, 1), (63, 8), (64, 30), (200, 33)])  # eights of columns and a rest
def test_a_group_beside_all_others_is_judged_as_by_the_definition(in_torch, rows, length, bits, symmetric):
    grid, weight, x = qtutor.IntGrid(bits, symmetric), weights(rows, length, bits), correlated(100, length, 3).float()
    others = weights(rows, length, 7) * 0.1
    scale, zero = (part[:, 0] for part in rtn.fit_groups(weight.reshape(rows, 1, length), grid))
    scales = scale.float() * torch.tensor([0.7, 1.0, 1.3, 0.9])[:, None]
    zeros = zero.expand_as(scales).clone()
    zeros[2] = (zeros[2].int() + 1).clamp(0, grid.largest_code).to(torch.uint8)
    judge, plain = (call(clip.Judge, weight, x.T @ x, others, grid) for call in (operator.call, in_torch))
    assert judge.turned is not None and plain.turned is None
    for upto in (1, 4):
        cost, best, share = judge.judged(scales[:upto], zeros[:upto])
        wanted = plain.judged(scales[:upto], zeros[:upto])
        assert best.dtype == torch.int64 and best.shape == cost.shape == (rows,)
        # A weight in the middle between two levels may go either way, and then the cost differs. A cost may be
        # negative, since it includes the coupling with the errors of other groups.
        size = plain.cost(scales[:upto], zeros[:upto]).abs().amax(0) + others.abs().sum(1) * 1e-3
        near = (cost - wanted[0]).abs() <= 1e-4 * size
        assert near.float().mean() > 0.97 and (best == wanted[1]).float().mean() > 0.97
        if upto > 1:
            same = near & (best == wanted[1])
            torch.testing.assert_close(share[same], wanted[2][same], rtol=2e-3, atol=2e-4)
    assert len(best.unique()) > 1 or rows == 1


def test_the_first_of_equal_ranges_is_judged_best(in_torch):
    grid, weight, x = qtutor.IntGrid(3), weights(70, 16, 4), correlated(100, 16, 3).float()
    scale, zero = (part[:, 0] for part in rtn.fit_groups(weight.reshape(70, 1, 16), grid))
    scales, zeros = torch.stack([scale, scale * 0.8, scale, scale * 0.8]), zero.expand(4, -1)
    for call in (operator.call, in_torch):
        best = call(clip.Judge, weight, x.T @ x, torch.zeros(70, 16), grid).judged(scales, zeros)[1]
        assert set(best.tolist()) == {0, 1}


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_ranges_for_the_whole_output_are_as_good_by_either_way(in_torch, bits):
    weight, x, grid = weights(150, 96, 5), correlated(400, 96, 6), qtutor.IntGrid(bits)
    given = weight.reshape(150, 3, 32), x.T @ x, grid
    errors = []
    for found in (clip.search_together(*given), in_torch(clip.search_together, *given)):
        change = clip.rounding_errors(given[0], *found, grid).flatten(1)
        errors.append(((change.double() @ given[1]) * change).sum(1))
    assert (errors[0] / errors[1] - 1).abs().median() < 1e-3 and errors[0].sum().item() == pytest.approx(
        errors[1].sum().item(), rel=5e-3
    )


def test_of_equal_ranges_the_widest_stays():
    grouped = torch.zeros(70, 2, 8)
    scale, zero = clip.search_squares(grouped, qtutor.IntGrid(4))
    whole = rtn.fit_groups(grouped, qtutor.IntGrid(4))
    assert torch.equal(scale, whole[0]) and torch.equal(zero, whole[1])
    loud, grid = weights(70, 8, 1).reshape(70, 1, 8) * 1e4, qtutor.IntGrid(4)
    scale, _ = clip.search_squares(loud, grid, torch.full((1, 8), 3e38))  # all ranges have an infinite cost
    assert torch.equal(scale, rtn.fit_groups(loud, grid)[0])


@pytest.mark.parametrize("group", [32, PER_CHANNEL, PER_TENSOR])
@pytest.mark.parametrize("clipped", ["none", "mse", "output"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_layer_is_as_good_by_either_way(in_torch, group, clipped, dtype):
    weight, x = weights(96, 256, 5).to(dtype), correlated(600, 256, 9)
    given = weight, x.T @ x, qtutor.IntGrid(3), group
    errors = [
        output_error(weight.float(), call(gptq.quantize, *given, act_order="groups", clip=clipped), x)
        for call in (lambda function, *args, **kwargs: function(*args, **kwargs), in_torch)
    ]
    assert errors[0] == pytest.approx(errors[1], rel=5e-3)  # a tie may go the other way


def test_threads_share_the_rows_and_change_nothing(monkeypatch):
    monkeypatch.setattr(compiled, "SHARE", 1)  # so that small matrices are shared, too
    weight, x = weights(150, 64, 3), correlated(200, 64, 4)
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(gptq.quantize(weight, x.T @ x, qtutor.IntGrid(4), 16, clip="output"))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0].codes, found[1].codes) and torch.equal(found[0].scales, found[1].scales)


def test_what_the_loops_leave_to_torch():
    some = torch.zeros(2, 2)
    assert compiled.takes(some, qtutor.IntGrid(4))
    assert not compiled.takes(some, NF4) and not compiled.takes(some, MXFP4)
    assert not compiled.takes(torch.zeros(2, 0), qtutor.IntGrid(4))
    assert not compiled.takes(some.to("meta"), qtutor.IntGrid(4))


def test_without_numba_the_definitions_run(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "numba", None)
    compiled._available.cache_clear()
    try:
        assert not compiled.takes(torch.zeros(2, 2), qtutor.IntGrid(4))
        weight, x = weights(8, 32, 3), correlated(64, 32, 4)
        assert gptq.quantize(weight, x.T @ x, qtutor.IntGrid(4), 16, clip="output").codes.shape == (8, 32)
    finally:
        monkeypatch.undo()
        compiled._available.cache_clear()


def test_a_weight_that_wants_gradients_is_rounded():
    weight, x = weights(8, 32, 3).requires_grad_(), correlated(64, 32, 4)
    assert gptq.quantize(weight, x.T @ x, qtutor.IntGrid(4), 16, clip="output").codes.shape == (8, 32)
    assert rtn.quantize(weight, qtutor.IntGrid(4), 16, clip="mse").codes.shape == (8, 32)

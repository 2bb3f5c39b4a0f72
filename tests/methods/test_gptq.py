"""GPTQ compared with a brute-force optimal brain surgeon and with rounding to nearest, and on special inputs."""

import re

import numpy as np
import pytest
import torch

import qtutor
from qtutor import gptq, rtn
from qtutor.core.quantized import PER_CHANNEL, PER_TENSOR
from tests.reference import gptq as reference


def correlated(tokens: int, width: int, seed: int, strength: float = 1.0) -> torch.Tensor:
    """Inputs ``[tokens, width]`` whose channels share a few causes, as activations do; float64."""
    generator = torch.Generator().manual_seed(seed)
    causes = torch.randn(tokens, max(width // 4, 1), generator=generator, dtype=torch.float64)
    mixing = torch.randn(causes.shape[1], width, generator=generator, dtype=torch.float64)
    own = torch.randn(tokens, width, generator=generator, dtype=torch.float64)
    return strength * causes @ mixing + own


def weights(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def output_error(weight: torch.Tensor, quantized: qtutor.QuantizedTensor, x: torch.Tensor) -> float:
    """``|X (W - Q)^T|``, the size of the change in the layer's outputs."""
    return (x @ (weight - quantized.dequantize()).double().T).norm().item()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [4, 12, 24])
@pytest.mark.parametrize("block", [1, 5, 128])
def test_equals_brute_force_code_for_code(bits, symmetric, group, block):
    weight, x = weights(6, 24, seed=bits), correlated(64, 24, seed=group)
    x[:, 5] = 0  # a column that no token used
    hessian, grid = x.T @ x, qtutor.IntGrid(bits, symmetric)
    ours = gptq.quantize(weight, hessian, grid, group, block_size=block)
    slow = reference.quantize(weight.numpy(), hessian.numpy(), bits, symmetric, group, gptq.DAMPING)
    codes = np.rint(slow / ours.scales.double().numpy().repeat(group, axis=1)) + middle(ours, group)
    assert np.array_equal(ours.codes.numpy(), codes)
    assert not torch.equal(ours.codes, rtn.quantize(weight, grid, group).codes)


def middle(quantized: qtutor.QuantizedTensor, group: int) -> np.ndarray:
    """The zero point of every weight."""
    if quantized.zeros is None:
        return np.full(quantized.shape, quantized.grid.middle)
    return quantized.zeros.numpy().astype(int).repeat(group, axis=1)


@pytest.mark.parametrize(
    ("act_order", "static"), [("none", True), ("columns", True), ("groups", False), ("groups", True)]
)
def test_orders_equal_brute_force_in_that_order(act_order, static):
    weight, x = weights(5, 24, seed=1), correlated(64, 24, seed=2) * torch.linspace(0.2, 3, 24).roll(7)
    hessian, grid = x.T @ x, qtutor.IntGrid(3)
    ours = gptq.quantize(weight, hessian, grid, 8, act_order=act_order, static_groups=static)
    importance = hessian.diagonal().tolist()
    order = list(range(24))
    if act_order == "columns":
        order.sort(key=lambda column: -importance[column])
    elif act_order == "groups":
        best = [max(importance[start : start + 8]) for start in (0, 8, 16)]
        order.sort(key=lambda column: (-best[column // 8], -importance[column]))
    slow = reference.quantize(weight.numpy(), hessian.numpy(), 3, False, 8, gptq.DAMPING, order, static)
    codes = np.rint(slow / ours.scales.double().numpy().repeat(8, axis=1)) + middle(ours, 8)
    assert np.array_equal(ours.codes.numpy(), codes)
    assert act_order == "none" or order != list(range(24))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [8, 32, PER_CHANNEL, PER_TENSOR])
@pytest.mark.parametrize("act_order", gptq.ACT_ORDERS)
@pytest.mark.parametrize("clip", ["none", "mse"])
def test_independent_inputs_leave_rounding_to_nearest(symmetric, group, act_order, clip):
    weight, grid = weights(7, 64, seed=3), qtutor.IntGrid(3, symmetric)
    ours = gptq.quantize(weight, 5.0 * torch.eye(64), grid, group, act_order=act_order, clip=clip)
    nearest = rtn.quantize(weight, grid, group, clip)
    assert torch.equal(ours.codes, nearest.codes) and torch.equal(ours.scales, nearest.scales)
    assert symmetric or torch.equal(ours.zeros, nearest.zeros)
    assert ours.nbytes == nearest.nbytes


@pytest.mark.parametrize("length", [12, 32, 128, 192])
@pytest.mark.parametrize("act_order", gptq.ACT_ORDERS)
def test_blocked_equals_unblocked(length, act_order):
    weight, x = weights(9, 384, seed=4), correlated(1024, 384, seed=5)
    whole, *others = (
        gptq.quantize(weight, x.T @ x, qtutor.IntGrid(4), length, act_order=act_order, block_size=size)
        for size in (10**6, 1, 7, 64, 128)
    )
    for other in others:  # by the order of sums, a weight in the middle may go either way: a few of 3,456 differ
        assert (other.codes != whole.codes).float().mean() <= 0.01
        assert output_error(weight, other, x) == pytest.approx(output_error(weight, whole, x), rel=1e-3)


@pytest.mark.parametrize("seed", range(50))
def test_lowers_the_output_error_of_correlated_inputs(seed):
    bits, symmetric = (2, 3, 4)[seed % 3], bool(seed % 2)
    group, act_order = (32, 64, 128, PER_CHANNEL)[seed % 4], gptq.ACT_ORDERS[seed // 3 % 3]
    weight, x = weights(48, 128, seed), correlated(512, 128, 100 + seed, strength=0.5 + seed / 50)
    grid = qtutor.IntGrid(bits, symmetric)
    ours = output_error(weight, gptq.quantize(weight, x.T @ x, grid, group, act_order=act_order), x)
    assert ours < output_error(weight, rtn.quantize(weight, grid, group), x)


@pytest.mark.parametrize(
    ("bits", "clip", "gain"),
    [(4, "none", 0.01), (3, "none", 0.0), (4, "mse", 0.02), (3, "mse", 0.02), (2, "mse", 0.02)],
)
def test_grids_fitted_on_every_correction_beat_those_that_miss_the_block(bits, clip, gain):
    """AutoGPTQ fits a group inside a block on weights that miss the block's own corrections.

    Here one block covers the matrix, so AutoGPTQ's grids would come from the original weights, as with static groups.
    The gain is a mean over matrices. At 2 bits without clipping, it is a loss: see the next test.
    """
    assert mean_gain(bits, clip) > gain


def test_at_two_bits_corrected_weights_stretch_the_grid_unless_it_is_clipped():
    assert mean_gain(2, "none") < 0 < mean_gain(2, "mse")


def mean_gain(bits: int, clip: str) -> float:
    """The share by which grids fitted inside the block lower the output error of static grids, mean of 8 matrices."""
    gains = []
    for seed in range(8):
        weight, x = weights(48, 128, seed), correlated(512, 128, 200 + seed)
        ours, theirs = (
            output_error(weight, gptq.quantize(weight, x.T @ x, qtutor.IntGrid(bits), 32, **options), x)
            for options in ({"clip": clip}, {"clip": clip, "static_groups": True})
        )
        gains.append(1 - ours / theirs)
    return float(np.mean(gains))


def test_orders_help_where_few_inputs_are_large():
    errors = {order: 0.0 for order in gptq.ACT_ORDERS}
    for seed in range(8):
        weight, x = weights(64, 128, seed), correlated(512, 128, 300 + seed)
        x[:, torch.randperm(128, generator=torch.Generator().manual_seed(seed))[:8]] *= 8
        for order in errors:
            errors[order] += output_error(
                weight, gptq.quantize(weight, x.T @ x, qtutor.IntGrid(3), 32, act_order=order), x
            )
    assert errors["columns"] < errors["none"] and errors["groups"] < errors["none"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_of_any_dtype_and_left_as_they_were(dtype):
    weight, x = weights(8, 64, seed=6).to(dtype), correlated(128, 64, seed=7)
    hessian, kept = x.T @ x, weight.clone()
    before = hessian.clone()
    ours = gptq.quantize(weight, hessian, qtutor.IntGrid(4), 32)
    assert torch.equal(weight, kept) and torch.equal(hessian, before)
    assert torch.equal(ours.codes, gptq.quantize(weight.float(), hessian.float(), qtutor.IntGrid(4), 32).codes)


def test_a_column_that_no_token_used_keeps_its_weight():
    weight, x = weights(8, 64, seed=8), correlated(128, 64, seed=9)
    x[:, 10] = 0
    x[:, 63] = 0
    restored = gptq.quantize(weight, x.T @ x, qtutor.IntGrid(8), 32).dequantize()
    assert ((restored - weight)[:, [10, 63]].abs() < 0.02).all() and (restored[:, 10] != 0).any()


@pytest.mark.parametrize(
    "what", ["zeros", "constant rows", "one token", "equal tokens", "few tokens", "silent", "tiny"]
)
@pytest.mark.parametrize("bits", [2, 4])
def test_inputs_that_break_careless_code(what, bits):
    weight, x = weights(6, 64, seed=10), correlated(256, 64, seed=11)
    if what == "zeros":
        weight = torch.zeros(6, 64)
    elif what == "constant rows":
        weight = torch.linspace(-1, 1, 6)[:, None].repeat(1, 64)
    elif what == "one token":
        x = x[:1]
    elif what == "equal tokens":
        x = x[:1].repeat(256, 1)
    elif what == "few tokens":
        x = x[:20]
    elif what == "silent":
        x = torch.zeros_like(x)
    elif what == "tiny":
        x = x * 1e-12
    grid = qtutor.IntGrid(bits)
    ours, nearest = gptq.quantize(weight, x.T @ x, grid, 16), rtn.quantize(weight, grid, 16)
    assert torch.isfinite(ours.dequantize()).all()
    if what == "constant rows":  # rounding to nearest is almost exact; the first correction makes them unequal
        assert output_error(weight, ours, x) <= 2e-3 * (x @ weight.double().T).norm()
    else:
        assert output_error(weight, ours, x) <= output_error(weight, nearest, x)
    if what in ("zeros", "silent"):
        assert torch.equal(ours.dequantize(), nearest.dequantize())


@pytest.mark.parametrize(("rows", "columns"), [(0, 64), (4, 0), (1, 64), (1, 1)])
def test_empty_and_one_row(rows, columns):
    weight = weights(rows, columns, seed=12)
    quantized = gptq.quantize(weight, torch.eye(columns), qtutor.IntGrid(4), PER_CHANNEL)
    assert quantized.dequantize().shape == (rows, columns)
    assert torch.isfinite(quantized.dequantize()).all()


def test_damping_is_raised_until_the_hessian_can_be_inverted():
    x = correlated(16, 64, seed=13)  # rank 16 of 64
    hessian = x.T @ x
    hessian -= 0.05 * hessian.diagonal().mean() * torch.eye(64, dtype=torch.float64)  # now clearly not positive
    prepared = gptq.prepare(hessian, 16)
    assert 0.05 < prepared.damping < 0.2
    assert gptq.prepare(x.T @ x, 16, damping=0).damping == gptq.DAMPING
    assert gptq.prepare(x.T @ x, 16).damping == gptq.DAMPING


@pytest.mark.parametrize(
    ("needed", "asked", "found"),
    [
        (0.005, 0.0, 0.01),
        (0.015, 0.01, 0.02),
        (0.03, 0.01, 0.04),
        (0.03, 0.0, 0.04),
        (0.03, 0.02, 0.04),
        (0.03, 0.003, 0.04),
        (0.03, 0.05, 0.05),
        (0.05, 0.03, 0.06),
        (0.5, 0.01, 0.64),
        (0.7, 0.01, 1.0),
    ],
)
def test_damping_is_doubled_until_it_is_just_enough(needed, asked, found):
    """The smallest eigenvalue is ``-needed`` times the mean of the diagonal. More damping would change more weights."""
    hessian = 3 * torch.tensor([[1.0, 1 + needed], [1 + needed, 1.0]], dtype=torch.float64)
    assert gptq.prepare(hessian, 2, damping=asked).damping == pytest.approx(found)


def test_a_hessian_is_factored_in_float64():
    """Eigenvalues from 1 to 1e-9: positive definite in float64, not in float32. It needs no damping, and U is right."""
    generator = torch.Generator().manual_seed(14)
    turn = torch.linalg.qr(torch.randn(64, 64, dtype=torch.float64, generator=generator))[0]
    hessian = turn @ torch.logspace(0, -9, 64, dtype=torch.float64).diag() @ turn.T
    assert torch.linalg.cholesky_ex(hessian.float()).info > 0
    prepared = gptq.prepare(hessian, 16, damping=0)
    exact = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)
    assert prepared.damping == 0
    assert (prepared.upper - exact).norm() < 1e-3 * exact.norm()  # the triangle is inverted in float32


def test_damping_is_raised_where_the_inverse_leaves_float32():
    """One input is nearly zero: H can be factored in float64, but one number of U, 1e50, is infinite in float32."""
    hessian = torch.tensor([1.0, 1e-100, 2.0], dtype=torch.float64).diag()
    prepared = gptq.prepare(hessian, 3, damping=0)
    assert prepared.damping == gptq.DAMPING and torch.isfinite(prepared.upper).all()


def test_an_order_that_mixes_groups_has_static_grids():
    weight, x = weights(6, 64, seed=15), correlated(256, 64, seed=16) * torch.linspace(0.2, 3, 64).roll(9)
    prepared, grid = gptq.prepare(x.T @ x, 16, act_order="columns"), qtutor.IntGrid(3)
    assert prepared.scattered and not gptq.prepare(x.T @ x, 16, act_order="groups").scattered
    ours, static = (gptq.round_columns(weight, prepared, grid, 16, static) for static in (False, True))
    assert torch.equal(ours.codes, static.codes) and torch.equal(ours.scales, static.scales)
    assert torch.equal(ours.scales, rtn.quantize(weight, grid, 16).scales)  # fitted on the weights as they are


@pytest.mark.parametrize("rounded", [0, 1, 5, 12])
def test_a_block_moves_what_it_does_not_round(rounded):
    """``before - after = U^T E``, for the columns that are rounded and for those that are only corrected."""
    grid, x = qtutor.IntGrid(3), correlated(64, 12, seed=17)
    before, upper = weights(12, 7, seed=18), gptq.prepare(x.T @ x, 12).upper  # [columns, out]
    scale, zero = rtn.fit_groups(before.T[:, None], grid)  # [out, 1]
    scale, zero = (part.T.expand(rounded, -1) for part in (scale, zero))
    work = before.clone()
    codes, errors = gptq.round_block(work, upper, scale, zero, grid)
    assert codes.shape == errors.shape == (rounded, 7) and codes.dtype == torch.uint8
    assert torch.equal(grid.decode(codes, scale, zero), work[:rounded])
    assert torch.allclose(before - work, upper[:rounded].T @ errors, atol=1e-5)
    assert rounded in (0, 12) or (work[rounded:] != before[rounded:]).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_broken_hessian_is_named(bad):
    hessian = torch.eye(16)
    hessian[3, 4] = bad
    with pytest.raises(gptq.HessianError, match=rf"^the Hessian holds {bad} at \[3, 4\]"):
        gptq.quantize(torch.ones(2, 16), hessian, qtutor.IntGrid(4), 8)


def test_columns_are_not_rounded_with_an_unknown_clip():
    with pytest.raises(qtutor.QtutorError, match=r"^clip = 'best': choose one of 'none', 'mse', 'output'"):
        prepared = gptq.prepare(torch.eye(16), 8)
        gptq.round_columns(torch.ones(2, 16), prepared, qtutor.IntGrid(4), 8, clip="best")


def test_columns_of_a_weight_that_is_no_number_are_not_rounded():
    weight = torch.ones(2, 16)
    weight[1, 3] = float("nan")
    with pytest.raises(qtutor.QtutorError, match=r"^1 of 32 weights are NaN or infinite, the first at \[1, 3\]"):
        gptq.round_columns(weight, gptq.prepare(torch.eye(16), 8), qtutor.IntGrid(4), 8)


def test_other_bad_input():
    weight, hessian, grid = torch.ones(2, 16), torch.eye(16), qtutor.IntGrid(4)
    with pytest.raises(gptq.HessianError, match=r"^the Hessian is not positive definite, .* runs from -5 to -5"):
        gptq.quantize(weight, -5 * hessian, grid, 8)
    with pytest.raises(qtutor.QtutorError, match=r"^groups of 5 do not divide rows of 16 weights"):
        gptq.quantize(weight, hessian, grid, 5)
    with pytest.raises(qtutor.QtutorError, match=r"^rows of 16 weights, but a Hessian of 8 inputs"):
        gptq.quantize(weight, torch.eye(8), grid, 8)
    with pytest.raises(qtutor.QtutorError, match=r"^the Hessian is torch.float32 of shape \[2, 16\]"):
        gptq.quantize(weight, weight, grid, 8)
    for shape in ([16], [16, 16, 16]):
        with pytest.raises(
            qtutor.QtutorError, match=rf"^the Hessian is torch.float32 of shape {re.escape(str(shape))}"
        ):
            gptq.quantize(weight, torch.ones(shape), grid, 8)
    with pytest.raises(qtutor.QtutorError, match="act_order = 'best': choose one of 'none', 'columns', 'groups'"):
        gptq.quantize(weight, hessian, grid, 8, act_order="best")
    with pytest.raises(qtutor.QtutorError, match="damping = 2"):
        gptq.quantize(weight, hessian, grid, 8, damping=2)
    for wrong in ("best", None):
        with pytest.raises(qtutor.QtutorError, match=f"clip = {wrong!r}: choose one of 'none', 'mse', 'output'"):
            gptq.quantize(weight, hessian, grid, 8, clip=wrong)
    broken = weight.clone()
    broken[1, 2] = float("nan")
    for given in (hessian, hessian * float("nan")):  # weights are checked before the long work on the Hessian
        with pytest.raises(qtutor.QtutorError, match=r"^1 of 32 weights are NaN"):
            gptq.quantize(broken, given, grid, 8)


@pytest.mark.parametrize("size", [1, 2, 127, 129, 300])
def test_inverse_of_a_lower_triangle(size):
    lower = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(size)).tril() / size
    lower.diagonal().copy_(torch.linspace(0.5, 2, size))
    inverse = gptq.invert_lower(lower.clone())
    assert torch.allclose(inverse @ lower, torch.eye(size, dtype=torch.float64), atol=1e-9)
    assert inverse.triu(1).abs().max() == 0

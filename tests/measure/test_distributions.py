"""Kurtosis, crest factors, outlier ratios and kept channels, against a slow version and known properties."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qtutor
from qtutor import rtn
from qtutor.errors import QtutorError
from qtutor.measure import distributions
from qtutor.plots import distributions as pictures
from qtutor.plots.salient import kept_columns
from tests.reference import distributions as reference

BITS = range(2, 9)


def seeded(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- excess kurtosis ---


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    power=st.sampled_from([1, 3, 5]),
    shift=st.sampled_from([0.0, -3.0, 100.0]),
    magnitude=st.sampled_from([1e-6, 1.0, 1e4]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
def test_kurtosis_equals_the_slow_version(seed, power, shift, magnitude, dtype):
    x = ((seeded(3, 40, seed=seed) ** power + shift) * magnitude).to(dtype)
    ours = distributions.excess_kurtosis(x)
    assert ours.dtype == torch.float64 and ours.shape == (3,)
    for row, value in zip(x.double().tolist(), ours.tolist()):
        # Both subtract the mean in float64. After a shift by 100 spreads, the fourth moment is off by some 1e-16 * 1e4.
        if max(row) > min(row):
            assert math.isclose(value, reference.excess_kurtosis(row), rel_tol=1e-9, abs_tol=1e-9)


def test_kurtosis_of_known_shapes():
    n = 100_001
    even = torch.linspace(-1, 1, n, dtype=torch.float64)
    normal = torch.special.ndtri(torch.linspace(0, 1, n + 2, dtype=torch.float64)[1:-1])
    laplace = -even.sign() * torch.log1p(-even.abs() * (1 - 1 / n))
    # These are evenly spaced quantiles, not random numbers. The errors come from the tails beyond the last quantiles.
    assert abs(distributions.excess_kurtosis(even) + 1.2) < 1e-3
    assert abs(distributions.excess_kurtosis(normal)) < 0.02
    assert abs(distributions.excess_kurtosis(laplace) - 3) < 0.2
    assert distributions.excess_kurtosis(torch.tensor([1.0, -1.0] * 8)) == -2


@pytest.mark.parametrize("count", [4, 10, 1000])
def test_a_single_outlier_has_the_kurtosis_that_the_formula_gives(count):
    x = torch.zeros(count)
    x[count // 2] = -7.0
    expected = ((count - 1) ** 3 + 1) / (count * (count - 1)) - 3
    assert math.isclose(distributions.excess_kurtosis(x).item(), expected, rel_tol=1e-12)


def test_kurtosis_does_not_care_for_shift_scale_or_order():
    x = seeded(2, 64).double() ** 3
    ours = distributions.excess_kurtosis(x)
    shuffled = x[:, torch.randperm(64, generator=torch.Generator().manual_seed(1))]
    assert torch.allclose(distributions.excess_kurtosis(-1e-4 * x + 0.5), ours, rtol=1e-6, atol=0)
    assert torch.allclose(distributions.excess_kurtosis(shuffled), ours, rtol=1e-12, atol=0)


@pytest.mark.parametrize("value", [0.0, 0.7, -1e-30, 3e38])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_values_have_kurtosis_zero(value, dtype):
    x = seeded(3, 7).to(dtype)
    x[1] = value
    ours = distributions.excess_kurtosis(x)
    assert ours[1] == 0 and torch.isfinite(ours).all() and (ours[[0, 2]] != 0).all()
    assert distributions.excess_kurtosis(torch.tensor([value])) == 0


def test_kurtosis_along_rows_columns_and_all():
    x = seeded(5, 9) ** 3
    columns = distributions.excess_kurtosis(x, dim=0)
    assert columns.shape == (9,)
    assert torch.equal(columns, distributions.excess_kurtosis(x.T.contiguous()))
    assert math.isclose(
        distributions.excess_kurtosis(x, dim=None).item(), reference.excess_kurtosis(x.flatten().tolist())
    )


def test_small_weights_in_16_bits_are_computed_in_64():
    """The fourth power of 0.01 is 1e-8, which float16 rounds to 0."""
    x = (0.01 * seeded(4096)).half()
    assert torch.equal(distributions.excess_kurtosis(x), distributions.excess_kurtosis(x.double()))
    assert not torch.isfinite((x - x.mean()).pow(4).mean() / (x - x.mean()).pow(2).mean().pow(2))


@pytest.mark.parametrize("function", [distributions.excess_kurtosis, distributions.outlier_ratio])
def test_broken_input_is_named(function):
    broken = seeded(3, 8)
    broken[2, 5] = torch.nan
    with pytest.raises(QtutorError, match=r"^1 of 24 values are NaN.*first at \[2, 5\]"):
        function(broken)
    with pytest.raises(QtutorError, match=r"^a tensor of shape \[3, 0\] holds no values"):
        function(torch.empty(3, 0))


# --- outlier ratio, crest factor ---


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 30), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_outlier_ratio_equals_the_slow_version(seed, count, dtype):
    x = (seeded(2, count, seed=seed) ** 3).to(dtype)
    for row, value in zip(x.double().abs().tolist(), distributions.outlier_ratio(x).tolist()):
        assert math.isclose(value, max(row) / reference.median(row), rel_tol=1e-12)


def test_outlier_ratio_of_zeros():
    assert distributions.outlier_ratio(torch.zeros(5)) == 1
    assert distributions.outlier_ratio(torch.tensor([0.0, 0.0, 0.0, -2.0])) == torch.inf
    assert distributions.outlier_ratio(torch.full((5,), -0.3)) == 1


@pytest.mark.parametrize("group_size", [8, 16, -1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_crest_factor_equals_the_slow_version(group_size, dtype):
    weight = (seeded(4, 32) ** 3).to(dtype)
    weight[1] = 0
    weight[2] = -0.25
    ours = distributions.crest_factor(weight, group_size)
    length = 32 if group_size == -1 else group_size
    assert ours.shape == (4, 32 // length)
    for row in (0, 2, 3):
        for group in range(32 // length):
            values = weight[row, group * length : (group + 1) * length].double().tolist()
            assert math.isclose(ours[row, group].item(), reference.crest_factor(values), rel_tol=1e-12)
    assert (ours[1] == 1).all() and (ours[2] == 1).all()
    assert (ours >= 1).all() and (ours <= length**0.5 + 1e-12).all()


def test_crest_factor_of_a_lone_weight_and_of_the_whole_matrix():
    weight = torch.zeros(4, 16)
    weight[3, 9] = -5
    assert math.isclose(distributions.crest_factor(weight, 16)[3, 0].item(), 4)
    whole = distributions.crest_factor(weight, 0)
    assert whole.shape == (1, 1) and math.isclose(whole.item(), 8)


def test_crest_factor_refuses_what_it_cannot_measure():
    with pytest.raises(QtutorError, match=r"^groups of 5 do not divide"):
        distributions.crest_factor(torch.ones(2, 16), 5)
    with pytest.raises(QtutorError, match=r"^a tensor .* holds no values"):
        distributions.crest_factor(torch.ones(2, 0), -1)
    broken = torch.ones(2, 16)
    broken[1, 3] = torch.inf
    with pytest.raises(QtutorError, match=r"^1 of 32 weights are NaN or infinite"):
        distributions.crest_factor(broken, 16)


@pytest.mark.parametrize("bits", [4, 5, 6, 8])
@pytest.mark.parametrize("group_size", [16, 64, 256, -1])
def test_the_crest_factor_predicts_the_rounding_error(bits, group_size):
    """The mean error over all groups is predicted within 3 %.

    A group's largest weight is always off by exactly half a step. The square of this error is three times the mean
    square of other errors. The formula leaves this out. In small groups it matters: a factor of sqrt(1 + 2 / length).
    """
    weight = seeded(64, 1024)
    quantized = rtn.quantize(weight, qtutor.IntGrid(bits, symmetric=True), group_size)
    expected = distributions.expected_error(distributions.crest_factor(weight, group_size), bits)
    shape = (*expected.shape, -1)
    error = (quantized.dequantize() - weight).double().reshape(shape).norm(dim=-1)
    measured = error / weight.double().reshape(shape).norm(dim=-1)
    length = weight.numel() // expected.numel()
    assert abs(measured.mean() / (expected.mean() * (1 + 2 / length) ** 0.5) - 1) < 0.03
    if length > 16:  # errors of few weights depend on chance, so single small groups scatter more
        assert ((measured / expected - 1).abs() < 0.35).all()


# --- the channels that matter ---


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 40), share=st.sampled_from([0.001, 0.01, 0.03, 0.1, 0.5, 1.0]))
def test_top_channels_equal_the_slow_version(seed, count, share):
    importance = torch.randint(0, 12, (count,), generator=torch.Generator().manual_seed(seed)) / 4  # with ties
    ours = distributions.top_channels(importance, share)
    assert ours.tolist() == reference.top(importance.tolist(), max(1, round(share * count)))


@pytest.mark.parametrize(("width", "share", "kept"), [(256, 0.01, 3), (512, 0.01, 5), (256, 0.1, 26), (8, 0.01, 1)])
def test_one_per_cent_is_never_nothing(width, share, kept):
    assert len(distributions.top_channels(seeded(width).abs(), share)) == kept


def test_top_channels_refuses_nonsense():
    for share in (0, -0.1, 1.5, float("nan")):
        with pytest.raises(QtutorError, match="share = "):
            distributions.top_channels(torch.ones(4), share)
    with pytest.raises(QtutorError, match="importance: 1 of 4 values are NaN"):
        distributions.top_channels(torch.tensor([1, 2, torch.nan, 3]), 0.5)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kept_channels_are_exact_and_the_others_quantized(bits, dtype):
    weight = seeded(6, 32).to(dtype)
    before = weight.clone()
    quantized = rtn.quantize(weight, qtutor.IntGrid(bits), 16)
    chosen = torch.tensor([3, 31])
    mixed = distributions.keep_channels(weight, quantized, chosen)
    others = [i for i in range(32) if i not in (3, 31)]
    assert mixed.dtype == dtype and torch.equal(mixed[:, chosen], weight[:, chosen])
    assert torch.equal(mixed[:, others], quantized.dequantize(dtype)[:, others])
    mixed.zero_()
    assert torch.equal(weight, before)  # the result is a new matrix
    none = distributions.keep_channels(weight, quantized, torch.tensor([], dtype=torch.int64))
    assert torch.equal(none, quantized.dequantize(dtype))


def test_keeping_all_channels_loses_nothing_and_more_never_hurts():
    weight = seeded(8, 64)
    quantized = rtn.quantize(weight, qtutor.IntGrid(2), 64)
    errors = [(distributions.keep_channels(weight, quantized, torch.arange(k)) - weight).norm() for k in range(65)]
    assert errors[64] == 0 and all(after <= before for before, after in itertools.pairwise(errors))


def test_keep_channels_refuses_rows_taken_for_columns():
    weight = seeded(64, 16)
    quantized = rtn.quantize(weight, qtutor.IntGrid(4), 16)
    for channels in ([16], [-1], [0, 40]):
        with pytest.raises(QtutorError, match="input channels 0 to 15"):
            distributions.keep_channels(weight, quantized, torch.tensor(channels))
    with pytest.raises(QtutorError, match="of one layer"):
        distributions.keep_channels(weight[:32], quantized, torch.tensor([1]))


def test_mixed_bytes_are_those_of_the_tensors_one_would_store():
    weight = seeded(48, 64)
    quantized = rtn.quantize(weight, qtutor.IntGrid(3), 32)
    chosen = torch.tensor([0, 9, 63])
    beside = [weight[:, chosen].bfloat16(), chosen.to(torch.int16)]
    assert distributions.mixed_bytes(quantized, 3) == quantized.nbytes + sum(tensor.nbytes for tensor in beside)
    assert distributions.mixed_bytes(quantized, 0) == quantized.nbytes


# --- pictures ---


@pytest.mark.parametrize("count", [2, 50, 4000])
def test_quantiles_of_a_normal_distribution_lie_on_the_line(count):
    """Value k of n stands for the probability (k + 1/2) / n. With other probabilities it would miss the line."""
    share = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    values = 0.3 + 2 * torch.special.ndtri(share).numpy()
    normal, here = pictures.quantile_pairs(values, points=min(count, 200))
    assert np.all(np.diff(here) >= 0) and here[0] == (values[0] - values.mean()) / values.std()
    assert here[-1] == (values[-1] - values.mean()) / values.std()
    # At a place between two values, one of the two is drawn. The two are at most this far apart.
    assert np.abs(here * values.std() / 2 - normal).max() <= np.diff(values / 2).max()


@pytest.mark.parametrize(
    "values", [torch.zeros(64), torch.full((64,), -0.3), seeded(64).bfloat16(), seeded(4, 16) ** 5]
)
def test_against_normal_draws_any_values(values):
    figure = pictures.against_normal(values, "a layer")
    left, middle, _ = figure.axes
    figure.draw_without_rendering()
    assert left.get_title() == "a layer" and middle.get_yscale() == "log"
    assert left.patches[0].get_data().values.sum() == values.numel()  # every value is in the picture


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("x", [seeded(5, 7), torch.zeros(1, 4), seeded(3, 6).bfloat16() * 1000])
def test_tokens_and_channels_shows_the_largest_of_each_channel(x, log):
    figure = pictures.tokens_and_channels(x, log=log)
    figure.draw_without_rendering()
    above, below = figure.axes[:2]
    assert np.array_equal(above.patches[0].get_data().values, x.float().abs().amax(dim=0).numpy())
    assert below.images[0].get_array().shape == x.shape


def test_kept_draws_values_between_its_levels_and_bars_from_lowest_to_highest():
    choices = {"one": ([3.0, 2.0], None, None), "random": ([3.5, 3.0], [3.2, 2.5], [3.9, 3.6])}
    figure = kept_columns(
        {"a": (choices, 1.0, 4.0), "b": (choices, 1.0, 4.0), "c": (choices, 1.0, 4.0)}, ["1%", "3%"], "", ""
    )
    figure.draw_without_rendering()
    ax = figure.axes[0]
    assert {line.get_ydata()[0] for line in ax.lines[:2]} == {1.0, 4.0}
    (bars,) = ax.containers[1].lines[2]
    assert np.allclose([segment[:, 1] for segment in bars.get_segments()], [[3.2, 3.9], [2.5, 3.6]])
    assert not figure.axes[3].axison or not figure.axes[3].lines  # the fourth place stays empty

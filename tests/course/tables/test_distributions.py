"""Tables of chapter 03: they say what was computed."""

from types import SimpleNamespace

import pytest
import torch

from qtutor.course.tables import distributions as tables
from qtutor.course.tables import salient
from qtutor.plots import distributions as pictures
from qtutor.plots import salient as salient_pictures
from tests.course.tables.conftest import cells

SHARES = [0.01, 0.1]
FOUND = {"activation": [[20.0], [15.0]], "weight": [[38.0], [36.0]], "random": [[39.0, 37.0], [30.0, 34.0]]}
RESULTS = {("plain", 3): (10.0, 40.0, FOUND, [0.2, 0.4]), ("put in", 3): (10.0, 50.0, FOUND, [0.3, 0.6])}
BACK = {
    ("plain", 3): {"activation": [0.5, 0.7], "weight": [0.1, 0.2], "random": [0.1, 0.2]},
    ("put in", 3): {"activation": [0.51, 0.9], "weight": [0.6, 0.2], "random": [0.1, 0.2]},
}


def bell(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("count", [1, 7, 40])
def test_half_of_all_samples_exceed_the_largest_of_a_bell(count):
    above = (bell(20_000, count).abs().amax(dim=1) > tables.largest_of_bell(count)).double().mean().item()
    assert above == pytest.approx(0.5, abs=4 * (0.25 / 20_000) ** 0.5)


def test_tails_count_what_chance_does_not_explain(shown):
    tables.tails({"a": bell(64, 64), "b": bell(64, 64)}, {"a": 0.1, "b": 2.0})  # chance: 0.08
    assert [row[0] for row in cells(shown[0])[1:]] == ["a", "b"] and cells(shown[0])[1][5] == "± 0.08"
    assert "**1 have heavier tails than a bell** and 0 have lighter" in shown[1] and "2.00, is that of b" in shown[1]


def test_channels_explain_what_making_them_alike_takes_away(shown):
    tables.channels_or_weights({"a": [2.0, 0.5, 1.0, 0.5], "b": [2.0, 0.5, 1.0, 0.5]})
    assert "**75% of it comes from unequal channels**: unequal rows explain more" in shown[1]
    assert "The other 25% come from single weights" in shown[1]
    tables.channels_or_weights({"a": [-0.1, 0, 0, 0]})
    assert "no tails to explain" in shown[3]


def test_crest_factors_are_compared_with_bells(shown):
    sizes = {"a tensor": 0, "a row": -1, "64": 64, "16": 16}
    real, bells = [[8.0, 0.4, 0.4], [4.0, 0.2, 0.2], [2.2, 0.11, 0.1], [2.0, 0.1, 0.1]], [[4.0, 0.2, 0.2]] * 2
    bells += [[2.0, 0.1, 0.1], [2.0, 0.1, 0.1]]
    tables.crest_factors(sizes, real, bells)
    assert "by a factor of 4.0. In bells alone it would fall by 2.0" in shown[1]
    assert "100% above that of bells, with one a row 0%, in groups of 64 10%" in shown[1]
    left, right = pictures.crest_and_error(list(sizes), real, bells).axes
    assert left.lines[0].get_ydata().tolist() == [8.0, 4.0, 2.2, 2.0] and right.get_ylim()[0] == 0


def test_the_ends_of_the_line_are_tenths(shown):
    crest = torch.arange(1.0, 21.0)
    tables.where_the_line_holds({"4 bits": (crest, crest / 100, crest / 50)})
    assert cells(shown[0])[1] == ["4", "10.5% / 21.0%", "1.5% / 3.0%", "19.5% / 39.0%", "1.00"]


def test_layers_that_read_the_same_stand_together(shown):
    def statistics(*largest):
        return SimpleNamespace(max_abs=torch.tensor(largest))

    shared = statistics(1.0, 2.0, 6.0)
    inputs = {
        "model.layers.0.q_proj": shared,
        "model.layers.0.k_proj": shared,
        "model.layers.0.o": statistics(1.0, 1.0),
    }
    harder = {name: statistics(1.0, 2.0, 64.0) for name in inputs}
    assert tables.outliers_put_in(inputs, harder) == "0.q_proj"
    assert cells(shown[0])[1] == ["0.q_proj, k_proj", "2.00", "6.0", "2", "2.00", "64.0", "2", "3.0", "32.0"]
    assert (
        "1.0 to 3.0 times as large as the median one (most in 0.q_proj); with `add_outliers` it is up to 32 times"
        in shown[1]
    )


@pytest.mark.parametrize(("size", "said"), [(1.0, "no massive activations"), (100.0, "**massive activations")])
def test_the_first_token_is_named_where_it_is_massive(shown, size, said):
    states = torch.ones(2, 5, 8)
    states[:, 0] *= size
    tables.first_token([states, states])
    assert cells(shown[0])[2][:4] == ["before the last norm", f"{size:.2f}", "1.00", f"{size:.2f}"]
    assert said in shown[1]


def test_a_sink_has_a_fifth_of_all_attention_and_five_times_its_even_share(shown):
    even = torch.tril(torch.ones(40, 40))
    even /= even.sum(dim=1, keepdim=True)
    sink = torch.zeros(40, 40)
    sink[:, 0] = 1
    tables.attention_on_first([torch.stack([even, even])[None]])
    tables.attention_on_first([torch.stack([even, sink])[None]])
    assert "1.0 times an even share: no attention sink" in shown[1] and "**an attention sink**" in shown[3]
    assert cells(shown[2])[1][2] == "100.00%"


def test_the_error_of_the_loudest_channels():
    kinds = {"activation": torch.tensor([1.0, 9.0, 2.0, 3.0]), "activation × error": torch.tensor([1.0, 4.0, 1.0, 2.0])}
    assert salient.error_in_loudest({"a": kinds}, 0.25) == 0.5 and salient.error_in_loudest({"a": kinds}, 0.5) == 0.75


def test_draws_are_a_mean_with_their_ends(shown):
    salient.ways_to_keep(RESULTS, SHARES)
    assert cells(shown[0])[3] == [
        "plain",
        "3",
        "10.00",
        "40.00",
        "random",
        "38.00 (37.00 to 39.00)",
        "32.00 (30.00 to 34.00)",
    ]
    figure = salient_pictures.ways_to_keep(RESULTS, SHARES)
    assert [ax.get_title() for ax in figure.axes[:2]] == ["plain, 3 bits", "put in, 3 bits"]
    assert all(ax.get_yscale() == "log" for ax in figure.axes[:2])


def test_ours_stands_beside_the_papers(shown):
    published = {"activation": 11.0, "weight": 22.0, "random": 24.0}
    salient.beside_the_paper(RESULTS, published, (10.86, 23.54))
    assert cells(shown[0])[1:3] == [
        ["OPT-6.7B (published)", "3", "10.86", "23.54", "11.00", "22.00", "24.00"],
        ["this decoder, plain", "3", "10.00", "40.00", "20.00", "38.00", "38.00"],
    ]
    salient.recovered(BACK, {"activation": 0.94, "weight": 0.07, "random": -0.04}, RESULTS, SHARES)
    assert cells(shown[1])[1][2] == "94% / 7% / -4%" and cells(shown[1])[2][2:] == [
        "50% / 10% / 10%",
        "70% / 20% / 20%",
        "20% / 40%",
    ]


def test_the_effect_needs_to_beat_weights_and_luck(shown):
    salient.effect_of_the_paper(BACK, {case: 0.2 for case in BACK}, draws=4, published=0.94)
    assert (
        shown[0].count("The paper's effect is here.") == 1
        and shown[0].count("**The paper's effect is not here.**") == 1
    )
    assert "In 1 of 2 cases" in shown[0] and "In 1 of 2 comparisons, choosing by activation" in shown[0]
    assert "recovers 51%, far from the 94% of OPT-6.7B" in shown[0]


def test_the_better_buy_has_the_lower_perplexity(shown):
    rows = [
        ("3 bits, groups of 64", 110, 3.33, 30.0, 31.0),
        ("3 bits, groups of 128", 100, 3.2, 37.0, 46.0),
        ("3 bits, groups of 128, 1% kept", 120, 3.4, 33.0, 30.0),
    ]
    salient.better_buy(rows, ["plain", "put in"])
    assert [row[1] for row in cells(shown[0])[1:]] == ["100", "110", "120"]
    assert "costs 0.200 bits a weight, and groups of 64 in place of 128 cost 0.130" in shown[1]
    assert "plain, the smaller groups; put in, 1 % of the channels." in shown[1]


def test_the_first_series_lies_above_the_others():
    figure = pictures.channels({"a": {"one": torch.ones(4), "two": torch.ones(4)}}, "x", "y", log=True)
    first, second = figure.axes[0].patches
    assert first.get_zorder() > second.get_zorder() and first.get_linewidth() < second.get_linewidth()


def test_the_linear_histogram_ends_at_five_sigma():
    values = torch.cat([bell(10_000), torch.tensor([60.0])])
    left, middle, _ = pictures.against_normal(values).axes
    assert left.get_xlim()[1] < 6 and middle.get_xlim()[1] > 50
    assert "lie above the dashed line" in pictures.against_normal_words("a", 1.0)
    assert "lie below the dashed line" in pictures.against_normal_words("a", -1.0)

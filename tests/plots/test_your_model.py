"""Pictures of chapter 11: every layer has its place, every attempt its number, and descriptions say the same."""

import numpy as np
import pytest

from qtutor.plots import your_model as pictures
from qtutor.plots.base import png

COSTS = {
    "model.layers.0.self_attn.q_proj": 1e-4,
    "model.layers.0.mlp.down_proj": 2e-2,
    "model.layers.1.self_attn.q_proj": 3e-5,
    "model.layers.1.mlp.down_proj": 1e-3,
    "lm_head": 7.0,
}


def test_a_row_for_each_kind_and_a_column_for_each_block():
    grid, kinds = pictures.layer_grid(COSTS)
    assert kinds == ["q_proj", "down_proj"]
    assert np.array_equal(grid, [[1e-4, 3e-5], [2e-2, 1e-3]])


def test_a_layer_that_is_missing_is_an_empty_place():
    grid, _ = pictures.layer_grid({"a.0.x": 1.0, "a.2.y": 2.0})
    assert np.array_equal(grid, [[1, np.nan, np.nan], [np.nan, np.nan, 2]], equal_nan=True)
    pictures.costs_picture({"a.0.x": 1.0, "a.2.y": 2.0}).draw_without_rendering()


def test_the_map_of_costs_shows_their_logarithms():
    inside = {name: cost for name, cost in COSTS.items() if name != "lm_head"}
    figure = pictures.costs_picture(inside, "title")
    shown = figure.axes[0].images[0].get_array()
    assert np.allclose(shown, np.log10([[1e-4, 3e-5], [2e-2, 1e-3]]))
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["q_proj", "down_proj"]
    words = pictures.costs_words(inside)
    assert "dearest layer is down_proj of block 0, the cheapest q_proj of block 1" in words
    assert "the row of down_proj has the largest part, 99%" in words


def test_a_cost_of_zero_has_a_place_on_the_logarithmic_scale():
    assert png(pictures.costs_picture({"a.0.x": 0.0, "a.1.x": 1.0}))


def test_every_layer_has_its_bits_written_into_it():
    bits = {"a.0.x": 2, "a.1.x": 5, "a.0.y": 8, "a.1.y": 5}
    figure = pictures.bits_picture(bits)
    found = {text.get_position(): text.get_text() for text in figure.axes[0].texts}
    assert found == {(0, 0): "2", (1, 0): "5", (0, 1): "8", (1, 1): "5"}
    assert pictures.bits_words(bits).endswith("1 layer with 2 bits, 2 layers with 5 bits, 1 layer with 8 bits.")


@pytest.mark.parametrize("name", ["lm_head", "model.embed_tokens"])
def test_names_without_a_block_stay_as_they_are(name):
    assert pictures.short(name) == name and pictures.short("model.layers.12.mlp.up_proj") == "up_proj of block 12"


def test_attempts_have_numbers_a_limit_and_a_ring_around_the_best():
    tried, others = [(70_000_000, 0.5), (79_000_000, 0.2), (60_000_000, 0.9)], {"Q4_0": (75_000_000, 0.3)}
    figure = pictures.attempts_picture(tried, 80_000_000, others)
    (ax,) = figure.axes
    assert {text.get_text() for text in ax.texts} == {"1", "2", "3", "Q4_0", "limit: 80 MB"}
    ring = ax.lines[-1]
    assert (ring.get_xdata()[0], ring.get_ydata()[0]) == (79.0, 0.2) and ring.get_fillstyle() == "none"
    assert ax.lines[0].get_xdata()[0] == 80.0
    words = pictures.attempts_words(tried, 80_000_000, others)
    assert "attempt 2: 79.00 MB, KL 0.200" in words and "Q4_0: 75 MB" in words and words.endswith("attempt is 2.")


def test_a_single_attempt_and_one_without_loss_can_be_drawn():
    for tried in ([(1, 0.5)], [(1, 0.0), (2, 3.0)]):
        assert png(pictures.attempts_picture(tried, 858_237, {}))

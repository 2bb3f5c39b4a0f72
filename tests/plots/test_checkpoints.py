"""Pictures of chapter 08: they draw the data that they get."""

import numpy as np

from qtutor.plots import checkpoints as pictures
from qtutor.plots import png


def test_every_unit_is_outlined_and_numbered():
    rows = np.arange(8)[:, None] * np.ones((1, 32), int)
    words = np.arange(32) // 8 * 8 + np.arange(8)[:, None]
    columns = np.arange(32)[None] * np.ones((8, 1), int)
    figure = pictures.order_in_memory(dict(a=rows, b=words, c=columns), dict(a="rows", b="words", c="columns"))
    axes = figure.axes[:3]
    assert [ax.get_title() for ax in axes] == ["a: rows", "b: words", "c: columns"]
    assert [len(ax.patches) for ax in axes] == [8, 32, 32]
    assert [text.get_text() for text in axes[1].texts] == [str(n) for n in range(32)]
    assert [text.get_text() for text in axes[2].texts] == [str(n) for n in range(0, 32, 4)]  # more would overlap
    patch = axes[1].patches[9]  # word 9 is output 1, inputs 8 to 15
    assert (patch.get_xy(), patch.get_width(), patch.get_height()) == ((8, 1), 8, 1)
    assert (np.diff([ax.images[0].get_array().max() for ax in axes]) == 0).all()
    assert png(figure) == png(
        pictures.order_in_memory(dict(a=rows, b=words, c=columns), dict(a="rows", b="words", c="columns"))
    )


def test_colours_of_the_order_are_light_enough_for_black_text():
    for shade in pictures.SHADES(np.linspace(0, 1, 9))[:, :3]:
        linear = np.where(shade <= 0.03928, shade / 12.92, ((shade + 0.055) / 1.055) ** 2.4)
        assert ((linear @ [0.2126, 0.7152, 0.0722]) + 0.05) / 0.05 >= 4.5


def test_the_places_of_a_word_have_labels_and_bits():
    labels = {"one": ["in 0, out 0", "in 1, out 0"], "two": ["in 0, out 0", "in 0, out 1"]}
    ax = pictures.inside_a_word(labels).axes[0]
    assert [text.get_text() for text in ax.texts] == labels["one"] + labels["two"]
    fills = [patch.get_facecolor() for patch in ax.patches]
    assert fills[0] == fills[1] == fills[2] != fills[3]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["bits 0 to 3", "bits 4 to 7"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["one", "two"]


def test_pieces_are_marked_where_threads_read():
    reads = {"close": (4 * np.arange(32), 4), "far": (128 * np.arange(32), 4), "across": (np.array([30]), 4)}
    ax = pictures.touched(reads).axes[0]
    marked = [[path.get_extents() for path in collection.get_paths()] for collection in ax.collections[1::2]]
    assert [len(boxes) for boxes in marked] == [4, 32, 2]
    assert [(box.x0, box.x1) for box in marked[2]] == [(0, 32), (32, 64)]
    assert all(box.x0 % 32 == 0 and box.width == 32 for boxes in marked for box in boxes)


def test_bits_have_the_colour_of_their_code_and_unused_ones_are_white():
    owners = np.full((1, 32), -1)
    owners[0, :6] = [0, 0, 0, 1, 1, 1]
    ax = pictures.bits_of_words({"a word": owners}).axes[0]
    fills = [patch.get_facecolor() for patch in ax.patches]
    assert len(fills) == 32 and fills[0] == fills[2] != fills[3] and set(fills[6:]) == {(1, 1, 1, 1)}
    assert [(text.get_text(), text.get_position()[0]) for text in ax.texts] == [("0", 1.5), ("1", 4.5)]


def test_a_line_for_each_decoder_over_the_layers():
    series = {"plain": {"0: q": 0.1, "0: o": 0.05}, "ruined": {"0: q": 0.1, "0: o": 0.9}}
    ax = pictures.leaning(series).axes[0]
    assert [
        line.get_ydata().tolist() if hasattr(line.get_ydata(), "tolist") else list(line.get_ydata())
        for line in ax.lines
    ] == [
        [0.1, 0.05],
        [0.1, 0.9],
    ]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0: q", "0: o"]
    assert len({line.get_marker() for line in ax.lines}) == 2

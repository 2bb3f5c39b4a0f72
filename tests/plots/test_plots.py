"""Pictures: colour-blind readers tell colours apart, colour is never the only sign, equal data give equal bytes."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import colormaps, get_cachedir
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from qtutor import plots, rtn
from qtutor.core.grid import IntGrid
from qtutor.plots import base
from qtutor.plots.generation import texts_side_by_side, verdict
from qtutor.plots.rtn import before_after_error

# Machado, Oliveira and Fernandes 2009, "A Physiologically-based Model for Simulation of Color Vision Deficiency" (IEEE
# TVCG 15(6)), the tables for severity 1.0 on linear RGB: one kind of cones is missing.
VISION = {
    "all cones": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
# CIE 1976 colour difference. 2.3 is just noticeable side by side (Mahy, Van Eycken and Oosterlinck 1994). The tests
# require six times as much, because lines and marks are small and not side by side.
APART = 14.0
PALETTE = {name: getattr(base, name) for name in ("BLUE", "ORANGE", "GREEN", "RED", "PURPLE", "SKY", "YELLOW", "BLACK")}


def lab(colour: str, vision: np.ndarray) -> np.ndarray:
    """CIELAB (D65) of an sRGB colour, as a person with this vision sees it."""
    srgb = np.array(to_rgb(colour))
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(vision @ linear, 0, 1)
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    x, y, z = (np.array(to_xyz) @ seen) / (0.95047, 1.0, 1.08883)
    f = [np.cbrt(t) if t > (6 / 29) ** 3 else t / (3 * (6 / 29) ** 2) + 4 / 29 for t in (x, y, z)]
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def difference(first: str, second: str, vision: np.ndarray) -> float:
    return float(np.linalg.norm(lab(first, vision) - lab(second, vision)))


def some_weight() -> torch.Tensor:
    return torch.randn(32, 256, generator=torch.Generator().manual_seed(0))


def figures() -> dict[str, Figure]:
    """One picture of each kind that a widget or more than one chapter draws."""
    weight = some_weight()
    quantized = rtn.quantize(weight, IntGrid(3), 64)
    series = {str(i): [i, i + 1, i + 2] for i in range(5)}
    return {
        "curves": plots.curves({"panel": series}, [1, 2, 3], "x"),
        "number_line": plots.number_line({"grid": (torch.tensor([0.4, 1.2, 9.0]), torch.arange(4.0))}),
        "matrices": plots.matrices({"before": weight[:4, :8]}, limit=1.0),
        "weights_and_grid": plots.weights_and_grid(weight, quantized),
        "before_after_error": before_after_error(weight, quantized.dequantize(), group_size=64),
    }


def colours_of(ax) -> set[str]:
    """The colours with a meaning in one panel: those of lines, areas and marks, but not of the frame."""
    found = {to_hex(line.get_color()) for line in ax.lines}
    found |= {to_hex(patch.get_facecolor()) for patch in ax.patches}
    for collection in ax.collections:
        for colour in (*collection.get_facecolor(), *collection.get_edgecolor()):
            found.add(to_hex(colour))
    return found


def test_the_simulation_does_what_it_should():
    """Published facts: without M cones red and green look alike, without S cones blue and green. Greys stay grey."""
    for name, vision in VISION.items():
        for grey in ("#000000", "#808080", "#ffffff"):
            assert difference(grey, grey, vision) == 0 and np.abs(lab(grey, vision)[1:]).max() < 1, name
    assert lab("#ffffff", VISION["all cones"]) == pytest.approx([100, 0, 0], abs=0.02)
    assert lab("#ff0000", VISION["all cones"]) == pytest.approx([53.24, 80.09, 67.20], abs=0.02)
    leaf, brick = "#5a8f29", "#a86b2d"
    assert difference(leaf, brick, VISION["all cones"]) > 40
    assert difference(leaf, brick, VISION["deuteranopia"]) < APART
    assert difference("#00a0a0", "#4f9cc0", VISION["tritanopia"]) < difference("#00a0a0", "#4f9cc0", np.eye(3)) / 1.5


@pytest.mark.parametrize("vision", VISION)
def test_any_two_colours_of_the_palette_are_told_apart(vision):
    for (first, a), (second, b) in itertools.combinations(PALETTE.items(), 2):
        assert difference(a, b, VISION[vision]) > APART, (first, second)
    for name, colour in PALETTE.items():
        assert difference(colour, "#ffffff", VISION[vision]) > APART, f"{name} on white paper"


@pytest.mark.parametrize("name", figures())
def test_pictures_use_the_palette(name):
    allowed = {colour.lower() for colour in PALETTE.values()}
    for ax in figures()[name].axes:
        if not ax.images and ax.get_label() != "<colorbar>":
            assert colours_of(ax) <= allowed


def test_no_module_brings_colours_of_its_own():
    for path in Path(base.__file__).parent.glob("*.py"):
        if path.name != "base.py":
            assert not re.findall(r"#[0-9A-Fa-f]{6}\b", path.read_text(encoding="utf-8")), path.name


@pytest.mark.parametrize("vision", VISION)
def test_the_colour_map_has_a_direction_for_everyone(vision):
    """Hue tells weights below and above zero apart. Lightness only falls with the distance from zero."""
    steps = [to_hex(colormaps["PuOr"](i / 20)) for i in range(21)]
    light = [lab(colour, VISION[vision])[0] for colour in steps]
    assert light[:11] == sorted(light[:11]) and light[10:] == sorted(light[10:], reverse=True)
    for i in range(6):  # the outer halves; near zero both are white, as they should be
        assert difference(steps[i], steps[20 - i], VISION[vision]) > APART


def test_lines_that_share_a_panel_differ_in_more_than_colour():
    for name, figure in figures().items():
        for ax in figure.axes:
            styles = [(line.get_marker(), line.get_linestyle()) for line in ax.lines]
            assert len(set(styles)) == len(styles), name


def test_the_histogram_counts_every_weight_and_draws_every_level():
    weight = some_weight()
    quantized = rtn.quantize(weight, IntGrid(3, symmetric=True), -1)
    left, right = plots.weights_and_grid(weight, quantized).axes
    assert left.patches[0].get_data().values.sum() == right.patches[0].get_data().values.sum() == weight.numel()
    levels = sorted(segment[0][0] for segment in left.collections[0].get_segments())
    scale = quantized.scales.flatten().sort().values[16].item()
    assert levels == pytest.approx([scale * step for step in range(-4, 4)], rel=1e-6)


def test_the_three_pictures_hold_the_weights_and_name_their_place():
    weight = some_weight()[:16, :128]
    after = rtn.quantize(weight, IntGrid(2), 64).dequantize()
    figure = before_after_error(weight, after, corner=(48, 256), group_size=64)
    drawn = [ax.images[0].get_array() for ax in figure.axes[:3]]
    for picture, expected in zip(drawn, (weight, after, after - weight)):
        assert np.array_equal(np.asarray(picture), expected.numpy())
    assert figure.axes[0].get_xlim() == (255.5, 383.5) and figure.axes[0].get_ylim() == (63.5, 47.5)
    assert [segment[0][0] for segment in figure.axes[0].collections[0].get_segments()] == [319.5]
    limits = {ax.images[0].get_clim() for ax in figure.axes[:3]}
    assert len(limits) == 1  # one colour scale, so that the pictures can be compared


def test_equal_data_give_equal_bytes():
    for name in figures():
        assert plots.png(figures()[name]) == plots.png(figures()[name]), name


# --- texts ---


def test_what_differs_is_marked_on_both_sides_and_not_by_colour_alone():
    html = texts_side_by_side("f(a)\n  x < 1", "f(b)\n  x < 1", ("as it is", "4 bits"), ("good", "bad"))
    marked = re.findall(r'<mark style="([^"]*)">(.*?)</mark>', html)
    assert [text for _, text in marked] == ["a", "b"]
    assert all("underline" in style for style, _ in marked)
    assert html.count("x &lt; 1") == 2 and "good" in html and "bad" in html


def test_equal_texts_have_no_mark_and_the_prompt_is_never_marked():
    assert "<mark" not in texts_side_by_side("same\n", "same\n", ("a", "b"), ("", ""))
    html = texts_side_by_side("def f():\n x", "def f():\n y", ("a", "b"), ("", ""), prompt=9)
    assert html.count("def f():\n</span>") == 2


@pytest.mark.parametrize(
    "prompt, added, said",
    [
        ("def f(x):\n", "    return x\n\ndef g(", "ast.parse accepts it"),
        ("def f(x):\n", "    return x x\n    y = 1\n", "ast.parse rejects it"),
        ("class A:\n", "    b = 1\n\nnext", "ast.parse accepts it"),
        (">>> 1 + 1\n", "2\n", "no function: nothing to parse"),
    ],
)
def test_verdict(prompt, added, said):
    assert verdict(prompt, prompt + added) == said


def test_the_cache_of_fonts_is_the_clones_own():
    """The cache of another clone names fonts that are gone when that clone is deleted (tests/conftest.py)."""
    assert Path(get_cachedir()).is_relative_to(Path(__file__).parents[2])


@pytest.mark.parametrize("name", figures())
def test_every_picture_has_a_white_margin(name):
    """On a dark page a picture is a white card. In a widget the card is exactly as large as the figure."""
    picture = figures()[name]
    width, height = (round(100 * inches) for inches in picture.get_size_inches())
    for within, size in ((True, (width, height)), (False, (width + 20, height + 20))):
        card = base.card(picture, dpi=100, within=within)
        assert np.abs(np.subtract(card.size, size)).max() <= 1
        grey = np.asarray(card.convert("L"))
        inner = grey[10:-10, 10:-10]
        assert (inner < 128).any() and (grey < 250).sum() == (inner < 250).sum()

"""The microscope for numbers: a flipped bit changes the number in every format. Without a kernel there are frames."""

import math
import re

import ipywidgets
import pytest
from matplotlib.colors import to_rgb

from qtutor.core.numbers import IntFormat
from qtutor.course.widgets.numbers import NUMBERS, code_of, formats, lens, lens_alt, microscope, pale
from qtutor.plots.numbers import FIELDS


class Seen:
    """The parts of a microscope, named by their purpose."""

    def __init__(self, number: float):
        self.widget = microscope(number)
        controls, _, bits, self.picture = self.widget.children
        self.number, self.reach, self.window = controls.children
        self.rows = {row.children[1].children[1].children[0].tooltip.split(":")[0]: row for row in bits.children}

    def buttons(self, name: str) -> list[ipywidgets.Button]:
        return list(self.rows[name].children[1].children[1].children)

    def bits(self, name: str) -> str:
        return "".join(button.description for button in self.buttons(name))

    def flip(self, name: str, bit: int) -> None:
        next(b for b in self.buttons(name) if f"flip bit {bit}," in b.tooltip).click()


def test_every_format_shows_its_bits_of_the_number():
    seen = Seen(0.15625)
    assert seen.bits("fp32") == "00111110001000000000000000000000"
    assert seen.bits("bf16") == seen.bits("fp32")[:16]
    assert seen.bits("fp8 e4m3") == "00100010"
    assert seen.bits("int4") == "0000"
    assert {name: len(seen.buttons(name)) for name in seen.rows} == {fmt.name: fmt.bits for fmt in formats(8.0)}


@pytest.mark.parametrize(
    ("name", "bit", "number"),
    [
        ("fp32", 31, -0.15625),  # sign
        ("fp16", 10, 0.3125),  # last exponent bit, was 0: the number doubles
        ("fp8 e4m3", 0, 0.171875),  # last mantissa bit, worth 2**-6 between 1/8 and 1/4
        ("int8", 7, -7.875),  # two's complement: int8 rounds to 0.125, and this bit subtracts 128 steps of 1/16
        ("int4", 1, 2.0),  # int4 has steps of 1, so it rounds the number to 0
    ],
)
def test_a_flipped_bit_is_the_new_number(name, bit, number):
    seen = Seen(0.15625)
    before, picture = seen.bits(name), seen.picture.value
    seen.flip(name, bit)
    assert seen.number.value == number
    assert sum(a != b for a, b in zip(before, seen.bits(name))) == 1
    for fmt in formats(8.0):
        assert seen.bits(fmt.name) == f"{int(fmt.encode(number)):0{fmt.bits}b}"
    assert seen.picture.value != picture
    assert f"around {number:.6g}" in seen.picture.value


@pytest.mark.parametrize("colour", [colour for _, colour in FIELDS.values()])
def test_black_digits_are_legible_on_every_bit_in_any_theme(colour):
    """WCAG 2.1: a contrast of at least 4.5. The colours are opaque, so the background does not matter."""
    for shown in (colour, pale(colour)):
        assert re.fullmatch(r"#[0-9A-Fa-f]{6}", shown)
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in to_rgb(shown)]
        light = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
        assert (light + 0.05) / 0.05 > 4.5
    assert to_rgb(pale(colour)) > to_rgb(colour)
    assert {button.style.button_color for button in Seen(0.15625).buttons("fp16")} <= {
        tint for _, field in FIELDS.values() for tint in (field, pale(field))
    }


def test_infinity_nan_and_the_way_back():
    seen = Seen(1.0)
    for bit in range(10, 15):
        if seen.bits("fp16")[15 - bit] == "0":
            seen.flip("fp16", bit)
    assert seen.number.value == math.inf
    assert "<img" not in seen.picture.value and "The number is inf" in seen.picture.value
    seen.flip("fp16", 0)
    assert math.isnan(seen.number.value)
    assert "has no NaN" in seen.rows["int8"].children[0].value
    seen.flip("int8", 4)  # NaN has no code here, so the flip starts from code 0
    assert seen.number.value == 1.0


def test_reach_and_window_are_moved_and_the_number_typed():
    seen = Seen(3.14159)
    before = seen.picture.value
    seen.window.value = 0.02
    assert seen.picture.value != before
    seen.reach.value = 128.0
    assert seen.bits("int8") == "00000011"
    seen.number.value = -0.0
    assert seen.bits("fp32") == "1" + 31 * "0"


@pytest.mark.parametrize("number", [*NUMBERS, 0.0, -0.0, 1e-45, -3e38, 5e-324, 1e300, math.inf, -math.inf, math.nan])
def test_no_number_breaks_the_lens(number):
    drawn = lens(number)
    html = drawn if isinstance(drawn, str) else drawn[1]
    assert isinstance(drawn, str) == (not math.isfinite(number))
    assert html.count("<tr>") == 1 + len(formats(8.0))
    assert len(lens_alt(number)) > 40


def test_a_nan_has_no_code_in_an_integer():
    assert code_of(IntFormat(8), math.nan) is None
    assert code_of(formats(8.0)[0], math.nan) == 0x7FFFFFFF


def test_without_a_kernel_the_numbers_are_drawn_beforehand_and_described():
    still = microscope(0.15625).still
    assert len(still) < 200_000
    options = re.findall(r"<option[^>]*>([^<]+)<", still)
    assert options == [f"{number:.6g}" for number in NUMBERS]
    # A frame for each number, and once more the frame that is shown at the start.
    assert still.count("data:image/png") == len(NUMBERS) + 1
    assert "The levels of seven formats around 70000" in still and "inf" in still

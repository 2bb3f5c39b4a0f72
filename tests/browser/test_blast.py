"""Blast radius in a real browser: its script decodes as the package does, and clicks and keys flip bits."""

import numpy as np
import pytest

from qtutor.course import bit_flips
from qtutor.course.bit_flips import document, flipped, part_of, weights_moved
from qtutor.course.widgets import blast_radius
from qtutor.gguf import decode

EXPONENT_OF_D, HIGH_BIT_OF_SCALE_7, CODE = 14, 8 * 7 + 7, 8 * 77 + 6
# How far each bar reaches, as a part of the axis. The places of moved bars are marked.
BARS = """kind => [...document.querySelectorAll('rect.' + kind)].map(bar =>
    -Number(bar.style.transform.match(/scaleY\\((.*)\\)/)[1]))"""
MARKED = """[...document.querySelectorAll('rect.place')].flatMap((bar, i) =>
    bar.style.visibility === 'visible' ? [i] : [])"""
LIMIT = "Number(document.querySelector('.top').textContent.replaceAll(',', ''))"
FOCUSED = "Number(document.activeElement.dataset.bit)"


@pytest.fixture
def shown(open_page):
    """shown(**how) -> a page with the widget as in the book and in a stored notebook, and what was noted on it."""

    def show(**how):
        page, noted = open_page(**how)
        colours = "background:#121212;color:#ddd" if how.get("dark") else ""
        page.set_content(f"<!doctype html><html lang='en'><body style='{colours}'>{blast_radius().html}</body></html>")
        return page, noted

    return show


def block() -> np.ndarray:
    return np.frombuffer(bytes.fromhex(document()["block"]), np.uint8)


def assert_shows(page, bit: int | None) -> None:
    """The page shows what the package computes for ``bit``: bars, words and text."""
    whole = decode(block()[None], "Q4_K")[0]
    after = whole if bit is None else decode(flipped(block(), bit)[None], "Q4_K")[0]
    moved = [] if bit is None else weights_moved(block(), bit).tolist()
    limit = max(1.1 * np.abs(whole).max(), 1.02 * np.abs(after[moved]).max() if moved else 0)
    assert page.evaluate(LIMIT) == pytest.approx(limit, rel=1e-3)
    assert page.evaluate(MARKED) == moved
    # Exact in float64, except that the text of a style has only about six digits.
    assert page.evaluate(BARS, "old") == pytest.approx((whole / limit).tolist(), rel=1e-4, abs=1e-6)
    assert [page.evaluate(BARS, "new")[i] for i in moved] == pytest.approx(
        (after[moved] / limit).tolist(), rel=1e-4, abs=1e-6
    )
    text = document()["texts"][0 if bit is None else document()["text_of"][bit]]
    assert page.locator(".now").evaluate("pre => pre.textContent") == text
    pressed = page.locator(".bits [aria-pressed=true]")
    assert pressed.count() == (bit is not None)
    if bit is not None:
        assert pressed.get_attribute("data-bit") == str(bit)
        assert page.locator("[data-moved]").get_attribute("data-moved") == str(len(moved))


@pytest.mark.parametrize(
    ("bit", "depend", "moved"),
    [(CODE, 1, 1), (HIGH_BIT_OF_SCALE_7, 32, 31), (8 * 11 + 5, 32, 32), (EXPONENT_OF_D, 256, 247), (30, 256, 256)],
    ids=["a code", "a scale", "a minimum", "d", "dmin"],
)
def test_a_click_flips_a_bit(shown, bit, depend, moved):
    page, noted = shown()
    page.get_by_role("button", name="flip none").click()
    assert_shows(page, None)
    page.locator(f".bits [data-bit='{bit}']").click()
    assert len(part_of(bit).weights) == depend and len(weights_moved(block(), bit)) == moved
    assert_shows(page, bit)
    said = page.locator(".about").inner_text()
    assert said.startswith(f"Byte {bit // 8}, bit {bit % 8} is bit ")
    assert f"{moved} weight{'s' if moved > 1 else ''} move" in said
    assert ("have code 0" in said or "has code 0" in said) == (moved < depend)
    page.locator(f".bits [data-bit='{bit}']").click()  # a second click turns it back
    assert_shows(page, None)
    noted.assert_nothing()


def test_the_script_decodes_every_flip_as_the_package_does(shown):
    page, noted = shown()
    # 37 and 8 have no common divisor: every place of a byte and every field occurs.
    for bit in range(0, bit_flips.BITS, 37):
        page.evaluate(f"document.querySelector(\".bits [data-bit='{bit}']\").click()")
        assert_shows(page, bit)
    noted.assert_nothing()


def test_arrows_move_from_bit_to_bit_and_one_tab_leaves_the_map(shown):
    page, noted = shown()
    page.locator(f".bits [data-bit='{8 * 16 + 7}']").click()
    moves = [("ArrowRight", 8 * 16 + 6), ("ArrowDown", 8 * 24 + 6), ("ArrowLeft", 8 * 24 + 7), ("ArrowUp", 8 * 16 + 7)]
    moves += [("ArrowUp", 8 * 12 + 7), ("ArrowLeft", 8 * 11), ("Home", 7), ("ArrowLeft", 7), ("End", 8 * 143)]
    for key, bit in moves:
        page.keyboard.press(key)
        assert page.evaluate(FOCUSED) == bit, key
        if key != "ArrowLeft" or bit != 7:  # nothing is to the left of the first bit: it stays flipped
            assert_shows(page, bit)
    page.keyboard.press("Tab")
    assert page.evaluate("!document.activeElement.closest('.fields')")
    assert page.evaluate("document.activeElement.textContent") == "of d"
    page.keyboard.press("Enter")
    assert_shows(page, EXPONENT_OF_D)
    noted.assert_nothing()


def test_the_large_bits_flip_their_byte(shown):
    page, noted = shown()
    page.get_by_role("button", name="of d", exact=True).click()
    page.get_by_role("button", name="of d", exact=True).click()  # a second click here does not turn it back
    large = page.locator(".large button")
    value = int(flipped(block(), EXPONENT_OF_D)[1])
    assert "".join(large.all_inner_texts()) == f"{value:08b}"
    large.nth(2).click()  # bit 5 of byte 1
    assert page.evaluate(FOCUSED) == 13
    assert_shows(page, 13)
    page.get_by_role("button", name="flip none").click()
    assert_shows(page, None)
    assert "".join(large.all_inner_texts()) == f"{block()[1]:08b}"
    noted.assert_nothing()


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)], ids=["desk", "phone in the dark"])
def test_it_fits_the_page_and_every_bit_says_what_it_is(shown, width, dark):
    page, noted = shown(width=width, dark=dark)
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page scrolls sideways"
    labels = page.locator(".bits button").evaluate_all("all => all.map(one => one.getAttribute('aria-label'))")
    assert len(labels) == len(set(labels)) == 1152 and all("KL " in label for label in labels)
    sizes = page.locator(".bits button").evaluate_all("all => all.map(one => one.getBoundingClientRect().width)")
    assert min(sizes) > 7, "a bit is too narrow to be hit"
    page.get_by_role("button", name="of a code", exact=True).click()
    assert page.locator("[data-moved]").get_attribute("data-moved") == "1"
    assert page.locator("[data-remark]").is_hidden() and page.locator(".live").is_visible()
    noted.assert_nothing()


def test_two_on_one_page_do_not_disturb_each_other(open_page):
    page, noted = open_page()
    page.set_content(f"<!doctype html><body>{blast_radius().html * 2}</body>")
    page.locator(".qtutor-blast >> nth=0").locator(".bits [data-bit='30']").click()
    chosen = page.locator(".bits [aria-pressed=true]").evaluate_all("all => all.map(one => one.dataset.bit)")
    assert chosen == ["30", page.locator(".qtutor-blast >> nth=1").get_attribute("data-start")]
    noted.assert_nothing()

"""Widgets without a kernel in a real browser: mouse and keys move them, and their numbers are those of Python."""

import json
import re

import pytest
import torch

from qtutor.core.numbers import BF16, E4M3, E5M2, FP16, FP32, IntFormat
from qtutor.course.widgets import levels as game
from qtutor.course.widgets.levels import LEVELS, beat_nf4, best_levels, error_of, lloyd_step, points_of
from qtutor.course.widgets.live import Live
from qtutor.course.widgets.ruler import ruler

FORMATS = (FP32, BF16, FP16, E5M2, E4M3, IntFormat(8, scale=1 / 16))
WEIGHT = torch.randn(256, 128, generator=torch.Generator().manual_seed(0))
SIZES = pytest.mark.parametrize("width, dark", [(1280, False), (390, True)], ids=["desk", "phone in the dark"])


def shown(open_page, widget: Live, width: int = 1280, dark: bool = False):
    """A page with the widget twice: one must not change the other."""
    page, noted = open_page(width=width, dark=dark)
    style = "<style>body {color: #ddd; background: #121212}</style>" if dark else ""
    page.set_content(f"<!doctype html><body>{style}{widget.html}{widget.html}</body>")
    page.locator(".qtutor-live svg").nth(3 if "ruler" in widget.html[:80] else 1).wait_for()
    assert page.locator("[data-still]").count() == 0
    return page, noted


def said(page) -> tuple[str, int]:
    """The error as the first widget prints it, and the score."""
    error, score = re.match(r"Error ([\d.]+) %, score (\d+) of 100", page.locator(".said").first.inner_text()).groups()
    return error, int(score)


def levels_of(page) -> list[float]:
    handles = page.locator(".qtutor-live").first.get_by_role("slider")
    return [float(value) for value in handles.evaluate_all("all => all.map(h => h.getAttribute('aria-valuenow'))")]


def pointer_at(page, i: int) -> tuple[float, float]:
    knob = page.locator(".qtutor-live").first.locator(".knob").nth(i).bounding_box()
    return knob["x"] + knob["width"] / 2, knob["y"] + knob["height"] / 2


@SIZES
def test_a_dragged_level_changes_the_error_and_lloyds_step_lowers_it(open_page, width, dark):
    page, noted = shown(open_page, beat_nf4({"some weights": [WEIGHT]}), width, dark)
    points = points_of(*game.normalised([WEIGHT]))
    assert levels_of(page) == pytest.approx(LEVELS["int4"], abs=1e-4)
    assert said(page)[0] == f"{100 * error_of(points, torch.tensor(LEVELS['int4'])):.2f}"

    x, y = pointer_at(page, 12)
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 9, y, steps=3)
    page.mouse.up()
    page.mouse.move(x + 60, y)  # the button is up, so nothing follows
    moved = levels_of(page)
    assert moved[12] > LEVELS["int4"][12] + 0.01 and moved[:12] == pytest.approx(LEVELS["int4"][:12], abs=1e-4)
    before = said(page)
    assert before[0] == f"{100 * error_of(points, torch.tensor(moved)):.2f}"

    page.get_by_role("button", name="Lloyd step", exact=True).first.click()
    after = said(page)
    assert float(after[0]) < float(before[0])
    expected = lloyd_step(points, torch.tensor(moved, dtype=torch.float64))
    expected[8] = 0  # this level stays at 0
    assert levels_of(page) == pytest.approx(expected.tolist(), abs=2e-3)
    # The other widget on the page did not move.
    assert page.locator(".qtutor-live").nth(1).locator(".said").first.inner_text().startswith("Error 10")
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page scrolls sideways"
    noted.assert_nothing()


def test_the_score_is_what_python_computes(open_page):
    page, noted = shown(open_page, beat_nf4({"bell": [WEIGHT], "other": [WEIGHT**3]}))
    for name, weight in (("bell", WEIGHT), ("other", WEIGHT**3)):
        page.locator("select").first.select_option(name)
        points = points_of(*game.normalised([weight]))
        for free in (False, True):
            page.get_by_label("one level stays at 0").first.set_checked(not free)
            best = error_of(points, best_levels(points)[not free])
            nf4 = error_of(points, torch.tensor(LEVELS["NF4"]))
            assert f"NF4 has {nf4:.2%}".replace("%", " %") in page.locator(".said").first.inner_text()
            for start in LEVELS:
                page.get_by_label("start from").first.select_option(start)
                for _ in range(2):
                    page.get_by_role("button", name="20 Lloyd steps").first.click()
                    error = error_of(points, torch.tensor(levels_of(page)))
                    score = max(0, round(100 * (nf4 - error) / (nf4 - best)))
                    printed = said(page)
                    assert float(printed[0]) == pytest.approx(100 * error, abs=0.011), (name, free, start)
                    assert abs(printed[1] - score) <= 1, (name, free, start)  # levels are printed to four places
    noted.assert_nothing()


def test_levels_move_by_keys_and_stop_at_their_neighbours(open_page):
    page, noted = shown(open_page, beat_nf4({"some weights": [WEIGHT]}))
    handles = page.locator(".qtutor-live").first.get_by_role("slider")
    start = levels_of(page)
    handles.nth(3).focus()
    assert page.locator(".said").nth(1).inner_text().startswith("Level 3 lies at -0.6667")
    for key, by in (("ArrowRight", 0.005), ("ArrowUp", 0.005), ("ArrowLeft", -0.005), ("Shift+ArrowLeft", -0.05)):
        before = levels_of(page)[3]
        page.keyboard.press(key)
        assert levels_of(page)[3] == pytest.approx(before + by, abs=2e-4)
    for _ in range(8):
        page.keyboard.press("PageDown")
    assert start[2] < levels_of(page)[3] < start[2] + 0.01, "a level stops beside its neighbour"
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    assert levels_of(page)[4] == pytest.approx(start[4] + 0.005, abs=2e-4)
    handles.nth(8).focus()  # the level that stays at 0
    page.keyboard.press("ArrowRight")
    assert levels_of(page)[8] == 0 and handles.nth(8).get_attribute("aria-disabled") == "true"
    page.get_by_label("one level stays at 0").first.uncheck()
    handles.nth(8).press("ArrowRight")
    assert levels_of(page)[8] == 0.005
    assert all(handles.evaluate_all("all => all.map(h => h.getAttribute('aria-label') && h.ariaValueText)"))
    noted.assert_nothing()


def test_start_again_goes_back_to_the_format_that_is_chosen(open_page):
    page, noted = shown(open_page, beat_nf4({"some weights": [WEIGHT]}))
    for start in (None, "NF4"):
        if start:
            page.get_by_label("start from").first.select_option(start)
        first = levels_of(page)
        assert first == pytest.approx(LEVELS[start or "int4"], abs=1e-4)
        page.get_by_role("button", name="Lloyd step", exact=True).first.click()
        page.locator(".qtutor-live").first.get_by_role("slider").nth(3).press("ArrowRight")
        assert levels_of(page) != first
        page.get_by_role("button", name="start again").first.click()
        assert levels_of(page) == first
    noted.assert_nothing()


@SIZES
def test_the_ruler_says_what_python_rounds(open_page, width, dark):
    page, noted = shown(open_page, ruler(FORMATS), width, dark)
    slider = page.get_by_role("slider").first
    rulers = page.locator(".qtutor-live").first.locator("svg").first
    trails = page.locator(".qtutor-live").first.locator("svg").nth(1).locator("path.mark")
    before = trails.nth(0).get_attribute("d")
    for power in (-30, -17, -4.015625, 0, 3.5, 8.84375, 15.984375, 20):
        slider.fill(str(power))
        words = rulers.get_attribute("aria-label").partition(" becomes: ")[2].split("; ")
        assert len(words) == len(FORMATS)
        for fmt, text in zip(FORMATS, words):
            x = 2.0**power
            rounded, value = float(fmt.round(x)), re.search(r"([\d.e-]+|infinity), (off|exact|out)", text)[1]
            value = float(value.replace("infinity", "inf"))
            assert value == pytest.approx(rounded, rel=6e-4), (fmt.name, power, text)
            assert ("exact" in text) == (rounded == x) and ("out of range" in text) == (rounded == float("inf"))
    assert len(trails.nth(0).get_attribute("d")) > 5 * len(before), "the trail follows the number"
    assert trails.count() == len(FORMATS)
    page.get_by_role("button", name="Wipe the trail").first.click()
    assert len(trails.nth(0).get_attribute("d")) < 30
    page.get_by_role("button", name="Whole trail").first.click()
    assert trails.nth(0).get_attribute("d").count("L") == 50 * 16 - 1
    slider.focus()
    page.keyboard.press("Home")
    assert slider.get_attribute("aria-valuetext") == "9.313e-10, 2 to the -30"
    page.get_by_label("window").first.select_option("0.1 % to each side")
    assert rulers.locator("text").last.inner_html() == "9.323e-10"
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page scrolls sideways"
    noted.assert_nothing()


def test_without_scripts_the_picture_and_its_table_are_there(chromium):
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    for widget in (beat_nf4({"some weights": [WEIGHT]}), ruler(FORMATS)):
        page.set_content(f"<!doctype html><body>{widget.html}</body>")
        picture = page.locator("[data-still] img")
        assert picture.is_visible() and len(picture.get_attribute("alt")) > 100
        assert page.get_by_text("A still picture.").is_visible()
        assert json.loads(page.locator("script[type='application/json']").text_content())
    context.close()

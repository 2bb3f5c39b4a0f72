"""A block in four formats in a real browser: put on the page like a live widget, then used by mouse and keys."""

import pytest
import torch

from qtutor.course import layouts
from qtutor.course.widgets.checkpoints import formats_html, four_formats
from qtutor.methods import rtn

MARKS = "kind => [...document.querySelectorAll('.panel')].map(panel => [...panel.querySelectorAll('i')]"
MARKS += ".flatMap((digit, at) => digit.className === kind ? [at ^ 1] : []))"
FOCUSED = "document.activeElement.getAttribute('aria-label').split(':')[0]"


def layer(seed: int):
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(seed))
    return rtn.quantize(weight, layouts.GRID, layouts.INPUTS)


def expected(block, weight: int) -> list[list[int]]:
    """The half bytes of a weight's code in each format's first tensor, which holds the codes in all four."""
    return [laid.places("codes")[weight].tolist() for laid in layouts.side_by_side(block)]


def test_a_click_and_the_arrows_mark_the_same_weight_in_all_formats(open_page):
    page, noted = open_page()
    page.set_content("<main></main>")
    block = layouts.block_of(layer(1))
    html = formats_html(block, "a layer")
    page.evaluate("html => { document.querySelector('main').innerHTML = html; }", html)
    page.get_by_label("output 3, input 5:").click()
    at = 3 * 32 + 5
    assert page.evaluate(MARKS, "w") == expected(block, at)
    assert page.locator(".about").inner_text().startswith("output 3, input 5: code")
    digits = page.locator(".panel .w").all_inner_texts()
    assert digits == [f"{int(block.codes.flatten()[at]):x}"] * 4
    assert [len(marks) for marks in page.evaluate(MARKS, "s")] == [4] * 4
    assert [len(marks) for marks in page.evaluate(MARKS, "z")] == [0, 1, 1, 0]
    for key, step in [("ArrowRight", 1), ("ArrowDown", 32), ("ArrowLeft", -1), ("ArrowUp", -32)]:
        page.keyboard.press(key)
        at += step
        assert page.evaluate(FOCUSED) == f"output {at // 32}, input {at % 32}"
        assert page.evaluate(MARKS, "w") == expected(block, at)
        # The script writes the same words as Python does when it draws this weight.
        told = page.locator(".where").all_inner_texts()
        page.evaluate(
            "html => { const other = document.createElement('div'); other.innerHTML = html; "
            "window.drawn = [...other.querySelectorAll('.where')].map(text => text.textContent); }",
            formats_html(block, "a layer", start=at),
        )
        assert told == page.evaluate("window.drawn")
    page.keyboard.press("Tab")  # all codes are one stop of the Tab key, as in any grid
    assert page.evaluate("!document.activeElement.closest('.qtutor-formats')")
    noted.assert_nothing()


@pytest.mark.parametrize("width, dark", [(1280, False), (390, True)])
def test_what_is_drawn_beforehand_can_be_clicked_too(open_page, width, dark):
    page, noted = open_page(width=width, dark=dark)
    layers = {"first": layer(1), "second": layer(2)}
    page.set_content(f"<!doctype html><body>{four_formats(layers).still}</body>")
    page.locator("select").select_option("second")
    page.get_by_label("output 7, input 31:").click()
    assert page.evaluate(MARKS, "w") == expected(layouts.block_of(layers["second"]), 255)
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page scrolls sideways"
    noted.assert_nothing()

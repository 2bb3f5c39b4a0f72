"""The page table in a real browser, as the book shows it: every step of the slider, light and dark, wide and narrow."""

import pytest

from qtutor.course.serving.history import Asked, continuous
from qtutor.course.widgets import page_table

ASKED = [Asked("A", 0, (1, 2, 3, 4, 5, 6), 8), Asked("B", 1, (1, 2, 3, 4, 9), 6), Asked("C", 2, (7, 8, 7), 7)]
MOMENTS = continuous(ASKED, 6, 4)


@pytest.mark.parametrize("width, dark", [(1280, False), (390, True)])
def test_the_slider_shows_each_step(open_page, width, dark):
    page, noted = open_page(width=width, dark=dark)
    page.set_content(f"<!doctype html><body>{page_table(MOMENTS, size=4).still}</body>")
    slider = page.get_by_label("step")
    slider.focus()
    for step, moment in enumerate(MOMENTS):
        assert page.get_by_text(f"Step {step}.", exact=True).is_visible()
        blocks = (
            page.get_by_role("listitem").filter(has_text="■").or_(page.get_by_role("listitem").filter(has_text="□"))
        )
        assert blocks.count() == len(moment.blocks)
        for block, shown in zip(moment.blocks, blocks.all_inner_texts()):
            assert shown.count("■") == block.filled
            assert all(owner in shown for owner in block.owners)
        page.keyboard.press("ArrowRight")
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page scrolls sideways"
    noted.assert_nothing()

"""The budget of chapter 12 in a real browser, as the book shows it: keys move the slider to every place."""

import json
import re

import pytest

from qtutor.course.widgets import budget
from qtutor.plots.comparison import Point

FAMILIES = {
    "RTN": [Point("RTN 8", 8_000_000, 0.01), Point("RTN 4", 4_000_000, 0.3), Point("RTN 3", 3_200_000, 0.9)],
    "GPTQ": [Point("GPTQ 4", 4_000_000, 0.1), Point("GPTQ 3", 3_200_000, 0.5)],
}
POINTS = [point for of in FAMILIES.values() for point in of]


@pytest.mark.parametrize("width, dark", [(1280, False), (390, True)], ids=["desk", "phone in the dark"])
def test_every_budget_shows_the_best_that_fit(open_page, width, dark):
    page, noted = open_page(width=width, dark=dark)
    widget = budget(FAMILIES, steps=6)
    page.set_content(f"<!doctype html><body>{widget.still}{widget.still}</body>")  # one must not change the other
    slider, picture = page.get_by_label("MB").first, page.locator("[data-frame] img").first
    labels = json.loads(slider.get_attribute("data-labels"))
    other = page.locator("[data-frame] img").nth(1).get_attribute("alt")
    assert len(labels) == 6
    slider.focus()
    page.keyboard.press("Home")
    for label in labels:
        assert slider.get_attribute("aria-valuetext") == label == page.locator("output").first.inner_text()
        fitting = sorted((p for p in POINTS if p.nbytes <= float(label) * 1e6), key=lambda p: (p.kl, p.nbytes))
        rows = page.locator("[data-frame]").first.locator("table tr").all_inner_texts()
        assert [row.split("\t")[0].strip() for row in rows[1:]] == [p.name for p in fitting[:3]]
        told = re.search(r"(\d+) fit\. The best of them, with a ring, is ([\w ]+):", picture.get_attribute("alt"))
        assert told.groups() == (str(len(fitting)), fitting[0].name)
        page.keyboard.press("ArrowRight")
    assert page.locator("[data-frame] img").nth(1).get_attribute("alt") == other
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page scrolls sideways"
    noted.assert_nothing()


def test_without_scripts_the_first_picture_is_there(chromium):
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.set_content(f"<!doctype html><body>{budget(FAMILIES, steps=3).still}</body>")
    assert page.locator("[data-frame] img").is_visible() and page.get_by_label("MB").is_disabled()
    assert page.get_by_text("A still picture.").is_visible()
    context.close()

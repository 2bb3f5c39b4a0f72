"""The duel of chapter 06 in a real browser: its numbers are those of the package's GPTQ in the same order."""

import re

import pytest
import torch

from qtutor.course.widgets.duel import duel_html
from qtutor.course.widgets.gptq import duel, duel_data, presets, trace

ROW, WIDTH = 4, 20
STATE = "document.querySelector('.qtutor-duel').state"
FOCUSED = "document.activeElement.dataset.column"


@pytest.fixture(scope="module")
def layer():
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(300, WIDTH, generator=generator) + torch.randn(300, 1, generator=generator)).double()
    x[:, 5] *= 8
    return torch.randn(12, WIDTH, generator=generator), x.T @ x


def shown(page) -> list[float]:
    """Both errors in per cent, as shown above the panels."""
    return [float(text.replace("\u00a0%", "")) for text in page.locator(".error").all_inner_texts()]


def assert_as_in_python(page, layer, bits: int) -> None:
    """The page shows, to the last digit, what the package computes in the page's order after as many steps."""
    state = page.evaluate(STATE)
    found = trace(layer[0][ROW], layer[1], bits, state["order"])
    expected = [100 * errors[state["step"]].item() for errors in (found.gptq, found.rtn)]
    assert shown(page) == pytest.approx(expected, abs=0.0051)  # half a unit of the second decimal place
    labels = page.locator(".panel.gptq .columns button").evaluate_all("all => all.map(b => b.ariaLabel)")
    values = [float(re.search(r": (-?[\d.]+),", label)[1]) for label in labels]
    assert values == pytest.approx(found.states[state["step"]].tolist(), abs=0.000051)


@pytest.mark.parametrize("bits", [2, 3])
def test_every_step_of_every_order_is_that_of_the_package(open_page, layer, bits):
    page, noted = open_page()
    page.set_content("<main></main>")
    html = duel_html(duel_data(layer[0][ROW], layer[1], bits, range(WIDTH)), "a row", "<p>no scripts</p>")
    page.evaluate("html => { document.querySelector('main').innerHTML = html; }", html)  # as a live widget does
    page.locator(".panel").first.wait_for()
    orders = presets(layer[1])
    for name in [*orders, "random"]:
        page.get_by_role("button", name=name, exact=True).click()
        state = page.evaluate(STATE)
        assert state["step"] == 0 and sorted(state["order"]) == list(range(WIDTH))
        assert name == "random" or state["order"] == orders[name]
        for _ in range(WIDTH):
            page.get_by_role("button", name="one step").click()
            assert_as_in_python(page, layer, bits)
        assert page.get_by_role("button", name="one step").is_disabled()
    rows = page.locator(".board tr").all_inner_texts()
    assert len(rows) == 5 and any("the best so far" in row for row in rows)
    noted.assert_nothing()


def test_the_next_column_can_be_chosen_by_click_and_by_key(open_page, layer):
    page, noted = open_page()
    page.set_content(f"<!doctype html><body>{duel(*layer, ROW, range(WIDTH)).still}</body>")
    page.get_by_label("input 7:").first.click()
    page.get_by_label("input 2:").last.click()  # in the other panel
    assert page.evaluate(STATE)["order"][:3] == [7, 2, 0] and page.evaluate(STATE)["name"] == "own 1"
    page.keyboard.press("ArrowRight")
    assert page.evaluate(FOCUSED) == "3"
    page.keyboard.press("Enter")
    page.get_by_label("input 7:").first.click(force=True)  # it is rounded already: nothing happens
    assert page.evaluate(STATE)["order"][:4] == [7, 2, 3, 0] and page.evaluate(STATE)["step"] == 3
    assert_as_in_python(page, layer, 3)
    assert "the weight of input 3 is rounded" in page.locator(".said").inner_text()
    page.get_by_role("button", name="back").click()
    assert page.evaluate(STATE)["step"] == 2
    assert_as_in_python(page, layer, 3)
    page.get_by_role("button", name="to the end").click()
    assert_as_in_python(page, layer, 3)
    assert page.locator(".board tr").last.inner_text().startswith("own 1 (the best so far)")
    noted.assert_nothing()


@pytest.mark.parametrize("width, dark", [(1280, False), (390, True)])
def test_the_stored_page_has_all_of_it_at_every_width(open_page, layer, width, dark):
    page, noted = open_page(width=width, dark=dark)
    page.set_content(f"<!doctype html><body>{duel(*layer, ROW, range(WIDTH)).still}</body>")
    page.locator("input[type=range]").press("ArrowRight")  # from 3 to 4 bits
    page.get_by_role("button", name="to the end").click()
    assert_as_in_python(page, layer, 4)
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page scrolls sideways"
    narrow = page.locator(".columns button").evaluate_all("all => Math.min(...all.map(b => b.clientWidth))")
    assert narrow >= 14
    unnamed = page.locator("button").evaluate_all("all => all.filter(b => !b.ariaLabel && !b.innerText.trim())")
    assert unnamed == []
    noted.assert_nothing()

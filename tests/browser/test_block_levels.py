"""Four formats over one block in a real browser: mouse and keys move weights, and the errors are the package's."""

import re

import pytest
import torch

from qtutor.course.widgets import block_levels, levels_over_block

LAYERS = {
    "first": torch.randn(64, 128, generator=torch.Generator().manual_seed(0)) * 0.1,
    "second": torch.randn(32, 64, generator=torch.Generator().manual_seed(1)) ** 3,
}


def shown(open_page, width: int = 1280, dark: bool = False):
    """A page with the widget twice: one must not change the other."""
    page, noted = open_page(width=width, dark=dark)
    style = "<style>body {color: #ddd; background: #121212}</style>" if dark else ""
    html = levels_over_block(LAYERS).html
    page.set_content(f"<!doctype html><body>{style}{html}{html}</body>")
    page.locator(".qtutor-live svg").nth(1).wait_for()
    return page, noted


def errors(page) -> dict[str, str]:
    return dict(re.findall(r"(\w+) ([\d.]+) %", page.locator(".said").first.inner_text()))


def expected(weights: torch.Tensor, layer: str) -> dict[str, str]:
    made = block_levels.made_of(weights, block_levels.unit_of(LAYERS[layer]))
    off = {name: (quantized.dequantize()[0] - weights).norm() / weights.norm() for name, quantized in made.items()}
    return {name: f"{100 * error:.1f}" for name, error in off.items()}


def near(found: dict[str, str], wanted: dict[str, str]) -> bool:
    """Stored weights have six digits, so the last printed digit of an error may be rounded the other way."""
    return list(found) == list(wanted) and all(abs(float(found[n]) - float(wanted[n])) < 0.11 for n in wanted)


@pytest.mark.parametrize("width, dark", [(1280, False), (390, True)], ids=["desk", "phone in the dark"])
def test_every_block_has_the_errors_that_the_package_computes(open_page, width, dark):
    page, noted = shown(open_page, width, dark)
    for layer, weight in LAYERS.items():
        page.locator("select").nth(0).select_option(layer)
        for place, block in enumerate(block_levels.told_blocks(layer, weight)):
            page.locator("select").nth(1).select_option(str(place))
            assert near(errors(page), expected(block.weights, layer)), (layer, block.what)
            option = page.locator("select").nth(1).locator("option").nth(place).inner_text()
            assert option == f"{block.what} (row {block.row}, from {block.first})"
    table = page.locator("table").first
    assert table.locator("tr").count() == 5 and "4.63" in table.inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page scrolls sideways"
    noted.assert_nothing()


def test_a_dragged_weight_moves_the_levels(open_page):
    page, noted = shown(open_page)
    block = block_levels.told_blocks("first", LAYERS["first"])[0]
    largest = int(block.weights.abs().argmax())
    assert page.get_by_label("which weight").first.input_value() == str(largest)
    ticks = page.locator(".qtutor-live").first.locator("line.mark[stroke-width]")
    before = ticks.evaluate_all("all => all.map(t => t.getAttribute('x1'))")
    dot = page.locator(".qtutor-live").first.locator("circle.chosen").bounding_box()
    x, y, towards = dot["x"] + dot["width"] / 2, dot["y"] + dot["height"] / 2, 1 if block.weights[largest] > 0 else -1
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 60 * towards, y, steps=3)
    page.mouse.up()
    page.mouse.move(x - 60, y)  # the button is up, so nothing follows
    value = float(page.get_by_label("its value").first.input_value())
    assert abs(value) > 1.1 * block.weights.abs().max()
    after = ticks.evaluate_all("all => all.map(t => t.getAttribute('x1'))")
    assert sum(a != b for a, b in zip(before, after)) > 20
    moved = block.weights.clone()
    moved[largest] = value
    assert near(errors(page), expected(moved, "first"))
    assert not near(errors(page), expected(block.weights, "first"))
    page.get_by_role("button", name="as it was").first.click()
    assert near(errors(page), expected(block.weights, "first"))
    # The other widget on the page did not move.
    assert page.locator(".qtutor-live").nth(1).locator(".said").inner_text() == page.locator(".said").first.inner_text()
    noted.assert_nothing()


def test_weights_are_chosen_and_moved_by_keys(open_page):
    page, noted = shown(open_page)
    weights = block_levels.told_blocks("first", LAYERS["first"])[0].weights.clone()
    which, value = page.get_by_label("which weight").first, page.get_by_label("its value").first
    which.focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert page.locator(".said").first.inner_text().startswith("Weight 1 is ")
    value.focus()
    page.keyboard.press("End")
    weights[1] = float(value.input_value())
    assert weights[1] > 1.1 * weights[2:].abs().max() and near(errors(page), expected(weights, "first"))
    row = page.locator("table").first.locator("tr").nth(2).locator("td")
    assert float(row.nth(2).inner_text()) == pytest.approx(weights[1].item(), rel=1e-2)  # NF4 is exact at the largest
    page.get_by_role("button", name="double the largest").first.click()
    assert float(value.input_value()) == pytest.approx(weights[1].item(), rel=1e-2), "a weight stays in the picture"
    for control in (which, value):
        assert control.get_attribute("aria-valuetext")
    noted.assert_nothing()


@pytest.mark.parametrize("largest", [0.0, 2.0], ids=["in a layer of zeros", "in another layer"])
def test_a_block_of_zeros_has_an_axis_and_its_weights_move(open_page, largest):
    page, noted = open_page()
    weight = torch.zeros(4, 64)
    weight[2, 40] = largest
    page.set_content(f"<!doctype html><body>{levels_over_block({'zeros': weight}).html}</body>")
    page.locator(".qtutor-live svg").wait_for()
    assert not block_levels.told_blocks("zeros", weight)[0].weights.any()
    assert "NaN" not in page.locator(".qtutor-live svg").inner_html()
    assert errors(page) == dict.fromkeys(block_levels.FORMATS, "0.0")
    page.get_by_label("its value").focus()
    page.keyboard.press("End")
    assert float(page.get_by_label("its value").input_value()) == pytest.approx(largest or 1.0)
    noted.assert_nothing()


def test_without_scripts_the_picture_and_its_table_are_there(chromium):
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.set_content(f"<!doctype html><body>{levels_over_block(LAYERS).html}</body>")
    assert len(page.locator("[data-still] img").get_attribute("alt")) > 100
    assert page.get_by_text("relative error").is_visible() and page.get_by_text("A still picture.").is_visible()
    context.close()

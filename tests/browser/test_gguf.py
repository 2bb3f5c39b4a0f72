"""The bytes of a block in a real browser: put on the page like a live widget (no script element runs), then clicked."""

import pytest

from qtutor.course.widgets.gguf import block_html, block_view
from qtutor.gguf import Tensor, encode, read, write
from qtutor.gguf.anatomy import parts_of
from qtutor.gguf.hexview import block_of
from tests.gguf import inputs

MARKED = "[...document.querySelectorAll('.weights span')].flatMap((w, i) => w.classList.contains('on') ? [i] : [])"
FOCUSED = "document.activeElement.getAttribute('aria-label').split(',')[0]"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("blockview") / "a.gguf"
    tensors = [
        Tensor(name, (1, 256), name, encode(inputs.gaussian(1, 256), name)) for name in ("Q4_K", "Q6_K", "TQ1_0")
    ]
    write(path, {}, tensors)
    return path


def weights_of(name: str, byte: int) -> list[int]:
    return sorted({weight for part in parts_of(name, byte) for weight in part.weights})


def test_a_click_and_the_arrows_move_from_byte_to_byte(open_page, path):
    page, noted = open_page()
    page.set_content("<main></main>")
    html = block_html(block_of(read(path), "Q4_K"))
    page.evaluate("html => { document.querySelector('main').innerHTML = html; }", html)
    page.get_by_label("byte 8,").click()
    assert page.locator(".about").inner_text().startswith("Byte 8 is")
    assert page.evaluate(MARKED) == weights_of("Q4_K", 8) == [*range(32), *range(128, 160)]
    assert page.locator("[aria-pressed=true]").get_attribute("aria-label").startswith("byte 8,")
    for key, byte in [("ArrowRight", 9), ("ArrowDown", 21), ("ArrowDown", 37), ("ArrowLeft", 36), ("ArrowUp", 20),
                      ("ArrowUp", 8), ("ArrowUp", 3), ("ArrowUp", 1), ("ArrowUp", 1), ("ArrowLeft", 0)]:  # fmt: skip
        page.keyboard.press(key)
        assert page.evaluate(FOCUSED) == f"byte {byte}"
        assert page.locator(".about").inner_text().startswith(f"Byte {byte} is")
        assert page.evaluate(MARKED) == weights_of("Q4_K", byte)
    page.keyboard.press("Tab")  # all bytes are one stop of the Tab key, as in any grid
    assert page.evaluate("!document.activeElement.closest('.qtutor-block')")
    noted.assert_nothing()


@pytest.mark.parametrize("width", [1280, 390])
def test_what_is_drawn_beforehand_can_be_clicked_too(open_page, path, width):
    page, noted = open_page(width=width)
    page.set_content(f"<!doctype html><body>{block_view(path, 'Q4_K').still}</body>")
    page.locator("select").select_option("TQ1_0")
    page.get_by_label("byte 33,").click()
    assert "trit 4: code " in page.locator(".about").inner_text()
    assert page.evaluate(MARKED) == weights_of("TQ1_0", 33)
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page scrolls sideways"
    noted.assert_nothing()

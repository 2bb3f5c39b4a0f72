"""The static site as a reader sees it, without other machines: nothing is missing, and everything on a page works."""

import functools
import itertools
import re
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest

from tests.browser.conftest import ROOT

HTML = ROOT / "book" / "_build" / "html"
CHAPTERS = sorted(path.name for path in HTML.glob("[0-9][0-9]_*.html"))
PAGES = ["index.html", *CHAPTERS, "glossary.html", "tool.html", "teaching.html"]
FRAMES = "div.qtutor-frames"  # what qtutor.course.widgets.frames writes

# What the reader sees in a box of frames: its pictures with their descriptions, and all text except the controls'.
SEEN = """box => ({
    pictures: [...box.querySelectorAll('[data-frame] img')].map(img => img.src),
    described: [...box.querySelectorAll('[data-frame] img')].map(img => img.alt),
    text: box.querySelector('[data-frame]').textContent,
})"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        """Print nothing: the tests look at the answers themselves."""


@pytest.fixture(scope="module")
def site():
    """The address of the book on a server of this machine."""
    assert CHAPTERS, f"there is no book in {HTML}: make book builds it"
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(HTML)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def settle(page, address: str) -> None:
    """Open a page and wait until its formulas are drawn and its colours are those of its theme.

    The theme is chosen by a script, and buttons take its colours over a moment: in between, their contrast is low.
    """
    page.goto(address, wait_until="load")
    page.evaluate("() => window.MathJax?.startup?.promise")
    page.evaluate("""async () => {
        await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
        const moving = document.getAnimations().filter(one => one instanceof CSSTransition);
        await Promise.allSettled(moving.map(one => one.finished));
    }""")


def test_every_chapter_has_its_page():
    masters = sorted((ROOT / "notebooks").glob("*.ipynb"))
    assert masters and [f"{path.stem}.html" for path in masters] == CHAPTERS


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)], ids=["desk", "phone in the dark"])
def test_a_page_is_whole_and_needs_no_other_machine(open_page, site, name, width, dark):
    page, noted = open_page(width=width, dark=dark)
    settle(page, f"{site}/{name}")

    assert page.locator("article h1").count() == 1
    assert page.locator("html").get_attribute("data-theme") == ("dark" if dark else "light")
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page scrolls sideways"
    broken = page.evaluate("[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)")
    assert broken == []
    not_described = page.evaluate("[...document.images].filter(i => !i.hasAttribute('alt')).map(i => i.src)")
    not_described += page.evaluate("[...document.querySelectorAll('article img')].filter(i => !i.alt).map(i => i.src)")
    assert not_described == []
    formulas = page.locator("article .math")
    assert formulas.count() == page.locator("article .math > mjx-container:has(svg)").count()
    assert page.locator("[data-mjx-error], mjx-merror").count() == 0
    noted.assert_nothing()


@pytest.mark.parametrize("name", CHAPTERS)
def test_nothing_reached_the_page_unrendered(open_page, site, name):
    page, _ = open_page()
    settle(page, f"{site}/{name}")
    prose = page.evaluate(
        """() => {
            const copy = document.querySelector('article').cloneNode(true);
            copy.querySelectorAll('pre, code, script, .math, .qtutor-frames').forEach(node => node.remove());
            return copy.textContent;
        }"""
    )
    assert not re.findall(r"\$[^$\n]+\$|\*\*\w|^\|.*\|$|</?details|VBox\(|:::|```", prose, flags=re.MULTILINE)
    assert "### BEGIN SOLUTION" not in page.content()
    # A cell that shows a widget holds frames, not the name of a class.
    assert page.locator(".cell_output pre", has_text=re.compile(r"^(VBox|HBox|interactive)\(")).count() == 0


@pytest.mark.parametrize("name", CHAPTERS)
def test_what_is_folded_opens_by_keyboard(open_page, site, name):
    page, _ = open_page()
    settle(page, f"{site}/{name}")
    folded = page.locator("article details:not(details details)")
    assert folded.count() >= 1
    for details in folded.all():
        assert details.get_attribute("open") is None
        details.locator("> summary").press("Enter")
        assert details.get_attribute("open") is not None
        inside = details.evaluate("d => d.innerText.replace(d.querySelector('summary').innerText, '').trim()")
        assert len(inside) > 10
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280


def values_of(control) -> tuple[int, list[str]]:
    """How many values a control has, and the keys that go through all of them, from the first one."""
    kind = control.evaluate("c => c.type")
    if kind == "checkbox":
        return 2, ["Space"]
    count = len(control.evaluate("c => JSON.parse(c.dataset.labels)"))
    assert kind in ("range", "select-one"), kind
    control.press("Home")
    return count, [{"range": "ArrowRight", "select-one": "ArrowDown"}[kind]] * (count - 1)


def move_every_control(page) -> int:
    """Step every control on the page through its values; each step must change its box. Returns how many there are."""
    controls = page.locator(f"{FRAMES} input, {FRAMES} select")
    for control in controls.all():
        box = control.locator("xpath=ancestor::div[contains(@class, 'qtutor-frames')]")
        assert control.is_enabled()
        control.scroll_into_view_if_needed()
        count, keys = values_of(control)
        seen = [box.evaluate(SEEN)]
        for key in keys:
            control.press(key)
            seen.append(box.evaluate(SEEN))
        assert len(seen) == count >= 2
        for before, after in itertools.pairwise(seen):
            assert after != before, f"{control.evaluate('c => c.outerHTML')[:200]}: a step changed nothing"
            if before["pictures"]:
                assert after["pictures"] != before["pictures"] and after["described"] != before["described"]
                assert all(after["described"])
    return controls.count()


@pytest.mark.parametrize("name", CHAPTERS)
def test_every_frame_slider_moves_its_picture(open_page, site, name):
    page, noted = open_page()
    settle(page, f"{site}/{name}")
    in_the_source = (HTML / name).read_text().count('class="qtutor-frames"')
    assert page.locator(FRAMES).count() == in_the_source
    assert page.locator(f"{FRAMES}[data-still]").count() == 0, "the script of a box did not run"
    move_every_control(page)
    noted.assert_nothing()


def test_the_book_has_sliders_at_all():
    with_sliders = [name for name in CHAPTERS if '<input type="range"' in (HTML / name).read_text()]
    assert "02_round_to_nearest.html" in with_sliders


def test_a_chapter_opened_from_the_disk_works_as_well(open_page):
    page, noted = open_page()
    settle(page, (HTML / "02_round_to_nearest.html").as_uri())
    assert page.locator("article .math > mjx-container:has(svg)").count() == page.locator("article .math").count() > 0
    assert move_every_control(page) > 0
    noted.assert_nothing()


def test_every_link_leads_somewhere(open_page, site):
    page, _ = open_page()
    ids, links = {}, {}
    for path in sorted(HTML.glob("*.html")):
        page.goto(f"{site}/{path.name}", wait_until="domcontentloaded")
        ids[path.name] = set(page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)"))
        links[path.name] = page.evaluate("[...document.querySelectorAll('a[href]')].map(a => a.href)")
    assert len(ids) >= len(PAGES) and sum(map(len, links.values())) > 20
    for name, targets in links.items():
        for target in targets:
            address, fragment = urldefrag(target)
            if not address.startswith(site):
                # another machine: a source that the text names; links outside of the text have their own test
                assert urlsplit(address).scheme == "https", f"{name} links to {target}"
                continue
            file = unquote(urlsplit(address).path).lstrip("/") or "index.html"
            assert (HTML / file).is_file(), f"{name} links to {target}"
            if fragment and file in ids:
                assert unquote(fragment) in ids[file], f"{name} links to {target}"


@pytest.fixture(scope="module")
def axe() -> str:
    """The script of axe-core, which finds barriers for readers with disabilities."""
    import axe_playwright_python

    return (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [*PAGES, "search.html"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_nothing_serious(open_page, site, axe, name, dark):
    page, _ = open_page(dark=dark)
    settle(page, f"{site}/{name}")
    page.evaluate("document.querySelectorAll('article details').forEach(details => { details.open = true; })")
    page.evaluate(axe)
    result = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    assert len(result["passes"]) > 20, "axe did not look at the page"
    serious = [
        f"{found['id']}: {found['help']}: {found['nodes'][0]['html'][:200]} ({len(found['nodes'])} times)"
        for found in result["violations"]
        if found["impact"] in ("serious", "critical")
    ]
    assert serious == []


def test_the_first_pages_picture_stands_in_one_column_on_a_phone_and_follows_the_page(open_page, site):
    seen = {}
    for width, dark in ((1280, False), (390, True)):
        page, _ = open_page(width=width, dark=dark)
        settle(page, f"{site}/index.html")
        panels = page.locator(".qtutor-panels > svg")
        boxes = [panel.bounding_box() for panel in panels.all()]
        assert len(boxes) == 4 and all(panel.get_attribute("aria-label") for panel in panels.all())
        ink = panels.first.locator("text").first.evaluate("text => getComputedStyle(text).fill")
        seen[width] = len({round(box["x"]) for box in boxes}), ink
    assert seen[1280][0] == 2 and seen[390][0] == 1
    assert seen[1280][1] != seen[390][1]


def test_panels_of_a_picture_stand_beneath_each_other_on_a_phone(open_page, site):
    columns = {}
    for width in (1280, 390):
        page, _ = open_page(width=width)
        settle(page, f"{site}/02_round_to_nearest.html")
        images = page.locator(".qtutor-parts").first.locator("img")
        images.first.scroll_into_view_if_needed()
        boxes = [image.bounding_box() for image in images.all()]
        assert all(box["x"] >= 0 and box["x"] + box["width"] <= width for box in boxes)
        columns[width] = len({round(box["x"]) for box in boxes})
    assert columns == {1280: 2, 390: 1}


def test_on_paper_there_is_the_text_alone(open_page, site):
    page, _ = open_page()
    settle(page, f"{site}/02_round_to_nearest.html")
    page.emulate_media(media="print")
    for hidden in (".bd-sidebar-primary", ".bd-sidebar-secondary", ".bd-header-article", ".prev-next-footer"):
        assert not page.locator(hidden).first.is_visible(), hidden
    assert page.locator("h1:visible").count() == 1  # the theme prints its own title
    cut_off = (
        "[...document.querySelectorAll('article pre')].filter(pre => pre.scrollWidth > pre.clientWidth + 1).length"
    )
    assert page.evaluate(cut_off) == 0
    assert len(page.pdf()) > 100_000


def test_sections_weigh_more_than_what_is_in_them(open_page, site):
    page, _ = open_page()
    settle(page, f"{site}/02_round_to_nearest.html")
    style = "h => [parseFloat(getComputedStyle(h).fontSize), Number(getComputedStyle(h).fontWeight)]"
    larger, smaller = (page.locator(f"article {tag}").first.evaluate(style) for tag in ("h2", "h3"))
    assert larger[0] > smaller[0] and larger[1] > smaller[1]


def test_a_word_of_the_glossary_is_explained_under_the_mouse_and_on_its_page(open_page, site):
    page, _ = open_page()
    settle(page, f"{site}/02_round_to_nearest.html")
    link = page.locator("article a[href*='glossary.html#zero-point']")
    assert link.count() == 1 and link.get_attribute("title").startswith("The code that stands for 0.")
    link.click()
    page.locator("section#zero-point h2").wait_for(state="visible")  # fails if it never becomes visible


def test_the_frame_of_the_page_has_no_links_to_other_machines(open_page, site):
    page, _ = open_page()
    for name in PAGES:
        page.goto(f"{site}/{name}", wait_until="domcontentloaded")
        outside = page.evaluate(
            "[...document.querySelectorAll('a[href]')].filter(a => !a.closest('article')).map(a => a.href)"
        )
        assert outside and all(href.startswith(site) for href in outside)


@pytest.mark.parametrize("from_disk", [False, True], ids=["server", "disk"])
def test_the_search_finds_a_word_of_a_chapter_and_shows_its_text(open_page, site, from_disk):
    page, noted = open_page()
    page.goto(f"{HTML.as_uri() if from_disk else site}/search.html?q=perplexity")
    # Results appear one after the other, so the list is not complete when the first result is there.
    page.locator('#search-results li a[href*="02_round_to_nearest.html"]').first.wait_for()
    snippet = page.locator("#search-results li p.context", has_text="perplexity").first
    snippet.wait_for()
    assert len(snippet.text_content()) > 40
    noted.assert_nothing()

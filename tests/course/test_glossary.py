"""The glossary explains every word once. Every chapter links a word to it at the first use, and nowhere else."""

import json
import re
from pathlib import Path

import pytest

from qtutor.course import glossary, workspace

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
LINK = re.compile(r'\[([^\[\]]*)\]\(glossary\.ipynb#(\S+) "([^"]*)"\)')


def one(source: str, chapter: str = "02_test.ipynb", **how) -> str:
    """The text of a notebook of one Markdown cell after the links are made."""
    notebook = {"cells": [{"cell_type": "markdown", "metadata": {}, "source": source}]}
    return glossary.linked(notebook, chapter, **how)["cells"][0]["source"]


def plain(source: str) -> str:
    """The text without its links to the glossary."""
    return LINK.sub(lambda found: found[1], source)


def prose(notebook: dict) -> list[str]:
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown"]


# --- the entries ---


def test_about_forty_words_each_in_one_or_two_sentences_with_a_chapter_that_is_there():
    chapters = {path.name[:2] for path in NOTEBOOKS}
    assert len(glossary.terms()) >= 40
    for term in glossary.terms():
        assert term.chapter in chapters and {*term.only} <= chapters and {*term.not_in} <= chapters, term.name
        assert re.fullmatch(r"[A-Za-z0-9 -]+", term.name)  # every program makes the same anchor from such a name
        assert 1 <= len(re.findall(r"[.](?:\s|$)", term.text)) <= 3 and len(term.text) <= 230, term.text
        assert not re.search(r'["`$*\[\]<>]', term.text), term.text


def test_names_are_in_order_and_no_word_means_two_things_in_a_chapter():
    names = [term.name for term in glossary.terms()]
    assert len(set(names)) == len(names) and names == sorted(names, key=str.lower)
    for path in NOTEBOOKS:
        words = [word for term in glossary.terms() if term.is_meant_in(path.name) for word in term.words]
        assert len(set(words)) == len(words), path.name


def test_every_word_is_used_in_some_chapter():
    used = set()
    for path in NOTEBOOKS:
        made = glossary.linked(json.loads(path.read_text()), path.name)
        used |= {found[2] for source in prose(made) for found in LINK.finditer(source)}
    assert used == {term.anchor for term in glossary.terms()}


# --- the chapters ---


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_chapter_links_each_word_that_it_uses_once_and_is_otherwise_the_same(path):
    notebook = json.loads(path.read_text())
    made = glossary.linked(notebook, path.name)
    assert json.loads(path.read_text()) == notebook
    assert [plain(source) for source in prose(made)] == prose(notebook)
    links = [found for source in prose(made) for found in LINK.finditer(source)]
    anchors = [found[2] for found in links]
    assert len(set(anchors)) == len(anchors) >= 8
    by_anchor = {term.anchor: term for term in glossary.terms()}
    for found in links:
        term = by_anchor[found[2]]
        assert found[3] == term.text and term.is_meant_in(path.name)
    # A slow and simple check: a word that stands in running text is linked.
    left_alone = r"<details>.*?</details>|^#.*?$|^    .*?$|`[^`]*`|\$+[^$]*\$+|\[[^\]]*\]\([^)]*\)"
    text = "\n".join(re.sub(left_alone, "", source, flags=re.S | re.M) for source in prose(notebook))
    for term in glossary.terms():
        if term.is_meant_in(path.name) and any(f" {word} " in text for word in term.words):
            assert term.anchor in anchors, term.name


# --- where a link may go ---


@pytest.mark.parametrize(
    "source",
    [
        "# The scale",
        "### Scales and groups",
        "```python\nscale = 3  # the scale\n```",
        "    scale of a group",
        "a `scale` here",
        "``a ` scale`` here",
        "$scale + x$",
        "$$\n\\text{scale}\n$$",
        "[the scale](02_round_to_nearest.ipynb)",
        "![a scale](picture.png)",
        "<details><summary>Answer</summary>\n\nThe scale.\n\n</details>",
        '<span title="the scale">x</span>',
        "see https://example.org/scale",
        "upscale, scale_factor, scale-free, scale's",
    ],
)
def test_no_link_in_headings_code_formulas_links_and_what_is_folded(source):
    assert one(source) == source


def test_the_first_use_gets_the_link_with_what_the_word_means_as_its_title():
    made = one("# Scales\n\nA **scale** and its `scale`: two scales.")
    term = next(term for term in glossary.terms() if term.name == "scale of a group")
    assert made == (
        f'# Scales\n\nA **[scale](glossary.ipynb#scale-of-a-group "{term.text}")** and its `scale`: two scales.'
    )


def test_the_longest_word_wins_also_at_the_end_of_a_line_and_at_the_start_of_a_sentence():
    made = one("Zero\npoints move the range. An input channel is loud.")
    assert [(found[1], found[2]) for found in LINK.finditer(made)] == [
        ("Zero\npoints", "zero-point"),
        ("input channel", "channel"),
    ]


def test_a_word_of_two_meanings_follows_its_chapter():
    assert "#block-of-a-decoder " in one("A block.", "05_awq.ipynb")
    assert "#block-of-weights " in one("A block.", "07_gguf.ipynb")
    assert one("A block.", "06_gptq.ipynb") == "A block."


def test_the_book_gets_its_own_page_and_anchors_in_small_letters():
    assert "[KL](glossary.md#kl-divergence " in one("How large is KL?", target="glossary.md", lower=True)


# --- the page ---


def test_the_page_has_every_word_and_leads_to_the_chapters():
    titles = {path.name: glossary.title_of(json.loads(path.read_text())) for path in NOTEBOOKS}
    text = glossary.page(titles)
    for term in glossary.terms():
        assert f"\n## {term.name}\n\n{term.text} Built in [{term.chapter} " in text
    for target in re.findall(r"\]\(([^)]*)\)", text):
        assert (NOTEBOOKS[0].parent / target).is_file()
    assert "Built in" not in glossary.page({})


def test_it_lies_in_the_workspace_and_links_lead_to_its_headings(tmp_path):
    workspace.make(tmp_path / "mine")
    cells = json.loads((tmp_path / "mine" / glossary.PAGE).read_text())["cells"]
    headings = {source.partition("\n")[0].lstrip("# ").replace(" ", "-") for source in prose({"cells": cells})}
    for path in NOTEBOOKS:
        links = LINK.findall("\n".join(prose(json.loads((tmp_path / "mine" / path.name).read_text()))))
        assert links and {anchor for _, anchor, _ in links} <= headings
    assert workspace.make(tmp_path / "mine").unchanged[-1] == glossary.PAGE

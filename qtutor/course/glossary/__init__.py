"""The words of the course: a page that explains them, and a link to it where a chapter first uses a word.

``terms.toml`` is the only source. The links are made when the learner's workspace and the book are built, so the
original chapters contain no links. A word is linked once in a chapter, at its first use in running text. Headings,
code, formulas, links and folded parts (``<details>``) are left alone.

Not handled: reference links (``[text][name]``), and one word with two meanings in one chapter; ``only`` and ``not_in``
in terms.toml say in which chapters a word has the meaning of its entry.
"""

import copy
import re
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

TERMS = Path(__file__).with_name("terms.toml")
PAGE = "glossary.ipynb"  # in the workspace; beside the chapters
INTRODUCTION = (
    "The words of this course, each with the chapter in which it is built. Chapters link here where they first use a "
    "word."
)
# The parts of a page that get no links, in the order in which they are searched for.
PROTECTED = re.compile(
    r"""^(?:```|~~~).*?^(?:```|~~~)[ \t]*$   # fenced code
      | ^(?:[ ]{4}|\t).*?$                   # indented code
      | ^[ ]{0,3}\#.*?$                      # a heading
      | <details\b.*?</details>              # what is folded
      | <[^<>]+>                             # a tag, or an address in angle brackets
      | (`+)(?!`).*?(?<!`)\1(?!`)            # code in a line
      | \$\$.*?\$\$ | \$[^$\n]+\$            # formulas
      | !?\[[^\[\]]*\]\([^()]*\)             # a link or a picture
      | https?://\S+                         # an address
    """,
    re.MULTILINE | re.DOTALL | re.VERBOSE,
)


@dataclass(frozen=True)
class Term:
    """One entry of the glossary; terms.toml explains its fields."""

    name: str
    words: tuple[str, ...]
    chapter: str
    text: str
    only: tuple[str, ...] = ()
    not_in: tuple[str, ...] = ()

    @property
    def anchor(self) -> str:
        """The heading as JupyterLab names it in an address; the book's names are all in small letters."""
        return self.name.replace(" ", "-")

    def is_meant_in(self, chapter: str) -> bool:
        """Whether the words have the meaning of this entry in the chapter with this file name."""
        return chapter[:2] not in self.not_in and (not self.only or chapter[:2] in self.only)


@cache
def terms() -> tuple[Term, ...]:
    """All entries, in the order of the page."""
    entries = tomllib.loads(TERMS.read_text(encoding="utf-8"))["term"]
    made = [Term(**{k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()}) for entry in entries]
    return tuple(sorted(made, key=lambda term: term.name.lower()))


def title_of(notebook: dict) -> str:
    """The heading of a chapter, at the start of its first cell; ``""`` if there is no cell."""
    first = notebook["cells"][0]["source"] if notebook["cells"] else ""
    return "".join(first).partition("\n")[0].lstrip("# ").strip()


def page(titles: dict[str, str]) -> str:
    """The glossary as Markdown. ``titles``: file name (NN_name.ipynb) -> title, for every chapter."""
    names = {file[:2]: f"[{title}]({file})" for file, title in titles.items()}
    parts = [f"# Glossary\n\n{INTRODUCTION}"]
    for term in terms():
        built = f" Built in {names[term.chapter]}." if term.chapter in names else ""
        parts.append(f"## {term.name}\n\n{term.text}{built}")
    return "\n\n".join(parts) + "\n"


def page_as_notebook(titles: dict[str, str]) -> dict:
    """The glossary as a notebook, a cell for each entry. Programs that run notebooks show it and find its headings."""
    sections = re.split(r"^(?=## )", page(titles), flags=re.MULTILINE)
    cells = [
        {"cell_type": "markdown", "id": f"glossary-{number}", "metadata": {}, "source": section.strip()}
        for number, section in enumerate(sections)
    ]
    return {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


def linked(notebook: dict, chapter: str, target: str = PAGE, lower: bool = False) -> dict:
    """A new notebook with a link at the first use of every word; ``notebook`` does not change.

    chapter: the name of its file. target: the file name of the glossary. lower: anchors in small letters, as Sphinx
    makes them.
    """
    result = copy.deepcopy(notebook)
    waiting = [term for term in terms() if term.is_meant_in(chapter)]
    for cell in result["cells"]:
        if cell["cell_type"] == "markdown":
            source = "".join(cell["source"])  # a list of lines in the file, a text in nbformat's notebooks
            places = first_uses(source, waiting)
            waiting = [term for term in waiting if term not in places]
            if places:
                cell["source"] = _with_links(source, places, target, lower)
    return result


def first_uses(source: str, wanted: list[Term]) -> dict[Term, tuple[int, int]]:
    """The first use of each of ``wanted`` in a Markdown cell, as (start, end). Terms that do not occur are left out."""
    if not wanted:
        return {}
    # Blanks in place of protected text keep all positions the same.
    prose = PROTECTED.sub(lambda found: re.sub(r"\S", " ", found[0]), source)
    by_word = {word: term for term in wanted for word in term.words}
    found = {}
    for match in _pattern(tuple(by_word)).finditer(prose):
        word = " ".join(match[0].split())  # a phrase may go over the end of a line
        term = by_word.get(word) or by_word[word[0].lower() + word[1:]]
        found.setdefault(term, match.span())
    return found


@cache
def _pattern(words: tuple[str, ...]) -> re.Pattern:
    """Finds the longest word that fits. It must not be part of a longer word, or of a name with - or _."""
    ways = []
    for word in sorted(words, key=len, reverse=True):
        first = f"[{word[0]}{word[0].upper()}]" if word[0].islower() else re.escape(word[0])
        ways.append(first + r"\s+".join(map(re.escape, word[1:].split(" "))))
    return re.compile(rf"(?<![\w./'-])(?:{'|'.join(ways)})(?![\w/-]|\.\w|'\w)")


def _with_links(source: str, places: dict[Term, tuple[int, int]], target: str, lower: bool) -> str:
    for term, (start, end) in sorted(places.items(), key=lambda item: item[1], reverse=True):
        anchor = term.anchor.lower() if lower else term.anchor
        title = term.text.replace('"', "'")
        source = f'{source[:start]}[{source[start:end]}]({target}#{anchor} "{title}"){source[end:]}'
    return source

"""The output of tables and sentences, as text."""

import pytest

from qtutor.course import scores, tables


@pytest.fixture
def shown(monkeypatch) -> list[str]:
    texts: list[str] = []
    for module in (scores, tables):
        monkeypatch.setattr(module, "display", lambda markdown: texts.append(markdown.data))
    return texts


def cells(text: str) -> list[list[str]]:
    """The rows of a Markdown table; the header is the first row."""
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines()]
    return [rows[0], *rows[2:]]

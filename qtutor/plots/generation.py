"""Generated texts side by side, with their differences marked: HTML, because text is best shown as text."""

import difflib
import re
from html import escape

from qtutor.measure.generation import first_body, is_python

# By default browsers mark in bright yellow, which glares on a dark page.
MARK = "color:inherit;background:rgba(230,159,0,0.3);text-decoration:underline;font-weight:bold"


def texts_side_by_side(
    before: str, after: str, titles: tuple[str, str], verdicts: tuple[str, str], prompt: int = 0
) -> str:
    """Two texts in two columns. Differences are marked by underline and weight, too, not by colour alone.

    titles, verdicts: the lines above and below each text. prompt: the length of their common beginning, which is shown
    in grey.
    """
    marked = _marked(before[prompt:], after[prompt:])
    given = f'<span style="opacity:0.65">{escape(before[:prompt])}</span>'
    style = "text-align:left;vertical-align:top;padding:0.3em 0.8em"
    head = "".join(f'<th scope="col" style="{style}">{escape(title)}</th>' for title in titles)
    cells = "".join(
        f'<td style="{style}"><pre style="margin:0;white-space:pre-wrap">{given}{text}</pre></td>' for text in marked
    )
    foot = "".join(f'<td style="{style}">{escape(text)}</td>' for text in verdicts)
    return f'<table style="width:100%;table-layout:fixed"><tr>{head}</tr><tr>{cells}</tr><tr>{foot}</tr></table>'


def _marked(before: str, after: str) -> tuple[str, str]:
    """Both texts as HTML, with ``<mark>`` around every word, gap or sign in which it differs from the other text."""
    pieces = [re.findall(r"\w+|\s+|[^\w\s]", text) for text in (before, after)]
    sides = ([], [])
    for kind, *spans in difflib.SequenceMatcher(None, *pieces, autojunk=False).get_opcodes():
        for side, own, (start, end) in zip(sides, pieces, (spans[:2], spans[2:])):
            text = escape("".join(own[start:end]))
            if kind != "equal" and text:
                text = f'<mark style="{MARK}">{text}</mark>'
            side.append(text)
    return "".join(sides[0]), "".join(sides[1])


def verdict(prompt: str, text: str) -> str:
    """Say whether ``ast.parse`` accepts the function or class that ``prompt`` begins and ``text`` completes."""
    if not prompt.lstrip().startswith(("def ", "class ", "async def ", "@")):
        return "no function: nothing to parse"
    accepted = is_python(first_body(prompt, text[len(prompt) :]))
    return "ast.parse accepts it" if accepted else "ast.parse rejects it"

"""The tables of the chapters, and the computed sentences below them: data in, a table or sentences on the page.

A module for each chapter, named as its pictures in :mod:`qtutor.plots` are; :mod:`.kept` is the experiment of chapter
03. What a chapter teaches is computed in its own cells; here it is only written down.
"""

from IPython.display import Markdown, display

SAME = 0.05  # two numbers that differ by less than this part are "about the same", on every CPU


def deviation(answers: int) -> float:
    """One standard deviation of the share of right ones among so many answers, at most (half of them right)."""
    return (0.25 / answers) ** 0.5


def say(*sentences: str) -> None:
    """Show sentences as Markdown; those that begin with a dash are items of one list."""
    text = ""
    for before, sentence in zip(("", *sentences), sentences):
        item = sentence.startswith("- ")
        text += ("" if not before else "\n" if item and before.startswith("- ") else "\n\n") + sentence
    display(Markdown(text))

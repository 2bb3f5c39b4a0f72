"""The tables of the chapters, and the computed sentences below them: data in, a table or sentences on the page.

Each chapter has a module, with the same name as its pictures in :mod:`qtutor.plots`; :mod:`.kept` is for the experiment
of chapter 03. A chapter's own cells compute what it teaches; the modules here only write it down.
"""

from IPython.display import Markdown, display

SAME = 0.05  # two numbers that differ by less than this share are "about the same", on every CPU


def deviation(answers: int) -> float:
    """The largest possible standard deviation of a share of right answers: half of all ``answers`` are right."""
    return (0.25 / answers) ** 0.5


def say(*sentences: str) -> None:
    """Show sentences as Markdown; those that begin with a dash are items of one list."""
    text = ""
    for before, sentence in zip(("", *sentences), sentences):
        item = sentence.startswith("- ")
        text += ("" if not before else "\n" if item and before.startswith("- ") else "\n\n") + sentence
    display(Markdown(text))

"""The tables of the chapters, and the computed sentences below them: data in, a table or sentences on the page.

Each chapter has a module, with the same name as its pictures in :mod:`qtutor.plots`; :mod:`.kept` is for the experiment
of chapter 03, and :mod:`.beside` for the scores of chapters 05 and 06. A chapter's own cells compute what it teaches;
the modules here only write it down.
"""

from collections.abc import Mapping, Sequence

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


def alike(values: Mapping[str, float]) -> list[list[str]]:
    """The names in groups, the group with the least values first.

    Two neighbours that are about the same are in one group. A group keeps the order that its names have in ``values``:
    the order of nearly equal values may differ from CPU to CPU.
    """
    groups: list[list[str]] = []
    for name in sorted(values, key=values.get):
        if groups and values[name] < (1 + SAME) * values[groups[-1][-1]]:
            groups[-1].append(name)
        else:
            groups.append([name])
    return [[name for name in values if name in group] for group in groups]


def named(group: Sequence[str]) -> str:
    """The names of one of the groups of :func:`alike`."""
    return " and ".join(group) + (" (about the same)" if len(group) > 1 else "")

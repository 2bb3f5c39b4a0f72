"""What the book says about each chapter, collected from three places.

Titles and questions are in the notebooks, what a learner builds and sees is in the README's table, and minutes are in
the exercises.

    python book/chapters.py    # puts the timetable into book/teaching.md
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import nbformat

from benchmarks import pages
from qtutor.course import exercises, glossary
from qtutor.errors import QtutorError

BOOK = Path(__file__).resolve().parent
NOTEBOOKS = BOOK.parent / "notebooks"
README = BOOK.parent / "README.md"
TEACHING = BOOK / "teaching.md"
ROW = re.compile(r"^\| \[[^\]]*\]\(notebooks/([^)]*)\) \| (.*) \| (.*) \|$", re.MULTILINE)


@dataclass(frozen=True)
class Chapter:
    """One chapter: its file's name, and what the book says about it."""

    file: str
    title: str
    question: str
    builds: str
    sees: str
    exercises: int
    minutes: int  # for its exercises, without reading and predicting

    @property
    def effort(self) -> str:
        """The number of exercises and their minutes, in words."""
        if not self.exercises:
            return "one task"
        return f"{self.exercises} exercise{'s' * (self.exercises > 1)}, {self.minutes} minutes"


def all_chapters() -> list[Chapter]:
    """Every chapter in order. Raises :class:`QtutorError` if the README's table has no row for one of them."""
    rows = {file: (builds, sees) for file, builds, sees in ROW.findall(README.read_text(encoding="utf-8"))}
    found = []
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        if path.name not in rows:
            raise QtutorError(
                f"README.md has no row for notebooks/{path.name} in its table of chapters, where the book takes from "
                "what a learner builds and sees: add one."
            )
        notebook = nbformat.read(path, 4)
        minutes = [exercise.minutes for exercise in exercises.every() if exercise.chapter == path.stem]
        title, question = glossary.title_of(notebook), question_of(notebook)
        found.append(Chapter(path.name, title, question, *rows[path.name], len(minutes), sum(minutes)))
    return found


def question_of(notebook: nbformat.NotebookNode) -> str:
    """The first paragraph beneath the title up to its last question mark (the whole paragraph if it has none)."""
    rest = notebook.cells[0].source.partition("\n")[2]
    paragraph = " ".join(rest.strip().split("\n\n")[0].split()).replace("**The question.**", "").strip()
    asked = re.match(r".*\?\*?", paragraph)
    return asked[0] if asked else paragraph


def as_list(chapters: list[Chapter]) -> str:
    """The chapters for the book's first page, as a Markdown definition list."""
    entries = []
    for chapter in chapters:
        head = f"[**{chapter.title}**]({chapter.file}) · {chapter.effort}"
        entries.append(f"{head}\n: {chapter.question}\n\n  *You build* {chapter.builds}. *You see* {chapter.sees}.\n")
    return "\n".join(entries)


def timetable(chapters: list[Chapter]) -> str:
    """A row for each chapter with its exercises and minutes, and the sum."""
    lines = ["| chapter | what learners build | exercises | minutes |", "|---|---|---:|---:|"]
    for chapter in chapters:
        count, minutes = (chapter.exercises, chapter.minutes) if chapter.exercises else ("a task", "–")
        lines.append(f"| {chapter.title} | {chapter.builds} | {count} | {minutes} |")
    total, minutes = sum(c.exercises for c in chapters), sum(c.minutes for c in chapters)
    return "\n".join([*lines, f"| all | | {total} | {minutes} |"])


def main() -> int:
    pages.write(TEACHING, "timetable", timetable(all_chapters()))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The learner's progress. An exercise is done if its answer is kept in the workspace."""

from dataclasses import dataclass
from pathlib import Path

from qtutor.course import exercises, workspace
from qtutor.course.workspace import answers
from qtutor.errors import QtutorError


@dataclass(frozen=True)
class Progress:
    """A row for each exercise of the course. It is shown as a table, in a notebook and on a terminal."""

    rows: tuple[tuple[str, str, str, str, str], ...]  # chapter, exercise, difficulty, minutes, "done" or "not yet"

    HEAD = ("chapter", "exercise", "difficulty", "minutes", "state")

    @property
    def done(self) -> int:
        return sum(row[-1] == "done" for row in self.rows)

    def __str__(self) -> str:
        table = [self.HEAD, *self.rows]
        widths = [max(len(row[i]) for row in table) for i in range(len(self.HEAD))]
        lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip() for row in table]
        lines.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join([*lines, f"{self.done} of {len(self.rows)} done"])

    __repr__ = __str__

    def _repr_markdown_(self) -> str:
        rows = [self.HEAD, ["---"] * len(self.HEAD), *self.rows]
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        return "\n".join([*lines, "", f"{self.done} of {len(self.rows)} done"])


def progress_table(folder: str | Path | None = None) -> Progress:
    """The exercises of the course, and which of them are done in the workspace ``folder`` (default: the current one).

    Outside of a workspace none is done. Raises :class:`QtutorError` for a ``folder`` outside of any workspace.
    """
    found = workspace.find(folder)
    if folder is not None and found is None:
        raise QtutorError(
            f"{folder} is not a workspace, and not inside one. Name a folder that 'qtutor learn FOLDER' made, or make "
            "a workspace there with that command."
        )
    rows = []
    for exercise in exercises.every():
        done = found is not None and answers.path_of(exercise, found).is_file()
        name = f"{exercise.name}: {exercise.title}"
        rows.append((exercise.chapter, name, exercise.dots, str(exercise.minutes), "done" if done else "not yet"))
    return Progress(tuple(rows))

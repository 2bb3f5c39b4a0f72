"""Turn a chapter of the repository, which holds the solutions, into the version for learners and for the book.

In a code cell, the lines from ``### BEGIN SOLUTION`` to ``### END SOLUTION`` become
``raise NotImplementedError("your turn")``. A Markdown cell with the folded solution follows.

Notebooks are passed as parsed JSON (an nbformat notebook has that form, too), so that `qtutor learn` needs no Jupyter.
"""

import copy
import re

from qtutor.course.exercises.exercise import TURN
from qtutor.errors import QtutorError

MARKER = re.compile(r"^[ \t]*### (BEGIN|END) SOLUTION$")
# A misspelt marker would show the solution, so a line that looks like a marker has to be a marker.
NEARLY = re.compile(r"^\s*#+\s*(begin|end)[\s_-]*solutions?\b", re.IGNORECASE)


def learner_version(notebook: dict, keep_outputs: bool = False, name: str = "the notebook") -> dict:
    """A new notebook with stubs in place of solutions; ``notebook`` does not change.

    keep_outputs: ``False`` drops all outputs, because learners are asked to predict them; ``True`` (for the book) drops
    only those of exercises, which the stub would not produce.

    name: the notebook's name in errors. Raises :class:`QtutorError`, naming the cell, for markers that do not pair up.
    """
    result = copy.deepcopy(notebook)
    cells = []
    for index, cell in enumerate(result["cells"]):
        cells.append(cell)
        if cell["cell_type"] != "code":
            continue
        source = "".join(cell["source"])  # a list of lines in the file, a text in nbformat's notebooks
        stub, solution = split(source, f"{name}, cell {index}")
        if solution or not keep_outputs:
            cell["outputs"], cell["execution_count"] = [], None
        if solution:
            cell["source"] = stub
            cells.append(_folded(cell, solution))
    result["cells"] = cells
    return result


def split(source: str, where: str = "the cell") -> tuple[str, str]:
    """(the stub, the whole cell without its markers); the second is ``""`` for a cell without an exercise."""
    stub, solution, opened, pairs = [], [], None, 0
    for number, line in enumerate(source.split("\n"), start=1):
        found = MARKER.match(line)
        if found is None and NEARLY.match(line):
            raise QtutorError(
                f"{where}, line {number}: {line.strip()!r} is nearly a marker, but not quite. Write "
                "'### BEGIN SOLUTION' or '### END SOLUTION'."
            )
        if found is None:
            solution.append(line)
            if opened is None:
                stub.append(line)
        elif (found[1] == "BEGIN") == (opened is not None):
            raise QtutorError(
                f"{where}, line {number}: '### {found[1]} SOLUTION' "
                + (f"is within the solution that begins in line {opened}" if opened else "has no beginning")
                + ". Each solution must be between one '### BEGIN SOLUTION' and one '### END SOLUTION'."
            )
        elif found[1] == "BEGIN":
            opened = number
            stub.append(f'{line[: len(line) - len(line.lstrip())]}raise NotImplementedError("{TURN}")')
        else:
            opened, pairs = None, pairs + 1
    if opened is not None:
        raise QtutorError(f"{where}: the '### BEGIN SOLUTION' of line {opened} has no '### END SOLUTION' after it.")
    return "\n".join(stub), "\n".join(solution) if pairs else ""


def _folded(cell: dict, solution: str) -> dict:
    """The Markdown cell beneath an exercise."""
    fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", solution)), default=0))
    text = f"<details><summary>Solution</summary>\n\n{fence}python\n{solution.strip()}\n{fence}\n\n</details>"
    folded = type(cell)(cell_type="markdown", metadata=type(cell)(), source=text)
    if "id" in cell:
        folded["id"] = f"{cell['id'][:55]}-solution"  # at most 64 characters, and the same in every build
    return folded

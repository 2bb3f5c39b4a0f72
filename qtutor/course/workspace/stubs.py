"""Out of a chapter's master, which holds the solutions, the version that a learner gets; the book shows the same.

In a code cell of the master, the lines from ``### BEGIN SOLUTION`` to ``### END SOLUTION`` become
``raise NotImplementedError("your turn")``, and a Markdown cell with the solution, folded, follows.

Notebooks are taken as parsed JSON (an nbformat notebook is that as well), so that `qtutor learn` needs no Jupyter.
"""

import copy
import re

from qtutor.course.exercises.exercise import TURN
from qtutor.errors import QtutorError

MARKER = re.compile(r"^[ \t]*### (BEGIN|END) SOLUTION$")
# A slip in a marker would give the solution away, so what looks like one has to be one.
NEARLY = re.compile(r"^\s*#+\s*(begin|end)[\s_-]*solutions?\b", re.IGNORECASE)


def learner_version(notebook: dict, keep_outputs: bool = False, name: str = "the notebook") -> dict:
    """A new notebook with stubs in place of solutions; ``notebook`` stays as it is.

    keep_outputs: ``False`` drops all of them, since they answer what a learner is asked to predict; ``True`` (for the
    book) drops those of exercises only, which would not come from the stub.
    name: what errors call the notebook. Raises :class:`QtutorError`, naming the cell, for markers that do not pair up.
    """
    result = copy.deepcopy(notebook)
    cells = []
    for index, cell in enumerate(result["cells"]):
        cells.append(cell)
        if cell["cell_type"] != "code":
            continue
        source = "".join(cell["source"])  # a list of lines in the file, a text in nbformat's hands
        stub, solution = split(source, f"{name}, cell {index}")
        if solution or not keep_outputs:
            cell["outputs"], cell["execution_count"] = [], None
        if solution:
            cell["source"] = stub
            cells.append(_folded(cell, solution))
    result["cells"] = cells
    return result


def split(source: str, where: str = "the cell") -> tuple[str, str]:
    """(the stub, the whole cell without its markers); the second is ``""`` for a cell that is no exercise."""
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
                + (f"within the solution that begins in line {opened}" if opened else "without a beginning")
                + ". Each solution stands between one '### BEGIN SOLUTION' and one '### END SOLUTION'."
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

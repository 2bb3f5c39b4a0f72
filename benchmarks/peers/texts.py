"""Two kinds of English prose that come with every Python: one to calibrate with, and one to measure on.

* :func:`docstrings`, for calibration: the standard library's docstrings of modules, classes and functions.
* :func:`topics`, to measure on: the chapters of the language reference that ``help()`` shows (``pydoc_data``).

Different people wrote the two texts for different readers, and neither is a part of the other. Both change a little
with each release of Python, so a table has to name its release.
"""

import ast
import sysconfig
from pathlib import Path

LENGTH = 512
LONG = 300  # characters; shorter docstrings are labels, not prose
LEFT_OUT = ("site-packages", "dist-packages", "test", "idlelib", "lib2to3", "pydoc_data")


def docstrings() -> str:
    """The long docstrings of the standard library in the order of its files, without dialogues with the interpreter."""
    library, found = Path(sysconfig.get_paths()["stdlib"]), []
    for file in sorted(library.rglob("*.py"), key=lambda file: file.relative_to(library).as_posix()):
        folders = file.relative_to(library).parts[:-1]
        if any(folder in LEFT_OUT or folder.startswith(("config-", "test")) for folder in folders):
            continue
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node) or ""
                if len(text) >= LONG and ">>>" not in text:
                    found.append(text)
    return "\n\n".join(found)


def topics() -> str:
    """The chapters of the language reference as ``help()`` shows them, by name."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def rows(ids: list[int], samples: int) -> list[list[int]]:
    """``samples`` pieces of :data:`LENGTH` tokens, evenly spread over the text."""
    starts = [number * (len(ids) - LENGTH) // samples for number in range(samples)]
    return [ids[start : start + LENGTH] for start in starts]

"""The text on which the decoder is trained and measured. Every machine with Python already has it.

It has two sources: the standard library (read from the running interpreter), and generated interpreter sessions
(:mod:`qtutor.decoder.tasks`). Nothing is downloaded or copied into the repository. Ten modules are held out of
training. Their source is the same in Python 3.11, 3.12 and 3.13, so measured numbers agree between machines. Left out
of training: tests, character tables, and the vendored pip.
"""

import ast
import functools
import random
import sysconfig
import textwrap
from pathlib import Path

from qtutor.decoder import tasks

HELD_OUT_MODULES = (
    "graphlib.py",
    "heapq.py",
    "string.py",
    "tracemalloc.py",
    "pyclbr.py",
    "py_compile.py",
    "tomllib/_parser.py",
    "email/quoprimime.py",
    "urllib/robotparser.py",
    "wsgiref/headers.py",
)
_LEFT_OUT = {"site-packages", "test", "tests", "idlelib", "encodings", "pydoc_data", "ensurepip", "__phello__"}


def standard_library() -> Path:
    """The folder with the Python source of the running interpreter's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def training_modules() -> list[str]:
    """The source of every module on which the decoder is trained, in a fixed order."""
    root = standard_library()
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.py"))
    texts = []
    for name in names:
        parts = set(Path(name).parts)
        if name in HELD_OUT_MODULES or parts & _LEFT_OUT or name.startswith("_sysconfigdata"):
            continue
        text = (root / name).read_text(encoding="utf-8", errors="ignore")
        if text.strip():
            texts.append(text)
    return texts


@functools.cache
def held_out_code() -> str:
    """The held-out modules, one after another. Perplexity is measured on this text."""
    root = standard_library()
    missing = [name for name in HELD_OUT_MODULES if not (root / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{root}: the held-out modules {', '.join(missing)} are missing. The decoder is measured on the source of "
            "the standard library; install the interpreter with its .py files."
        )
    return "\n\n".join((root / name).read_text(encoding="utf-8") for name in HELD_OUT_MODULES)


@functools.cache
def held_out_functions(longest: int = 400) -> tuple[str, ...]:
    """Signatures and docstrings of the functions in the held-out modules, dedented: prompts that ask for the body.

    Left out: functions without a docstring, and beginnings of more than ``longest`` characters.
    """
    root = standard_library()
    beginnings = {}
    for name in HELD_OUT_MODULES:
        source = (root / name).read_text(encoding="utf-8")
        lines = source.splitlines(keepends=True)
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) and len(node.body) > 1:
                beginning = textwrap.dedent("".join(lines[node.lineno - 1 : node.body[0].end_lineno]))
                if len(beginning) <= longest:
                    beginnings[beginning] = None
    return tuple(beginnings)


def training_sessions(count: int, seed: int = 0, examples: int = 12) -> list[str]:
    """``count`` interpreter sessions of ``examples`` questions each."""
    rng = random.Random(seed)
    return [tasks.session(rng, examples) for _ in range(count)]

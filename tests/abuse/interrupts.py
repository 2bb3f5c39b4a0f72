"""Interrupt the writing of a file or folder at every line that Python runs for it, one line in each attempt.

    python -m tests.abuse.interrupts

Afterwards either the old content or the new content has to be there, with nothing beside it, and the exception has to
be the interrupt. Left-overs do not count if the interrupt came at the `yield` of `stage` or `unfinished`, or where a
`finally` begins: Python looks for signals only at calls and jumps.
"""

import contextlib
import os
import pathlib
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from unittest import mock

from qtutor import files
from qtutor.files import folder_written_beside, staging, unfinished, written_beside

TRACED = {module.__file__ for module in (files, staging, unfinished, shutil, pathlib, contextlib)}
BETWEEN = {"yield _new_stage(path, made, held)", "yield run", "try:"}
KINDS = ("file", "folder", "folder in two steps", "folder of a long run")


@contextlib.contextmanager
def long_run(path: Path):
    """The new folder of a long run that has finished nothing so far."""
    with unfinished.unfinished(path, {"recipe": "any"}) as run:
        yield run.new


WAYS = {"file": written_beside, "folder of a long run": long_run}


def attempt(kind: str, nth: int, root: Path) -> tuple[str, str]:
    """Write over old content with an interrupt at the ``nth`` moment. Returns the result, and where the moment was."""
    path, moments, where = root / "out", 0, ""
    file = path
    if kind != "file":
        path.mkdir()
        file = path / "a"
    file.write_text("old")

    def trace(frame, event, argument):
        nonlocal moments, where
        if frame.f_code.co_filename not in TRACED:
            return None
        moments += event != "exception"
        if moments == nth and not where:
            where = f"{frame.f_code.co_filename}:{frame.f_lineno}"
            raise KeyboardInterrupt
        return trace

    in_one_step = contextlib.nullcontext()
    if kind == "folder in two steps":
        in_one_step = mock.patch.object(files, "_exchange", lambda one, other: False)
    with in_one_step, contextlib.suppress(KeyboardInterrupt):
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            with WAYS.get(kind, folder_written_beside)(path) as new:
                (new if kind == "file" else new / "a").write_text("new")
        finally:
            sys.settrace(before)
    if not where:
        return "over", where
    if not file.exists() or file.read_text() not in ("old", "new"):
        return "lost", where
    return ("left behind" if os.listdir(root) != ["out"] else "fine"), where


def run(kind: str, step: int = 1) -> Counter:
    """Try every ``step``-th moment, each in an empty folder."""
    found = Counter()
    for nth in range(1, 100_000, step):
        with tempfile.TemporaryDirectory() as root:
            result, where = attempt(kind, nth, Path(root))
        if result == "over":
            return found
        name, _, line = where.rpartition(":")
        text = Path(name).read_text(encoding="utf-8").splitlines()[int(line) - 1].strip() if where else ""
        if result == "left behind" and name in (staging.__file__, unfinished.__file__) and text in BETWEEN:
            result = "between two calls"
        found[result] += 1
        if result in ("lost", "left behind"):
            found[f"{result} at {where}: {text}"] += 1
    raise AssertionError("it never ends")


if __name__ == "__main__":
    everything = {kind: run(kind) for kind in KINDS}
    for kind, found in everything.items():
        print(f"{kind}: " + ", ".join(f"{times} {what}" for what, times in found.items()))
    sys.exit(any(found["lost"] or found["left behind"] for found in everything.values()))

"""Does the package still compute the same, to the bit? Compares a commit and the working tree, on this machine.

    python tests/same_as.py REV                     both sides, about six minutes
    python tests/same_as.py REV --quick             a part of it, about a minute
    python tests/same_as.py REV --keep base.json    keep the results of REV's side in a file
    python tests/same_as.py --against base.json     use them, so REV does not run again (--quick works here, too)

It is meant for commits that should change no results, such as moving modules. A table has a row for every kind of
result: how many were compared, and how many are equal. The names of results that differ follow. The exit status is 1 if
any result differs, failed, or exists on only one side. Two kinds of differences do not count: buffers with a different
name but the same content, and exercises' mistakes that are new, removed or worded differently.

``tests/same_as_digest.py`` computes the results. It runs once for each side, with ``PYTHONPATH`` at that side's tree.
Digests are valid only for one machine and one set of versions: a different CPU may round differently.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
DIGEST = Path(__file__).with_name("same_as_digest.py")
SHOWN = 12  # names of each kind; --all shows all names
# Kinds whose names contain texts, or which consist only of names: new and missing names are listed, but do not fail.
REWORDED = ("mistakes", "list of mistakes", "verdicts, mistakes", "verdicts, answers", "buffer names")
WHOLE = ("exercises, inputs", "references", "mistakes", "list of mistakes", "verdicts, references")  # --quick or not
TOLD_ONLY = ("list of mistakes", "buffer names")


@contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    """A temporary work tree of ``revision``."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder, "tree").resolve()
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", tree, revision], cwd=HERE, check=True)
        try:
            yield tree
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", tree], cwd=HERE, check=True)


def digests(tree: Path, quick: bool) -> dict:
    """The results of the package in ``tree``: ``{"about": ..., "found": {kind: {name: value}}}``."""
    environment = os.environ | {
        "PYTHONPATH": str(tree),  # comes before the installed package
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    with tempfile.TemporaryDirectory() as folder:  # the program also runs here: no file hides a module
        out = Path(folder, "digests.json")
        print(f"Computing with the package in {tree} ...", file=sys.stderr, flush=True)
        command = [sys.executable, "-P", DIGEST, out, tree, *["--quick"] * quick]
        subprocess.run(command, cwd=folder, env=environment, check=True)
        return json.loads(out.read_text())


@dataclass
class Kind:
    """One kind of results, compared by name."""

    compared: int = 0
    differ: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    only_there: list[str] = field(default_factory=list)
    only_here: list[str] = field(default_factory=list)

    @property
    def equal(self) -> int:
        return self.compared - len(self.differ) - len(self.failed)


def compare(there: dict[str, str], here: dict[str, str]) -> Kind:
    """Results of one kind. A result that failed on both sides in the same way is not equal: nothing was compared."""
    kind = Kind(compared=len(there.keys() & here.keys()))
    for name in [*there, *(name for name in here if name not in there)]:
        values = there.get(name), here.get(name)
        failures = [f"{side}: {v}" for side, v in zip(("there", "here"), values) if v and v.startswith("FAILED")]
        if None in values:
            (kind.only_here if values[0] is None else kind.only_there).append(name)
        elif failures:
            kind.failed.append(f"{name}\n      {'; '.join(failures)}")
        elif values[0] != values[1]:
            kind.differ.append(f"{name}{_apart(*values)}")
    # If a different name has the same result (a mistake with a new text), that name is printed beside it.
    same = {here[name]: name for name in kind.only_here}
    kind.only_there = [
        f"{name}\n      equal to, here: {same[there[name]]}" if there[name] in same else name
        for name in kind.only_there
    ]
    return kind


def _apart(there: str, here: str) -> str:
    """The first lines in which two texts differ; empty for digests, which are not readable."""
    for before, after in zip(there.splitlines(), here.splitlines()):
        if before != after and len(before) != 64 and "torch." not in before:
            return f"\n      there: {before[:200]}\n      here:  {after[:200]}"
    return ""


def is_wrong(name: str, kind: Kind) -> bool:
    one_sided = bool(kind.only_there or kind.only_here) and name not in REWORDED
    return bool(kind.failed) or (bool(kind.differ) and name not in TOLD_ONLY) or one_sided


def show(kinds: dict[str, Kind], shown: int | None) -> None:
    head = ("compared", "equal", "differ", "failed", "only there", "only here")
    print(f"{'kind':28}" + "".join(f"{title:>12}" for title in head))
    for name, kind in kinds.items():
        lists = (kind.differ, kind.failed, kind.only_there, kind.only_here)
        print(f"{name:28}" + "".join(f"{count:12,}" for count in (kind.compared, kind.equal, *map(len, lists))))
    for name, kind in kinds.items():
        for title in ("differ", "failed", "only_there", "only_here"):
            names = getattr(kind, title)
            if names:
                counts = "" if is_wrong(name, kind) else " (for information)"
                print(f"\n{name}, {title.replace('_', ' ')}{counts}:")
                print("\n".join(f"  - {one}" for one in names[:shown]))
                if names[shown:] and shown:
                    print(f"  ... and {len(names) - shown:,} more; --all shows them")


def matching(there: dict, here: dict) -> tuple[dict, dict]:
    """The results of both sides. If only one run was quick, the other side keeps the results that the quick one has."""
    for side, other in ((there, here), (here, there)):
        if other["about"]["quick"] and not side["about"]["quick"]:
            for kind in side["found"].keys() - set(WHOLE):
                names = side["found"][kind]
                wanted = other["found"].get(kind, {})
                side["found"][kind] = {name: value for name, value in names.items() if name in wanted}
    for key in ("machine", "versions"):
        if there["about"][key] != here["about"][key]:
            print(f"ATTENTION, the {key} differ: {there['about'][key]} there, {here['about'][key]} here.\n")
    return there["found"], here["found"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("revision", nargs="?", help="git revision to compare the working tree with")
    parser.add_argument("--against", type=Path, metavar="FILE", help="what --keep wrote, instead of a revision")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="where to keep what the revision's side gave")
    parser.add_argument("--quick", action="store_true", help="a part of everything, in about a minute")
    parser.add_argument("--all", action="store_true", help="show every name that differs")
    options = parser.parse_args()
    if bool(options.revision) == bool(options.against):
        parser.error("give a revision or --against FILE")
    if options.against:
        there = json.loads(options.against.read_text())
    else:
        with checked_out(options.revision) as tree:
            there = digests(tree, options.quick)
    if options.keep:
        options.keep.write_text(json.dumps(there, indent=1))
    there, here = matching(there, digests(HERE, options.quick))
    kinds = {name: compare(there.get(name, {}), here.get(name, {})) for name in there | here}
    show(kinds, None if options.all else SHOWN)
    wrong = [name for name, kind in kinds.items() if is_wrong(name, kind)]
    print(f"\nNot the same: {'; '.join(wrong)}." if wrong else "\nThe same.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

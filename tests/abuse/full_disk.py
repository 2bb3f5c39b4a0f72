"""Run `qtutor quantize` on disks of every size that is too small: the old export must not change.

    python -m tests.abuse.full_disk
    python -m tests.abuse.full_disk --step 4 --seed 3

The disk is in memory, and mounted in a namespace that only this process sees. It holds an older export and has some kB
of room. If the system reports how much room there is, the run is refused before it starts its work. Some systems do not
report it; then the run finds out while it writes. In both cases the run has to print one paragraph and exit with status
2. The old export has to stay byte for byte, and nothing else may be left except the hidden folder with finished blocks.
The next run continues with these blocks, and has to write the same bytes as a run without a full disk.
"""

import argparse
import contextlib
import io
import os
import random
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

from tests.abuse.kills import KINDS, NEW, OLD, arguments, content, finished_in, stages

UNKNOWN = SimpleNamespace(total=0, free=0)


def mount(folder: Path, kilobytes: int, again: bool) -> None:
    options = f"size={kilobytes}k" + (",remount" if again else "")
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)


def main_of(argv: list[str]) -> tuple[int, str]:
    from qtutor import cli

    errors = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        status = cli.main(argv)
    return status, errors.getvalue()


def used(folder: Path) -> int:
    disk = os.statvfs(folder)
    return -(-(disk.f_blocks - disk.f_bfree) * disk.f_frsize // 1024)


def trial(folder: Path, name: str, told: bool, kilobytes: int) -> str:
    """One run with this much room. Returns what was wrong, or how the run ended."""
    mount(folder, used(folder) + kilobytes, again=True)
    before = content(folder / name)
    telling = contextlib.nullcontext() if told else mock.patch("shutil.disk_usage", lambda base: UNKNOWN)
    with telling:
        status, message = main_of(arguments(folder, name, NEW[name]))
    if status == 0:
        return "there was room"
    said = message.rpartition("qtutor: ")[2]
    others = [found for found in os.listdir(folder) if found != name]
    if stages(folder) or not all(finished_in(folder / found) for found in others) or content(folder / name) != before:
        return "LOST, or something left behind"
    if status != 2 or "\n\n" in said or str(folder) not in " ".join(said.split()):
        return f"BADLY TOLD: {message[-300:]!r}"
    return "refused before the work" if "at least" in said else "told while it was written"


def run(step: int, seed: int) -> Counter:
    chance, found = random.Random(seed), Counter()
    for name in KINDS:
        with tempfile.TemporaryDirectory(prefix="full-disk-") as root:
            folder = Path(root)
            mount(folder, 100_000, again=False)
            status, message = main_of(arguments(folder, name, NEW[name]))
            assert status == 0, message
            whole = content(folder / name)
            status, message = main_of(arguments(folder, name, OLD[name]))
            assert status == 0, message
            for told in (True, False):
                for kilobytes in range(0, 2000, step):
                    result = trial(folder, name, told, kilobytes + chance.randrange(step))
                    found[f"{name}, {'told' if told else 'untold'}: {result}"] += 1
                    if result == "there was room":
                        if content(folder / name) != whole or os.listdir(folder) != [name]:
                            found[f"{name}: LOST, other bytes than without a full disk"] += 1
                        mount(folder, 100_000, again=True)
                        main_of(arguments(folder, name, OLD[name]))
                        break
            subprocess.run(["umount", str(folder)], check=True)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--step", type=int, default=25, help="kB between one size and the next (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.inside:
        command = ["unshare", "-rm", sys.executable, "-m", "tests.abuse.full_disk", *sys.argv[1:], "--inside"]
        sys.exit(subprocess.call(command))
    found = run(options.step, options.seed)
    for what, times in sorted(found.items()):
        print(f"{times:6}  {what}")
    sys.exit(any("LOST" in what or "BADLY" in what for what in found))

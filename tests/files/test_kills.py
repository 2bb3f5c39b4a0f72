"""A few of the kills that tests/abuse/kills.py deals by the hundred."""

import subprocess
import sys
from pathlib import Path


def test_a_kill_loses_nothing():
    """Twelve: two kinds of OUT, three signals, over an older export and to a new place, while it writes."""
    command = [sys.executable, "-m", "tests.abuse.kills", "12", "--fork", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 of 12 lost something" in done.stdout
    assert "left behind" not in done.stdout and "stubborn" not in done.stdout

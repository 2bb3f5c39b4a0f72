"""A few of the kills and interrupts that tests/abuse tries by the hundred."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.abuse import interrupts


def test_a_kill_loses_nothing():
    """Twelve kills while a run writes: three kinds of OUT, three signals, over an older export and to a new place."""
    command = [sys.executable, "-m", "tests.abuse.kills", "12", "--fork", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 of 12 lost something" in done.stdout
    assert "left behind" not in done.stdout and "stubborn" not in done.stdout and "odd status" not in done.stdout


@pytest.mark.parametrize("kind", interrupts.KINDS)
def test_an_interrupt_at_any_line_loses_nothing(kind):
    """At every 11th moment; ``python -m tests.abuse.interrupts`` tries all of them."""
    found = interrupts.run(kind, step=11)
    assert found["fine"] > 80 and not found["lost"] and not found["left behind"], found

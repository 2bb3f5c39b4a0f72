"""No attempt is ever lost, even after a kill, a second notebook, a damaged file or a full disk."""

import json
import multiprocessing
import os

import pytest

from qtutor.course import workspace
from qtutor.course.your_model import attempts, capstone
from qtutor.course.your_model.attempts import Attempt
from qtutor.errors import QtutorError

ONE = Attempt("embedded", "one", 700_000, 0.5, 0.01, 0.3, 20.0)
TWO = Attempt("embedded", "two", 800_000, 0.4, None, 0.2, 19.0)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / workspace.RECORD).write_text("{}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def stored(folder):
    return json.loads((folder / "mine" / "your_model.json").read_text())["attempts"]


def test_attempts_are_kept_in_the_workspace_in_order(folder):
    assert attempts.keep(ONE) == "Kept in mine/your_model.json, attempt 1."
    assert attempts.keep(TWO) == "Kept in mine/your_model.json, attempt 2."
    assert attempts.kept("embedded") == [ONE, TWO] and attempts.kept("smollm2") == []
    assert [row["note"] for row in stored(folder)] == ["one", "two"]


def test_outside_of_a_workspace_they_last_as_long_as_the_kernel(tmp_path):
    assert attempts.keep(ONE) == "" and attempts.kept("embedded") == [ONE]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", "null", '{"attempts": 3}', '{"other": []}', "[" * 100_000, '{"attempts": [NaN]}']
)
def test_a_damaged_file_is_moved_aside_and_never_written_over(folder, text):
    path = folder / "mine" / "your_model.json"
    path.parent.mkdir()
    for number in (1, 2):
        path.write_text(text)
        assert attempts.keep(ONE).endswith(f"attempt 1. The old file could not be read; it is now "
                                           f"your_model.damaged-{number}.json.")  # fmt: skip
        assert path.with_name(f"your_model.damaged-{number}.json").read_text() == text
    assert attempts.kept("embedded") == [ONE]


def test_rows_that_are_not_ours_stay_in_the_file_and_are_not_shown(folder):
    path = folder / "mine" / "your_model.json"
    path.parent.mkdir()
    rows = [{"model": "embedded"}, 3, None, {**vars(ONE), "kl": "low"}, {**vars(ONE), "kl": 1e999}, vars(ONE)]
    path.write_text(json.dumps({"attempts": rows}).replace("Infinity", "1e999"))
    assert attempts.kept("embedded") == [ONE]
    path.write_text(json.dumps({"attempts": [row for row in rows if row != rows[4]]}))
    attempts.keep(TWO)
    assert len(stored(folder)) == 6 and attempts.kept("embedded") == [ONE, TWO]


def test_a_write_that_fails_leaves_all_earlier_attempts(folder, monkeypatch):
    attempts.keep(ONE)
    before = (folder / "mine" / "your_model.json").read_bytes()

    def full(path, content):
        raise QtutorError("no space left")

    monkeypatch.setattr(workspace, "write_beside", full)
    with pytest.raises(QtutorError, match="no space left"):
        attempts.keep(TWO)
    assert (folder / "mine" / "your_model.json").read_bytes() == before


def test_what_cannot_be_kept_is_still_measured_and_told(folder, monkeypatch, capsys):
    def refused(attempt):
        raise QtutorError("the disk is full")

    monkeypatch.setattr(attempts, "keep", refused)
    monkeypatch.setattr(capstone, "examine", lambda *given: capstone.Verdict("700,000 bytes", ONE))
    capstone.check("anything", "embedded")
    out = capsys.readouterr().out
    assert "700,000 bytes\nMeasured, but not kept: the disk is full\n" in out


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="files have no owners here")
def test_a_workspace_of_another_user_is_left_alone(folder, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(QtutorError, match="belongs to another user"):
        attempts.keep(ONE)
    assert not (folder / "mine").exists()


def _keep_five(folder, number):
    os.chdir(folder)
    for at in range(5):
        attempts.keep(Attempt("embedded", f"{number}.{at}", 1, 0.1, None, 0.1, 1.0))


@pytest.mark.skipif(attempts.fcntl is None, reason="no locks between processes here")
def test_notebooks_that_write_at_once_lose_nothing(folder):
    context = multiprocessing.get_context("fork")
    running = [context.Process(target=_keep_five, args=(folder, number)) for number in range(4)]
    for process in running:
        process.start()
    for process in running:
        process.join(60)
    notes = [row["note"] for row in stored(folder)]
    assert sorted(notes) == sorted(f"{number}.{at}" for number in range(4) for at in range(5))

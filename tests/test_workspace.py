"""The learner's workspace: chapters arrive, updates arrive, and nothing that a learner wrote is ever lost."""

import os
from pathlib import Path

import pytest

from qtutor.course import workspace
from qtutor.errors import QtutorError


@pytest.fixture
def course(tmp_path):
    """A course of two chapters, as (its folder, the learner's folder)."""
    source = tmp_path / "notebooks"
    source.mkdir()
    (source / "00_start.ipynb").write_text("start, version 1")
    (source / "02_round.ipynb").write_text("round, version 1")
    return source, tmp_path / "mine"


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.glob("*.ipynb")}


def test_chapters_arrive(course):
    source, mine = course
    report = workspace.make(mine, source)
    assert contents(mine) == contents(source)
    assert report.added == ["00_start.ipynb", "02_round.ipynb"]
    assert "new chapters: 00_start.ipynb, 02_round.ipynb" in str(report)


def test_a_second_time_changes_nothing(course):
    source, mine = course
    workspace.make(mine, source)
    before = (mine / "00_start.ipynb").stat().st_mtime_ns
    report = workspace.make(mine, source)
    assert report.unchanged == ["00_start.ipynb", "02_round.ipynb"]
    assert "nothing has changed" in str(report)
    assert (mine / "00_start.ipynb").stat().st_mtime_ns == before


def test_an_untouched_chapter_is_updated(course):
    source, mine = course
    workspace.make(mine, source)
    (source / "02_round.ipynb").write_text("round, version 2")
    assert workspace.make(mine, source).updated == ["02_round.ipynb"]
    assert contents(mine) == contents(source)


def test_a_learners_work_stays(course):
    source, mine = course
    workspace.make(mine, source)
    (mine / "02_round.ipynb").write_text("my answers")
    assert workspace.make(mine, source).kept == ["02_round.ipynb"]
    assert contents(mine) == {"00_start.ipynb": "start, version 1", "02_round.ipynb": "my answers"}


def test_where_both_changed_the_new_one_comes_beside(course):
    source, mine = course
    workspace.make(mine, source)
    (mine / "02_round.ipynb").write_text("my answers")
    (source / "02_round.ipynb").write_text("round, version 2")
    report = workspace.make(mine, source)
    assert report.beside == ["02_round.new.ipynb"] and "02_round.new.ipynb" in str(report)
    assert contents(mine)["02_round.ipynb"] == "my answers"
    assert contents(mine)["02_round.new.ipynb"] == "round, version 2"

    # The learner now works in both; a third version takes a third name, and calling again adds nothing.
    (mine / "02_round.new.ipynb").write_text("my answers, again")
    (source / "02_round.ipynb").write_text("round, version 3")
    assert workspace.make(mine, source).beside == ["02_round.new2.ipynb"]
    after = contents(mine)
    assert after["02_round.new.ipynb"] == "my answers, again" and after["02_round.new2.ipynb"] == "round, version 3"
    workspace.make(mine, source)
    assert contents(mine) == after


@pytest.mark.parametrize("record", [None, "", "{", "[]", '{"delivered": 3}'])
def test_without_its_record_everything_counts_as_the_learners(course, record):
    source, mine = course
    workspace.make(mine, source)
    (mine / "00_start.ipynb").write_text("my answers")
    (source / "00_start.ipynb").write_text("start, version 2")
    if record is None:
        (mine / ".qtutor.json").unlink()
    else:
        (mine / ".qtutor.json").write_text(record)
    workspace.make(mine, source)
    assert contents(mine)["00_start.ipynb"] == "my answers"
    assert contents(mine)["00_start.new.ipynb"] == "start, version 2"


def test_new_and_deleted_chapters_come(course):
    source, mine = course
    workspace.make(mine, source)
    (mine / "00_start.ipynb").unlink()
    (source / "03_next.ipynb").write_text("next")
    assert workspace.make(mine, source).added == ["00_start.ipynb", "03_next.ipynb"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    target = tmp_path / "chapter.ipynb"
    target.write_text("old")

    def refuse(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="No space"):
        workspace.write_beside(target, b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["chapter.ipynb"] and target.read_text() == "old"


def test_a_kill_between_chapters_does_not_make_our_copy_the_learners(course, monkeypatch):
    source, mine = course
    deliver = workspace._deliver

    def killed_at_the_second(name, *rest):
        if name.startswith("02"):
            raise KeyboardInterrupt
        deliver(name, *rest)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(workspace, "_deliver", killed_at_the_second)
        workspace.make(mine, source)
    (source / "00_start.ipynb").write_text("start, version 2")
    assert workspace.make(mine, source).updated == ["00_start.ipynb"]


def test_a_file_or_the_course_itself_is_no_workspace(course, tmp_path):
    source, _ = course
    (tmp_path / "file").touch()
    with pytest.raises(QtutorError, match="is a file"):
        workspace.make(tmp_path / "file", source)
    with pytest.raises(QtutorError, match="the course's own chapters"):
        workspace.make(source, source)


def test_jupyterlab_opens_the_first_chapter_on_this_machine_only(course):
    source, mine = course
    workspace.make(mine, source)
    command = workspace.jupyter_command(mine, browser=False, is_root=True)
    assert "--ip=127.0.0.1" in command and "--LabApp.default_url=/lab/tree/00_start.ipynb" in command
    assert "--no-browser" in command and "--allow-root" in command
    assert not any("token" in argument.lower() for argument in command)  # the token stays as JupyterLab makes it
    plain = workspace.jupyter_command(mine, browser=True, is_root=False)
    assert "--no-browser" not in plain and "--allow-root" not in plain

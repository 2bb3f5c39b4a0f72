"""The learner's workspace: chapters arrive, updates arrive, and nothing that a learner wrote is ever lost."""

import json
import os
import re
import sys
import webbrowser
from pathlib import Path

import pytest

from qtutor.course import workspace
from qtutor.errors import QtutorError


@pytest.fixture
def course(tmp_path):
    """A course of two chapters, as (its folder, the learner's folder)."""
    source = tmp_path / "notebooks"
    source.mkdir()
    write(source / "00_start.ipynb", "start, version 1")
    write(source / "02_round.ipynb", "round, version 1")
    return source, tmp_path / "mine"


def write(path: Path, text: str) -> None:
    """A master with ``text``, an exercise and stored outputs."""
    stream = {"output_type": "stream", "name": "stdout", "text": ["4.3125\n"]}
    solution = 'def f():\n    ### BEGIN SOLUTION\n    return 4\n    ### END SOLUTION\n\n\ncheck("start.f", f)'
    cells = [
        {"cell_type": "markdown", "id": "text", "metadata": {}, "source": [text]},
        {
            "cell_type": "code",
            "id": "exercise",
            "metadata": {},
            "source": solution.splitlines(keepends=True),
            "outputs": [stream],
            "execution_count": 1,
        },
    ]
    path.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))


def contents(folder: Path) -> dict[str, str]:
    """The text of each notebook's first cell. For a file that is not JSON (a learner's), the whole content."""
    found = {}
    for path in folder.glob("*.ipynb"):
        text = path.read_text()
        found[path.name] = "".join(json.loads(text)["cells"][0]["source"]) if text.startswith("{") else text
    return found


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
    write(source / "02_round.ipynb", "round, version 2")
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
    write(source / "02_round.ipynb", "round, version 2")
    report = workspace.make(mine, source)
    assert report.beside == ["02_round.new.ipynb"] and "02_round.new.ipynb" in str(report)
    assert contents(mine)["02_round.ipynb"] == "my answers"
    assert contents(mine)["02_round.new.ipynb"] == "round, version 2"

    # Now the learner works in both files. A third version gets a third name, and another call adds nothing.
    (mine / "02_round.new.ipynb").write_text("my answers, again")
    write(source / "02_round.ipynb", "round, version 3")
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
    write(source / "00_start.ipynb", "start, version 2")
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
    write(source / "03_next.ipynb", "next")
    assert workspace.make(mine, source).added == ["00_start.ipynb", "03_next.ipynb"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    target = tmp_path / "chapter.ipynb"
    target.write_text("old")

    def refuse(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(QtutorError, match=r"chapter.ipynb cannot be written: No space left on device\. Whatever"):
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
    write(source / "00_start.ipynb", "start, version 2")
    assert workspace.make(mine, source).updated == ["00_start.ipynb"]


def test_a_file_or_the_course_itself_is_no_workspace(course, tmp_path):
    source, _ = course
    (tmp_path / "file").touch()
    with pytest.raises(QtutorError, match="is a file"):
        workspace.make(tmp_path / "file", source)
    with pytest.raises(QtutorError, match="mine cannot be written: Not a directory"):
        workspace.make(tmp_path / "file" / "mine", source)
    with pytest.raises(QtutorError, match="the course's own chapters"):
        workspace.make(source, source)


def test_jupyterlab_opens_the_first_chapter_on_this_machine_only(course):
    source, mine = course
    workspace.make(mine, source)
    command = workspace.jupyter_command(mine, browser=False, is_root=True)
    assert "--ip=127.0.0.1" in command and "--LabApp.default_url=/lab/tree/00_start.ipynb" in command
    assert "--no-browser" in command and "--allow-root" in command
    assert not any("token" in argument.lower() for argument in command)  # JupyterLab makes the token
    plain = workspace.jupyter_command(mine, browser=True, is_root=False)
    assert "--no-browser" not in plain and "--allow-root" not in plain


@pytest.mark.parametrize("graphical", [True, False])
@pytest.mark.parametrize(
    ("platform", "display", "expected"),
    [("linux", {}, False), ("linux", {"DISPLAY": ":0"}, True), ("linux", {"WAYLAND_DISPLAY": "wayland-0"}, True),
     ("darwin", {}, True), ("win32", {}, True)],
)  # fmt: skip
def test_a_browser_is_opened_where_there_is_one(monkeypatch, platform, display, expected, graphical):
    """On Linux without a display, a text browser could be found. Other systems always have a display."""

    def get():
        if not graphical:
            raise webbrowser.Error("could not locate runnable browser")

    monkeypatch.setattr(webbrowser, "get", get)
    monkeypatch.setattr(sys, "platform", platform)
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in display.items():
        monkeypatch.setenv(name, value)
    assert workspace.has_browser() is (expected and graphical)


def test_a_learner_gets_stubs_and_no_outputs(course):
    source, mine = course
    workspace.make(mine, source)
    text = (mine / "00_start.ipynb").read_text()
    assert "BEGIN SOLUTION" not in text and "4.3125" not in text
    cells = json.loads(text)["cells"]
    assert 'raise NotImplementedError("your turn")' in "".join(cells[1]["source"])
    assert cells[2]["source"].startswith("<details><summary>Solution</summary>") and "return 4" in cells[2]["source"]


def test_stored_outputs_alone_are_no_new_version(course):
    source, mine = course
    workspace.make(mine, source)
    master = json.loads((source / "00_start.ipynb").read_text())
    master["cells"][1]["outputs"] = []
    (source / "00_start.ipynb").write_text(json.dumps(master, indent=2))
    assert workspace.make(mine, source).unchanged == ["00_start.ipynb", "02_round.ipynb"]


def test_what_a_learner_has_passed_is_left_alone(course):
    source, mine = course
    workspace.make(mine, source)
    (mine / "mine").mkdir()
    (mine / "mine" / "rtn_pack.py").write_text("answer = 1")
    write(source / "00_start.ipynb", "start, version 2")
    workspace.make(mine, source)
    assert (mine / "mine" / "rtn_pack.py").read_text() == "answer = 1"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not a notebook"),
        ("[]", "is not a notebook"),
        ("{}", "is not a notebook"),
        (
            '{"cells": [{"cell_type": "code", "source": "### BEGIN SOLUTION"}]}',
            "03_bad.ipynb, cell 0: the '### BEGIN SOLUTION'",
        ),
    ],
)
def test_a_broken_master_is_named(course, text, words):
    source, mine = course
    (source / "03_bad.ipynb").write_text(text)
    with pytest.raises(QtutorError, match=re.escape(words)):
        workspace.make(mine, source)
    assert sorted(path.name for path in mine.glob("*.ipynb")) == ["00_start.ipynb", "02_round.ipynb"]


def test_the_workspace_is_found_from_inside_it_and_only_from_there(course, tmp_path, monkeypatch):
    source, mine = course
    workspace.make(mine, source)
    (mine / "notes" / "deep").mkdir(parents=True)
    assert workspace.find(mine) == workspace.find(mine / "notes" / "deep") == mine
    assert workspace.find(source) is None and workspace.find(tmp_path) is None
    monkeypatch.chdir(mine)
    assert workspace.find() == mine
    # Even if the course's own folder lies inside a workspace, its masters do not belong to a learner.
    monkeypatch.setattr(workspace, "chapters_folder", lambda: mine / "notes")
    assert workspace.find(mine / "notes") is None and workspace.find(mine / "notes" / "deep") == mine

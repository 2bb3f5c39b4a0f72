"""Exercises are done if their answers are kept in the workspace."""

import pytest

from qtutor.course import exercises, progress_table
from qtutor.errors import QtutorError
from tests.course import learner


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    (tmp_path / ".qtutor.json").write_text('{"delivered": {}}')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_row_for_every_exercise_in_the_order_of_the_course(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = progress_table()
    assert [row[1].partition(":")[0] for row in table.rows] == [exercise.name for exercise in exercises.every()]
    assert [row[0] for row in table.rows] == sorted(row[0] for row in table.rows)
    assert table.done == 0 and all(row[-1] == "not yet" for row in table.rows)


def test_what_is_kept_is_done(workspace, tmp_path_factory, monkeypatch):
    learner.keep("rtn.pack", "start.perplexity")
    done = [row[1].partition(":")[0] for row in progress_table().rows if row[-1] == "done"]
    assert done == ["start.perplexity", "rtn.pack"] and progress_table().done == 2
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert progress_table().done == 0 and progress_table(workspace).done == 2
    assert progress_table(workspace / "mine").done == 2


def test_it_shows_itself_in_a_notebook_and_on_a_terminal(workspace):
    learner.keep("rtn.pack")
    table = progress_table()
    lines = table._repr_markdown_().splitlines()
    assert lines[0] == "| chapter | exercise | difficulty | minutes | state |" and lines[1].startswith("| --- |")
    packs = "| 02_round_to_nearest | rtn.pack: Codes packed into bytes, no bit wasted | ●●● | 20 | done |"
    assert packs in lines
    assert lines[-1] == f"1 of {len(table.rows)} done"
    assert repr(table) == str(table) and "rtn.pack: Codes packed" in str(table)
    assert len({line.find("●") for line in str(table).splitlines()[2:-1]}) == 1  # columns are aligned


def test_a_folder_that_is_no_workspace_is_refused(tmp_path):
    with pytest.raises(QtutorError, match="is not a workspace"):
        progress_table(tmp_path)
    with pytest.raises(QtutorError, match="is not a workspace"):
        progress_table(tmp_path / "nothing")

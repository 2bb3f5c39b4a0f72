"""A prediction is kept in the workspace, found again by the next kernel, and never deletes earlier ones."""

import json
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtutor.course import workspace as course_workspace
from qtutor.course.workspace import predictions
from qtutor.errors import QtutorError


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    (tmp_path / ".qtutor.json").write_text('{"delivered": {}}')
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("typed", "number"),
    [
        ("4.7", 4.7),
        (" 4,7 ", 4.7),
        ("-0,5", -0.5),
        ("1,152", 1152.0),
        ("1,152.5", 1152.5),
        ("1/8", 0.125),
        ("30 %", 30.0),
        ("30%", 30.0),
        ("2e-3", 0.002),
        ("0", 0.0),
    ],
)
def test_numbers_as_people_type_them(typed, number):
    assert predictions.number_in(typed, "%") == number


@pytest.mark.parametrize(
    "typed", ["", "much", "x = 1", "nan", "inf", "1/0", "1/2/3", "3 x", "1e999", "__import__('os')"]
)
def test_what_is_no_number_is_refused_in_a_sentence(typed):
    with pytest.raises(QtutorError, match=r"is not a number\. Type one"):
        predictions.number_in(typed, "%")


@given(st.floats(-1e9, 1e9))
def test_every_number_is_read_as_python_writes_it(number):
    assert predictions.number_in(repr(number)) == number


def test_another_kernel_finds_what_was_kept(workspace):
    assert predictions.keep("05-loud-channel", 3.0) == "It is kept in mine/predictions.json."
    predictions.keep("06-recovered", 40.0)
    script = "from qtutor.course.workspace import predictions; print(predictions.load('05-loud-channel'))"
    found = subprocess.run([sys.executable, "-c", script], cwd=workspace, capture_output=True, text=True, check=True)
    assert found.stdout == "3.0\n"
    assert predictions.load("06-recovered") == 40.0 and predictions.load("07-never-asked") is None


def test_the_last_word_counts_and_nothing_else_changes(workspace):
    predictions.keep("05-loud-channel", 3.0)
    predictions.keep("06-recovered", 0.0)
    predictions.keep("05-loud-channel", 4.0)
    assert json.loads((workspace / "mine/predictions.json").read_text()) == {
        "05-loud-channel": 4.0,
        "06-recovered": 0.0,
    }
    predictions.keep("05-loud-channel", None)
    assert predictions.load("05-loud-channel") is None and predictions.load("06-recovered") == 0.0


def test_without_a_workspace_it_lasts_as_long_as_the_kernel(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(predictions, "_remembered", {})
    assert "until this kernel stops" in predictions.keep("05-loud-channel", 3.0)
    assert predictions.load("05-loud-channel") == 3.0
    predictions.keep("05-loud-channel", None)
    assert predictions.load("05-loud-channel") is None and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["{", "[]", '{"a": "three"}', '{"A b": 3}', '{"a": NaN}', '{"a": null}', "3"])
def test_a_damaged_file_is_named_and_stays(workspace, content):
    path = workspace / "mine" / "predictions.json"
    path.parent.mkdir()
    path.write_text(content)
    for tried in (lambda: predictions.load("05-loud-channel"), lambda: predictions.keep("05-loud-channel", 3.0)):
        with pytest.raises(QtutorError, match=r"predictions\.json should hold predictions.*Repair it, or delete it"):
            tried()
    assert path.read_text() == content


def test_a_link_out_of_the_workspace_is_not_followed(workspace, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    try:
        os.symlink(outside, workspace / "mine")
    except OSError:
        pytest.skip("this system makes no links")
    with pytest.raises(QtutorError, match="leads out of your workspace"):
        predictions.keep("05-loud-channel", 3.0)
    assert list(outside.iterdir()) == []


def test_nothing_is_written_where_the_workspace_is_another_users(workspace, monkeypatch):
    monkeypatch.setattr(course_workspace, "of_another", lambda *paths: "it belongs to another user")
    with pytest.raises(QtutorError, match="another user"):
        predictions.keep("05-loud-channel", 3.0)
    assert not (workspace / "mine").exists()

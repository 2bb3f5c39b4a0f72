"""The hidden folder of a long run: kept while it is useful, used again only by the same run, never in the way."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

from qtutor import files
from qtutor.errors import QtutorError
from qtutor.files import unfinished as module
from qtutor.files.staging import UNFINISHED
from qtutor.files.unfinished import bytes_kept, folder_of, unfinished

WORK = {"recipe": {"bits": 3}, "checkpoint": "abc"}
HIDDEN = f".out{UNFINISHED}"


def begin(path, pieces, work=WORK, accident=KeyboardInterrupt):
    """A run that finishes some pieces and ends in an accident."""
    with pytest.raises(accident), unfinished(path, work) as run:
        for number in range(len(run.done), pieces):
            (run.new / str(number)).write_text(f"piece {number}")
            run.note({"piece": number})
        raise accident


@pytest.fixture(params=["in one step", "in two"])
def steps(request, monkeypatch):
    if request.param == "in two":
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)


@pytest.mark.parametrize("accident", [KeyboardInterrupt, OSError, SystemExit, QtutorError])
def test_it_stays_once_something_is_finished(tmp_path, steps, accident):
    path = tmp_path / "out"
    begin(path, 0, accident=accident)
    assert os.listdir(tmp_path) == []
    begin(path, 2, accident=accident)
    assert os.listdir(tmp_path) == [HIDDEN] and bytes_kept(path) > 0
    assert folder_of(path) == tmp_path / HIDDEN and (tmp_path / HIDDEN).stat().st_mode & 0o077 == 0
    with unfinished(path, WORK) as run:
        assert run.done == [{"piece": 0}, {"piece": 1}] and run.differs == ()
        assert sorted(os.listdir(run.new)) == ["0", "1"] and not path.exists()
        run.note({"piece": 2})
    assert os.listdir(tmp_path) == ["out"] and sorted(os.listdir(path)) == ["0", "1"] and bytes_kept(path) == 0


def test_it_takes_the_place_of_what_was_there_only_at_the_end(tmp_path, steps):
    path = tmp_path / "out"
    path.mkdir()
    (path / "old").touch()
    begin(path, 1)
    assert os.listdir(path) == ["old"]
    with unfinished(path, WORK):
        assert os.listdir(path) == ["old"]
    assert os.listdir(path) == ["0"] and os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize(
    ("work", "differs"),
    [
        ({"recipe": {"bits": 4}, "checkpoint": "abc"}, ("recipe",)),
        ({"recipe": {"bits": 4}, "checkpoint": "abd"}, ("checkpoint", "recipe")),
        ({"recipe": {"bits": 3}}, ("checkpoint",)),
        ({"recipe": {"bits": 3}, "checkpoint": "abc", "text": None, "more": 1}, ("more",)),
    ],
)
def test_another_run_begins_anew_and_knows_why(tmp_path, work, differs):
    begin(tmp_path / "out", 2)
    with unfinished(tmp_path / "out", work) as run:
        assert run.done == [] and os.listdir(run.new) == [] and run.differs == differs
        assert sorted(os.listdir(run.folder)) == ["lock", "new", "work.json"]


def test_pieces_can_be_given_up(tmp_path):
    begin(tmp_path / "out", 3)
    with pytest.raises(KeyError), unfinished(tmp_path / "out", WORK) as run:
        run.keep_first(1)
        raise KeyError
    with unfinished(tmp_path / "out", WORK) as run:
        assert run.done == [{"piece": 0}]


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 10_000, '{"recipe": 3}'])
def test_what_cannot_be_understood_is_begun_anew(tmp_path, text):
    begin(tmp_path / "out", 2)
    (tmp_path / HIDDEN / "work.json").write_text(text)
    with unfinished(tmp_path / "out", WORK) as run:
        assert run.done == []


@pytest.mark.parametrize("text", ["", "x", "[]\n", '{"piece": 0}', "[" * 10_000 + "\n", "\udcff"])
def test_lines_count_as_far_as_they_are_whole(tmp_path, text):
    begin(tmp_path / "out", 2)
    with open(tmp_path / HIDDEN / "done.jsonl", "a", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)
    with unfinished(tmp_path / "out", WORK) as run:
        assert run.done in ([{"piece": 0}, {"piece": 1}], [])  # bytes that are not text make the file useless


def test_a_link_or_a_file_of_that_name_is_left_alone(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine").touch()
    (tmp_path / HIDDEN).symlink_to(tmp_path / "elsewhere")
    with (
        pytest.raises(QtutorError, match="is no folder in which qtutor keeps unfinished work"),
        unfinished(tmp_path / "out", WORK),
    ):
        raise AssertionError
    assert os.listdir(tmp_path / "elsewhere") == ["mine"] and bytes_kept(tmp_path / "out") == 0
    (tmp_path / HIDDEN).unlink()
    (tmp_path / HIDDEN).write_text("mine")
    with pytest.raises(QtutorError, match="remove it, or choose another OUT"), unfinished(tmp_path / "out", WORK):
        raise AssertionError
    assert (tmp_path / HIDDEN).read_text() == "mine"


PROGRAM = """
    import sys
    from qtutor.files.unfinished import unfinished
    with unfinished(sys.argv[1], {"recipe": {"bits": 3}, "checkpoint": "abc"}) as run:
        (run.new / "0").write_text("piece 0")
        run.note({"piece": 0})
        print("writing", flush=True)
        sys.stdin.readline()
"""


def test_a_run_that_is_alive_is_left_alone(tmp_path):
    path, command = tmp_path / "out", [sys.executable, "-c", textwrap.dedent(PROGRAM).replace("sys.argv[1]", "path")]
    command[2] = command[2].replace(
        "import sys\n", "import sys\nfrom pathlib import Path\npath = Path(sys.argv[1])\n", 1
    )
    with subprocess.Popen([*command, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "writing\n"
        with pytest.raises(QtutorError, match="another run is writing"), unfinished(path, {"recipe": "another"}):
            raise AssertionError
        assert (tmp_path / HIDDEN / "new" / "0").read_text() == "piece 0"
        other.communicate("go on\n")
    assert other.returncode == 0 and os.listdir(tmp_path) == ["out"] and os.listdir(path) == ["0"]


def test_a_kill_between_the_last_two_steps_is_made_good(tmp_path):
    """On a system that cannot exchange two names, the old folder is already away, and the new one is not yet there."""
    path = tmp_path / "out"
    begin(path, 1)
    (tmp_path / HIDDEN / "old").mkdir()
    (tmp_path / HIDDEN / "old" / "older").touch()
    begin(path, 2)
    assert os.listdir(path) == ["older"]
    with unfinished(path, WORK) as run:
        assert len(run.done) == 2
    assert sorted(os.listdir(path)) == ["0", "1"]
    begin(path, 1)
    (tmp_path / HIDDEN / "old").mkdir()
    with pytest.raises(QtutorError, match=r"is what .*out was before a run was killed"), unfinished(path, WORK):
        raise AssertionError
    assert sorted(os.listdir(path)) == ["0", "1"]


def test_what_is_removed_cannot_be_continued_at_any_moment(tmp_path, monkeypatch):
    """A kill during the removal leaves a part of the folder, which must not be taken for finished work."""
    seen, own = [], module.remove_tree
    monkeypatch.setattr(module, "remove_tree", lambda folder: (seen.append(os.listdir(folder)), own(folder))[1])
    begin(tmp_path / "out", 1)
    with unfinished(tmp_path / "out", WORK):
        pass
    assert seen and all("work.json" not in names for names in seen) and "done.jsonl" in seen[-1]


def test_an_interrupt_when_the_folder_has_its_name_leaves_nothing_beside_it(tmp_path, steps, monkeypatch):
    """The work is done, so nothing of it is kept: only the older folder would be left in it."""
    path, put = tmp_path / "out", files._put
    path.mkdir()
    (path / "old").touch()
    begin(path, 1)

    def interrupted(*given):
        put(*given)
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "_put", interrupted)
    with pytest.raises(KeyboardInterrupt), unfinished(path, WORK):
        pass
    assert os.listdir(tmp_path) == ["out"] and os.listdir(path) == ["0"]


def test_bytes_are_those_on_the_disk(tmp_path):
    """A file of its full size, of which little is written yet, takes little room."""
    with pytest.raises(KeyboardInterrupt), unfinished(tmp_path / "out", WORK) as run:
        with open(run.new / "model", "wb") as file:
            file.truncate(1 << 30)
            file.write(b"begun")
        run.note({"piece": 0})
        raise KeyboardInterrupt
    assert 0 < bytes_kept(tmp_path / "out") < 1 << 20


def test_names_that_are_too_long_are_shortened(tmp_path):
    path = tmp_path / ("量" * 80)
    begin(path, 1)
    assert len(os.fsencode(folder_of(path).name)) < 80 and bytes_kept(path) > 0
    with unfinished(path, WORK):
        pass
    assert os.listdir(tmp_path) == [path.name]


def test_notes_are_json_a_line(tmp_path):
    begin(tmp_path / "out", 2)
    lines = (tmp_path / HIDDEN / "done.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"piece": 0}, {"piece": 1}]

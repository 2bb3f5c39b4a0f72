"""The next run for the same target removes what killed runs left, but nothing that belongs to a live run."""

import errno
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from qtutor.files import folder_written_beside, written_beside
from qtutor.files import staging as stages
from qtutor.files.staging import SUFFIX, remove_leftovers, stage


def in_another_process(program: str, *words) -> subprocess.Popen:
    command = [sys.executable, "-c", textwrap.dedent(program), *map(str, words)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


WRITER = """
    import sys, time
    from qtutor.files import folder_written_beside
    with folder_written_beside(sys.argv[1]) as new:
        (new / "a").write_text("half of it")
        print("writing", flush=True)
        sys.stdin.readline()
"""


def test_left_overs_go_when_their_run_is_dead_and_not_before(tmp_path):
    path = tmp_path / "out"
    with in_another_process(WRITER, path) as writer:
        assert writer.stdout.readline() == "writing\n"
        (name,) = os.listdir(tmp_path)
        assert name.startswith(".out.") and name.endswith(SUFFIX)
        remove_leftovers(path)
        with written_beside(path) as new:  # two runs at once
            new.write_text("another's")
        assert (tmp_path / name / "new" / "a").read_text() == "half of it"
        writer.send_signal(signal.SIGKILL)
    assert sorted(os.listdir(tmp_path)) == [name, "out"]
    with written_beside(path) as new:
        new.write_text("the next")
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("left_over", [True, False])
def test_a_stage_that_is_being_removed_takes_no_new_lock(tmp_path, monkeypatch, recwarn, left_over):
    """Another run that has found or made the folder may ask for its lock while the folder is removed."""
    remove, refused = stages.remove_tree, []

    def slowly(folder):
        with pytest.raises(FileNotFoundError) as found:
            stages.locked(made)
        refused.append((made, found.value.errno))
        remove(folder)

    monkeypatch.setattr(stages, "remove_tree", slowly)
    if left_over:
        made = tmp_path / ".out.0123abcd.qtutor-partial"
        made.mkdir()
        remove_leftovers(tmp_path / "out")
    else:
        with stage(tmp_path / "out") as made:
            pass
    assert refused == [(made, errno.ENOENT)] and os.listdir(tmp_path) == [] and not recwarn.list


def test_an_interrupted_removal_is_finished_by_the_next_run(tmp_path):
    gone = tmp_path / ".out.0123abcd.gone.qtutor-partial" / "new"
    gone.mkdir(parents=True)
    remove_leftovers(tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_a_run_that_is_alive_ends_as_if_it_were_alone(tmp_path):
    path = tmp_path / "out"
    with in_another_process(WRITER, path) as writer:
        writer.stdout.readline()
        with folder_written_beside(path) as new:
            (new / "b").write_text("another's")
        writer.communicate("go on\n")
    assert writer.returncode == 0
    assert os.listdir(path) == ["a"] and os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize(
    "name",
    [
        f".out.mine{SUFFIX}",
        f".out.0123456{SUFFIX}",
        f".other.01234567{SUFFIX}",
        f".out.old.01234567{SUFFIX}",
        ".out.01234567.partial",
        "out.01234567.part",
        f"out.01234567{SUFFIX}",
    ],
)
def test_what_is_called_otherwise_stays(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.txt").write_text("mine")
    with written_beside(tmp_path / "out") as new:
        new.write_text("whole")
    assert sorted(os.listdir(tmp_path)) == sorted([name, "out"])
    assert (tmp_path / name / "thesis.txt").read_text() == "mine"


def test_links_are_not_followed(tmp_path):
    """In a folder that many users may write to, somebody could create such a link."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    (tmp_path / f".out.01234567{SUFFIX}").symlink_to(tmp_path / "mine")
    (tmp_path / f".out.89abcdef{SUFFIX}").mkdir()
    (tmp_path / f".out.89abcdef{SUFFIX}" / "lock").symlink_to(tmp_path / "mine" / "thesis.txt")
    with pytest.warns(UserWarning, match="remove it yourself"):
        remove_leftovers(tmp_path / "out")
    assert os.listdir(tmp_path / "mine") == ["thesis.txt"]
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "mine"


def left_by_a_kill_between_two_steps(tmp_path, replaced: bool = False):
    left = tmp_path / f".out.01234567{SUFFIX}"
    for name in ["old"] if replaced else ["old", "new"]:
        (left / name).mkdir(parents=True)
        (left / name / "a").write_text(name)
    return left


def test_the_old_folder_comes_back_where_a_kill_left_none(tmp_path):
    left_by_a_kill_between_two_steps(tmp_path)
    remove_leftovers(tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"] and (tmp_path / "out" / "a").read_text() == "old"


def test_the_old_folder_goes_where_the_new_one_has_its_place(tmp_path):
    left_by_a_kill_between_two_steps(tmp_path, replaced=True)
    (tmp_path / "out").mkdir()
    remove_leftovers(tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"] and os.listdir(tmp_path / "out") == []


def test_the_old_folder_is_named_where_somebody_took_its_place(tmp_path):
    left = left_by_a_kill_between_two_steps(tmp_path)
    (tmp_path / "out").mkdir()
    with pytest.warns(UserWarning, match=r"old is what .*out was before"):
        remove_leftovers(tmp_path / "out")
    assert (left / "old" / "a").read_text() == "old"


def test_without_locks_nothing_is_taken_for_a_left_over(tmp_path, monkeypatch):
    left = tmp_path / f".out.01234567{SUFFIX}"
    left.mkdir()

    def unknown(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(stages.fcntl, "flock", unknown)
    with (
        pytest.warns(UserWarning, match="01234567.*Operation not supported.*remove it yourself"),
        stage(tmp_path / "out"),
    ):
        pass
    assert os.listdir(tmp_path) == [left.name]
    monkeypatch.setattr(stages, "fcntl", None)
    with pytest.warns(UserWarning, match="no locks here"), written_beside(tmp_path / "out") as new:
        new.write_text("whole")
    assert sorted(os.listdir(tmp_path)) == [left.name, "out"]


@pytest.mark.parametrize("again", [False, True])
def test_a_lock_that_another_run_removed_meanwhile_is_none(tmp_path, monkeypatch, again):
    """Two runs would otherwise both have a lock: one on a file that has no name any more."""
    flock = stages.fcntl.flock

    def late(file, how):
        (tmp_path / "lock").unlink()
        if again:
            (tmp_path / "lock").touch()
        flock(file, how)

    monkeypatch.setattr(stages.fcntl, "flock", late)
    with pytest.raises(BlockingIOError if again else FileNotFoundError):
        stages.locked(tmp_path)


def test_a_stage_that_is_removed_before_it_has_its_lock_is_made_again(tmp_path, monkeypatch):
    locked, taken = stages.locked, []

    def slow(folder, needed=True):
        if not needed and len(taken) < 3:
            taken.append(folder)
            remove_leftovers(tmp_path / "out")  # another run does this in between
        return locked(folder, needed)

    monkeypatch.setattr(stages, "locked", slow)
    with written_beside(tmp_path / "out") as new:
        new.write_text("whole")
    assert len(set(taken)) == 3 and os.listdir(tmp_path) == ["out"]

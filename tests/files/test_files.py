"""A file or folder is always the old one or the whole new one; its permissions are those of any new file or folder."""

import os
import stat

import pytest

from qtutor import files
from qtutor.errors import QtutorError
from qtutor.files import as_qtutor_error, folder_written_beside, parents_made, staging, written_beside


def test_the_new_file_takes_the_place_of_the_old_one(tmp_path):
    path = tmp_path / "a.txt"
    for content in ("first", "second"):
        with written_beside(path) as new:
            new.write_text(content)
            assert new.parent.parent == tmp_path and (content == "first") != path.exists()
        assert path.read_text() == content
    assert os.listdir(tmp_path) == ["a.txt"]


def fill(folder, **contents):
    for name, content in contents.items():
        (folder / name).write_text(content)


def names_and_contents(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.fixture(params=["in one step", "in two"])
def steps(request, monkeypatch):
    """With the system call that exchanges two names, and as on systems without this call."""
    if request.param == "in two":
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    return request.param


def test_the_new_folder_takes_the_place_of_the_old_one(tmp_path, steps):
    path = tmp_path / "out"
    with folder_written_beside(path) as new:
        fill(new, a="first", b="only then")
    with folder_written_beside(path) as new:
        fill(new, a="second")
        assert names_and_contents(path) == {"a": "first", "b": "only then"}
    assert names_and_contents(path) == {"a": "second"} and os.listdir(tmp_path) == ["out"]


def test_two_names_change_places(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        fill(tmp_path / name, which=name)
    if not files._exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this system or this disk has no call for it")
    assert [names_and_contents(tmp_path / name) for name in "ab"] == [{"which": "b"}, {"which": "a"}]
    with pytest.raises(FileNotFoundError, match="nothing"):
        files._exchange(tmp_path / "a", tmp_path / "nothing")


def test_what_is_written_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """After a power cut, the name must not lead to an empty file."""
    on_disk, fsync, put, replace = set(), os.fsync, files._put, os.replace

    def checked(own):
        def put(new, *rest):
            assert {path.stat().st_ino for path in (new, *new.rglob("*"))} <= on_disk
            own(new, *rest)

        return put

    monkeypatch.setattr(os, "fsync", lambda handle: (on_disk.add(os.fstat(handle).st_ino), fsync(handle))[1])
    monkeypatch.setattr(os, "replace", checked(replace))
    monkeypatch.setattr(files, "_put", checked(put))
    with written_beside(tmp_path / "file") as new:
        new.write_text("whole")
    with folder_written_beside(tmp_path / "out") as new:
        (new / "deeper").mkdir()
        fill(new, a="a")
        fill(new / "deeper", b="b")
    assert tmp_path.stat().st_ino in on_disk  # and then the names
    assert (tmp_path / "file").read_text() == "whole" and names_and_contents(tmp_path / "out" / "deeper") == {"b": "b"}


def test_a_gguf_file_is_one_by_its_name_or_its_first_bytes(tmp_path):
    """A damaged file is one by its name; a missing one cannot have first bytes."""
    for name, content, found in [
        ("a.gguf", b"", True),
        ("a.GGUF", b"damaged", True),
        ("a.bin", b"GGUF\3", True),
        ("b.bin", b"GGU", False),
        ("missing.GGUF", None, True),
        ("missing", None, False),
    ]:
        if content is not None:
            (tmp_path / name).write_bytes(content)
        assert files.is_gguf(tmp_path / name) is found, name


ACCIDENTS = [KeyboardInterrupt, OSError, SystemExit]


@pytest.mark.parametrize("accident", ACCIDENTS)
def test_an_accident_leaves_the_old_file_and_nothing_else(tmp_path, accident):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(accident), written_beside(path) as new:
        new.write_text("ne")
        raise accident
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


# All system calls after the content was written; an interrupt or an error may happen at each of them.
STEPS = ["os.fsync", "os.chmod", "os.rename", "os.replace", "qtutor.files._exchange", "qtutor.files._put"]


@pytest.mark.parametrize("accident", ACCIDENTS)
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("nth", [1, 2])
def test_an_accident_at_any_step_leaves_the_old_folder_or_the_new_one(
    tmp_path, monkeypatch, steps, step, nth, moment, accident
):
    path = tmp_path / "out"
    path.mkdir()
    fill(path, a="old", b="old")
    module, _, name = step.rpartition(".")
    original, calls = getattr({"os": os, "qtutor.files": files}[module], name), []

    def fails(*arguments, **keywords):
        calls.append(arguments)
        if len(calls) == nth and moment == "before":
            raise accident(28, "No space left on device")
        result = original(*arguments, **keywords)
        if len(calls) == nth:
            raise accident(28, "No space left on device")
        return result

    with monkeypatch.context() as patch:
        patch.setattr(step, fails)
        try:
            with folder_written_beside(path) as new:
                fill(new, a="new")
                new.joinpath("a").chmod(0o600)
        except accident:
            pass
    assert names_and_contents(path) in ({"a": "old", "b": "old"}, {"a": "new"})
    assert os.listdir(tmp_path) == ["out"]


def test_an_interrupt_while_it_is_cleaned_up_comes_after_that(tmp_path, monkeypatch):
    clear, calls = staging._clear, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise KeyboardInterrupt
        clear(*arguments)

    monkeypatch.setattr("qtutor.files.staging._clear", interrupted)
    with pytest.raises(KeyboardInterrupt), written_beside(tmp_path / "a.txt") as new:
        new.write_text("whole")
    assert (tmp_path / "a.txt").read_text() == "whole" and os.listdir(tmp_path) == ["a.txt"]


def test_the_first_error_is_the_one_told(tmp_path):
    with pytest.raises(ZeroDivisionError), written_beside(tmp_path / "a.txt") as new:
        new.unlink()
        raise ZeroDivisionError
    with pytest.raises(FileNotFoundError, match=r"no/\."), written_beside(tmp_path / "no" / "a.txt"):
        raise AssertionError("the folder is not there")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("letter", ["n", "é", "量", "🙂"])
@pytest.mark.parametrize("write", [written_beside, folder_written_beside])
def test_a_long_name_is_no_hindrance(tmp_path, letter, write):
    path = tmp_path / (letter * (255 // len(letter.encode())))
    with write(path) as new:
        (new / "a" if new.is_dir() else new).write_text("fits")
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077, 0o002])
def test_the_users_umask_decides_who_may_read(tmp_path, umask):
    before = os.umask(umask)
    try:
        fill(tmp_path, plain="")
        (tmp_path / "folder").mkdir()
        with written_beside(tmp_path / "file") as new:
            new.chmod(0o600)  # as safetensors does
        with folder_written_beside(tmp_path / "out") as new:
            fill(new, a="", b="")
            (new / "a").chmod(0o600)
            (new / "deeper").mkdir()
            fill(new / "deeper", c="")
    finally:
        os.umask(before)
    out, usual = tmp_path / "out", mode(tmp_path / "plain")
    assert mode(tmp_path / "file") == mode(out / "a") == mode(out / "b") == mode(out / "deeper" / "c") == usual
    assert mode(out) == mode(out / "deeper") == mode(tmp_path / "folder")


def mode(path) -> str:
    return oct(stat.S_IMODE(path.stat().st_mode))


def test_folders_that_were_made_for_nothing_go_again(tmp_path):
    path = tmp_path / "a" / "b" / "out"
    with pytest.raises(KeyboardInterrupt), parents_made(path):
        assert path.parent.is_dir()
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []
    with pytest.raises(OSError), parents_made(path):
        fill(tmp_path / "a", theirs="put there meanwhile")
        raise OSError
    assert names_and_contents(tmp_path / "a") == {"theirs": "put there meanwhile"}
    with parents_made(path):
        pass
    assert path.parent.is_dir() and not path.exists()
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError), parents_made(tmp_path / "file" / "b" / "out"):
        raise AssertionError("there can be no folder")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError(122, "Disk quota exceeded", "/x/.out.0a1b2c3d.qtutor-partial/new"), "Disk quota exceeded (/x)"),
        (PermissionError(13, "Permission denied", "/.out.0a1b2c3d.qtutor-partial"), "Permission denied (/)"),
        (FileNotFoundError(2, "No such file or directory", "/x/vocab.txt"), "No such file or directory (/x/vocab.txt)"),
        (Exception("No space left on device (os error 28)"), "No space left on device"),  # tokenizers'
        (RuntimeError("Error while serializing: I/O error: ... (os error 5)"), "Input/output error"),  # safetensors'
    ],
)
def test_what_the_system_refuses_is_one_paragraph(error, words):
    with pytest.raises(QtutorError) as told_of, as_qtutor_error("/x/out"):
        raise error
    expected = "Whatever was there before is untouched; make room or choose another folder."
    assert str(told_of.value) == f"/x/out cannot be written: {words}. {expected}"


@pytest.mark.parametrize("error", [ValueError("os"), QtutorError("(os error 28)"), KeyboardInterrupt()])
def test_other_errors_stay_what_they_are(error):
    with pytest.raises(type(error)) as found, as_qtutor_error("/x/out"):
        raise error
    assert found.value is error

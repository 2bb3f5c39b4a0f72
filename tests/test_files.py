"""A file is the old one or the whole new one."""

import os

import pytest

from qtutor.files import written_beside


def test_the_new_file_takes_the_place_of_the_old_one(tmp_path):
    path = tmp_path / "a.txt"
    for content in ("first", "second"):
        with written_beside(path) as new:
            new.write_text(content)
            assert new.parent == tmp_path and (content == "first") != path.exists()
        assert path.read_text() == content
    assert os.listdir(tmp_path) == ["a.txt"]
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("accident", [KeyboardInterrupt, OSError, SystemExit])
def test_an_accident_leaves_the_old_file_and_nothing_else(tmp_path, accident):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(accident), written_beside(path) as new:
        new.write_text("ne")
        raise accident
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_the_first_error_is_the_one_told(tmp_path):
    with pytest.raises(ZeroDivisionError), written_beside(tmp_path / "a.txt") as new:
        new.unlink()
        raise ZeroDivisionError
    with pytest.raises(FileNotFoundError, match=r"no/\."), written_beside(tmp_path / "no" / "a.txt"):
        raise AssertionError("the folder is not there")
    assert os.listdir(tmp_path) == []


def test_a_long_name_is_no_hindrance(tmp_path):
    path = tmp_path / ("n" * 250 + ".txt")
    with written_beside(path) as new:
        new.write_text("fits")
    assert path.read_text() == "fits"

"""Whole folders have exactly the bytes that were last compared with engines or their sources."""

import json

import pytest

from tests.formats.make_golden import FOLDERS, GOLDEN, digests

golden = json.loads(GOLDEN.read_text())


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_has_the_same_bytes(tmp_path, name):
    assert digests(name, tmp_path / "out") == golden[name]


def test_no_folder_is_forgotten():
    assert golden.keys() == FOLDERS.keys()

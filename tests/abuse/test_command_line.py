"""Every misuse of the command line ends in one paragraph (see :mod:`.command_line`)."""

import pytest

from tests.abuse.command_line import MISUSES, prepare, wrong_with


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("misuse")
    prepare(folder)
    return folder


@pytest.mark.parametrize("line, mention", MISUSES)
def test_a_misuse_ends_in_one_paragraph(here, line, mention):
    assert wrong_with(line, mention, here) is None


def test_there_are_many():
    assert len({line for line, _ in MISUSES}) == len(MISUSES) >= 50

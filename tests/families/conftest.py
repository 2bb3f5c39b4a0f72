"""One trained decoder of each family for all tests of a run; tests copy a decoder before they change it."""

from functools import cache

import pytest

from tests.families import small


@pytest.fixture(scope="session")
def trained():
    """A function that gives the trained decoder of a family."""
    return cache(small.trained)

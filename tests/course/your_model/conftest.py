"""The embedded decoder takes the place of a large model: the size limit of the capstone is proportionate."""

import copy

import pytest

import qtutor
from qtutor.course.your_model import attempts, capstone

ALL = {"embeddings": True, "lm_head": True}


@pytest.fixture(scope="package")
def loaded():
    return qtutor.load("embedded", device="cpu")


@pytest.fixture(scope="package")
def small(loaded):
    """Three bits everywhere: within the limit."""
    return quantized(loaded[0], qtutor.Recipe("rtn", 3, **ALL))


def quantized(model, recipe):
    made = copy.deepcopy(model)
    qtutor.quantize(made, recipe, progress=False)
    return made


@pytest.fixture(autouse=True)
def quick_and_alone(monkeypatch, tmp_path):
    """A short text to measure on, no attempts from other tests, and no workspace."""
    monkeypatch.setattr(capstone, "TOKENS", 512)
    monkeypatch.setattr(attempts, "_here", [])
    monkeypatch.chdir(tmp_path)

"""Settings with arbitrary values: the reader accepts them or refuses in one paragraph. The doctor never crashes."""

import json
import random
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest

import qtutor
from qtutor.doctor import engines, folder
from qtutor.doctor.patient import opened
from qtutor.formats import FOREIGN, foreign_reading
from tests.formats.foreign_folders import exported

FITTING = {"bitsandbytes": {"method": "nf4"}, "modelopt": {"symmetric": True}}
GONE = "the key is gone"
VALUES = [
    *("", "x", -3, 0, 7, 48, None, True, [], {}, [1], [None], "4", 3, {"a": 1}),
    *("re:(a+)+", ["re:("], {"+:(": {}}, 1e400, GONE),
]


@cache
def made(form: str) -> Path:
    return exported(Path(mkdtemp()) / "out", form, **FITTING.get(form, {}))[1]


def places(value, path=()):
    """The paths of all keys in settings."""
    for key in value if isinstance(value, dict) else ():
        yield (*path, key)
        yield from places(value[key], (*path, key))


def with_value(settings, path, value):
    """A copy of ``settings`` with ``value`` at ``path`` (``GONE`` removes the key). If ``path`` is empty: ``value``."""
    if not path:
        return value
    copy = json.loads(json.dumps(settings))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    if value == GONE:
        del inner[path[-1]]
    return copy


@pytest.mark.parametrize("form", FOREIGN)
def test_anything_in_the_settings_ends_in_a_paragraph(form):
    """The settings as a whole get every value. Each key gets two random values, always the same ones."""
    config = made(form) / "config.json"
    text = config.read_text()
    values = json.loads(text)
    settings, chance, refused = values["quantization_config"], random.Random(0), 0
    try:
        for path in [(), *places(settings)]:
            for value in {0: VALUES}.get(len(path), chance.sample(VALUES, 2)):
                config.write_text(json.dumps(values | {"quantization_config": with_value(settings, path, value)}))
                try:
                    foreign_reading.opened(made(form))
                except qtutor.QtutorError as error:
                    refused += 1
                    assert "\n" not in str(error) and len(str(error)) < 1200 and str(error).isprintable()
                patient = opened(made(form), None, "cpu")
                assert (patient.foreign is None) == bool(patient.problem) or value in ({}, None, GONE)
                next(patient.layers(), None)
                engines.asked(patient)
                assert [*folder.packed_head(patient), *folder.packed_embedding(patient)] == []
    finally:
        config.write_text(text)
    assert refused > 10

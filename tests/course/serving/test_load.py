"""Times under load: every request is timed by a clock that the test moves."""

import pytest

from qtutor.course.serving import load
from qtutor.errors import QtutorError
from qtutor.serving import Engine
from tests.models import tiny


@pytest.fixture
def engine():
    model = tiny()
    model.generation_config.eos_token_id = None
    return Engine(model, blocks=32)


def test_first_and_further_tokens(monkeypatch, engine):
    ticks = iter(range(10**6))
    monkeypatch.setattr(load.time, "perf_counter", lambda: float(next(ticks)))
    # The clock is 0 at the start, 1 at the request, 2 to 5 after the four steps, and 6 at the end.
    found = load.pace(engine, [[1, 2, 3]], 4, at_a_time=1)
    assert (found.first, found.each, found.per_second) == (1.0, 1.0, 4 / 6)


def test_at_most_so_many_at_once(monkeypatch, engine):
    seen, step = [], engine.step
    monkeypatch.setattr(engine, "step", lambda: (seen.append(engine.unfinished), step())[1])
    load.pace(engine, [[number, 2] for number in range(1, 8)], 3, at_a_time=3)
    assert max(seen) == 3 and not engine.unfinished


@pytest.mark.parametrize(("prompts", "new"), [([], 4), ([[1]], 1)])
def test_nothing_to_time_is_refused(engine, prompts, new):
    with pytest.raises(QtutorError, match="2 new tokens and a prompt"):
        load.pace(engine, prompts, new, at_a_time=1)

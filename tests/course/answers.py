"""Try right and wrong answers to exercises one by one: functions that the tests of all topics share."""

import inspect

import pytest

from qtutor.course import exercises
from qtutor.course.checking import examine
from qtutor.course.checking.attempt import run


def verdict(name: str, function):
    """The verdict of ``check`` on ``function`` as an answer to the exercise ``name``."""
    return examine(exercises.find(name), function)


def each(answers: dict[str, list]):
    """Repeat a test for every answer: ``{exercise: [function ...]}`` or ``{exercise: [(function, phrase) ...]}``."""
    rows = [(name, *(a if isinstance(a, tuple) else (a,))) for name, listed in answers.items() for a in listed]
    names = ("name", "function", "phrase")[: len(rows[0])]
    return pytest.mark.parametrize(names, rows, ids=lambda value: getattr(value, "__name__", None))


def assert_told(answers: dict[str, list], name: str, function, phrase: str) -> None:
    """``function`` is refused with the mistake's ``phrase``, and without the phrases of the other wrong ``answers``."""
    found = verdict(name, function)
    assert not found.passed
    assert phrase in found.text, found.text
    others = {other for _, other in answers[name]} - {phrase}
    assert not any(other in found.text for other in others), found.text


def assert_named(name: str, function, phrase: str) -> None:
    """``function`` is refused, and the message contains ``phrase``."""
    found = verdict(name, function)
    assert not found.passed
    assert phrase in found.text, found.text


def assert_likely(name: str, function, phrase: str) -> None:
    """``function`` is refused, and the last line begins with "Likely mistake" and contains ``phrase``."""
    found = verdict(name, function)
    assert not found.passed
    last = found.text.splitlines()[-1]
    assert last.startswith("Likely mistake: ") and phrase in last, found.text


def assert_last_line(name: str, function, phrase: str) -> None:
    """``function`` is refused, and the last line, which names the mistake, contains ``phrase``."""
    found = verdict(name, function)
    assert not found.passed
    assert phrase in found.text.splitlines()[-1], found.text


def assert_right(name: str, function) -> None:
    found = verdict(name, function)
    assert found.passed, found.text


def assert_mistakes_differ(name: str) -> None:
    """No two known mistakes have the same results on all inputs: otherwise one would be reported as the other."""
    exercise, seen = exercises.find(name), {}
    names, cases = list(inspect.signature(exercise.reference).parameters), exercise.cases()
    for text, mistake in exercise.mistakes.items():
        made = [run(mistake, names, arguments, exercise.outputs, seen=exercise.seen) for _, arguments in cases]
        results = tuple((one.kind, *map(_exact, one.arrays or ())) for one in made)
        assert results not in seen, f"{text}\n{seen[results]}"
        seen[results] = text


def _exact(part) -> tuple:
    """A result in a form to compare: its shape, and its numbers rounded to nine places or its text."""
    return part.shape, (part if part.dtype.kind in "US" else part.round(9)).tobytes()

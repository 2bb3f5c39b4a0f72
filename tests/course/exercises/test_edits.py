"""Mistakes as edits: an edit changes exactly one place of a right solution, and any other edit fails at import."""

import inspect
import traceback

import pytest

from qtutor.course import exercises
from qtutor.course.exercises.edits import Solution, solution
from tests.course.answers import assert_right

FACTOR = 10


@solution
def scaled(value, bits):
    """A comment on levels."""
    levels = 2**bits - 1
    return FACTOR * value / levels + levels


def test_the_solution_is_called_like_its_function():
    assert isinstance(scaled, Solution)
    assert scaled(3.0, 1) == 31
    assert list(inspect.signature(scaled).parameters) == ["value", "bits"]
    assert scaled.source.startswith("def scaled(value, bits):")


def test_an_edit_changes_one_place_and_leaves_the_solution_alone():
    wrong = scaled.edit("2**bits - 1", "2**bits")
    assert wrong(3.0, 1) == 17
    assert scaled(3.0, 1) == 31
    assert wrong.__name__ == "scaled"
    assert wrong.__doc__ == "The right solution with '2**bits' for '2**bits - 1'."
    assert wrong.solution is scaled


def test_several_edits_apply_in_turn():
    wrong = scaled.edit(("FACTOR", "2 * FACTOR"), ("+ levels", "- levels"), ("2 * FACTOR", "3 * FACTOR"))
    assert wrong(3.0, 1) == 89
    assert wrong.__doc__.endswith("'- levels' for '+ levels', '3 * FACTOR' for '2 * FACTOR'.")


def test_the_names_of_the_module_are_looked_up_when_it_is_called(monkeypatch):
    wrong = scaled.edit("+ levels", "")
    monkeypatch.setitem(globals(), "FACTOR", 100)
    assert wrong(3.0, 1) == 300


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        (("nowhere", "x"), "'nowhere' is found 0 times, not once"),
        (("value", "x"), "'value' is found 2 times, not once"),
        (("FACTOR", "FACTOR"), "'FACTOR' is replaced by itself"),
        ((("FACTOR", "x"), ("FACTOR", "y")), "'FACTOR' is found 0 times"),
        ((("FACTOR", "x *"), ("x *", "FACTOR")), "leave the source as it was"),
    ],
)
def test_an_edit_that_does_not_apply_once_is_an_error(pairs, words):
    with pytest.raises(ValueError, match="test_edits, scaled") as raised:
        scaled.edit(*pairs)
    assert words in str(raised.value) and "value / levels + levels" in str(raised.value)


def test_an_edit_that_is_no_python_is_an_error():
    with pytest.raises(SyntaxError):
        scaled.edit("2**bits - 1", "2**")


def test_a_traceback_shows_the_edited_line():
    wrong = scaled.edit("2**bits - 1", "0")
    with pytest.raises(ZeroDivisionError) as raised:
        wrong(1.0, 4)
    frame = traceback.extract_tb(raised.value.__traceback__)[-1]
    assert frame.line == "return FACTOR * value / levels + levels"
    assert "scaled with '0' for '2**bits - 1'" in frame.filename


SOLUTIONS = {
    (exercise.name, mistake.solution)
    for exercise in exercises.every()
    for mistake in exercise.mistakes.values()
    if hasattr(mistake, "solution")
}


@pytest.mark.parametrize(("name", "right"), sorted(SOLUTIONS, key=lambda pair: (pair[0], pair[1].__name__)))
def test_what_the_mistakes_are_edits_of_is_right(name, right):
    assert_right(name, right)

"""The messages of check: each kind of mistake has its own message, and a right answer passes in any form."""

import numpy as np
import pytest
import torch

from qtutor import course
from qtutor.course import exercises
from qtutor.course.checking import examine
from qtutor.course.exercises.exercise import Exercise
from qtutor.errors import QtutorError


def halves(weight, bits):
    return weight.double() / 2, 2**bits


def cases():
    return [
        ("a row", (torch.tensor([[1.0, 2.0, 3.0]]), 2)),
        ("two rows", (torch.tensor([[1.0, 2.0, 300.0, -4.0], [0.5, 6.0, 7.0, 8.0]]), 3)),
        ("a large matrix", (torch.arange(600.0).reshape(20, 30), 4)),
    ]


def twice(weight, bits):
    return weight * 2, 2**bits


def off_by_one(weight, bits):
    return weight / 2, 2**bits - 1


EXERCISE = Exercise(
    name="test.halves",
    title="half of everything",
    difficulty=1,
    minutes=1,
    reference=halves,
    cases=cases,
    outputs=("half", "levels"),
    mistakes={"you doubled it.": twice, "one level too few.": off_by_one},
    properties=(("levels are a power of two.", lambda arguments, results: results[1] & (results[1] - 1) == 0),),
)


def said(function) -> str:
    verdict = examine(EXERCISE, function)
    assert not verdict.passed
    assert "/" not in verdict.text and " at 0x" not in verdict.text
    return verdict.text


@pytest.mark.parametrize(
    "right",
    [
        lambda weight, bits: (weight / 2, 2**bits),
        lambda weight, bits: [weight.numpy() / 2, np.int64(2**bits)],
        lambda weight, bits: (weight.bfloat16() / 2 if bits < 4 else weight / 2, torch.tensor(2**bits)),
        lambda weight, bits: ([[w / 2 for w in row] for row in weight.tolist()], float(2**bits)),
        lambda weight, bits: ([row / 2 for row in weight], np.float32(2**bits)),
        lambda weight, bits: ((weight / 2).requires_grad_(), 2**bits),
    ],
    ids=["torch", "a list of numpy", "bfloat16", "lists", "a list of tensors", "with gradient"],
)
def test_right_in_any_form(right):
    verdict = examine(EXERCISE, right)
    assert verdict.passed and verdict.text == "test.halves: right on all 3 inputs."


def test_a_difference_is_told_with_input_place_and_mistake():
    text = said(twice)
    assert "not right yet, on 3 of 3 inputs. The first is a row:" in text
    assert "weight = [[1, 2, 3]]  (float32 [1, 3])\n  bits = 2" in text
    assert "expected half: [[0.5, 1, 1.5]]\ngot half:      [[2, 4, 6]]" in text
    assert "3 of 3 differ; the first is half[0, 0]: 2, expected 0.5." in text
    assert text.endswith("Likely mistake: you doubled it.")
    assert "levels" not in text  # that output is right


def test_only_the_output_that_differs_is_shown():
    text = said(off_by_one)
    assert "expected levels: 4\ngot levels:      3\nthe first is" in text or "levels: 3, expected 4" in text
    assert text.endswith("one level too few.") and "expected half" not in text


def test_a_mistake_counts_only_if_it_shows_wherever_it_would():
    def doubled_once(weight, bits):
        return (weight * 2 if bits == 2 else weight * 3), 2**bits

    assert "you doubled it" not in said(doubled_once)

    def doubled_mostly(weight, bits):
        return (weight * 2 if bits < 4 else weight * 3), 2**bits

    assert said(doubled_mostly).endswith("Perhaps: you doubled it.")


def test_a_property_is_told_where_no_mistake_is_known():
    assert said(lambda w, b: (w / 2, 5)).endswith("This must be true, but is not: levels are a power of two.")


def test_digits_enough_to_tell_apart():
    assert "half[0, 0]: 0.500001, expected 0.5." in said(lambda w, b: (w.double() / 2 + 1e-6, 2**b))


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda w, b: None, "returned None. Is a return missing"),
        (lambda w, b: w / 2, "returned one Tensor, but 2 values were expected: return half, levels."),
        (lambda w, b: (w, b, b), "returned 3 values, but 2 values were expected"),
        (lambda w, b: (w.flatten() / 2, 2**b), "half is shape [3], expected shape [1, 3]."),
        (lambda w, b: (w / 2, [2**b]), "levels is shape [1], expected one number."),
        (lambda w, b: ({}, 2**b), "half is a dict. A number, lists of numbers"),
        (lambda w, b: (None, 2**b), "half is None."),
        (lambda w, b: ([[1.0], [1.0, 2.0]], 2**b), "half is a list whose parts differ in shape"),
        (lambda w, b: (w + 1j, 2**b), "half is a tensor of torch.complex64"),
        (lambda w, b: ("half", 2**b), "half is text, expected shape [1, 3]."),
        (lambda w, b: (w * 0 / 0, 2**b), "half[0, 0] is nan, expected 0.5. Did your function divide by zero"),
        (lambda w, b: (w / 0, 2**b), "half[0, 0] is inf, expected 0.5."),
        (lambda w, b: (w / 2, 2**b + 0.5), "levels: 4.5, expected 4 (a whole number)"),
        (lambda w, b: (w / 2).tolist(), "returned 1 value, but 2 values were expected"),
    ],
)
def test_wrong_kinds_of_answers_are_told_apart(function, words):
    assert words in said(function)


def test_what_the_code_raises_is_shown_with_its_line():
    def helper(row):
        return row[99]

    def broken(weight, bits):
        return helper(weight[0]), 2**bits

    text = said(broken)
    assert "Your function raised IndexError: index 99 is out of bounds" in text
    assert "in helper, line " in text and ": return row[99]" in text
    assert "in helper" in text and "torch" not in text.split("IndexError")[1].split("line")[0]


def test_a_stub_is_not_done_yet_but_other_missing_things_are_errors():
    def stub(weight, bits):
        raise NotImplementedError("your turn")

    def elsewhere(weight, bits):
        raise NotImplementedError("no such backend")

    assert said(stub).startswith("test.halves: not done yet.")
    assert "raised NotImplementedError: no such backend" in said(elsewhere)


def test_calls_that_cannot_work_are_told_before_any_is_made():
    def one(weight):
        return weight

    assert "check calls one(weight, bits), but yours is one(weight)." in said(one)
    assert "the function itself, without parentheses" in said(torch.ones(2))
    assert "it got a str" in said("halves")
    assert examine(EXERCISE, lambda *parts: halves(*parts)).passed


def test_a_function_that_writes_into_its_argument_is_told_so():
    def in_place(weight, bits):
        return weight.div_(2), 2**bits

    text = said(in_place)
    assert "The result is right, but your function wrote into its argument weight" in text


def test_a_learner_cannot_spoil_inputs_or_results():
    made = cases()
    spoiled = Exercise(**{**vars(EXERCISE), "cases": lambda: made})

    def in_place(weight, bits):
        weight.zero_()
        return weight, bits

    assert not examine(spoiled, in_place).passed
    assert made[0][1][0].tolist() == [[1.0, 2.0, 3.0]]
    assert examine(spoiled, lambda w, b: (w / 2, 2**b)).passed

    shared = torch.zeros(1)

    def same_memory(weight, bits):  # later calls change the results of earlier ones
        nonlocal shared
        shared = shared.resize_(weight.shape).copy_(weight / 2)
        return shared, 2**bits

    assert examine(spoiled, same_memory).passed


def test_keyboard_interrupts_are_not_swallowed():
    def endless(weight, bits):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        examine(EXERCISE, endless)


def test_tolerance_is_relative_and_lenient_only_where_sums_cancel():
    def ref(x):
        return x

    def exercise(tolerance, *numbers):
        inputs = lambda: [("numbers", (torch.tensor(numbers, dtype=torch.float64),))]  # noqa: E731
        return Exercise("t.t", "t", 1, 1, ref, inputs, ("y",), tolerance=tolerance)

    assert examine(exercise(1e-3, 1.0, 100.0), lambda x: x * 1.0009).passed
    assert not examine(exercise(1e-3, 1.0, 100.0), lambda x: x * 1.0011).passed
    assert not examine(exercise(1e-3, 1.0, 100.0), lambda x: x + 0.05).passed
    assert examine(exercise(1e-3, 0.0, 100.0), lambda x: x + 5e-5).passed
    assert not examine(exercise(0.0, 1.0), lambda x: x + 1e-12).passed
    assert examine(exercise(0.0, float("nan"), float("-inf")), lambda x: x * 1).passed
    assert not examine(exercise(1e-3, float("inf")), lambda x: -x).passed


def test_names(capsys):
    with pytest.raises(QtutorError, match=r"no exercise 'rtn.enccode'. Did you mean rtn.encode"):
        course.check("rtn.enccode", halves)
    assert exercises.find("rtn.fit").name == "rtn.fit"
    course.check("rtn.fit", lambda *arguments: None)
    assert "rtn.fit: not right yet" in capsys.readouterr().out


def test_an_exercise_that_is_no_exercise_is_refused():
    for change in ({"difficulty": 5}, {"name": "halves"}, {"outputs": ()}):
        with pytest.raises(QtutorError, match=r"has the form topic\.function"):
            Exercise(**{**vars(EXERCISE), **change})

"""``check("rtn.encode", my_function)``: is it right, and if not, where and why?

The function runs on every input of the exercise. Its results are compared with those of an independent, slow version,
and checked for properties that must hold. If they differ, the check prints the input, the expected and the actual
result, the first place that differs, and the likely mistake: the known mistake that gives the same results.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from qtutor.course import exercises
from qtutor.course.checking import comparing, limits
from qtutor.course.checking.attempt import Outcome, run, where, wrong_call
from qtutor.course.exercises.exercise import Exercise
from qtutor.course.workspace import answers

# The least tolerance when results are compared with those of a known mistake: the learner may compute in float32.
SLACK = 3e-6
COMPILING = 3  # times the time of a check: on a busy machine a compiler takes a minute
# The exceptions of torch, numpy and lists for shapes or dtypes that do not fit. Many mistakes lead to them.
MISFITS = {"RuntimeError", "ValueError", "IndexError", "TypeError"}


@dataclass(frozen=True)
class Verdict:
    """The result of :func:`examine`; ``text`` is for the learner."""

    passed: bool
    text: str


def check(name: str, function: Callable) -> None:
    """Check ``function`` as an answer to the exercise ``name``, print the result, and save the function if it is right.

    Raises :class:`qtutor.errors.QtutorError` only if no exercise has this name.
    """
    exercise = exercises.find(name)
    verdict = examine(exercise, function)
    print(verdict.text)
    if verdict.passed:
        # In the folder of the course's own chapters the note is empty, so that their stored outputs stay the same.
        note = answers.keep(exercise, function, lambda again: examine(exercise, again).passed)
        if note:
            print(note)


def examine(exercise: Exercise, function: Callable) -> Verdict:
    """Compare ``function`` with the exercise's reference on all its inputs; print and save nothing."""
    names = list(inspect.signature(exercise.reference).parameters)
    cases = exercise.cases()
    problem = wrong_call(function, names, cases[0][1])
    if problem:
        return Verdict(False, f"{exercise.name}: {problem}")
    got = []
    try:
        with limits.bounded():
            while len(got) < len(cases) and not (got and got[-1].kind == "todo"):
                got.append(_ran(exercise, function, names, cases[len(got)][1], exercise.form))
    except limits.TimeUp as up:
        return Verdict(False, _still_running(exercise, cases[min(len(got), len(cases) - 1)][0], up))
    if got[-1].kind == "todo":
        hints = "" if exercise.difficulty == 4 else "; hints are above"
        return Verdict(False, f"{exercise.name}: not done yet. Write the function, then run this cell again{hints}.")
    expected = [_right(exercise, exercise.reference, names, arguments) for _, arguments in cases]
    broken = [_broken(exercise, case[1], outcome, right) for case, outcome, right in zip(cases, got, expected)]
    wrong = [
        i
        for i in range(len(cases))
        if not _alike(got[i], expected[i], exercise.tolerance) or broken[i] or got[i].changed
    ]
    if not wrong:
        return _timed(exercise, function, f"{exercise.name}: right on all {len(cases)} inputs.")
    first = wrong[0]
    lines = [f"{exercise.name}: not right yet, on {len(wrong)} of {len(cases)} inputs. The first is {cases[first][0]}:"]
    lines += [f"  {_argument(name, value)}" for name, value in zip(names, cases[first][1])]
    likely = diagnose(exercise, names, cases, got, expected, wrong)
    lines += _difference(exercise, got[first], expected[first], asking=not likely)
    if not likely and broken[first]:
        likely = f"This must be true, but is not: {broken[first]}"
    return Verdict(False, "\n".join(lines + [likely] * bool(likely)))


def _timed(exercise: Exercise, function: Callable, text: str) -> Verdict:
    """The verdict on a function that is right: if the exercise requires speed, it must be fast enough, too."""
    if exercise.speed is None or function is exercise.reference:
        return Verdict(True, text)
    try:
        with limits.bounded(times=COMPILING):
            fast, said = exercise.speed(function)
    except limits.TimeUp as up:
        return Verdict(False, f"{text} But it could not be timed: it was still running.{where(up)}")
    return Verdict(fast, f"{text} {said}")


def _ran(exercise: Exercise, function: Callable, names: list[str], arguments: tuple, form=None) -> Outcome:
    return run(function, names, arguments, exercise.outputs, form, exercise.seen)


def _still_running(exercise: Exercise, kind: str, up: limits.TimeUp) -> str:
    return (
        f"{exercise.name}: stopped. Your function was still running after {limits.SECONDS:g} seconds, but all inputs "
        f"together need far less. It was working on this input: {kind}. Does a loop never end?{where(up)}"
    )


def _right(exercise: Exercise, reference: Callable, names: list[str], arguments: tuple) -> Outcome:
    outcome = _ran(exercise, reference, names, arguments)
    if outcome.arrays is None:
        raise RuntimeError(f"the course's own version of {exercise.name} failed: {outcome.problem or outcome.kind}")
    return outcome


def _alike(got: Outcome, other: Outcome, tolerance: float) -> bool:
    if got.arrays is None or other.arrays is None:
        return got.kind == other.kind != "returned"
    differences = [comparing.differs(a, b, tolerance) for a, b in zip(got.arrays, other.arrays)]
    return all(difference is not None and not difference.any() for difference in differences)


def _explains(exercise: Exercise, made: Outcome, got: Outcome, expected: Outcome) -> bool:
    """Whether ``got`` is the result that a mistake has ``made``.

    If a mistake also changes other outputs, those that only follow from them (``exercise.follows``) are left out.
    """
    tolerance = max(exercise.tolerance, SLACK)
    if _like_mistake(got, made, tolerance):
        return True
    made, got, expected = (_without(exercise.follows, exercise.outputs, outcome) for outcome in (made, got, expected))
    return not _alike(made, expected, tolerance) and _alike(got, made, tolerance)


def _without(follows: tuple[str, ...], outputs: tuple[str, ...], outcome: Outcome) -> Outcome:
    if outcome.arrays is None:
        return outcome
    kept = tuple(array for name, array in zip(outputs, outcome.arrays) if name not in follows)
    return replace(outcome, arrays=kept)


def _like_mistake(got: Outcome, made: Outcome, tolerance: float) -> bool:
    kinds = {got.kind.lstrip("_"), made.kind.lstrip("_")}  # torch's _LinAlgError is numpy's LinAlgError
    return _alike(got, made, tolerance) or kinds <= MISFITS or kinds == {"LinAlgError"}


def _said(outcome: Outcome) -> str:
    return outcome.problem.partition("\n")[0]  # without the line of the code


def _broken(exercise: Exercise, arguments: tuple, outcome: Outcome, right: Outcome) -> str:
    """The first property that does not hold, or ``""``. Whole numbers in floats are checked as integers."""
    if outcome.arrays is None or [a.shape for a in outcome.arrays] != [a.shape for a in right.arrays]:
        return ""  # properties can only be checked on results of the right shape
    results = tuple(comparing.of_kind(got, expected) for got, expected in zip(outcome.arrays, right.arrays))
    for text, holds in exercise.properties:
        try:
            if not holds(arguments, results):
                return text
        except (ValueError, IndexError, TypeError):  # the results are of a kind that cannot even be checked
            return text
    return ""


def _argument(name: str, value) -> str:
    dtype = f"  ({str(value.dtype).removeprefix('torch.')} {list(value.shape)})" if hasattr(value, "shape") else ""
    text = comparing.show(value)
    return f"{name} = {text.replace(chr(10), chr(10) + ' ' * (len(name) + 5))}{dtype}"


def _difference(exercise: Exercise, got: Outcome, expected: Outcome, asking: bool) -> list[str]:
    """Lines with the expected and the actual result, and the first difference. asking: ask about division by 0."""
    if got.arrays is None:
        return [got.problem]
    lines = []
    for name, mine, right in zip(exercise.outputs, got.arrays, expected.arrays):
        difference = comparing.differs(mine, right, exercise.tolerance)
        if difference is None:
            lines.append(f"{name} is {comparing.describe(mine)}, expected {comparing.describe(right)}.")
        elif difference.any():
            head = f"expected {name}: "
            for label, array in ((head, right), (f"got {name}: ".ljust(len(head)), mine)):
                lines.append(label + comparing.show(array).replace("\n", "\n" + " " * len(head)))
            lines.append(_first_place(name, mine, right, difference, asking))
    if not lines and got.changed:
        lines.append(
            f"The result is right, but your function wrote into its argument {got.changed}, which belongs to the "
            f"caller: work on a copy ({got.changed}.clone())."
        )
    return lines


def _first_place(name: str, got: np.ndarray, expected: np.ndarray, difference: np.ndarray, asking: bool) -> str:
    undefined = difference & ~np.isfinite(got) if got.dtype.kind == "f" else np.zeros_like(difference)
    place = tuple(int(i) for i in np.argwhere(undefined if undefined.any() else difference)[0])
    where = f"{name}{list(place)}" if place else name
    mine, right = comparing.apart(got[place], expected[place])
    share = f"{int(difference.sum())} of {difference.size} differ; " if difference.size > 1 else ""
    if undefined.any():
        question = " Did your function divide by zero, or take the logarithm of zero?" if asking else ""
        return f"{share}{where} is {mine}, expected {right}.{question}"
    whole = expected.dtype.kind == "i" and got.dtype.kind == "f" and got[place] != np.round(got[place])
    return f"{share}the first is {where}: {mine}, expected {right}{' (a whole number)' if whole else ''}."


def diagnose(exercise: Exercise, names, cases, got: list[Outcome], expected: list[Outcome], wrong: list[int]) -> str:
    """A line for the learner that names the known mistake with the same results; ``""`` if there is none.

    A mistake is certain if it explains every wrong result, and changes none of the right ones. If there are two
    mistakes at once, none is certain. Then the mistake that explains the most wrong results, and more than half of
    them, is offered as a guess.
    """
    sure, guess = [], []
    for text, mistake in exercise.mistakes.items():
        made = [_ran(exercise, mistake, names, arguments) for _, arguments in cases]
        telling = [i for i in range(len(cases)) if not _alike(made[i], expected[i], exercise.tolerance)]
        same = [i for i in telling if i in wrong and _explains(exercise, made[i], got[i], expected[i])]
        if all(got[i].kind in MISFITS and _said(got[i]) != _said(made[i]) for i in same):
            continue  # such an exception is no evidence unless its text is the same
        if same and len(same) == len(telling) == len(wrong):
            sure.append(text)
        elif 2 * len(same) > len(wrong):
            guess.append((len(same), text))
    if sure:
        return f"Likely mistake: {sure[0]}"
    return f"Perhaps: {max(guess, key=lambda found: found[0])[1]}" if guess else ""

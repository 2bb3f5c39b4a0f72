"""The exercises of all chapters: solutions pass, stubs are not done yet, every known mistake is recognised."""

import ast
import doctest
import json
import re
from pathlib import Path

import pytest
import torch

from qtutor.course import exercises, learner_version
from qtutor.course.checking import comparing, examine

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
EXERCISES = exercises.every()
SOLUTION = re.compile(r"### BEGIN SOLUTION")


def text(cell) -> str:
    return "".join(cell["source"])


def cells_with_exercises() -> list[tuple[str, str, str, list]]:
    """For every exercise cell: (chapter, exercise, function, cells of the master up to and with this cell)."""
    found = []
    for path in NOTEBOOKS:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        for i, cell in enumerate(cells):
            if cell["cell_type"] == "code" and SOLUTION.search(text(cell)):
                name, function = re.search(r'^check\("([\w.]+)", (\w+)\)$', text(cell), re.MULTILINE).groups()
                found.append((path.stem, name, function, cells[: i + 1]))
    return found


CELLS = cells_with_exercises()
IDS = [name for _, name, _, _ in CELLS]


def defined(source: str, function: str, cells: list) -> object:
    """The function that an exercise cell defines, with the imports of the chapter and its exercises before it."""
    names: dict = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            tree = ast.parse(re.sub(r"^[%!].*$", "", text(cell), flags=re.MULTILINE))
            wanted = ast.Import | ast.ImportFrom
            if SOLUTION.search(text(cell)) and cell is not cells[-1]:
                wanted |= ast.FunctionDef  # a solution may call the solutions of earlier exercises
            tree.body = [node for node in tree.body if isinstance(node, wanted)]
            exec(compile(tree, "imports", "exec"), names)
    tree = ast.parse(source)
    tree.body = [node for node in tree.body if not isinstance(node, ast.Expr)]  # without the call of check
    exec(compile(tree, "cell", "exec"), names)
    return names[function]


@pytest.mark.parametrize(("chapter", "name", "function", "cells"), CELLS, ids=IDS)
def test_the_solution_passes_and_the_stub_is_not_done_yet(chapter, name, function, cells):
    exercise = exercises.find(name)
    assert exercise.chapter == chapter
    found = examine(exercise, defined(text(cells[-1]), function, cells))
    assert found.passed, found.text
    stub = learner_version({"cells": [cells[-1]]})["cells"][0]
    assert 'raise NotImplementedError("your turn")' in text(stub) and "SOLUTION" not in text(stub)
    found = examine(exercise, defined(text(stub), function, cells))
    assert not found.passed and found.text.startswith(f"{name}: not done yet.")


@pytest.mark.parametrize(("chapter", "name", "function", "cells"), CELLS, ids=IDS)
def test_the_task_stands_above_with_difficulty_minutes_and_hints(chapter, name, function, cells):
    exercise = exercises.find(name)
    task = cells[-2]
    assert task["cell_type"] == "markdown"
    lines = text(task).splitlines()
    assert lines[0].startswith("### Exercise · ")
    assert next(line for line in lines[1:] if line) == f"Difficulty {exercise.dots} · {exercise.minutes} minutes"
    hints = [text(task).count(f"<summary>Hint {number}</summary>") for number in (1, 2)]
    assert hints == ([0, 0] if exercise.difficulty == 4 else [1, 1])  # 4: optional, without help
    definition = ast.parse(text(cells[-1])).body[0]
    assert ast.get_docstring(definition) and definition.returns is not None
    assert all(argument.annotation is not None for argument in definition.args.args)


@pytest.mark.parametrize(("chapter", "name", "function", "cells"), CELLS, ids=IDS)
def test_the_examples_in_its_docstring_are_true(chapter, name, function, cells):
    solution = defined(text(cells[-1]), function, cells)
    names = dict(solution.__globals__)
    for example in doctest.DocTestParser().get_doctest(solution.__doc__, names, name, None, 0).examples:
        output = repr(eval(example.source, names))
        assert output == example.want.strip(), (example.source, output)


def test_every_exercise_stands_once_in_its_chapter_in_the_order_of_the_course():
    present = {path.stem for path in NOTEBOOKS}
    assert [exercise.name for exercise in EXERCISES if exercise.chapter in present] == IDS


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.name)
def test_the_reference_passes_and_every_known_mistake_is_recognised(exercise):
    assert examine(exercise, exercise.reference).passed
    assert len(exercise.mistakes) >= 5
    for diagnosis, mistake in exercise.mistakes.items():
        found = examine(exercise, mistake)
        assert not found.passed and found.text.endswith(f"Likely mistake: {diagnosis}"), found.text


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.name)
def test_inputs_are_fresh_and_the_same_each_time(exercise):
    first, second = exercise.cases(), exercise.cases()
    described = [what for what, _ in first]
    assert described == [what for what, _ in second] and len(set(described)) == len(described)
    for (_, one), (_, two) in zip(first, second):
        for a, b in zip(one, two):
            if isinstance(a, torch.Tensor):
                assert a.data_ptr() != b.data_ptr() or not a.numel()
            assert comparing.show(a) == comparing.show(b)


def test_names_are_unique_and_topics_are_modules():
    assert len({exercise.name for exercise in EXERCISES}) == len(EXERCISES)
    for topic in exercises.CHAPTERS:
        assert all(exercise.name.startswith(f"{topic}.") for exercise in exercises.of_topic(topic))

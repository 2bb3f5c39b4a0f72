"""From a master to the learner's version: stubs, folded solutions, no outputs; mistakes in the markers are errors."""

import ast
import copy
import json

import nbformat
import pytest

from qtutor.course import learner_version
from qtutor.course.workspace import stubs
from qtutor.errors import QtutorError

SOURCE = '''def codes_of(weight, scale):
    """weight [n] -> codes"""
    ### BEGIN SOLUTION
    steps = weight / scale

    return steps.round()
    ### END SOLUTION


check("rtn.codes_of", codes_of)'''
STUB = '''def codes_of(weight, scale):
    """weight [n] -> codes"""
    raise NotImplementedError("your turn")


check("rtn.codes_of", codes_of)'''
SOLVED = SOURCE.replace("    ### BEGIN SOLUTION\n", "").replace("    ### END SOLUTION\n", "")


def notebook(*sources: str):
    """Code cells with outputs, each after a Markdown cell."""
    cells = []
    for i, source in enumerate(sources):
        cells.append(nbformat.v4.new_markdown_cell(f"Text {i}", id=f"text-{i}"))
        stream = nbformat.v4.new_output("stream", text=f"printed {i}\n")
        cells.append(nbformat.v4.new_code_cell(source, id=f"code-{i}", outputs=[stream], execution_count=i + 1))
    return nbformat.v4.new_notebook(cells=cells)


def test_an_exercise_becomes_stub_and_folded_solution():
    made = learner_version(notebook("x = 1", SOURCE, "y = 2"))
    nbformat.validate(made)
    assert [cell.cell_type for cell in made.cells] == ["markdown", "code"] * 2 + ["markdown", "markdown", "code"]
    assert made.cells[3].source == STUB
    assert made.cells[4].id == "code-1-solution"
    assert made.cells[4].source == (f"<details><summary>Solution</summary>\n\n```python\n{SOLVED}\n```\n\n</details>")
    ast.parse(STUB), ast.parse(SOLVED)


def test_the_learners_copy_has_no_outputs_and_the_book_all_but_those_of_exercises():
    made = learner_version(notebook("x = 1", SOURCE))
    assert [(cell.outputs, cell.execution_count) for cell in made.cells if cell.cell_type == "code"] == [([], None)] * 2
    book = learner_version(notebook("x = 1", SOURCE), keep_outputs=True)
    plain, exercise = (cell for cell in book.cells if cell.cell_type == "code")
    assert plain.outputs[0].text == "printed 0\n" and plain.execution_count == 1
    assert exercise.outputs == [] and exercise.execution_count is None and exercise.source == STUB


def test_it_is_pure_and_always_the_same():
    original = notebook("x = 1", SOURCE)
    before = copy.deepcopy(original)
    first, second = learner_version(original), learner_version(original)
    assert original == before and first == second and first is not original
    assert learner_version(first) == first  # a notebook without solutions stays as it is


def test_plain_json_is_taken_as_well_as_nbformats_notebook():
    parsed = json.loads(nbformat.writes(notebook(SOURCE)))
    assert isinstance(parsed["cells"][1]["source"], list)
    made = learner_version(parsed)
    assert nbformat.from_dict(made).cells[1].source == STUB and type(made["cells"][2]) is dict
    nbformat.validate(nbformat.from_dict(made))


def test_two_exercises_in_a_cell_and_fences_within_a_solution():
    stub, solution = stubs.split(SOURCE + "\n\n\n" + SOURCE)
    assert stub == STUB + "\n\n\n" + STUB and solution == SOLVED + "\n\n\n" + SOLVED
    fenced = SOURCE.replace("weight [n] -> codes", "```\nexample\n```")
    text = learner_version(notebook(fenced)).cells[2].source
    assert "````python\n" in text and text.count("````") == 2


def test_nested_functions_keep_their_indentation():
    source = "class A:\n    def f(self):\n        ### BEGIN SOLUTION\n        return 1\n        ### END SOLUTION"
    assert stubs.split(source)[0].splitlines()[-1] == '        raise NotImplementedError("your turn")'


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("### BEGIN SOLUTION\nx = 1", "'### BEGIN SOLUTION' of line 1 has no '### END SOLUTION'"),
        ("x = 1\n### END SOLUTION", "line 2: '### END SOLUTION' has no beginning"),
        (
            "### BEGIN SOLUTION\n### BEGIN SOLUTION\n### END SOLUTION\n### END SOLUTION",
            "line 2: '### BEGIN SOLUTION' is within the solution that begins in line 1",
        ),
        ("### BEGIN SOLUTION\n### END SOLUTION\n### END SOLUTION", "line 3: '### END SOLUTION' has no beginning"),
        ("# BEGIN SOLUTION\nx = 1\n# END SOLUTION", "line 1: '# BEGIN SOLUTION' is nearly a marker"),
        ("### begin solution\nx = 1\n### END SOLUTION", "'### begin solution' is nearly a marker"),
        ("### BEGIN SOLUTIONS\nx = 1\n### END SOLUTIONS", "is nearly a marker"),
        ("### BEGIN SOLUTION \nx = 1\n### END SOLUTION", "is nearly a marker"),
        ("### BEGIN-SOLUTION\nx = 1", "is nearly a marker"),
    ],
)
def test_markers_that_do_not_pair_up_are_errors(source, words):
    with pytest.raises(QtutorError) as caught:
        learner_version(notebook("x = 1", source), name="07_test.ipynb")
    assert "07_test.ipynb, cell 3" in str(caught.value) and words in str(caught.value)


def test_markers_in_prose_or_in_a_text_are_none():
    made = notebook("x = 'between ### BEGIN SOLUTION and ### END SOLUTION'")
    made.cells[0].source = "### BEGIN SOLUTION"
    assert learner_version(made).cells[1].source == made.cells[1].source


def test_ids_stay_within_what_the_format_allows():
    long = notebook(SOURCE)
    long.cells[1].id = "x" * 64
    made = learner_version(long)
    nbformat.validate(made)
    assert len(made.cells[2].id) <= 64
    bare = json.loads(nbformat.writes(notebook(SOURCE)))
    for cell in bare["cells"]:
        del cell["id"]  # an older notebook
    assert "id" not in learner_version(bare)["cells"][2]

"""Answers that pass are kept as plain Python that works by itself; answers that cannot be kept get a message."""

import errno
import importlib
import math
import math as m
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.nn.functional import relu

from qtutor import course
from qtutor.course import checking, exercises
from qtutor.course import workspace as course_workspace
from qtutor.course.exercises.exercise import Exercise
from qtutor.course.workspace import answers, standalone
from qtutor.errors import QtutorError

FACTOR = 2
TABLE = {"ones": [1, 1.5, None], "more": (True, "x")}
TENSOR = torch.ones(2)


def doubled(x):
    return FACTOR * x


def plain(x: torch.Tensor) -> torch.Tensor:
    """Double x. In this text, `nothing` is not a name to look up."""
    return x * 2


def with_everything(x: "torch.Tensor", exponent: float = m.log2(2)) -> torch.Tensor:
    total = math.floor(1.5) * np.ones(1)[0] + functional.relu(torch.zeros(1)) + relu(torch.zeros(1))
    listed = [doubled(part) for part in [x]]  # a function by the learner, inside a comprehension

    def inner():
        return TABLE["ones"][0] * max(exponent, 1)

    return listed[0] * total * inner()


def calls_itself(x, depth=3):
    return x * 2 if depth == 0 else calls_itself(x, depth - 1)


another_name = plain


def through_another_name(x):
    return another_name(x)


def recursive_pair(x, depth=2):
    return other_of_the_pair(x, depth) if depth else 2 * x


def other_of_the_pair(x, depth):
    return recursive_pair(x, depth - 1)


def with_a_tensor(x):
    return x * 2 * TENSOR[0]


def with_something_missing(x):
    return x * 2 if x.numel() else nowhere  # noqa: F821


left = [2]


def works_twice(x):
    left[0] -= 1
    return x * (2 if left[0] >= 0 else 3)


def closure(factor):
    def inside(x):
        return factor * x

    return inside


EXERCISE = Exercise(
    name="test.double",
    title="twice",
    difficulty=1,
    minutes=1,
    reference=lambda x: x * 2,
    cases=lambda: [("ones", (torch.ones(2),)), ("a row", (torch.tensor([1.0, -3.0]),))],
    outputs=("y",),
)


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A workspace. The current folder is a folder inside it, and EXERCISE is the only exercise."""
    (tmp_path / ".qtutor.json").write_text('{"delivered": {}}')
    (tmp_path / "notes").mkdir()
    monkeypatch.chdir(tmp_path / "notes")
    monkeypatch.setattr(exercises, "every", lambda: [EXERCISE])
    return tmp_path


def passes(function) -> bool:
    return checking.examine(EXERCISE, function).passed


@pytest.mark.parametrize(
    "function", [plain, with_everything, calls_itself, through_another_name, recursive_pair, doubled]
)
def test_what_passes_is_kept_and_works_by_itself(workspace, capsys, function):
    course.check("test.double", function)
    assert capsys.readouterr().out.splitlines() == [
        "test.double: right on all 2 inputs.",
        "Kept in mine/test_double.py.",
    ]
    file = workspace / "mine" / "test_double.py"
    assert [path.name for path in file.parent.iterdir()] == ["test_double.py"]  # no compiled copy, no temporary file
    names: dict = {}
    exec(compile(file.read_text(), "alone", "exec"), names)  # no name of this module is in reach
    assert names["answer"](torch.ones(1)).item() == 2
    again = answers.load(EXERCISE, workspace)
    assert again is not function and again(torch.ones(1)).item() == 2


@pytest.mark.parametrize("call", ["os.replace", "os.fsync"])
def test_a_full_disk_is_told_and_the_earlier_answer_stays(workspace, capsys, monkeypatch, call):
    course.check("test.double", plain)
    earlier = (workspace / "mine" / "test_double.py").read_text()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(call, full)
        course.check("test.double", with_everything)
    told = capsys.readouterr().out
    assert told.count("right on all 2 inputs.") == 2
    assert "Not kept, and so not counted as done: " in told
    assert "test_double.py cannot be written: No space left on device. Whatever was there before is untouched" in told
    assert os.listdir(workspace / "mine") == ["test_double.py"]
    assert (workspace / "mine" / "test_double.py").read_text() == earlier


def test_a_file_where_the_answers_should_be_is_told(workspace, capsys):
    (workspace / "mine").write_text("a file of the learner's")
    course.check("test.double", plain)
    assert "Not kept, and so not counted as done: " in (told := capsys.readouterr().out) and "cannot be written" in told
    assert (workspace / "mine").read_text() == "a file of the learner's"


def test_the_file_is_readable(workspace):
    course.check("test.double", with_everything)
    text = (workspace / "mine" / "test_double.py").read_text()
    assert text.startswith("# test.double: what you wrote.")
    for line in ("import math\n", "import math as m\n", "import numpy as np\n", "import torch\n"):
        assert line in text or "import math as m" in line
    assert "from torch.nn.functional import relu\n" in text and "FACTOR = 2\n" in text
    assert text.index("def doubled") < text.index("def with_everything") < text.index("answer = with_everything")
    assert "\n\n\ndef doubled" in text and text.endswith("answer = with_everything\n")


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (with_a_tensor, "it uses TENSOR, a Tensor of the notebook; pass it as an argument"),
        (with_something_missing, "it refers to nowhere, which is not defined"),
        (lambda x: x * 2, "it is a lambda; write it as a function with def"),
        (closure(2), "inside uses factor, a variable of the function around it"),
        (np.vectorize(lambda x: x * 2), "it is a vectorize; write it as a function with def"),
        (works_twice, "in a file of its own it gives other results"),
    ],
)
def test_what_cannot_be_kept_is_refused_in_words_but_passes(workspace, capsys, function, why):
    left[0] = 2
    course.check("test.double", function)
    said = capsys.readouterr().out
    assert "test.double: right on all 2 inputs." in said and why in said and "not counted as done" in said
    assert not (workspace / "mine").exists() or not list((workspace / "mine").iterdir())


def test_a_function_of_the_package_is_not_the_learners(workspace, capsys):
    from qtutor.course.checking.comparing import of_kind

    assert "a function of the package" in answers.keep(EXERCISE, of_kind, passes)
    assert "a function of the package" in answers.keep(EXERCISE, torch.relu, passes)
    assert "a function of the package" in answers.keep(EXERCISE, functional.relu, passes)


def test_a_wrong_answer_leaves_the_right_one_of_before(workspace, capsys):
    course.check("test.double", plain)
    before = (workspace / "mine" / "test_double.py").read_text()

    def wrong(x):
        return x * 3

    course.check("test.double", wrong)
    assert "not right yet" in capsys.readouterr().out
    assert (workspace / "mine" / "test_double.py").read_text() == before
    course.check("test.double", doubled)
    assert "FACTOR" in (workspace / "mine" / "test_double.py").read_text()


def test_outside_of_a_workspace_nothing_is_written_and_the_learner_reads_where_answers_are_kept(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(exercises, "every", lambda: [EXERCISE])
    course.check("test.double", plain)
    right, note = capsys.readouterr().out.splitlines()
    assert right == "test.double: right on all 2 inputs."
    assert note.startswith(f"Not kept: {tmp_path} is not in a workspace. 'qtutor learn --no-start' makes one")
    assert list(tmp_path.iterdir()) == []
    course.check("test.double", lambda x: x * 3)
    assert "not right yet" in capsys.readouterr().out


def test_beside_the_courses_own_chapters_a_right_answer_is_all_that_is_said(monkeypatch, capsys):
    monkeypatch.chdir(course_workspace.chapters_folder())
    monkeypatch.setattr(exercises, "every", lambda: [EXERCISE])
    course.check("test.double", plain)
    assert capsys.readouterr().out == "test.double: right on all 2 inputs.\n"


def test_loading_names_what_is_broken(workspace, tmp_path):
    assert answers.load(EXERCISE, workspace) is None
    file = answers.path_of(EXERCISE, workspace)
    file.parent.mkdir()
    for text in ("answer = (", "raise ValueError('no')", "x = 1"):
        file.write_text(text)
        with pytest.raises(QtutorError, match=r"mine/test_double\.py does not run any more"):
            answers.load(EXERCISE, workspace)


def test_nothing_outside_of_the_workspace_is_loaded(workspace, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "evil.py"
    outside.write_text(f"from pathlib import Path\nPath({str(outside.parent / 'ran')!r}).touch()\nanswer = len\n")
    file = answers.path_of(EXERCISE, workspace)
    file.parent.mkdir()
    file.symlink_to(outside)
    with pytest.raises(QtutorError, match="leads out of your workspace"):
        answers.load(EXERCISE, workspace)
    assert not (outside.parent / "ran").exists()


def test_local_names_are_not_taken_for_global_ones():
    def local(x):
        TENSOR = x
        return TENSOR * 2

    assert "TENSOR = x" in standalone.standalone(local, "t") and "torch" not in standalone.standalone(local, "t")


def module(folder: Path, monkeypatch, name: str, text: str):
    """A module with ``text``, as if the learner had typed it into a notebook."""
    (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(folder)
    return importlib.import_module(name)


def test_two_functions_of_one_name_are_refused(tmp_path, monkeypatch):
    text = "def f(x):\n    return 2 * x\n\n\nold = f\n\n\ndef f(x):\n    return old(x)\n"
    with pytest.raises(standalone.CannotKeep, match="two of its parts are called f"):
        standalone.standalone(module(tmp_path, monkeypatch, "two_of_a_name", text).f, "t")


def test_source_that_cannot_be_found_is_refused():
    namespace: dict = {}
    exec("def typed(x):\n    return x", namespace)
    with pytest.raises(standalone.CannotKeep, match="cannot be found; define it in a cell"):
        standalone.standalone(namespace["typed"], "t")


def test_annotations_and_defaults_are_looked_up_too(tmp_path, monkeypatch):
    text = "from __future__ import annotations\n\n\ndef typed(x: Undefined) -> Undefined:\n    return x\n"
    with pytest.raises(standalone.CannotKeep, match="Undefined, which is not defined"):
        standalone.standalone(module(tmp_path, monkeypatch, "typed_only", text).typed, "t")
    text = "from __future__ import annotations\n\nBITS = 4\n\n\ndef typed(x: int, bits=BITS):\n    return x\n"
    kept_text = standalone.standalone(module(tmp_path, monkeypatch, "typed_well", text).typed, "t")
    assert "from __future__ import annotations\n" in kept_text and "BITS = 4\n" in kept_text


def test_modules_of_the_learner_are_refused(tmp_path, monkeypatch):
    module(tmp_path, monkeypatch, "helpers_of_mine", "def f(x):\n    return x\n")
    text = "import helpers_of_mine as h\n\n\ndef g(x):\n    return h.f(x)\n"
    user = module(tmp_path, monkeypatch, "user_of_helpers", text)
    with pytest.raises(standalone.CannotKeep, match="it uses h, a module of yours"):
        standalone.standalone(user.g, "t")
    text = "from helpers_of_mine import f\n\n\ndef g(x):\n    return f(x)\n"
    with pytest.raises(standalone.CannotKeep, match="f comes from a module of yours"):
        standalone.standalone(module(tmp_path, monkeypatch, "user_of_one_helper", text).g, "t")


def test_a_function_under_two_names_is_written_down_once(tmp_path, monkeypatch):
    text = "def f(x):\n    return 2 * x\n\n\na = b = f\n\n\ndef g(x):\n    return a(x) + b(x) - f(x)\n"
    kept_text = standalone.standalone(module(tmp_path, monkeypatch, "two_names", text).g, "t")
    assert kept_text.count("def f(x)") == 1 and "a = f\n" in kept_text and "b = f\n" in kept_text
    names: dict = {}
    exec(kept_text, names)
    assert names["answer"](3) == 6


@pytest.mark.parametrize("first", ["a", "z"])
def test_a_function_and_a_value_of_one_name_are_refused(tmp_path, monkeypatch, first):
    """In either order: names are looked up alphabetically, and the function is called f under every name."""
    text = f"def f(x):\n    return 2 * x\n\n\n{first} = f\nf = 3\n\n\ndef g(x):\n    return {first}(x) + f\n"
    with pytest.raises(standalone.CannotKeep, match="two of its parts are called f; give them different names"):
        standalone.standalone(module(tmp_path, monkeypatch, f"value_and_function_{first}", text).g, "t")


@pytest.mark.parametrize("first", ["a", "z"])
def test_a_library_and_a_value_of_one_name_are_refused(tmp_path, monkeypatch, first):
    """For g, ``f`` is the library, but the function that g finds under the other name is called f, too."""
    text = f"import math\n\n\ndef f(x):\n    return 2 * x\n\n\n{first} = f\nf = math\n\n\n"
    text += f"def g(x):\n    return {first}(x) + f.floor(x)\n"
    with pytest.raises(standalone.CannotKeep, match="two of its parts are called f; give them different names"):
        standalone.standalone(module(tmp_path, monkeypatch, f"library_and_function_{first}", text).g, "t")

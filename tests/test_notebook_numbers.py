"""The comparison of notebooks: changes by a different CPU pass, changes by a bug fail, and nbval uses it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from tests import notebook_numbers
from tests.capability import without_amx
from tests.notebook_numbers import Tolerance, difference, tolerance_of

ROOT = Path(__file__).parent.parent
TABLE = """| weights | bytes | perplexity | rise |
| --- | --- | --- | --- |
| RTN 4 | 1,162,752 | 24.86 | +3.4 % |
| RTN 3 | 1,018,368 | 32.87 | +36.7 % |
"""


def test_an_output_is_near_itself():
    assert difference(TABLE, TABLE) is None


@pytest.mark.parametrize(
    ("stored", "computed"),
    [
        ("KL 0.0810", "KL 0.0811"),
        ("KL 0.0005", "KL 0.0007"),  # 40 %, but only two units of the last place
        ("KL 0.6", "KL 0.8"),  # two units as well, although 0.8 - 0.6 is a little more than 0.2
        ("perplexity 224.09", "perplexity 226.30"),  # 221 units, but only 1 %
        ("+0.00 %", "-0.00 %"),
        ("0.01", "-0.01"),
        ("+0.01%", "-0.01%"),
        ("rises by 832 %", "rises by 831 %"),
        ("off by 4e-07", "off by 3e-07"),
        ("1.5e+05", "1.51e+05"),
        ("off by 1.0e-05", "off by 9.7e-06"),  # below a power of ten, the last place is a tenth as large
        ("steps 15 |", "steps 14.98 |"),  # %g drops zeros
        ("[0.10, 0.20]", "[0.10, 0.21]"),
        ("x\u22120.50", "x\u22120.51"),
        ("117 of 150 right", "119 of 150 right"),
        ("1,000 of 4,096", "1,009 of 4,096"),
    ],
)
def test_what_another_cpu_changes_is_near(stored, computed):
    assert difference(stored, computed) is None
    assert difference(computed, stored) is None


@pytest.mark.parametrize(
    ("stored", "computed"),
    [
        ("most is won by GPTQ", "most is won by AWQ"),
        ("perplexity 24.86", "perplexity 26.10"),  # 5 % off
        ("perplexity 24.86", "perplexity 23.62"),
        ("KL 0.0005", "KL 0.0008"),
        ("off by 1.0e-05", "off by 7.9e-06"),
        ("+0.1 %", "0.1 %"),
        ("+0.10", "-0.10"),
        ("1,162,752 bytes", "1,162,754 bytes"),
        ("1,162,752 bytes", "1162752 byte"),
        ("shape (256, 128)", "shape (256, 129)"),
        ("12 of 64", "15 of 64"),
        ("12 of 64", "12 of 65"),
        ("12 rows", "13 rows"),
        ("layers.3.weight", "layers.4.weight"),
        ("blk.0.5", "blk.0.6"),
        ("Q4_K 4.5", "Q5_K 4.5"),
        ("torch.float16", "torch.float32"),
        ("47 47 3f 00", "47 47 3e 00"),
        ("47 47 01 00", "47 47 02 00"),
        ("3e10", "3e11"),
        ("0x3f00", "0x3f01"),
        ("```python\nx = 0.500\n```", "```python\nx = 0.501\n```"),
        ("`0 1000 101`", "`0 1000 111`"),
        ("nan", "0.1"),
        ("0.1", ""),
        ("0.1 0.2", "0.1"),
        ("0.1", "0.1\n"),
    ],
)
def test_what_a_bug_changes_is_not_near(stored, computed):
    assert difference(stored, computed)
    assert difference(computed, stored)


def test_a_row_more_or_less_is_a_difference():
    rows = TABLE.splitlines(keepends=True)
    assert difference(TABLE, "".join(rows[:-1]))
    assert difference(TABLE, "".join(rows[:2] + rows[3:]))
    assert difference(TABLE, TABLE + rows[-1])
    assert difference(TABLE, "".join([*rows[:2], rows[3], rows[2]]))


def test_columns_may_shift():
    stored = "layer        error\n------------------\nq_proj        9.99\ngate_proj     0.12 \n"
    computed = "layer         error\n-------------------\nq_proj        10.01\ngate_proj      0.12\n"
    assert difference(stored, computed) is None
    assert difference("(9.99)", "( 9.99)") is None
    assert difference("gate_proj up_proj", "gate_projup_proj")


def test_the_report_names_the_place():
    report = difference(TABLE, TABLE.replace("32.87", "36.87"))
    assert report == "line 4, after '| RTN3|1,018,368|': '32.87' was stored, '36.87' came out; allowed is 0.369"
    report = difference(TABLE, TABLE.replace("RTN 3", "GPTQ 3"))
    assert report == "line 4, after '| ': 'RTN' was stored, 'GPTQ' came out"
    assert difference("a row\na row\n", "a row\n") == "line 2, after '': 'a row\\n' was stored, '' came out"
    html = "<td>0.45</td>" * 30_000
    assert len(difference(html, html.replace("<td>", "<th>", 1))) < 400


def test_a_cell_may_ask_for_more():
    assert difference("KL 0.100", "KL 0.106", Tolerance(share=0.06)) is None
    assert difference("KL 0.100", "KL 0.110", Tolerance(share=0.06))
    assert difference("rise +0.4 %", "rise -0.2 %", Tolerance(units=6)) is None
    assert difference("rise +0.4 %", "rise -0.3 %", Tolerance(units=6))
    assert difference("23 rows", "25 rows", Tolerance(whole=2)) is None
    assert difference("23 rows", "26 rows", Tolerance(whole=2))
    assert difference("GPTQ 0.1", "AWQ 0.1", Tolerance(share=1, units=100, whole=100))


def test_what_a_cell_asks_for_has_a_reason():
    assert tolerance_of({"tags": []}) == Tolerance()
    assert tolerance_of({"qtutor": {"share": 0.05, "reason": "codes flip"}}) == Tolerance(share=0.05)
    for wrong in ({"share": 0.05}, {"share": 0.05, "reason": " "}, {"reason": "codes flip"}):
        with pytest.raises(ValueError):
            tolerance_of({"qtutor": wrong})
    assert tolerance_of({"tags": ["nbval-ignore-output"], "qtutor": {"reason": "it measures time"}}) == Tolerance()
    with pytest.raises(ValueError, match="tolerance"):
        tolerance_of({"qtutor": {"tolerance": 0.05, "reason": "codes flip"}})


def test_amx_is_left_out_where_avx512_is():
    for capability, expected in {"default": "AVX2", "avx2": "AVX2", "avx512": None, None: None}.items():
        environment = {"ATEN_CPU_CAPABILITY": capability} if capability else {}
        without_amx(environment)
        assert environment.get("ONEDNN_MAX_CPU_ISA") == expected
    chosen = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "SSE41"}
    without_amx(chosen)
    assert chosen["ONEDNN_MAX_CPU_ISA"] == "SSE41"


def stored(source: str, output: str, **metadata) -> nbformat.NotebookNode:
    """A code cell that was executed once and showed ``output``."""
    cell = nbformat.v4.new_code_cell(source, execution_count=1, metadata=metadata)
    cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=output)]
    return cell


def test_nbval_compares_so(tmp_path):
    html = nbformat.v4.new_code_cell("from IPython.display import HTML\nHTML('<b>1.00</b>')", execution_count=1)
    data = {"text/html": "<b>1.50</b>", "text/plain": "<IPython.core.display.HTML object>"}
    html.outputs = [nbformat.v4.new_output("execute_result", data=data, execution_count=1)]
    cells = [
        stored("print('KL 0.0811')", "KL 0.0810\n"),
        stored("print('KL 0.0911')", "KL 0.0810\n"),
        stored("print('KL 0.0911')", "KL 0.0810\n", qtutor={"share": 0.2, "reason": "a test"}),
        stored("print('KL 0.0911')", "KL 0.0810\n", qtutor={"share": 0.2}),
        stored("print('a row')", "a row\na row\n"),
        html,
    ]
    path = tmp_path / "chapter.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    command = ["-m", "pytest", "-p", "tests.notebook_numbers", "--nbval", "--nbval-current-env", "--color=no", "-v"]
    run = subprocess.run(
        [sys.executable, *command, "--rootdir", str(tmp_path), "-c", os.devnull, str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    said = run.stdout + run.stderr
    outcomes = re.findall(r"Cell (\d) (PASSED|FAILED) +\[", said)
    assert outcomes == list(zip("012345", ["PASSED", "FAILED", "PASSED", "FAILED", "FAILED", "FAILED"])), said
    assert "stdout: line 1, after 'KL': '0.0810' was stored, '0.0911' came out; allowed is 0.000911" in said
    assert "gives no reason" in said
    assert "line 2, after '': 'a row\\n' was stored, '' came out" in said
    assert "'1.50' was stored, '1.00' came out" in said


@pytest.mark.parametrize(("name", "here", "compared"), [
    ("11_your_model.ipynb", True, True), ("11_your_model.ipynb", False, False), ("06_gptq.ipynb", False, True),
])  # fmt: skip
def test_a_chapter_is_compared_where_its_model_is_installed_and_runs_everywhere(name, here, compared, monkeypatch):
    monkeypatch.setattr(notebook_numbers, "NEEDS", {"11_your_model.ipynb": lambda: here})
    cell = notebook_numbers.IPyNbCell.__new__(notebook_numbers.IPyNbCell)
    cell.path, cell.options = Path(name), {"check": True, "skip": False}
    notebook_numbers.pytest_itemcollected(cell)
    assert type(cell) is notebook_numbers.Cell and cell.options == {"check": compared, "skip": False}


def test_chapters_that_need_a_model_are_there():
    assert all((ROOT / "notebooks" / name).is_file() for name in notebook_numbers.NEEDS)

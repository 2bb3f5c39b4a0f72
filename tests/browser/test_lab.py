"""Chapters in a live JupyterLab, as a learner uses them: cells run, controls change their pictures, checks answer."""

import subprocess
import sys

import nbformat
import pytest
from playwright.sync_api import TimeoutError

from tests.browser import lab as live
from tests.browser.conftest import ROOT

CHAPTERS = sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))
WIDGET = ".jp-Notebook:visible .jp-OutputArea-output:has(.jupyter-widgets)"
CONTROLS = ", ".join(
    [
        "select",
        ".noUi-handle",
        "input[type=checkbox]",
        "input[type=number]",
        "input[type=text]",
        "button.jupyter-button",
    ]
)
# What a widget shows: all its HTML (pictures with their texts, tables) except the controls' own readouts.
SHOWN = """control => [...control.closest('.jp-OutputArea-output').querySelectorAll('.widget-html-content, img')]
    .map(shown => shown.tagName === 'IMG' ? shown.src : shown.innerHTML).join('\\n')"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab on a workspace that `qtutor learn` made."""
    around = tmp_path_factory.mktemp("lab")
    folder = around / "workspace"
    command = [sys.executable, "-m", "qtutor.cli", "learn", str(folder), "--no-start"]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    running = live.start(folder, around)
    yield running
    live.stop(running)


def move(page, control) -> None:
    """Move a control to a different value with the keyboard, and wait until its widget shows something different."""
    before = control.evaluate(SHOWN)
    kind = control.evaluate("c => c.type || c.className")
    if "noUi-handle" in kind:
        at_the_end = control.get_attribute("aria-valuenow") == control.get_attribute("aria-valuemax")
        control.press("ArrowLeft" if at_the_end else "ArrowRight")
    elif kind == "select-one":
        # JupyterLab uses a bare arrow key itself (next cell), so the list has to be opened first, as with a mouse.
        control.press("Space")
        page.keyboard.press("ArrowUp" if control.evaluate("c => c.selectedIndex === c.length - 1") else "ArrowDown")
        page.keyboard.press("Enter")
    elif kind == "number":
        # A field for whole numbers makes 3 of 3.3. If its value is 3 already, that would not change it.
        control.fill("2" if control.input_value() == "3" else "3.3")
        control.press("Enter")
    elif kind == "text":
        control.fill("x = 1")
        control.press("Enter")
    else:
        control.press("Space")  # check boxes and buttons
    try:
        page.wait_for_function(
            f"([control, before]) => ({SHOWN})(control) !== before",
            arg=[control.element_handle(), before],
            timeout=15_000,
        )
    except TimeoutError:
        named = control.evaluate("c => c.title || c.closest('.jupyter-widgets').innerText || c.outerHTML")
        raise AssertionError(f"moving the control {named.strip()!r} changed nothing that is shown") from None


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_runs_and_every_control_moves_its_picture(open_page, lab, chapter):
    page, noted = open_page(height=1200)
    lab.open(page, chapter)
    cells = live.run_all(page)
    assert live.errors_in(cells) == []
    with_widgets = [c for c in cells if any(live_view(output) for output in c["outputs"])]
    widgets = page.locator(WIDGET)
    assert widgets.count() == len(with_widgets), "a widget is not drawn"
    for widget in widgets.all():
        controls = widget.locator(CONTROLS)
        assert controls.count() > 0
        for control in controls.all():
            if control.is_enabled():
                move(page, control)
        assert widget.locator("[role=alert]").count() == 0, widget.locator("[role=alert]").first.inner_text()
        pictures = widget.locator("img")
        assert all(picture.get_attribute("alt") for picture in pictures.all())
    assert live.errors_in(page.evaluate(live.STATE)["cells"]) == []
    live.shut_down_kernel(page)
    noted.assert_nothing()


def live_view(output: dict) -> bool:
    return "application/vnd.jupyter.widget-view+json" in output.get("data", {})


WRONG = """def nearest_codes(weight, scale, zero, bits):
    grouped = weight.reshape(*scale.shape, -1)
    codes = (grouped / scale[..., None]).floor() + zero[..., None]
    return codes.clamp(0, 2**bits - 1).reshape(weight.shape)


check("rtn.encode", nearest_codes)"""

DIAGNOSIS = "rounded down (floor, //); round it to the nearest"


def test_a_wrong_answer_is_diagnosed_and_the_right_one_is_kept(open_page, lab):
    page, _ = open_page(height=1200)
    lab.open(page, "02_round_to_nearest.ipynb")
    first = live.cell_with(page, "from qtutor.course import check")
    assert live.errors_in([live.type_into(page, first["index"], first["source"])]) == []

    exercise = live.cell_with(page, 'check("rtn.encode"')
    assert "NotImplementedError" in exercise["source"]
    stub = live.type_into(page, exercise["index"], exercise["source"])
    assert live.errors_in([stub]) == [] and "not done yet" in live.text_of(stub)

    wrong = live.type_into(page, exercise["index"], WRONG)
    assert live.errors_in([wrong]) == []
    said = live.text_of(wrong)
    assert "rtn.encode: not right yet" in said and "expected" in said and DIAGNOSIS in said
    assert "done" not in progress_of(lab, "rtn.encode")

    right = live.type_into(page, exercise["index"], solution_of("02_round_to_nearest.ipynb", "rtn.encode"))
    assert live.errors_in([right]) == [] and "rtn.encode: right" in live.text_of(right)
    assert progress_of(lab, "rtn.encode").endswith("done")
    assert progress_of(lab, "rtn.fit").endswith("not yet")
    live.shut_down_kernel(page)


def progress_of(lab, exercise: str) -> str:
    """The line of `qtutor progress` about an exercise."""
    (line,) = [line.strip() for line in lab.qtutor("progress").splitlines() if f"{exercise}:" in line]
    return line


def solution_of(chapter: str, exercise: str) -> str:
    """The master's cell, as the learner could have written it: without the markers."""
    cells = nbformat.read(ROOT / "notebooks" / chapter, 4).cells
    (source,) = [cell.source for cell in cells if f'check("{exercise}"' in cell.source]
    return "\n".join(line for line in source.splitlines() if "SOLUTION" not in line)


def test_a_prediction_outlives_the_kernel_and_stands_beside_the_measured_number(open_page, lab):
    first = 'from qtutor.course import predict, revealed\npredict("05-best-factor", "Which factor is best?")'
    notebook = nbformat.v4.new_notebook(metadata=nbformat.read(ROOT / "notebooks" / CHAPTERS[0], 4).metadata)
    notebook.cells = [nbformat.v4.new_code_cell(source) for source in (first, 'revealed("05-best-factor", 2)')]
    nbformat.write(notebook, lab.folder / "prediction.ipynb")
    page, noted = open_page()
    lab.open(page, "prediction.ipynb")
    assert live.errors_in(live.run_all(page)) == []
    widget = page.locator(WIDGET)
    field = widget.get_by_label("prediction")
    for typed, said in (("much", "Not kept: 'much' is not a number"), ("3", "Your prediction: 3. It is kept in mine/")):
        field.fill(typed)
        field.press("Enter")
        widget.get_by_text(said).wait_for()
    live.shut_down_kernel(page)

    page, noted = open_page()
    lab.open(page, "prediction.ipynb")
    assert live.errors_in(live.run_all(page)) == []
    assert page.locator(WIDGET).get_by_label("prediction").input_value() == "3"
    page.get_by_text("You predicted 3. Measured: 2.").wait_for()
    live.shut_down_kernel(page)
    noted.assert_nothing()

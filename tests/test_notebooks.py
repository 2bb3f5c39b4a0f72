"""Rules for every chapter: it is executed and portable, and its pictures have descriptions for blind readers."""

import ast
import importlib
import pkgutil
import re
from pathlib import Path

import nbformat
import pytest

import qtutor
from tests.notebook_numbers import tolerance_of

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def public_names() -> set[str]:
    """Functions and classes that the package defines, in any of its modules."""
    names = set(qtutor.__all__)
    for module in pkgutil.walk_packages(qtutor.__path__, "qtutor."):
        if module.name.startswith(("qtutor.cli", "qtutor.course", "qtutor.plots", "qtutor.decoder.training")):
            continue
        if module.name.endswith(".triton_product"):  # it imports Triton, which is rarely installed
            continue
        loaded = importlib.import_module(module.name)
        names |= {n for n, v in vars(loaded).items() if getattr(v, "__module__", None) == module.name and n[0] != "_"}
    return names


def code_of(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, 4)


def test_the_chapters_are_here():
    chapters = {
        "00_start_here",
        "01_numbers",
        "02_round_to_nearest",
        "03_distributions",
        "04_nf4_and_int8",
        "05_awq",
        "06_gptq",
        "07_gguf",
        "08_checkpoints",
        "09_quantized_decoder",
        "10_serving",
        "11_your_model",
        "12_choose",
    }
    assert {path.stem for path in NOTEBOOKS} >= chapters


def test_executed_in_order_without_an_error(notebook):
    cells = code_of(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        errors = [output for output in cell.outputs if output.output_type == "error"]
        assert not errors or "raises-exception" in cell.metadata.get("tags", []), errors


def test_the_file_is_the_same_wherever_it_was_executed(notebook):
    assert notebook.metadata == METADATA
    assert all(set(cell.metadata) <= {"tags", "qtutor"} for cell in notebook.cells)
    text = nbformat.writes(notebook)
    assert not re.search(r"(/home/|/root/|/tmp/|/work/|[A-Z]:\\\\Users)", text)
    assert len(text) < 2_000_000


def test_a_cell_that_asks_for_tolerance_says_why(notebook):
    for cell in notebook.cells:
        tolerance_of(cell.metadata)  # raises an error if the reason is missing
        if "qtutor" in cell.metadata or "nbval-ignore-output" in cell.metadata.get("tags", []):
            assert len(cell.metadata["qtutor"]["reason"].split()) >= 5, cell.source


def test_every_picture_is_described(notebook):
    for cell in code_of(notebook):
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                assert len(output.metadata.get("image/png", output.metadata).get("alt", "")) > 40, cell.source
            for tag in re.findall(r"<img[^>]*>", output.get("data", {}).get("text/html", "")):
                assert re.search(r'alt=\\?"[^"\\]{40}', tag), tag[:200]
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            assert not re.search(r"!\[\]\(|<img(?![^>]*alt=)", cell.source)


def test_plain_markdown_without_directives(notebook):
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            assert not re.search(r"^(:::|```\{)", cell.source, re.MULTILINE), cell.source
            assert cell.source.count("<details") == cell.source.count("</details>")


def test_no_public_name_of_the_package_is_redefined(notebook):
    names = public_names()
    for cell in code_of(notebook):
        for node in ast.walk(ast.parse(re.sub(r"^[%!].*$", "", cell.source, flags=re.MULTILINE))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                assert node.name not in names, f"{node.name} is defined in the package"


def test_cells_are_short(notebook):
    """JupyterLab at 1440 pixels and the book at 1280 pixels break longer lines."""
    for cell in code_of(notebook):
        lines = cell.source.splitlines()
        assert len(lines) <= 25 and all(len(line) <= 95 for line in lines), cell.source


def test_a_chapter_is_a_chapter(notebook):
    # An optional exercise has two cells, its task and its code. These do not count for the length of the chapter.
    optional = sum("Difficulty ●●●●" in cell.source for cell in notebook.cells)
    assert len(notebook.cells) - 2 * optional <= 55
    assert notebook.cells[0].cell_type == "markdown" and notebook.cells[0].source.startswith("# ")

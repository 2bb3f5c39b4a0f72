"""Execute the chapters in place and store their outputs: ``python notebooks/execute.py [notebook ...]``.

Without arguments, every chapter beside this file. What is stored is made as reproducible as it can be: cell ids are
kept, execution counts run from 1, timestamps and widget state are dropped, neighbouring pieces of a stream are joined.
Prints the seconds of each notebook. A cell that raises, or a notebook over its 60 seconds, ends with exit status 1;
the file of a notebook that raised is left as it was.
"""

import argparse
import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError

LIMIT_SECONDS = 60
HERE = Path(__file__).parent
KERNEL = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}


def execute(path: Path) -> float:
    """Execute one notebook, write it back normalised, and return the seconds that its cells took."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        kernel_name=KERNEL["name"],
        timeout=2 * LIMIT_SECONDS,
        record_timing=False,
        store_widget_state=False,
        resources={"metadata": {"path": str(path.parent)}},
    )
    with client.setup_kernel():
        start = time.perf_counter()
        for index, cell in enumerate(notebook.cells):
            client.execute_cell(cell, index)
        seconds = time.perf_counter() - start
    normalise(notebook)
    beside = path.with_suffix(".partial")
    beside.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
    os.replace(beside, path)
    return seconds


def normalise(notebook: nbformat.NotebookNode) -> None:
    """Keep what a reader sees, drop what changes from run to run."""
    language_info = nbformat.from_dict({"name": "python"})
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": language_info})
    count = 0
    for cell in notebook.cells:
        kept = {key: cell.metadata[key] for key in ("tags", "qtutor") if cell.metadata.get(key)}
        cell.metadata = nbformat.from_dict(kept)
        if cell.cell_type != "code":
            continue
        count += bool(cell.source.strip())
        cell.execution_count = count if cell.source.strip() else None
        cell.outputs = _joined(cell.outputs)
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = count
            # Ids of widgets are new in every run and mean nothing without their kernel. The course's own widgets show
            # HTML beside them, pictures drawn beforehand, with a text that is the same in every run.
            widget = "data" in output and output.data.pop("application/vnd.jupyter.widget-view+json", None)
            if widget and "text/html" not in output.data:
                output.data["text/plain"] = "(a widget: run this cell to use it)"
    nbformat.validate(notebook)


def _joined(outputs: list) -> list:
    """The outputs with neighbouring pieces of the same stream joined: how a stream is cut is chance."""
    joined = []
    for output in outputs:
        if output.output_type == "stream" and joined and joined[-1].get("name") == output.name:
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path, help="chapters; all of them if none is named")
    failed = False
    for path in parser.parse_args().notebooks or sorted(HERE.glob("*.ipynb")):
        try:
            seconds = execute(path)
        except (CellExecutionError, CellTimeoutError) as error:
            print(f"{path}: not stored, a cell failed\n{error}", file=sys.stderr)
            failed = True
            continue
        print(f"{path}: {seconds:.1f} s", flush=True)
        if seconds > LIMIT_SECONDS:
            print(f"{path}: over the {LIMIT_SECONDS} seconds that a chapter may take", file=sys.stderr)
            failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

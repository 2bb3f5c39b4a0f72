"""A live JupyterLab on a learner's workspace, and the steps of the tests in it.

The tests use mouse and keyboard, as a person does. They read the content of cells from JupyterLab's own application
object, which `--LabApp.expose_app_in_browser` puts into the window.
"""

import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from qtutor.course import workspace

RUN_LIMIT = 240_000  # milliseconds for a chapter, which takes at most 60 s on an idle machine
# By default JupyterLab draws only the cells in view, but the tests look at all cells.
SETTINGS = {
    "@jupyterlab/notebook-extension/tracker.jupyterlab-settings": {"windowingMode": "none"},
    "@jupyterlab/apputils-extension/notification.jupyterlab-settings": {
        "fetchNews": "false",
        "checkForUpdates": False,
        "doNotDisturbMode": True,
    },
}

# For the notebook in front: the kernel's status, and the index, source, tags, count and outputs of each code cell.
STATE = """() => {
    const panel = window.jupyterapp.shell.currentWidget;
    const cells = panel.content.widgets.map((cell, index) => ({cell, index}));
    return {
        kernel: panel.sessionContext.session?.kernel?.status,
        cells: cells.filter(({cell}) => cell.model.type === 'code').map(({cell, index}) => ({
            index,
            source: cell.model.sharedModel.getSource(),
            tags: cell.model.getMetadata('tags') ?? [],
            count: cell.model.executionCount,
            outputs: cell.model.outputs.toJSON(),
        })),
    };
}"""

# The kernel is idle, and all code cells have run or a cell failed: after a failure JupyterLab runs no further cell.
FINISHED = f"""() => {{
    const {{kernel, cells}} = ({STATE})();
    const failed = cell => cell.outputs.some(o => o.output_type === 'error') && !cell.tags.includes('raises-exception');
    const ran = cells.every(cell => !cell.source.trim() || Number.isInteger(cell.count));
    return kernel === 'idle' && (ran || cells.some(failed));
}}"""

READY = """path => {
    const panel = window.jupyterapp?.shell?.currentWidget;
    return panel?.context?.path === path && panel.context.isReady && panel.sessionContext.isReady
        && panel.sessionContext.session?.kernel?.status === 'idle';
}"""


@dataclass
class Lab:
    """A running server: its address, its token, and the learner's folder that it shows."""

    address: str
    token: str
    folder: Path
    process: subprocess.Popen

    def open(self, page, chapter: str) -> None:
        """Open a chapter, and wait until its kernel is there."""
        page.goto(f"{self.address}/lab/tree/{chapter}?token={self.token}&reset")
        page.wait_for_function(READY, arg=chapter, timeout=60_000)

    def qtutor(self, *arguments: str) -> str:
        """Run the command line in the workspace, as the learner would in a terminal."""
        command = [sys.executable, "-m", "qtutor.cli", *arguments]
        result = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stderr
        return result.stdout


def start(folder: Path, around: Path) -> Lab:
    """Start JupyterLab with the command of `qtutor learn`, on a free port, with separate settings in ``around``."""
    for name, content in SETTINGS.items():
        path = around / "settings" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = secrets.token_hex(16)
    command = workspace.jupyter_command(folder, browser=False, is_root=os.geteuid() == 0)
    command += [f"--ServerApp.port={port}", "--ServerApp.port_retries=0", "--LabApp.expose_app_in_browser=True"]
    environment = os.environ | {
        "JUPYTER_TOKEN": token,
        "JUPYTERLAB_SETTINGS_DIR": str(around / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(around / "workspaces"),
        "JUPYTER_CONFIG_DIR": str(around / "config"),
        "JUPYTER_DATA_DIR": str(around / "data"),
        "JUPYTER_RUNTIME_DIR": str(around / "runtime"),
        "IPYTHONDIR": str(around / "ipython"),
        "HF_HUB_OFFLINE": "1",
    }
    log = around / "jupyterlab.log"
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=file, stderr=subprocess.STDOUT)
    lab = Lab(f"http://127.0.0.1:{port}", token, folder, process)
    _wait_until_it_answers(lab, log)
    return lab


def _wait_until_it_answers(lab: Lab, log: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    asked = urllib.request.Request(f"{lab.address}/api/status", headers={"Authorization": f"token {lab.token}"})
    while time.monotonic() < end and lab.process.poll() is None:
        try:
            with urllib.request.urlopen(asked, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.3)  # not listening yet
    stop(lab)
    raise AssertionError(f"JupyterLab did not start:\n{log.read_text()[-3000:]}")


def stop(lab: Lab) -> None:
    """End the server, which ends its kernels."""
    lab.process.terminate()
    try:
        lab.process.wait(30)
    except subprocess.TimeoutExpired:
        lab.process.kill()
        lab.process.wait(10)


def run_all(page) -> list[dict]:
    """Run all cells. Returns the code cells with their outputs, once the kernel is idle again."""
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); }")
    page.wait_for_function(FINISHED, timeout=RUN_LIMIT, polling=500)
    return page.evaluate(STATE)["cells"]


def shut_down_kernel(page) -> None:
    page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")


def errors_in(cells: list[dict]) -> list[str]:
    """The exceptions with which cells ended, except in cells that are meant to raise one."""
    return [
        f"cell {cell['index']}: {output['ename']}: {output['evalue']}"
        for cell in cells
        for output in cell["outputs"]
        if output["output_type"] == "error" and "raises-exception" not in cell["tags"]
    ]


def text_of(cell: dict) -> str:
    """What a cell printed."""
    return "".join("".join(o["text"]) for o in cell["outputs"] if o["output_type"] == "stream")


def cell_with(page, source: str) -> dict:
    """The one code cell whose source holds ``source``."""
    found = [cell for cell in page.evaluate(STATE)["cells"] if source in cell["source"]]
    assert len(found) == 1, f"{len(found)} cells hold {source!r}"
    return found[0]


def type_into(page, index: int, source: str) -> dict:
    """Replace a cell's source as a person does (click, select all, paste), run it, and return the cell afterwards."""
    editor = page.locator(".jp-Notebook:visible .jp-Cell").nth(index).locator(".cm-content")
    editor.scroll_into_view_if_needed()
    editor.click()
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.insert_text(source)
    before = next(cell for cell in page.evaluate(STATE)["cells"] if cell["index"] == index)["count"]
    page.keyboard.press("Shift+Enter")
    page.wait_for_function(
        f"""([index, before]) => {{
            const {{kernel, cells}} = ({STATE})();
            const count = cells.find(cell => cell.index === index).count;
            return kernel === 'idle' && Number.isInteger(count) && count !== before;
        }}""",
        arg=[index, before],
        timeout=60_000,
    )
    after = next(cell for cell in page.evaluate(STATE)["cells"] if cell["index"] == index)
    assert after["source"] == source, "the editor changed what was typed"
    return after

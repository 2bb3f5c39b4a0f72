"""The time from a key on a slider to the new picture on the page, in a browser on a live JupyterLab.

    python benchmarks/widget_latency.py [--moves 30]

A small notebook is made, opened in headless Chromium and run; on each widget the slider is moved by keyboard. The time
is that for which a learner waits: from the key to the moment when the new picture is decoded, with the way to the
kernel and back. The bounds for the median are 150 ms on the embedded decoder, and 300 ms on a layer of 4096 x 4096. The
script needs playwright (only its Python package) and a Chromium: /usr/bin/chromium, or the one that CHROMIUM names.
"""

import argparse
import os
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nbformat
import torch
from playwright.sync_api import sync_playwright

SETUP = """
import ipywidgets, torch, qtutor
from qtutor.course import widgets
from qtutor.course.widgets.numbers import microscope
model, tokenizer = qtutor.load_decoder(device="cpu")
ids = qtutor.evaluate.held_out_tokens(tokenizer, 512)[None]
large = {"large": 0.02 * torch.randn(4096, 4096, generator=torch.Generator().manual_seed(0))}
"""
# name, picture, bound in milliseconds, cell
WIDGETS = [
    ("weight_histogram", "decoder, 512 x 256", 150, "widgets.weight_histogram(model, '0.mlp.gate_proj', frames={})"),
    (
        "weight_histogram, least squares",
        "decoder, 512 x 256",
        150,
        "widgets.weight_histogram(model, '0.mlp.gate_proj', clip='mse', frames={})",
    ),
    (
        "weights_as_picture",
        "decoder, 512 x 256",
        150,
        "widgets.weights_as_picture(model, '0.mlp.gate_proj', frames={})",
    ),
    ("same_prompt", "decoder, 64 tokens", 150, "widgets.same_prompt(model, tokenizer)"),
    ("activation_outliers", "decoder, 512 tokens", 150, "widgets.activation_outliers(model, ids)"),
    ("microscope", "a number", 150, "microscope(0.15625)"),
    ("weight_histogram", "4096 x 4096", 300, "widgets.weight_histogram(large, frames={})"),
    ("weight_histogram, least squares", "4096 x 4096", 300, "widgets.weight_histogram(large, clip='mse', frames={})"),
    ("weight_histogram, one scale", "4096 x 4096", 300, "widgets.weight_histogram(large, group_size=0, frames={})"),
    ("weights_as_picture", "4096 x 4096", 300, "widgets.weights_as_picture(large, frames={})"),
]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
FLAGS += ["--disable-sync", "--no-first-run"]

# Both times are from the page's own clock: the key's time stamp, and the moment when the picture is ready to paint.
WATCH = """handle => {
  const area = handle.closest(".jp-OutputArea-output");
  const before = area.querySelector("img")?.src;
  window.waited = new Promise(resolve => {
    let start = null;
    handle.addEventListener("keydown", event => { start = event.timeStamp; }, {capture: true, once: true});
    const observer = new MutationObserver(async () => {
      const picture = area.querySelector("img");
      if (start === null || (picture && picture.src === before)) return;
      observer.disconnect();
      if (picture) await picture.decode();
      resolve(performance.now() - start);
    });
    for (const shown of area.querySelectorAll(".widget-html-content"))
      observer.observe(shown, {childList: true, subtree: true});
  });
}"""


def start_jupyter(folder: Path) -> tuple[subprocess.Popen, str]:
    """Start a JupyterLab for ``folder`` on a free port; returns the address of its page without the notebook."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser"]
    command += [f"--ServerApp.port={port}", "--ServerApp.ip=127.0.0.1", f"--ServerApp.root_dir={folder}"]
    # All cells stay on the page (JupyterLab removes cells out of sight), and the user's own settings are not used.
    settings = folder / "settings" / "@jupyterlab" / "notebook-extension"
    settings.mkdir(parents=True)
    (settings / "tracker.jupyterlab-settings").write_text('{"windowingMode": "none"}')
    own = {"JUPYTER_TOKEN": token, "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"), "HF_HUB_OFFLINE": "1"}
    with (folder / "jupyter.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | own)
    address = f"http://127.0.0.1:{port}"
    for _ in range(240):
        try:
            urllib.request.urlopen(f"{address}/api/status?token={token}").close()
            return server, f"{address}/lab/tree/{{notebook}}?token={token}"
        except urllib.error.URLError:
            if server.poll() is not None:
                break
            time.sleep(0.5)
    server.kill()
    raise SystemExit(f"JupyterLab did not start:\n{(folder / 'jupyter.log').read_text()}")


def milliseconds(page, cell: int, moves: int) -> list[float]:
    """Move the slider in the output of code cell ``cell`` to and fro, or press its first button, a bit of the
    microscope; the first moves only warm up."""
    output = page.locator(".jp-CodeCell").nth(cell).locator(".jp-OutputArea-output")
    handle = output.locator(".noUi-handle, button.jupyter-button").first
    handle.wait_for(timeout=300_000)  # earlier cells run first
    handle.scroll_into_view_if_needed()
    handle.focus()
    times = []
    for move in range(moves + 3):
        page.wait_for_timeout(150)  # a learner looks before moving on; the last move is finished by then
        handle.evaluate(WATCH)
        button = handle.evaluate("handle => handle.tagName === 'BUTTON'")
        page.keyboard.press("Space" if button else "ArrowRight" if move % 2 else "ArrowLeft")
        times.append(page.evaluate("window.waited"))
    return times[3:]


def measure(moves: int) -> Iterator[list[float]]:
    """The times of one widget after the other, in a notebook that is made for this."""
    sources = [SETUP, *(cell for *_, cell in WIDGETS)]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source.strip()) for source in sources])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        nbformat.write(notebook, folder / "widgets.ipynb")
        server, address = start_jupyter(folder)
        try:
            with sync_playwright() as playwright:
                chromium = os.environ.get("CHROMIUM", "/usr/bin/chromium")
                browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
                page = browser.new_page(viewport={"width": 1280, "height": 1000})
                page.goto(address.format(notebook="widgets.ipynb"))
                page.locator(".jp-CodeCell").first.wait_for(timeout=300_000)
                page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.ready")
                page.evaluate("() => void window.jupyterapp.commands.execute('notebook:run-all-cells')")
                for i in range(1, len(sources)):
                    yield milliseconds(page, i, moves)
        finally:
            server.terminate()
            server.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--moves", type=int, default=30, help="how often each slider is moved (default: %(default)s)")
    moves = parser.parse_args().moves
    print(
        f"{os.cpu_count()} cores, torch {torch.__version__}, load {os.getloadavg()[0]:.1f} at the start, {moves} moves"
    )
    print(f"{'widget':32} {'of':20} {'median':>8} {'p90':>8} {'bound':>7}")
    for (name, layer, bound, _), times in zip(WIDGETS, measure(moves)):
        median, p90 = statistics.median(times), statistics.quantiles(times, n=10)[-1]
        verdict = "" if median <= bound else "  over"
        print(f"{name:32} {layer:20} {median:5.0f} ms {p90:5.0f} ms {bound:4} ms{verdict}", flush=True)


if __name__ == "__main__":
    main()

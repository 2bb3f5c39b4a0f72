"""The sdist and the wheel, for people who have no clone: they install, they run, and their tests pass.

The wheel is built from the unpacked sdist, so the sdist holds everything that is needed. The wheel is installed without
its requirements into an environment that sees the packages of this one. Nothing is downloaded, and everything runs
outside the repository.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import nbformat
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
# A few quick tests: arithmetic, and the course with its files.
TESTS = [
    "tests/core/test_packing.py",
    "tests/course/test_glossary.py",
    "tests/course/workspace/test_answers.py",
    "tests/course/workspace/test_workspace.py",
]


def run(*command, folder: Path, status: int = 0) -> str:
    """Run a command outside of the repository; returns its output."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == status, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    """The unpacked sdist."""
    folder = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder, folder=ROOT)
    with tarfile.open(folder / f"qtutor-{VERSION}.tar.gz") as tar:
        tar.extractall(folder, filter="data")
    return folder / f"qtutor-{VERSION}"


@pytest.fixture(scope="module")
def wheel(sdist) -> Path:
    folder = sdist.parent / "built"
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, folder=sdist)
    return folder / f"qtutor-{VERSION}-py3-none-any.whl"


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory) -> Path:
    """The Python of an environment that has the wheel, and sees the packages of the environment that runs the tests."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", folder, folder=folder.parent)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    run(
        sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, folder=ROOT.parent
    )
    packages = Path(torch.__file__).parents[1]  # its editable qtutor is a .pth file, which is not read
    own = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", folder=folder).strip()
    (Path(own) / "parent.pth").write_text(f"{packages}\n")
    return python


@pytest.fixture
def qtutor(python, tmp_path):
    """A function qtutor(...) that runs the installed command in an empty folder."""
    command = python.with_name("qtutor" + python.suffix)
    return lambda *arguments, **how: run(command, *arguments, folder=tmp_path, **how)


def test_the_sdist_has_what_is_committed_and_nothing_that_was_built(sdist):
    committed = run("git", "ls-files", folder=ROOT).splitlines() if (ROOT / ".git").exists() else []
    missing = [name for name in committed if not (sdist / name).exists()]
    assert missing == []
    names = {path.relative_to(sdist).as_posix() for path in sdist.rglob("*") if path.is_file()}
    assert names - set(committed) <= {"PKG-INFO"} or not committed
    assert not any("_build/" in name or "__pycache__" in name for name in names)


def test_the_wheel_has_the_package_and_the_chapters_and_no_tests(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    chapters = {f"qtutor/course/notebooks/{path.name}" for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert chapters and chapters <= names
    assert {"qtutor/course/glossary/terms.toml", "qtutor/decoder/weights/model.safetensors"} <= names
    assert {name.split("/")[0] for name in names} == {"qtutor", f"qtutor-{VERSION}.dist-info"}
    assert wheel.stat().st_size < 20e6


def test_the_installed_one_is_the_wheel(python, tmp_path):
    where = run(python, "-c", "import qtutor; print(qtutor.__file__)", folder=tmp_path).strip()
    assert Path(where).is_relative_to(python.parents[1])


def test_the_command_says_its_version_helps_and_looks_at_the_embedded_decoder(qtutor):
    assert qtutor("--version") == f"qtutor {VERSION}\n"
    assert "commands" in qtutor("--help") and "--format" in qtutor("quantize", "--help")
    assert "model.layers.0.mlp.down_proj" in qtutor("inspect", "embedded")


def test_a_workspace_is_made_and_without_jupyterlab_it_says_so(python, tmp_path):
    program = (
        "import sys; sys.modules['jupyterlab'] = None; from qtutor.cli import main; sys.exit(main(['learn', 'mine']))"
    )
    said = run(python, "-c", program, folder=tmp_path, status=2)
    assert "00_start_here.ipynb" in said and "JupyterLab is not installed" in said
    assert "raise NotImplementedError" in (tmp_path / "mine" / "02_round_to_nearest.ipynb").read_text()
    assert (tmp_path / "mine" / "glossary.ipynb").is_file()


def test_some_tests_of_the_sdist_pass_on_the_installed_package(sdist, python):
    shutil.move(sdist / "qtutor", sdist / "not-the-installed-one")
    try:
        said = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS, folder=sdist)
    finally:
        shutil.move(sdist / "not-the-installed-one", sdist / "qtutor")
    assert " passed" in said and "skipped" not in said.splitlines()[-1]


NOTEBOOK = """
import sys
import nbformat
from nbclient import NotebookClient

notebook = nbformat.read(sys.argv[1], 4)
NotebookClient(notebook, kernel_name="python3", timeout=120, resources={"metadata": {"path": "."}}).execute()
nbformat.write(notebook, sys.argv[2])
"""


def test_a_chapter_runs_in_an_empty_folder_and_says_where_answers_are_kept(python, sdist, tmp_path):
    """Without JupyterLab and without a workspace. So a chapter also runs in Colab, Kaggle and VS Code."""
    here = tmp_path / "empty"
    here.mkdir()
    # The kernel of this environment, so that it imports the wheel.
    kernel = tmp_path / "share" / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    command = f'["{python}", "-m", "ipykernel_launcher", "-f", "{{connection_file}}"]'
    (kernel / "kernel.json").write_text(f'{{"argv": {command}, "display_name": "Python 3", "language": "python"}}')
    chapter, out = sdist / "notebooks" / "01_numbers.ipynb", tmp_path / "out.ipynb"
    os.environ["JUPYTER_PATH"] = str(tmp_path / "share" / "jupyter")
    try:
        run(python, "-c", NOTEBOOK, chapter, out, folder=here)
    finally:
        del os.environ["JUPYTER_PATH"]
    said = "".join(
        str(output.get("text", "")) for cell in nbformat.read(out, 4).cells for output in cell.get("outputs", [])
    )
    assert said.count(": right on all") == 3 and "not right yet" not in said
    assert said.count("is not in a workspace. 'qtutor learn --no-start' makes one") == said.count(": right on all")
    assert list(here.iterdir()) == []

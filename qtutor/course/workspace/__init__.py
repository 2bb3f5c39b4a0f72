"""The learner's folder: chapters, with stubs in place of solutions, and the glossary that they link to.

A learner's work is never overwritten.

`FOLDER/.qtutor.json` stores the hash of each chapter as it was delivered. When the course is newer than the folder,
these hashes distinguish three cases:

    the learner did not change the chapter     the new version replaces it
    the learner changed it, the course did not it stays
    both changed it                            it stays, and the new version is put beside it as NN_name.new.ipynb

A chapter that the learner deleted comes back. Left out: merging two notebooks. The folder `mine/` beside the chapters
holds the learner's answers that passed (:mod:`qtutor.course.workspace.answers`).

`start` then runs JupyterLab with the first chapter open, on this machine only, protected by JupyterLab's token.
"""

import hashlib
import json
import os
import platform
import subprocess
import sys
import webbrowser
from dataclasses import dataclass, field
from pathlib import Path

from qtutor.course import glossary
from qtutor.course.workspace.stubs import learner_version
from qtutor.errors import QtutorError
from qtutor.files import as_qtutor_error, written_beside

DEFAULT_FOLDER = "qtutor-course"
RECORD = ".qtutor.json"
LANGUAGE_INFO = {
    "codemirror_mode": {"name": "ipython", "version": 3},
    "file_extension": ".py",
    "mimetype": "text/x-python",
    "name": "python",
    "nbconvert_exporter": "python",
    "pygments_lexer": "ipython3",
    "version": platform.python_version(),
}


@dataclass
class Report:
    """What `make` did, as lists of file names. `print(report)` shows it to the learner."""

    folder: Path
    added: list[str] = field(default_factory=list)
    updated: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    beside: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"Your workspace: {self.folder}"]
        said = [
            ("new chapters", self.added),
            ("updated (you had not changed them)", self.updated),
            ("yours, kept as they are", self.kept),
            ("changed by you and by the course, so the course's new version is saved beside yours", self.beside),
        ]
        lines += [f"  {what}: {', '.join(names)}" for what, names in said if names]
        if len(lines) == 1:
            lines.append("  nothing has changed since the last time")
        return "\n".join(lines)


def chapters_folder() -> Path:
    """The folder of the course's chapters: inside an installed wheel, or in the repository of an editable install."""
    here = Path(__file__).resolve().parents[1]
    for folder in (here / "notebooks", here.parents[1] / "notebooks"):
        if any(folder.glob("*.ipynb")):
            return folder
    raise QtutorError(
        f"No chapters were found, neither in {here / 'notebooks'} nor in {here.parents[1] / 'notebooks'}. "
        "The installation is incomplete: install qtutor again."
    )


def make(folder: str | Path = DEFAULT_FOLDER, source: str | Path | None = None) -> Report:
    """Copy the chapters into `folder`, or bring it up to date, by the rules at the top of this file.

    source: a folder with chapters that are not the course's; the glossary does not know them.
    """
    own, source = source is None, Path(source) if source else chapters_folder()
    folder = Path(folder).expanduser().resolve()
    if folder == source.resolve():
        raise QtutorError(f"{folder} holds the course's own chapters; choose another folder for your workspace.")
    if folder.exists() and not folder.is_dir():
        raise QtutorError(f"{folder} is a file, and the workspace has to be a folder: choose another name.")
    with as_qtutor_error(folder):
        folder.mkdir(parents=True, exist_ok=True)

    delivered = _read_record(folder)
    report = Report(folder)
    titles = {}
    for chapter in sorted(source.glob("*.ipynb")):
        content, titles[chapter.name] = _learner_copy(chapter, links=own)
        _deliver(chapter.name, content, folder, delivered, report)
        # Write it after every chapter: if a kill came in between, our own copy would look like a learner's work.
        write_beside(folder / RECORD, json.dumps({"delivered": delivered}, indent=1).encode())
    if own:
        _deliver(glossary.PAGE, _as_file(glossary.page_as_notebook(titles)), folder, delivered, report)
        write_beside(folder / RECORD, json.dumps({"delivered": delivered}, indent=1).encode())
    return report


def _learner_copy(chapter: Path, links: bool) -> tuple[bytes, str]:
    """(a chapter as it is delivered, its title): with stubs, without outputs. links: add links to the glossary."""
    try:
        notebook = json.loads(chapter.read_text(encoding="utf-8"))
        learners = learner_version(notebook, name=chapter.name)
        if links:
            learners = glossary.linked(learners, chapter.name)
        return _as_file(learners), glossary.title_of(notebook)
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, QtutorError):
            raise
        raise QtutorError(
            f"{chapter} is not a notebook ({error!r}): the installation is damaged. Install qtutor again."
        ) from None


def _as_file(notebook: dict) -> bytes:
    """The bytes of a notebook's file, the same for the same notebook."""
    # JupyterLab would add this as soon as the notebook is opened, and then it would count as changed.
    notebook.setdefault("metadata", {})["language_info"] = LANGUAGE_INFO
    return (json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n").encode()


def find(start: str | Path | None = None) -> Path | None:
    """The workspace around ``start`` (default: the current folder): the nearest folder upwards with a record, or
    ``None``. The folder of the course's own chapters never counts as a workspace.
    """
    here = Path(start or Path.cwd()).expanduser().resolve()
    found = next((folder for folder in (here, *here.parents) if (folder / RECORD).is_file()), None)
    return None if found and here == chapters_folder().resolve() else found


def of_another(*paths: Path) -> str:
    """A sentence that names the first of ``paths`` that another user owns, or ``""``. If so, nothing there may be run.

    The search for a workspace goes upwards, also through folders where everybody may write. Another user's record in
    such a folder must not make that user's code run here. Windows has no such owners.
    """
    if not hasattr(os, "geteuid"):
        return ""
    for path in paths:
        owner = path.stat().st_uid
        if owner != os.geteuid():
            return (
                f"{path} belongs to another user (number {owner}, and you are {os.geteuid()}), so nothing in this "
                "workspace is run or kept. Make one of your own with 'qtutor learn FOLDER' and work there."
            )
    return ""


def _deliver(name: str, content: bytes, folder: Path, delivered: dict[str, str], report: Report) -> None:
    """Bring one chapter into the folder, and write the hash of the course's version to `delivered`."""
    mine, new = folder / name, _digest(content)
    if not mine.exists():
        write_beside(mine, content)
        report.added.append(name)
    else:
        present = _digest(mine.read_bytes())
        if present == new:
            report.unchanged.append(name)
        elif present == delivered.get(name):
            write_beside(mine, content)
            report.updated.append(name)
        elif delivered.get(name) == new:
            report.kept.append(name)
        else:
            # Both changed, or the record is lost. Then every difference counts as the learner's work.
            beside = _free_name(mine, new)
            write_beside(beside, content)
            report.beside.append(beside.name)
    delivered[name] = new


def _free_name(chapter: Path, new: str) -> Path:
    """NN_name.new.ipynb, or .new2 ... because the learner may already work in an earlier one."""
    for number in range(1, 1000):
        beside = chapter.with_name(f"{chapter.stem}.new{'' if number == 1 else number}.ipynb")
        if not beside.exists() or _digest(beside.read_bytes()) == new:
            return beside
    raise QtutorError(f"{chapter.parent} holds 999 versions of {chapter.name}; delete those that you do not need.")


def _read_record(folder: Path) -> dict[str, str]:
    """The hashes of the delivered chapters; {} for a new folder or a record that cannot be read."""
    try:
        delivered = json.loads((folder / RECORD).read_text())["delivered"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # this loses nothing: unknown chapters count as changed by the learner
    return delivered if isinstance(delivered, dict) else {}


def write_beside(path: Path, content: bytes) -> None:
    """Write a file whole or not at all. Raises :class:`QtutorError` if it cannot be written."""
    with as_qtutor_error(path), written_beside(path) as new:
        new.write_bytes(content)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def start(folder: str | Path, browser: bool = True) -> int:
    """Run JupyterLab in `folder` until it is stopped; it prints the address with the token."""
    try:
        import jupyterlab  # noqa: F401
    except ImportError:
        raise QtutorError(
            "JupyterLab is not installed in this Python, so the chapters cannot be opened from here. Install it with "
            f"'{sys.executable} -m pip install jupyterlab', or open the notebooks in {folder} with another program."
        ) from None
    command = jupyter_command(
        Path(folder), browser and has_browser(), is_root=hasattr(os, "geteuid") and os.geteuid() == 0
    )
    # The course needs no network: course/jupyter/labconfig switches off the news and the search for a newer JupyterLab.
    quiet = [str(Path(__file__).parents[1] / "jupyter"), os.environ.get("JUPYTER_CONFIG_PATH", "")]
    os.environ["JUPYTER_CONFIG_PATH"] = os.pathsep.join(filter(None, quiet))
    print("Starting JupyterLab; open the address with the token that it prints. Ctrl-C twice stops it.", flush=True)
    if os.name == "posix":
        os.execv(command[0], command)  # this process becomes JupyterLab, so Ctrl-C and kill reach JupyterLab alone
    return subprocess.call(command)


def jupyter_command(folder: Path, browser: bool, is_root: bool) -> list[str]:
    """The command that runs JupyterLab in ``folder``, on this machine only, with the first chapter open."""
    first = min((chapter.name for chapter in folder.glob("*.ipynb")), default="")
    command = [sys.executable, "-m", "jupyterlab", "--ip=127.0.0.1", f"--ServerApp.root_dir={folder}"]
    command.append(f"--LabApp.default_url=/lab/tree/{first}")
    if not browser:
        command.append("--no-browser")
    if is_root:
        command.append("--allow-root")  # otherwise JupyterLab refuses root, which many containers use
    return command


def has_browser() -> bool:
    """Whether a graphical browser can be opened. A browser in the terminal would cover JupyterLab's own output."""
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return False
    try:
        webbrowser.get()
    except webbrowser.Error:
        return False
    return True

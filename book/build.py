"""Build the chapters as a static site in book/_build/html: `make book`, or python book/build.py.

1. The script that draws formulas comes out of an npm package, pinned by version and sha512, and stays in
   book/_build/npm. The package is not installed and none of its code runs here.
2. Every chapter is written into book/_build/source as a learner gets it: stubs, solutions folded beneath them, words
   linked to the glossary. The index gets its list of chapters from their titles.
3. Sphinx builds them, warnings as errors. Stored outputs are shown; nothing is executed.

The site asks no other machine for anything: it can be copied anywhere, and read from the disk too. Files are written
only when their content changes, so a second build takes seconds.
"""

import base64
import hashlib
import re
import shutil
import subprocess
import sys
import tarfile
import textwrap
from dataclasses import dataclass
from pathlib import Path

import nbformat

from qtutor.course import glossary
from qtutor.course.workspace.stubs import learner_version
from qtutor.errors import QtutorError

BOOK = Path(__file__).resolve().parent
BUILD = BOOK / "_build"
CHAPTERS = BOOK.parent / "notebooks"
LIST_OF_CHAPTERS = "<!-- the list of chapters -->"
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


@dataclass(frozen=True)
class Asset:
    """One file out of one npm package, and the sha512 (base64, as npm prints it) of the package's archive."""

    package: str
    version: str
    path: str
    sha512: str

    @property
    def archive(self) -> str:
        return f"{self.package.lstrip('@').replace('/', '-')}-{self.version}.tgz"  # the name that npm pack gives


ASSETS = (
    Asset(
        "mathjax",
        "3.2.2",
        "es5/tex-svg-full.js",  # draws formulas as SVG, so it brings its fonts along and loads nothing later
        "Bt+SSVU8eBG27zChVewOicYs7Xsdt40qm4+UpHyX7k0/O9NliPc+x77k1/FEsPsjKPZGJvtRZM1vO+geW0OhGw==",
    ),
)


def fetch(asset: Asset, cache: Path) -> bytes:
    """The content of the asset's file; npm is asked only where the right archive is not in ``cache`` yet."""
    archive = cache / asset.archive
    if not archive.exists() or _sha512(archive) != asset.sha512:
        cache.mkdir(parents=True, exist_ok=True)
        _npm_pack(asset, cache)
        if _sha512(archive) != asset.sha512:
            found = _sha512(archive)
            archive.unlink()
            raise QtutorError(
                f"npm delivered {asset.package} {asset.version} with sha512 {found}, and book/build.py expects "
                f"{asset.sha512}. Somebody changed the package on the way or at its source: do not use it before that "
                "is understood."
            )
    with tarfile.open(archive) as tar:
        return tar.extractfile(f"package/{asset.path}").read()


def _npm_pack(asset: Asset, cache: Path) -> None:
    """Let npm put the archive into ``cache``; its own cache serves where the network does not."""
    wanted = f"{asset.package}@{asset.version}"
    advice = (
        f"The book needs {len(ASSETS)} file out of an npm package the first time it is built, and keeps it in "
        f"{cache}. Formulas would stay unreadable without them, so there is no book without them."
    )
    npm = shutil.which("npm")
    if npm is None:
        raise QtutorError(
            f"npm was not found. {advice} Install npm (on Debian and Ubuntu: apt install npm) and call make book again."
        )
    command = [npm, "pack", wanted, "--ignore-scripts", "--prefer-offline", "--pack-destination", str(cache)]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=cache)
    except subprocess.TimeoutExpired:
        raise QtutorError(f"npm did not deliver {wanted} within 5 minutes. {advice} Check the network.") from None
    if result.returncode != 0 or not (cache / asset.archive).exists():
        said = next((line for line in result.stderr.splitlines() if "error" in line), "nothing").strip()
        raise QtutorError(
            f"npm could not deliver {wanted}; it said: {said[:200]}. {advice} Check the network and npm's own "
            "configuration (npm config list), then call make book again."
        )


def _sha512(path: Path) -> str:
    return base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode() if path.exists() else "of no file"


def chapter_for_the_book(notebook: nbformat.NotebookNode, name: str) -> nbformat.NotebookNode:
    """What a learner gets, with the stored outputs, less the live widgets whose state was not stored.

    Such a widget has no kernel to draw it and would be an empty place; where its output holds HTML too (precomputed
    frames), that is what the page shows.
    """
    chapter = learner_version(notebook, keep_outputs=True, name=name)
    chapter = glossary.linked(chapter, name, target="glossary.md", lower=True)
    if "widgets" in chapter.metadata:
        return chapter
    for cell in chapter.cells:
        for output in cell.get("outputs", []):
            if output.get("data", {}).pop(WIDGET_VIEW, None) and "text/html" not in output.data:
                output.data.clear()
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if output.get("data") != {}]
    return chapter


def title_and_question(notebook: nbformat.NotebookNode) -> tuple[str, str]:
    """The chapter's title, and the first paragraph beneath it up to its last question mark (all of it without one)."""
    rest = notebook.cells[0].source.partition("\n")[2]
    paragraph = " ".join(rest.strip().split("\n\n")[0].split()).replace("**The question.**", "").strip()
    asked = re.match(r".*\?\*?", paragraph)
    return glossary.title_of(notebook), asked[0] if asked else paragraph


def write_source(folder: Path) -> list[str]:
    """Write index and chapters, remove chapters that are no more, and return the chapters' names."""
    folder.mkdir(parents=True, exist_ok=True)
    masters = sorted(CHAPTERS.glob("*.ipynb"))
    entries, tree, titles = [], [], {}
    for path in masters:
        notebook = nbformat.read(path, 4)
        title, question = title_and_question(notebook)
        titles[path.name] = title
        entries.append(f"[**{title}**]({path.name})\n: {question}\n")
        tree.append(path.stem)
        write_if_new(folder / path.name, nbformat.writes(chapter_for_the_book(notebook, path.name)).encode())
    contents = "\n".join([*entries, "```{toctree}", ":hidden:", "", *tree, "glossary", "```", ""])
    index = (BOOK / "index.md").read_text()
    if LIST_OF_CHAPTERS not in index:
        raise QtutorError(f"book/index.md has no line {LIST_OF_CHAPTERS!r}, where the list of chapters goes: add it.")
    write_if_new(folder / "index.md", index.replace(LIST_OF_CHAPTERS, contents).encode())
    write_if_new(folder / "glossary.md", glossary.page(titles).encode())
    for old in folder.glob("*.ipynb"):
        if old.stem not in tree:
            old.unlink()
    return tree


def write_if_new(path: Path, content: bytes) -> None:
    if not path.exists() or path.read_bytes() != content:
        path.write_bytes(content)


def sphinx(source: Path, out: Path) -> int:
    """Build ``source`` into ``out``; the exit status, not 0 for any warning either."""
    doctrees = out.with_name(f"{out.name}-doctrees")
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-W", "-q", "-j", "auto"]
    status = subprocess.call([*command, "-c", str(BOOK), "-d", str(doctrees), str(source), str(out)])
    if status:
        # A page that was read once is not read again, and its warnings would be gone with the next build.
        shutil.rmtree(doctrees, ignore_errors=True)
    return status


def main() -> int:
    try:
        for asset in ASSETS:
            content = fetch(asset, BUILD / "npm")
            (BUILD / "assets").mkdir(exist_ok=True)
            write_if_new(BUILD / "assets" / Path(asset.path).name, content)
        chapters = write_source(BUILD / "source")
    except QtutorError as error:
        message = textwrap.fill(f"qtutor: {error}", 100, break_long_words=False, break_on_hyphens=False)
        print("\n" + message, file=sys.stderr)
        return 1
    status = sphinx(BUILD / "source", BUILD / "html")
    if status == 0:
        print(f"The book has {len(chapters)} chapters; open {BUILD / 'html' / 'index.html'}")
    return status


if __name__ == "__main__":
    sys.exit(main())

"""Build the chapters as a static site in book/_build/html: `make book`, or python book/build.py.

1. The script that draws formulas is taken from an npm package, pinned by version and sha512, and stays in
   book/_build/npm. The package is not installed and none of its code runs here.
2. Every chapter is written into book/_build/source as a learner gets it: stubs, solutions folded beneath them, words
   linked to the glossary. The first page gets its picture, its list of chapters and its tables.
3. Sphinx builds the pages, with warnings as errors. Stored outputs are shown; nothing is executed.

The site loads nothing from other machines: it can be copied anywhere, and can be read from the disk, too. Files are
written only if their content has changed, so a second build takes seconds.
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

import chapters
import nbformat

from benchmarks import pages
from qtutor.course import glossary
from qtutor.course.workspace.stubs import learner_version
from qtutor.errors import QtutorError

BOOK = Path(__file__).resolve().parent
BUILD = BOOK / "_build"
PICTURES = BOOK / "pictures"
LIST_OF_CHAPTERS, PICTURE = "<!-- the list of chapters -->", "<!-- the picture -->"
PAGES = ("glossary", "tool", "teaching")  # after the chapters
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


@dataclass(frozen=True)
class Asset:
    """One file of an npm package, and the sha512 (base64, as npm prints it) of the package's archive."""

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
        "es5/tex-svg-full.js",  # draws formulas as SVG: contains its fonts and loads nothing later
        "Bt+SSVU8eBG27zChVewOicYs7Xsdt40qm4+UpHyX7k0/O9NliPc+x77k1/FEsPsjKPZGJvtRZM1vO+geW0OhGw==",
    ),
)


def fetch(asset: Asset, cache: Path) -> bytes:
    """The content of the asset's file; npm is only called if the right archive is not in ``cache`` yet."""
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
    """Let npm put the archive into ``cache``; without network, npm uses its own cache."""
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
    """The learner's version with the stored outputs, without live widgets whose state was not stored.

    No kernel draws such a widget here, so its place would be empty. If its output also holds HTML (precomputed frames),
    the page shows the HTML.
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


def write_source(folder: Path) -> list[str]:
    """Write all pages, remove chapters that no longer exist, and return the chapters' names."""
    folder.mkdir(parents=True, exist_ok=True)
    known = chapters.all_chapters()
    for chapter in known:
        notebook = nbformat.read(chapters.NOTEBOOKS / chapter.file, 4)
        content = nbformat.writes(chapter_for_the_book(notebook, chapter.file))
        write_if_new(folder / chapter.file, content.encode())
    tree = [chapter.file.removesuffix(".ipynb") for chapter in known]
    write_if_new(folder / "index.md", index(known, [*tree, *PAGES]).encode())
    titles = {chapter.file: chapter.title for chapter in known}
    write_if_new(folder / "glossary.md", glossary.page(titles).encode())
    for name in ("tool", "teaching"):
        write_if_new(folder / f"{name}.md", (BOOK / f"{name}.md").read_bytes())
    for old in folder.glob("*.ipynb"):
        if old.stem not in tree:
            old.unlink()
    return tree


def index(known: list[chapters.Chapter], tree: list[str]) -> str:
    """The first page: book/index.md with its picture, its list of chapters and its tables."""
    text = (BOOK / "index.md").read_text(encoding="utf-8")
    contents = "\n".join([chapters.as_list(known), "```{toctree}", ":hidden:", "", *tree, "```", ""])
    parts = {LIST_OF_CHAPTERS: contents, PICTURE: panels_of(PICTURES / "widths.svg")}
    for name in ("decoder_sensitivity", "methods"):
        parts[f"<!-- results: {name} -->"] = pages.read(chapters.README, name) + "\n"
    for marker, content in parts.items():
        if marker not in text:
            raise QtutorError(f"book/index.md has no line {marker!r}, where something is put in: add it.")
        text = text.replace(marker, content)
    return text


def panels_of(picture: Path) -> str:
    """The panels of a picture as HTML, each as its own SVG, so that they are beneath each other on a phone."""
    panels = re.findall(r'<svg class="panel".*?</svg>', picture.read_text(encoding="utf-8"), re.DOTALL)
    if not panels:
        raise QtutorError(f"{picture} has no panels: python book/picture.py draws it anew.")
    placed = [re.sub(r' x="\d+" y="\d+" width="\d+" height="\d+"', "", panel, count=1) for panel in panels]
    return "```{raw} html\n" + "\n".join(['<div class="qtutor-panels">', *placed, "</div>"]) + "\n```"


def write_if_new(path: Path, content: bytes) -> None:
    if not path.exists() or path.read_bytes() != content:
        path.write_bytes(content)


def sphinx(source: Path, out: Path) -> int:
    """Build ``source`` into ``out``; returns the exit status, which is not 0 after any warning."""
    doctrees = out.with_name(f"{out.name}-doctrees")
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-W", "-q", "-j", "auto"]
    status = subprocess.call([*command, "-c", str(BOOK), "-d", str(doctrees), str(source), str(out)])
    if status:
        # Sphinx does not read an unchanged page again, so the next build would not repeat its warnings.
        shutil.rmtree(doctrees, ignore_errors=True)
    return status


def main() -> int:
    try:
        for asset in ASSETS:
            content = fetch(asset, BUILD / "npm")
            (BUILD / "assets").mkdir(exist_ok=True)
            write_if_new(BUILD / "assets" / Path(asset.path).name, content)
        names = write_source(BUILD / "source")
    except QtutorError as error:
        message = textwrap.fill(f"qtutor: {error}", 100, break_long_words=False, break_on_hyphens=False)
        print("\n" + message, file=sys.stderr)
        return 1
    status = sphinx(BUILD / "source", BUILD / "html")
    if status == 0:
        print(f"The book has {len(names)} chapters; open {BUILD / 'html' / 'index.html'}")
    return status


if __name__ == "__main__":
    sys.exit(main())

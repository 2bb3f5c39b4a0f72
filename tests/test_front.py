"""First pages: README, picture, teacher's page and citation are right, and agree with each other."""

import re
import sys
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import nbformat
import numpy as np
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

sys.path[:0] = [str(ROOT / "book"), str(ROOT / "benchmarks")]
import chapters  # noqa: E402
import pages  # noqa: E402
import parts  # noqa: E402

MODEL_CARD = ROOT / "qtutor" / "decoder" / "weights" / "README.md"
METHODS = ROOT / "benchmarks" / "methods.md"


def test_the_readmes_tables_are_excerpts_of_the_whole_ones():
    whole = pages.read(MODEL_CARD, "decoder_sensitivity")
    assert pages.read(ROOT / "README.md", "decoder_sensitivity") == pages.short_sensitivity(whole)
    assert pages.read(ROOT / "README.md", "methods") == pages.short_methods(pages.read(METHODS, "methods"))
    assert len(pages.rows_of(pages.short_methods(pages.read(METHODS, "methods")))) == 6


def test_a_table_is_replaced_between_its_markers_and_nothing_else(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- x: begin -->\nold\n<!-- x: end -->\nafter\n")
    pages.write(page, "x", "new\nlines")
    assert page.read_text() == "before\n<!-- x: begin -->\nnew\nlines\n<!-- x: end -->\nafter\n"
    assert pages.read(page, "x") == "new\nlines"


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "book/teaching.md", "book/tool.md"])
def test_links_lead_to_files_and_headings(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    for target in targets:
        if target.startswith("https://"):
            continue
        file, _, fragment = target.partition("#")
        path = (ROOT / page).parent / file
        assert path.exists(), target
        headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE) if fragment else []
        assert not fragment or fragment in [heading.lower().replace(" ", "-") for heading in headings], target
    assert page != "README.md" or len(targets) > 20


def test_readme_can_be_read_in_one_go():
    assert len(README.splitlines()) <= 190
    assert all(command in README for command in ("make learn", "make test", "python bootstrap.py", "%pip install"))


def test_every_chapter_has_its_row_and_its_time():
    known = chapters.all_chapters()
    assert [chapter.file for chapter in known] == sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))
    for chapter in known:
        assert chapter.builds and chapter.sees and chapter.question
        assert chapter.minutes >= 20 or chapter.file.startswith("11_")
    text = (ROOT / "book" / "teaching.md").read_text(encoding="utf-8")
    assert chapters.timetable(known) in text, "python book/chapters.py brings book/teaching.md up to date"


def test_a_chapter_without_a_row_is_named(tmp_path, monkeypatch):
    short = tmp_path / "README.md"
    short.write_text(re.sub(r"^\| \[04.*\n", "", README, flags=re.MULTILINE))
    monkeypatch.setattr(chapters, "README", short)
    with pytest.raises(chapters.QtutorError, match=r"no row for notebooks/04_nf4_and_int8\.ipynb"):
        chapters.all_chapters()


def test_the_picture_says_what_the_tables_say():
    picture = ROOT / "book" / "pictures" / "widths.svg"
    assert picture.stat().st_size < 30_000
    spoken = ElementTree.fromstring(picture.read_text(encoding="utf-8")).get("aria-label")
    nearest = {row["weights"]: row for row in pages.rows_of(pages.read(MODEL_CARD, "decoder_sensitivity"))}
    methods = pages.rows_of(pages.read(METHODS, "methods"))
    for bits in (4, 3, 2):
        row = nearest[f"{bits}-bit g64"]
        found = re.search(rf"{bits} bits, ([\d,]+) bytes, KL ([\d.]+) rounded to nearest, ([\d.]+) by GPTQ", spoken)
        assert found[1] == row["bytes"] and float(found[2]) == pytest.approx(float(row["KL"]), abs=0.006)
        same = ("as trained", f"{bits}, groups of 64", "GPTQ with propagation")
        for line in methods:  # its rows for 3 bits have groups of 128, so they do not match
            if (line["decoder"], line["bits"], line["method"]) == same:
                assert float(found[3]) == pytest.approx(float(line["KL"]), abs=0.006)


def test_versions_and_licence_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"] and citation["license"] == PROJECT["license"]
    assert {"cff-version", "message", "title", "authors", "type"} <= citation.keys()
    newest = re.search(r"^## (\S+) \((\S+)\)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest[1] == PROJECT["version"] and newest[2] == str(citation["date-released"])


# --- pictures of several panels ---


def drawn(width: int, height: int, *boxes: tuple[int, int, int, int]) -> np.ndarray:
    """A white picture with grey boxes (left, top, right, bottom)."""
    grey = np.full((height, width), 255, np.uint8)
    for left, top, right, bottom in boxes:
        grey[top:bottom, left:right] = 90
    return grey


def test_two_and_three_panels_are_cut_in_their_gutters():
    assert parts.cuts(drawn(400, 100, (5, 5, 190, 95), (210, 5, 395, 95))) == [200]
    three = drawn(600, 100, (5, 5, 190, 95), (210, 5, 390, 95), (410, 5, 595, 95))
    assert parts.cuts(three) == [200, 400]


def test_a_label_of_an_axis_stays_with_its_panel():
    assert parts.cuts(drawn(400, 100, (5, 5, 180, 95), (196, 30, 204, 70), (216, 5, 395, 95))) == [188]


@pytest.mark.parametrize(
    "picture",
    [
        drawn(400, 100, (5, 5, 395, 95)),
        drawn(400, 100, (5, 5, 197, 95), (202, 5, 395, 95)),  # a gutter as thin as the space between letters
        drawn(400, 100, (5, 5, 290, 95), (310, 5, 395, 95)),  # a wide panel and a narrow one
        drawn(400, 100, (5, 5, 190, 95), (210, 5, 395, 95), (100, 2, 300, 4)),  # a title over both
        drawn(400, 200, (5, 5, 190, 90), (210, 5, 395, 90), (5, 110, 190, 195), (210, 110, 395, 195)),  # two rows
    ],
    ids=["one", "letters", "unequal", "a title over both", "two rows"],
)
def test_other_pictures_stay_whole(picture):
    assert parts.cuts(picture) == []


def test_the_parts_are_the_picture_again(tmp_path):
    from PIL import Image

    whole = drawn(401, 100, (5, 5, 190, 95), (210, 5, 395, 95))
    Image.fromarray(whole).save(tmp_path / "picture.png")
    made = parts.cut(tmp_path / "picture.png")
    assert [path.name for path in made] == ["picture-1.png", "picture-2.png"]
    assert np.array_equal(np.concatenate([np.asarray(Image.open(path)) for path in made], axis=1), whole)


def test_some_of_the_chapters_pictures_have_panels_that_are_cut():
    from base64 import b64decode
    from io import BytesIO

    from PIL import Image

    count = 0
    for cell in nbformat.read(ROOT / "notebooks" / "02_round_to_nearest.ipynb", 4).cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                image = Image.open(BytesIO(b64decode(output.data["image/png"])))
                count += bool(parts.cuts(np.asarray(image.convert("L"))))
    assert count >= 2

"""Blast radius as HTML: it loads nothing from elsewhere, and without scripts a table remains."""

import json
import re

from qtutor.course import bit_flips
from qtutor.course.widgets import blast_radius
from qtutor.course.widgets.blast import COLOURS, FIELDS
from qtutor.course.widgets.frames import LARGEST
from qtutor.gguf import TYPES


def data_of(html: str) -> dict:
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', html, re.DOTALL)[1])


def test_it_brings_all_that_its_script_needs():
    html = blast_radius().html
    data, stored = data_of(html), bit_flips.document()
    assert {key: data[key] for key in ("block", "kl", "texts", "text_of")} == {
        key: stored[key] for key in ("block", "kl", "texts", "text_of")
    }
    assert data["colours"] == list(COLOURS) and data["range"][0] < data["range"][1]
    assert sum(strip["count"] * strip["bits"] for strip in data["strips"]) == bit_flips.BITS
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|<link|<img| src=| id=", html)
    assert len(html) < LARGEST and html == blast_radius().html


def test_every_field_of_the_block_has_its_place():
    html = blast_radius().html
    places = re.findall(r"data-field='(\w+)' data-first='(\d+)' data-last='(\d+)'", html)
    assert [name for name, _, _ in places] == list(FIELDS) == [field.name for field in TYPES["Q4_K"].fields]
    at = 0
    for (_, first, last), field in zip(places, TYPES["Q4_K"].fields):
        assert (int(first), int(last)) == (at, at + field.size - 1)
        at += field.size
    assert at == TYPES["Q4_K"].nbytes


def test_the_table_tells_each_kind_without_a_script():
    html = blast_radius().html
    rows = [re.findall(r"<td[^>]*>([^<]*)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", html)][1:]
    assert [row[:3] for row in rows] == [
        ["d", "16", "256"],
        ["dmin", "16", "256"],
        ["a scale", "48", "32"],
        ["a minimum", "48", "32"],
        ["a code", "1,024", "1"],
    ]
    kl = bit_flips.document()["kl"]
    of_d = sorted(kl[:16])
    assert rows[0][4] == f"{of_d[-1]:.2g}" and float(rows[0][3]) == float(f"{(of_d[7] + of_d[8]) / 2:.1e}")
    assert "<div class='live' hidden>" in html and "need a script" in html


def test_it_is_named_in_plain_text():
    assert "click" in repr(blast_radius())

"""The stored costs of rounded caches are those in the benchmark's table."""

import re
from pathlib import Path

import pytest

from qtutor.course.serving import costs

TABLE = Path(__file__).parents[3] / "benchmarks" / "kv_cache.md"


def test_the_stored_numbers_are_those_of_the_benchmark():
    text = TABLE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+?) \| [\d. ]*\| ([\d.]+) \| ([\d.]+) \|", text.split("## SmolLM2")[1], re.MULTILINE)
    how, stored = costs.stored()
    assert len(rows) == 20
    assert {name: (of.kl, of.error) for name, of in stored.items()} == {n: (float(a), float(b)) for n, a, b in rows}
    assert "kv_cache.py --gptq --source smollm2 --tokens 2048" in how and re.search(r"\d{4}-\d\d-\d\d, torch", how)


def test_the_formats_are_those_of_the_benchmark():
    benchmark = pytest.importorskip("benchmarks.kv_cache")
    assert all(benchmark.formats()[name] == form for name, form in costs.FORMATS.items())


def test_every_format_that_is_measured_has_a_stored_cost():
    assert set(costs.FORMATS) < set(costs.stored()[1])

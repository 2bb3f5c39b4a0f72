"""The committed comparison with llm-compressor and GPTQModel: all rows exist, are consistent, and keep the bound.

benchmarks/peer_quality.py computes the table again in one hour. It needs the environments of both packages.
"""

import itertools
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent / "benchmarks/peers/README.md"
BOUND = 1.02
PEERS = ("llm-compressor", "GPTQModel")
CELLS = set(itertools.product(("embedded", "second"), ("GPTQ", "AWQ"), ("4", "3"), ("64", "128")))


def written() -> str:
    text = PAGE.read_text(encoding="utf-8")
    return text.split("<!-- peer_quality: begin -->")[1].split("<!-- peer_quality: end -->")[0]


def table() -> dict[tuple, dict[str, str]]:
    """(decoder, method, bits, group) -> {head of a column: text}; heads of a peer's columns begin with its name."""
    lines = [line for line in written().splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    heads, _, *rows = rows
    starts = [heads.index(f"{peer}: defaults") for peer in PEERS]
    for peer, start in zip(PEERS, starts):
        heads[start : start + 4] = [f"{peer}: {what}" for what in ("defaults", "best", "with", "ratio")]
    assert all(len(row) == len(heads) for row in rows)
    found = {tuple(row[:4]): dict(zip(heads, row)) for row in rows}
    assert len(found) == len(rows)
    return found


def test_every_cell_is_there():
    assert set(table()) == CELLS
    for (_, method, bits, _), row in table().items():
        offered = [peer for peer in PEERS if row[f"{peer}: defaults"] != "not offered"]
        assert offered == [peer for peer in PEERS if (peer, method, bits) != ("GPTQModel", "AWQ", "3")]


@pytest.mark.parametrize("peer", PEERS)
def test_every_ratio_is_what_the_losses_say_and_within_the_bound(peer):
    for cell, row in table().items():
        if row[f"{peer}: defaults"] == "not offered":
            continue
        ours, default, best, ratio = (
            float(row[head]) for head in ("qtutor", f"{peer}: defaults", f"{peer}: best", f"{peer}: ratio")
        )
        assert 0 < best <= default, cell
        assert (best == default) == (row[f"{peer}: with"] == "defaults"), cell
        # Losses have four digits, so each is off by up to 1 in 2,000. The ratio has three decimals.
        assert abs(ratio - ours / best) <= 1e-3 * ratio + 5e-4, cell
        assert ratio <= BOUND, cell


def test_the_table_says_how_it_was_made():
    for wanted in ("benchmarks/peer_quality.py --write", "llmcompressor 0.14.", "gptqmodel 7.7."):
        assert wanted in written()

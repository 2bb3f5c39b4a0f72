"""Tables on pages: replace a table between its markers, and make the README's short tables from the whole ones.

A script writes its results with :func:`write`. The README's excerpts are made from the whole tables, so the two cannot
differ (tests/test_front.py).
"""

from pathlib import Path

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"


def read(page: Path, name: str) -> str:
    """The text between the markers ``name: begin`` and ``name: end`` of a page."""
    return page.read_text(encoding="utf-8").split(f"<!-- {name}: begin -->\n")[1].split(f"\n<!-- {name}: end -->")[0]


def write(page: Path, name: str, text: str) -> None:
    """Replace the text between the markers ``name: begin`` and ``name: end`` of a page."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    before, rest = page.read_text(encoding="utf-8").split(begin)
    page.write_text(before + begin + text + "\n" + end + rest.split(end)[1], encoding="utf-8")


def rows_of(text: str) -> list[dict[str, str]]:
    """The rows of the first Markdown table in ``text``; each row is a dict by column."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(head, row)) for row in rows]


def table(rows: list[dict[str, str]]) -> str:
    """Rows as a Markdown table."""
    head = list(rows[0])
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row.values()) + " |" for row in rows)])


def short_sensitivity(text: str) -> str:
    """A few rows and columns of the table of ``decoder_sensitivity.py``."""
    kept = ("weights", "bytes", "perplexity", "KL", "flips", "ast", "sum", "logic")
    wanted = ("float", "8-bit g64", "4-bit g64", "3-bit g64", "2-bit g64")
    return table([{name: row[name] for name in kept} for row in rows_of(text) if row["weights"] in wanted])


def short_methods(text: str) -> str:
    """KL of the decoder as it was trained, from ``methods.py``: a row for each method, a column for each width."""
    found: dict[str, dict[str, str]] = {}
    for row in rows_of(text):
        if row["decoder"] == "as trained":
            line = found.setdefault(row["method"], {"KL divergence": row["method"]})
            line[f"{row['bits'].replace(',', ' bits,')}"] = row["KL"]
    return table(list(found.values()))

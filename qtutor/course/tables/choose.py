"""Tables of chapter 12: claims with their verdicts, all models, engines, and the tree."""

from collections.abc import Mapping

from qtutor.course.choose import claims, tree
from qtutor.course.choose.results import NAMES, Model, Stored
from qtutor.course.scores import table
from qtutor.course.tables import say
from qtutor.course.your_model.results import matched_rows
from qtutor.formats.targets import Shape


def verdict(name: str) -> None:
    """The claim in words, and for each decoder its figure and verdict."""
    lines = [f"**The claim.** {claims.find(name).says}."]
    for source, found in claims.judged(name).items():
        told = f"{found.figure}. It **{found.verdict}**." if found else f"{claims.MISSING}."
        lines.append(f"- {NAMES[source]}: {told}")
    say(*lines)


def every_claim() -> None:
    """The same table as in ``benchmarks/claims.md``."""
    table(claims.HEADER, *claims.rows())


def every_model(of: Stored) -> None:
    """Bytes and losses of all models of a decoder, the smallest KL first."""
    say(
        f"**{len(of.models)} models of {NAMES[of.source]}.**" if of.models else f"{NAMES[of.source]}: {claims.MISSING}."
    )
    rows = []
    for m in sorted(of.models.values(), key=lambda m: m.kl):
        spread = f"{m.spread:.4f}" if len(m.draws) > 1 else ""
        rise = f"{m.rise:+.1f} % ± {m.rise_error:.1f}"
        rows.append([m.name, f"{m.nbytes:,}", f"{m.kl:.4f} ± {m.kl_error:.4f}", spread, rise, f"{m.flips:.1%}"])
    table(["model", "bytes", "KL ± standard error", "spread over draws", "perplexity", "flips"], *rows)


def engines(of: Stored, shapes: Mapping[str, Shape]) -> None:
    """For each engine and size, the measured model of least KL that the engine accepts."""
    rows = []
    for target, by_size in tree.best_of_engine(of, shapes).items():
        rows.append([target, *(_told(found) for found in by_size.values())])
    table(["engine", *tree.SIZES], *rows)


def _told(found: tuple[Model, str] | None) -> str:
    if found is None:
        return "-"
    model, form = found
    return f"{model.name} (KL {model.kl:.4f}, {form})"


def branches(of: Stored) -> list[tuple[str, str, str]]:
    """(condition, choice, figure) of each branch whose row is stored, for the picture."""
    found = []
    for branch in tree.BRANCHES:
        model = of.models.get(branch.row)
        if model is not None:
            figure = "KL 0" if model.kl == 0 else f"KL {model.kl:.4f}, {model.nbytes / 1e6:.2f} MB"
            found.append((branch.when, branch.take, figure))
    return found


def tree_table(stores: Mapping[str, Stored]) -> None:
    """The branches, the rows that they point to, and the cost of these rows for each decoder."""
    rows = []
    for branch in tree.BRANCHES:
        cells = []
        for of in stores.values():
            model = of.models.get(branch.row)
            cells.append(claims.MISSING if model is None else f"KL {model.kl:.4f}, {model.nbytes / 1e6:.2f} MB")
        rows.append([branch.when, branch.take, branch.row, branch.why, *cells])
    table(["if", "take", "row", "because", *(NAMES[source] for source in stores)], *rows)


def spread_of_draws(*stores: Stored) -> None:
    """For each decoder, how much the draw of calibration text changes."""
    lines = []
    for of in stores:
        drawn = [m for m in of.models.values() if len(m.draws) > 1]
        if not drawn:
            lines.append(f"- {NAMES[of.source]}: no calibrated model is stored.")
            continue
        most = max(drawn, key=lambda m: m.spread / m.kl)
        lines.append(
            f"- {NAMES[of.source]}: {len(drawn)} models were calibrated, each on {len(most.draws)} draws of text. "
            f"The draw changes KL most in {most.name}: one standard deviation is {most.spread / most.kl:.0%} of it."
        )
    say("**The draws.**", *lines)


def calibration_of_smollm2(bits: int = 3) -> None:
    """Stored for chapter 11: KL on Python after calibration with other text, compared with calibration with Python."""
    kl = {row["calibrated"]: row["kl"] for row in matched_rows() if row["bits"] == bits and row["measured"] == "Python"}
    told = {"prose": "with English prose", "built-in": "with the built-in text (half of each)", "none": "with no text"}
    parts = ", ".join(f"{words} {kl[name] / kl['Python']:.2f} times" for name, words in told.items())
    say(
        f"SmolLM2, GPTQ at {bits} bits, KL on Python, relative to calibration with Python: {parts}. (Stored for "
        "chapter 11 by `benchmarks/calibration_text.py`.)"
    )

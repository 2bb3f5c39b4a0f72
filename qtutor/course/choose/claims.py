"""The claims of chapter 12 and the results: a figure and a verdict for each decoder, computed from stored numbers.

A verdict has margins: a number within two standard errors of a bound, or within five per cent of another number, counts
as about the same. So a verdict is the same on every machine, until the measured numbers change.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from qtutor.course.choose.answers import arithmetic_kept, exact_and_others
from qtutor.course.choose.candidates import AT_FOUR_BITS
from qtutor.course.choose.results import EMBEDDED, NAMES, SMOLLM2, Stored, stored
from qtutor.course.scores import as_markdown
from qtutor.course.tables import SAME

HOLDS, PARTLY, FAILS = "holds", "holds in part", "does not hold"
MISSING = "not measured"


@dataclass(frozen=True)
class Judged:
    """The result for one decoder: the figure, and one of the three verdicts."""

    figure: str
    verdict: str


@dataclass(frozen=True)
class Claim:
    """A claim that people make, and the function that judges it; it returns ``None`` if the numbers are missing."""

    name: str
    says: str
    judge: Callable[[Stored], Judged | None]


def six_percent(of: Stored) -> Judged | None:
    """How far perplexity rises with each method at 4 bits; within two standard errors of 6 % it is too close to say."""
    found = of.listed(AT_FOUR_BITS)
    if not found:
        return None
    over = [m for m in found if m.rise - 2 * m.rise_error > 6]
    near = [m for m in found if m not in over and m.rise + 2 * m.rise_error > 6]
    best, worst = min(found, key=lambda m: m.rise), max(found, key=lambda m: m.rise)
    figure = (
        f"{len(found)} methods: perplexity rises by {best.rise:.1f} % ({best.name}) to {worst.rise:.1f} % "
        f"({worst.name}); clearly over 6 %: {len(over)}, too close to say: {len(near)}"
    )
    return Judged(figure, HOLDS if not over + near else FAILS if 2 * len(over) > len(found) else PARTLY)


def smaller(found: dict, size: str = "64") -> tuple[float, float]:
    """How many times smaller 4-bit layers are than 16-bit ones, and how many times smaller the whole model is."""
    layers = found["groups"][size]
    return 16 / layers["bits"], found["bytes_in_16"] / (found["not_quantized"] + layers["layers"])


def four_times(of: Stored) -> Judged | None:
    """True bits and sizes of layers and of the whole model at 4 bits, groups of 64."""
    found = of.found("four_times")
    if found is None:
        return None
    layers, whole = smaller(found)
    bits = found["groups"]["64"]["bits"]
    figure = f"{bits:.2f} true bits: layers are {layers:.1f} times smaller, the whole model {whole:.1f} times"
    return Judged(figure, HOLDS if whole > 3.8 else PARTLY if layers > 3.5 else FAILS)


def near_zero(of: Stored) -> Judged | None:
    """Shares of weights within one standard deviation and beyond three, compared with a bell curve."""
    found = of.found("near_zero")
    if found is None:
        return None
    figure = (
        f"{found['below_1']:.1%} within one σ (a bell: 68.3%), {found['beyond_3']:.2%} beyond three (a bell: 0.27%), "
        f"the largest at {found['largest']:.0f} σ"
    )
    return Judged(figure, HOLDS if found["below_1"] > 0.65 and found["beyond_6"] < 1e-3 else PARTLY)


def won_back(found: dict) -> dict[str, list[float]]:
    """Way to choose -> the part of the KL that is removed by 1 % of the channels in 16 bits, for each draw."""
    return {way: [1 - kl / found["none"] for kl in kls] for way, kls in found["kept"].items()}


def one_percent(of: Stored) -> Judged | None:
    """The part of the loss that 1 % of the channels in float win back, for each way to choose them."""
    found = of.found("one_percent")
    if found is None:
        return None
    back = won_back(found)
    loud, heavy, luck = back["loudest inputs"][0], back["largest weights"][0], max(back["at random"])
    figure = f"1 % by loudest inputs recovers {loud:.0%}, by largest weights {heavy:.0%}, at random up to {luck:.0%}"
    best = loud > max(heavy, luck) + SAME
    return Judged(figure, HOLDS if best and loud > 0.5 + SAME else PARTLY if best else FAILS)


def super_weight(of: Stored) -> Judged | None:
    """How much perplexity grows without the worst single weight, and without one of the largest weights."""
    found = of.found("super_weight")
    if found is None:
        return None
    worst = max(found["rows"], key=lambda row: row["times"])
    figure = (
        f"of {len(found['rows'])} candidates the worst multiplies perplexity by {worst['times']:.3g} "
        f"(the largest weights: up to {max(found['largest_weights']):.3g})"
    )
    return Judged(figure, HOLDS if worst["times"] > 10 else PARTLY if worst["times"] > 1.5 else FAILS)


def three_quarters(of: Stored) -> Judged | None:
    """How much perplexity rises at 8, 4 and 3 bits."""
    rows = [of.models[name] for name in ("RTN 8", "RTN 4", "RTN 3") if name in of.models]
    if len(rows) < 3:
        return None
    figure = "perplexity rises by " + ", ".join(f"{m.rise:.1f} % at {m.name.split()[-1]} bits" for m in rows)
    _, four, three = rows
    steep = three.rise > 2 * four.rise
    return Judged(figure, HOLDS if steep and four.rise < 10 else PARTLY if steep else FAILS)


def same_algorithm(of: Stored) -> Judged | None:
    """How many tokens flip, and whether the logits equal those of float layers that hold the same numbers."""
    found = of.found("same_algorithm")
    if found is None:
        return None
    row = found["rows"]["RTN 4"]
    flips = f"{of.models['RTN 4'].flips:.0%} of tokens flip; " if "RTN 4" in of.models else ""
    off = found["difference"] / found["of"]
    nearly = "exactly" if off == 0 else f"up to {off:.0e} of the largest"
    figure = (
        f"{flips}half of the texts differ within {math.ceil(row['first_other'] + 0.5)} tokens; logits equal those "
        f"of float layers that hold the same numbers, {nearly}"
    )
    return Judged(figure, HOLDS if off < 1e-3 else FAILS)


def calibration(of: Stored) -> Judged | None:
    """KL with other calibration texts, compared with matched text."""
    found = of.found("calibration")
    if found is None:
        return None
    means = {kind: sum(kls) / len(kls) for kind, kls in found["kinds"].items()}
    matched = means["matched"]
    figure = (
        f"KL relative to matched text: another kind {means['another kind'] / matched:.2f} times, random "
        f"tokens {means['random tokens'] / matched:.2f}, no text {found['none'] / matched:.2f}"
    )
    worse = min(found["kinds"]["random tokens"]) > (1 + SAME) * max(found["kinds"]["matched"])
    return Judged(
        figure, HOLDS if worse and means["another kind"] > (1 + SAME) * matched else PARTLY if worse else FAILS
    )


def perplexity_hides(of: Stored) -> Judged | None:
    """The share of sums that are still right, compared with the share that perplexity suggests."""
    found = {name: arithmetic_kept(of, name) for name in ("RTN 4", "NF4", "RTN 3")}
    if None in found.values():
        return None
    figure = "; ".join(
        f"{name}: {kept:.0%} of the sums are left where perplexity suggests {suggested:.0%}"
        for name, (kept, suggested, _) in found.items()
    )
    below = sum(kept < suggested - 2 * chance for kept, suggested, chance in found.values())
    return Judged(figure, HOLDS if below == len(found) else PARTLY if below else FAILS)


def exact_first(of: Stored) -> Judged | None:
    """How many of the exact answers, and how many of the others, are left at 3 bits."""
    found = exact_and_others(of, "RTN 3")
    if found is None:
        return None
    exact, rest, chance = found
    figure = f"at 3 bits {exact:.0%} of exact answers are left, {rest:.0%} of the others (guessing taken off)"
    return Judged(figure, HOLDS if exact < rest - chance else FAILS if exact > rest + chance else PARTLY)


def fine_tune(of: Stored) -> Judged | None:
    """The codes that a training step changes, and right answers in a new task, trained in the codes or in adapters."""
    found = of.found("fine_tune")
    if found is None:
        return None
    none = [float(rate) for rate, share in found["moved"].items() if share == 0]
    figure = f"a step of {max(none, default=0):g} for every weight moves no code at 4 bits"
    if "ways" in found:
        ways = found["ways"]
        figure += (
            f"; new task right: {ways['inside the codes']['right']:.0%} in the codes, "
            f"{ways['NF4, adapters']['right']:.0%} with adapters beside NF4"
        )
        return Judged(
            figure, HOLDS if ways["NF4, adapters"]["right"] > ways["inside the codes"]["right"] + 0.1 else PARTLY
        )
    return Judged(figure, HOLDS if max(none, default=0) >= 1e-4 else FAILS)


CLAIMS = (
    Claim("six_percent", "At 4 bits every method stays within 6 % of the float perplexity", six_percent),
    Claim("four_times", "4 bits make a file a quarter as large", four_times),
    Claim("near_zero", "Most weights lie near zero, and few are outliers", near_zero),
    Claim("one_percent", "1 % of the channels matter most", one_percent),
    Claim("super_weight", "There is a single weight without which the model is useless", super_weight),
    Claim("three_quarters", "Three quarters of the bits can be removed without a proportional loss", three_quarters),
    Claim("same_algorithm", "It does not change how text is generated, only the numbers", same_algorithm),
    Claim("calibration", "Calibration text matters", calibration),
    Claim("perplexity_hides", "Perplexity hides what tasks show", perplexity_hides),
    Claim("exact_first", "Exact tasks fall first", exact_first),
    Claim("fine_tune", "Do not fine-tune inside the codes, train adapters beside them", fine_tune),
)


def find(name: str) -> Claim:
    """The claim called ``name``."""
    return next(claim for claim in CLAIMS if claim.name == name)


def judged(name: str) -> dict[str, Judged | None]:
    """Decoder -> the result for the claim ``name``."""
    return {source: find(name).judge(stored(source)) for source in (EMBEDDED, SMOLLM2)}


def rows() -> list[list[str]]:
    """The table of all claims, a row each: the claim, and for each decoder the verdict and the figure."""
    table = []
    for claim in CLAIMS:
        cells = [f"**{one.verdict}**: {one.figure}" if one else MISSING for one in judged(claim.name).values()]
        table.append([claim.says, *cells])
    return table


HEADER = ["claim", *NAMES.values()]


def page_table() -> str:
    """The same table as Markdown, for ``benchmarks/claims.md``."""
    return as_markdown(HEADER, *rows())


def in_short() -> str:
    """All verdicts in a few sentences, for the README."""
    told = []
    for source, name in NAMES.items():
        found = {claim.says: claim.judge(stored(source)) for claim in CLAIMS}
        parts = []
        for verdict in (HOLDS, PARTLY, FAILS):
            says = [f'"{one}"' for one, judged in found.items() if judged and judged.verdict == verdict]
            parts += [f"{verdict}: {', '.join(says)}"] if says else []
        missing = sum(judged is None for judged in found.values())
        told.append(f"{name}: {'; '.join(parts)}" + (f"; {missing} not measured" if missing else ""))
    return (
        f"{len(CLAIMS)} claims that people make of quantization, tested in chapter 12 (with figures: "
        f"[claims.md](benchmarks/claims.md)). On {'. On '.join(told)}."
    )

"""Tables of chapter 06, GPTQ."""

from collections.abc import Mapping, Sequence

import torch

from qtutor.course.scores import OTHERS, Score, table
from qtutor.course.tables import alike, beside, deviation, named, say
from qtutor.decoder import tasks

KINDS = len(tasks.ARITHMETIC), len(OTHERS)


def slides(found: Mapping[str, Sequence[tuple[torch.Tensor, float]]]) -> None:
    """Two weights: the nearest point, where the second slides to, and GPTQ's point, each with its output error."""
    rows = []
    for name, ((nearest, off), (slid, least), (rounded, left)) in found.items():
        row = [name, nearest.int().tolist(), f"{off:.3f}", f"{slid[1]:.3f}", f"{least:.3f}"]
        rows.append([*row, rounded.int().tolist(), f"{left:.3f}"])
    table(["inputs", "RTN", "error", "second weight slides to", "error there", "GPTQ", "error"], *rows)


def slips(rows: Sequence[tuple]) -> None:
    """GPTQ and two slips beside RTN; ``rows``: (inputs, bits, share of codes that differ from RTN's, ratios)."""
    header = ["inputs", "bits", "codes that differ from RTN's", "GPTQ: root of the output error over RTN's"]
    table(
        [*header, "wrong sign", "rows of the whole inverse"],
        *[[name, bits, f"{share:.0%}", *(f"{ratio:.2f}" for ratio in of)] for name, bits, share, of in rows],
    )


def correlations(hessians: Mapping[str, torch.Tensor]) -> None:
    """How strongly the inputs of a layer are correlated; ``hessians``: layer -> H, float64 ``[in, in]``."""
    rows = []
    for name, hessian in hessians.items():
        size = hessian.diagonal().sqrt()
        pairs = (hessian / torch.outer(size, size)).abs().fill_diagonal_(0)
        mean = pairs.sum() / (len(hessian) * (len(hessian) - 1))
        left = 1 / (torch.linalg.inv(hessian).diagonal() * hessian.diagonal())
        row = [name, len(hessian), f"{mean:.2f}", f"{pairs.max():.2f}", f"{size.max() / size.median():.1f}"]
        rows.append([*row, f"{left.median():.0%}"])
    header = ["inputs of", "width", "mean correlation (absolute value)", "strongest", "largest input / median"]
    table([*header, "squared error that is left if all others help, median"], *rows)


def dampings(values: Sequence[float], few: Mapping[str, Sequence[float]], many: Mapping[str, Sequence[float]]) -> None:
    """Output errors / RTN's for each damping, calibrated on few and many tokens; the last series is held-out text."""
    rows = [
        [name, where, *(f"{value:.2f}" for value in errors)]
        for name, series in (("128 tokens", few), ("8192 tokens", many))
        for where, errors in series.items()
    ]
    table(["calibrated on", "measured", *(f"{damping:g}" for damping in values)], *rows)
    by_heart, usual = list(few.values())[-1], list(many.values())[-1][values.index(0.01)]
    more = usual < min(by_heart)
    say(
        f"With 128 tokens the error on held-out text is {max(by_heart):.2f} times RTN's with the worst damping, and "
        f"{min(by_heart):.2f} times with the best. With 8192 tokens and the usual 0.01 it is {usual:.2f} times: "
        + ("more text helps more than any damping." if more else "here damping helped as much as more text.")
    )


def orders(layers: Sequence[str], rows: Sequence[tuple]) -> None:
    """Errors by order; ``rows``: (order, static, clip, errors over RTN's of each layer at 3 and 2 bits, step)."""
    header = ["order", "grids fitted", "range", *(f"{layer}, {bits} bits" for layer in layers for bits in (3, 2))]
    table(
        [*header, "mean step over RTN's, the last layer at 2 bits"],
        *[
            [
                order,
                "beforehand (static)" if static else "when reached",
                "whole" if clip == "none" else "clipped",
                *(f"{error:.2f}" for error in errors),
                f"{step:.2f}",
            ]
            for order, static, clip, errors, step in rows
        ],
    )
    say("The numbers under the layers: the root of the output error on held-out text, over RTN's.")


def compensated(found: Mapping[tuple[str, int], tuple[Sequence[float], float]]) -> None:
    """What propagation compensates for; ``found``: (layer, tokens) -> (errors, the part of the way).

    errors: on the calibration text with W and with W'; on held-out text with W, with W', and with weights part of the
    way from W to W'.
    """
    rows, lines = [], {}
    for (layer, tokens), (errors, part) in found.items():
        rows.append([layer, tokens, *(f"{error:.1%}" for error in errors), f"{part:.0%}"])
        _, _, before, whole, some = errors
        took = f"{whole / before - 1:+.0%} ({some / before - 1:+.0%}) with {tokens} tokens"
        lines.setdefault(layer, []).append(took)
    header = ["layer (its weights exact)", "calibration tokens", "on these: error with W", "with W'"]
    table([*header, "on held-out text: with W", "with W'", "with a part of the change", "the part"], *rows)
    say(
        "How W' changes the error on held-out text (in brackets: only a part of the way to W'). A minus is good:",
        *(f"- {layer}: {', '.join(took)}." for layer, took in lines.items()),
    )


def beside_nearest(measured: Mapping[str, Score]) -> None:
    """What follows from :func:`on_text`, and right answers; labels end with their bits, as in ``GPTQ 4``."""
    beside.beside_nearest(measured, _against(measured))


def recovered(measured: Mapping[str, Score], label: str) -> float:
    """The share of RTN's KL, at the same bits, that the method removes in the row ``label``."""
    return beside.recovered(measured, label, _against(measured))


def _against(measured: Mapping[str, Score]) -> dict[str, str]:
    plain = ("float", *(label for label in measured if label.startswith("RTN") and "clipped" not in label))
    return {label: f"RTN {label[-1]}" for label in measured if label not in plain}


def right(score: Score) -> float:
    """The share of right answers, all kinds together."""
    arithmetic, others = KINDS
    return (arithmetic * score.arithmetic + others * score.others) / (arithmetic + others)


def what_it_recovers(measured: Mapping[str, Score], widths: Sequence[int], questions: int) -> None:
    """GPTQ beside clipping alone, what propagation and AWQ's scales add, bits with fewer right answers, and chance."""
    shares = {
        label: ", ".join(f"{recovered(measured, f'{label} {bits}'):.0%} at {bits} bits" for bits in widths)
        for label in ("GPTQ", "RTN clipped")
    }
    lines = [
        f"- GPTQ, with propagation, recovers {shares['GPTQ']}.",
        f"- Clipping alone, which does not use the inputs, recovers {shares['RTN clipped']}.",
    ]
    everything, alone, scaled = (
        recovered(measured, f"{label} 4") for label in ("GPTQ", "GPTQ, no propagation", "AWQ+GPTQ")
    )
    lines.append(f"- At 4 bits GPTQ by itself recovers {alone:.0%}. Propagation: {_verdict(everything - alone)}.")
    lines.append(f"- AWQ's scales before it, at 4 bits: {_verdict(scaled - everything)}.")
    fewer = [bits for bits in widths if right(measured[f"GPTQ {bits}"]) < right(measured[f"RTN {bits}"]) - 0.035]
    noise = [deviation(questions * kinds) for kinds in KINDS]
    say(
        *lines,
        f"- Right answers, all kinds together: {_fewer_right(fewer)} 3.5 points (one standard deviation) below RTN.",
        f"- One standard deviation is up to {noise[0]:.1%} for arithmetic and {noise[1]:.1%} for the other answers; "
        "the standard deviation of KL is far smaller.",
    )


def _fewer_right(widths: Sequence[int]) -> str:
    at = ", ".join(f"{bits} bits" for bits in widths)
    return f"at {at} GPTQ is more than" if widths else "GPTQ is at no number of bits more than"


def _verdict(gain: float) -> str:
    if abs(gain) < 0.06:  # the order of sums changes this much: AWQ's scales were -2 % to 5 % better on several CPUs
        return "about the same (within 6% of RTN's KL)"
    return f"{'better' if gain > 0 else '**worse**'} ({gain:+.1%} of RTN's KL)"


def by_text(found: Mapping[str, Score], without: str) -> None:
    """What the decoder at 3 bits costs on Python, for each calibration text. without: the row without any text."""
    rows = [[name, f"{s.comparison.perplexity:.2f}", f"{s.comparison.kl:.3f}"] for name, s in found.items()]
    table(["3 bits, calibrated on", "perplexity of Python", "KL on Python"], *rows)
    best, *_, worst = alike({name: s.comparison.kl for name, s in found.items()})
    say(
        f"On Python, the lowest KL comes from **{named(best)}**, and the highest from **{named(worst)}**"
        f"{'. That is even higher than without any text' if without not in worst else ''}."
    )


def right_by_text(found: Mapping[str, Score], questions: int) -> None:
    """The right answers of the decoder at 3 bits, for each calibration text."""
    rows = [[name, f"{s.arithmetic:.0%}", f"{s.others:.0%}"] for name, s in found.items()]
    table(["3 bits, calibrated on", "arithmetic right", "other answers right"], *rows)
    say(f"One standard deviation of the arithmetic column is at most {deviation(questions * KINDS[0]):.1%}.")

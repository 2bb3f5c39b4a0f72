"""Tables of chapter 03 on its experiment: which input channels stay in 16 bits."""

from collections.abc import Mapping, Sequence

import torch

from qtutor.course.scores import table
from qtutor.course.tables import say
from qtutor.measure.distributions import top_channels

# Perplexities of an experiment: of the float model, with no channel kept, and for each way to choose a list over shares
# of lists over draws; then for each share, the part of the expected error in the loudest channels.
Outcome = tuple[float, float, Mapping[str, list[list[float]]], list[float]]
Case = tuple[str, int]  # the decoder's name, and the bits


def error_in_loudest(importance: Mapping[str, Mapping[str, torch.Tensor]], share: float) -> float:
    """The part of a layer's expected squared error in its channels with the largest activations, averaged over layers.

    importance: layer -> "activation" and "activation × error", a number for each input channel.
    """
    parts = [
        (kinds["activation × error"][top_channels(kinds["activation"], share)].sum()).item()
        / kinds["activation × error"].sum().item()
        for kinds in importance.values()
    ]
    return sum(parts) / len(parts)


def ways_to_keep(results: Mapping[Case, Outcome], shares: Sequence[float]) -> None:
    """Perplexities for every way to choose the channels that stay in 16 bits."""
    rows = []
    for (name, bits), (exact, none, found, _) in results.items():
        for way, by_share in found.items():
            cells = [
                f"{_mean(drawn):.2f}" + (f" ({min(drawn):.2f} to {max(drawn):.2f})" if len(drawn) > 1 else "")
                for drawn in by_share
            ]
            rows.append([name, bits, f"{exact:.2f}", f"{none:.2f}", way, *cells])
    table(["decoder", "bits", "float", "nothing kept", "kept by", *[f"{share:.0%}" for share in shares]], *rows)


def beside_the_paper(
    results: Mapping[Case, Outcome], published: Mapping[str, float], ends: tuple[float, float]
) -> None:
    """Perplexities with the smallest share kept, beside ``published`` ones, for each way to choose the channels.

    ends: the published perplexities of the float model and with nothing kept.
    """
    rows = [["OPT-6.7B (published)", 3, *(f"{end:.2f}" for end in ends), *(f"{p:.2f}" for p in published.values())]]
    for (name, bits), (exact, none, found, _) in results.items():
        ours = [f"{_mean(found[way][0]):.2f}" for way in published]
        rows.append([f"this decoder, {name}", bits, f"{exact:.2f}", f"{none:.2f}", *ours])
    table(["perplexity", "bits", "float", "nothing kept", "1 % kept by activation", "by weight", "at random"], *rows)


def recovered(
    back: Mapping[Case, Mapping[str, list[float]]],
    published: Mapping[str, float],
    results: Mapping[Case, Outcome],
    shares: Sequence[float],
) -> None:
    """The loss that was recovered; ``back``: case -> way -> a part for each share. published: the paper's, by way."""
    labels = [f"{share:.0%}" for share in shares]
    rows = [["OPT-6.7B (published)", 3, " / ".join(f"{part:.0%}" for part in published.values()), "", "", ""]]
    for (name, bits), by_way in back.items():
        cells = [" / ".join(f"{by_way[way][i]:.0%}" for way in published) for i in range(len(shares))]
        rows.append([f"this decoder, {name}", bits, *cells, " / ".join(f"{x:.0%}" for x in results[name, bits][3])])
    header = ["recovered, by activation / by weight / at random", "bits", *(f"{label} kept" for label in labels)]
    table([*header, f"expected squared error in the {' / '.join(labels)} with the largest activations"], *rows)


def effect_of_the_paper(
    back: Mapping[Case, Mapping[str, list[float]]], luckiest: Mapping[Case, float], draws: int, published: float
) -> None:
    """Cases in which choosing by activation beats choosing by weight and choosing at random.

    luckiest: the part that the best of ``draws`` random draws recovered. published: the part that the paper's choice by
    activation recovered.
    """
    lines, wins = [], 0
    for (name, bits), by_way in back.items():
        activation, weight, luck = by_way["activation"][0], by_way["weight"][0], luckiest[name, bits]
        wins += activation > max(weight, luck)
        lines.append(
            f"- **{name}, {bits} bits**: the 1 % with the largest activations recover {activation:.0%} of the loss, "
            f"those with the largest weights {weight:.0%}, and the luckiest of {draws} random draws {luck:.0%}. "
            + (
                "The paper's effect is here."
                if activation > max(weight, luck)
                else "**The paper's effect is not here.**"
            )
        )
    plain, put_in = (
        [part for (case, _), by_way in back.items() if case == name for part in by_way["activation"]]
        for name in dict.fromkeys(case for case, _ in back)
    )
    more = sum(after > before + 0.02 for before, after in zip(plain, put_in))
    highest = max(by_way["activation"][0] for (_, bits), by_way in back.items() if bits == 3)
    say(
        *lines,
        f"In {wins} of {len(back)} cases, 1 % chosen by activation beats the largest weights and the luckiest draw.",
        f"In {more} of {len(plain)} comparisons, choosing by activation recovers over 2 points more with the outliers "
        f"put in than without them. At 3 bits with 1 % kept, this decoder recovers {highest:.0%}, "
        f"{'far from' if highest < 0.8 else 'near'} the {published:.0%} of OPT-6.7B.",
    )


def better_buy(rows: Sequence[Sequence], names: Sequence[str]) -> None:
    """Bytes against perplexity; ``rows``: (what, bytes, bits a weight, perplexity of each decoder in ``names``)."""
    table(
        ["", "bytes of all layers", "bits a weight", *[f"perplexity {name}" for name in names]],
        *[
            [what, f"{size:,}", f"{bits:.3f}", *(f"{value:.2f}" for value in perplexities)]
            for what, size, bits, *perplexities in sorted(rows, key=lambda row: row[1])
        ],
    )
    plain, one, groups = (
        next(row for row in rows if row[0] == f"3 bits, groups of {rest}") for rest in ("128", "128, 1% kept", "64")
    )
    better = [
        f"{name}, {'1 % of the channels' if kept < smaller else 'the smaller groups'}"
        for name, kept, smaller in zip(names, one[3:], groups[3:])
    ]
    say(
        f"Keeping 1 % costs {one[2] - plain[2]:.3f} bits a weight, and groups of 64 in place of 128 cost "
        f"{groups[2] - plain[2]:.3f}. Here, the better buy is: {'; '.join(better)}."
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)

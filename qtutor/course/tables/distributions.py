"""Tables of chapter 03, distributions."""

from collections.abc import Mapping, Sequence

import torch

from qtutor.course.scores import table
from qtutor.course.tables import say
from qtutor.families import LLAMA
from qtutor.measure.distributions import outlier_ratio

MASSIVE = 10  # times: from here on the first token's activations are called massive
SINK = 0.2  # of all attention: from here on the first token is called a sink


def tails(layers: Mapping[str, torch.Tensor], excess: Mapping[str, float]) -> None:
    """Centre, spread and tails of each layer's weights, compared with chance in a bell of the same size."""
    rows, beyond = [], {"heavier": 0, "lighter": 0}
    for name, weight in layers.items():
        chance = (24 / weight.numel()) ** 0.5
        if abs(excess[name]) > 3 * chance:
            beyond["heavier" if excess[name] > 0 else "lighter"] += 1
        weight = weight.double()
        spread = weight.std()
        shape = " × ".join(map(str, weight.shape))
        largest, of_bell = weight.abs().max() / spread, largest_of_bell(weight.numel())
        row = [name, shape, f"{weight.mean() / spread:.3f}", f"{spread:.4f}", f"{excess[name]:.2f}", f"± {chance:.2f}"]
        rows.append([*row, f"{largest:.1f}", f"{of_bell:.1f}"])
    table(["layer", "shape", "mean / σ", "σ", "excess kurtosis", "by chance", "largest / σ", "by chance"], *rows)
    heaviest, middle = max(excess, key=excess.get), sorted(excess.values())[len(excess) // 2]
    say(
        f"Of {len(layers)} layers, **{beyond['heavier']} have heavier tails than a bell** and {beyond['lighter']} "
        f"have lighter tails, by more than three times what chance explains. The median excess is {middle:.2f}. The "
        f"largest, {excess[heaviest]:.2f}, is that of {heaviest}."
    )


def largest_of_bell(count: int) -> float:
    """The median over samples of the largest size among ``count`` numbers from a bell, in σ."""
    # |x| is below t with probability 2 Φ(t) - 1, and all numbers with the count-th power of this: one half
    return torch.special.ndtri(torch.tensor((1 + 0.5 ** (1 / count)) / 2, dtype=torch.float64)).item()


def channels_or_weights(excess: Mapping[str, Sequence[float]]) -> None:
    """Layer -> excess as it is, with rows made alike, with columns, with both; and the part that channels explain."""
    table(
        ["layer", "excess", "with rows made alike", "with columns made alike", "with both"],
        *[[name, *(f"{value:.2f}" for value in values)] for name, values in excess.items()],
    )
    whole, by_rows, by_columns, both = (sum(values) / len(excess) for values in zip(*excess.values()))
    if whole <= 0:
        say(f"On average over the layers the excess is {whole:.2f}: there are no tails to explain.")
        return
    explained = min(max(1 - both / whole, 0), 1)
    stronger = "columns" if by_columns < by_rows else "rows"
    say(
        f"On average over the layers the excess is {whole:.2f}; with rows made alike {by_rows:.2f}, with columns made "
        f"alike {by_columns:.2f}, with both {both:.2f}. So **{explained:.0%} of it comes from unequal channels**: "
        f"unequal {stronger} explain more of it. The other {1 - explained:.0%} come from single weights that stick out "
        "of their row and column."
    )


def crest_factors(sizes: Mapping[str, int], real: Sequence[Sequence[float]], bells: Sequence[Sequence[float]]) -> None:
    """Crest factors and errors by group size. real, bells: for each size, crest factor, error measured, predicted."""
    rows = [
        [name, f"{r[0]:.2f}", f"{b[0]:.2f}", f"{r[1]:.2%}", f"{r[2]:.2%}", f"{16 / size:.3f}" if size > 0 else "little"]
        for (name, size), r, b in zip(sizes.items(), real, bells)
    ]
    header = ["weights that share a scale", "crest factor", "of bells", "error measured", "predicted"]
    table([*header, "bits a weight for scales"], *rows)
    above = [r[0] / b[0] - 1 for r, b in zip(real, bells)]
    say(
        f"From one scale a tensor to groups of 16 the crest factor falls from {real[0][0]:.1f} to {real[-1][0]:.1f}, "
        f"and the error with it, by a factor of {real[0][1] / real[-1][1]:.1f}. In bells alone it would fall by "
        f"{bells[0][1] / bells[-1][1]:.1f}: that part of the gain has nothing to do with outliers.",
        f"With one scale a tensor the crest factor is {above[0]:.0%} above that of bells, with one a row "
        f"{above[1]:.0%}, in groups of 64 {above[list(sizes).index('64')]:.0%}.",
    )


def where_the_line_holds(panels: Mapping[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> None:
    """Errors of groups, measured and predicted; ``panels``: bits -> (crest factors, measured, predicted)."""
    rows = []
    for bits, (crest, measured, predicted) in panels.items():
        correlation = torch.corrcoef(torch.stack([crest, measured]))[0, 1]
        order = crest.argsort()
        tenth = max(1, len(order) // 10)
        parts = (order, order[:tenth], order[-tenth:])
        errors = [f"{measured[part].mean():.1%} / {predicted[part].mean():.1%}" for part in parts]
        rows.append([bits.removesuffix(" bits"), *errors, f"{correlation:.2f}"])
    header = ["bits", "all groups, measured / predicted", "the tenth with the smallest crest factors"]
    table([*header, "the tenth with the largest crest factors", "correlation"], *rows)


def outliers_put_in(inputs: Mapping, harder: Mapping) -> str:
    """Largest and median channel of each layer's inputs, as trained and with add_outliers; returns the loudest layer.

    inputs, harder: layer -> statistics of its inputs. Layers that read the same input are in one row.
    """
    readers, blocks = {}, f"{LLAMA.blocks}."  # the embedded decoder is a Llama
    for name, statistics in inputs.items():
        readers.setdefault(id(statistics), []).append(name.removeprefix(blocks))
    ratios, rows = {}, []
    for names in readers.values():
        pair = [statistics[blocks + names[0]].max_abs for statistics in (inputs, harder)]
        ratios[names[0]] = [outlier_ratio(largest).item() for largest in pair]
        row = [names[0] + "".join(", " + name.rsplit(".")[-1] for name in names[1:])]
        for largest in pair:
            row += [f"{largest.median():.2f}", f"{largest.max():.1f}", int(largest.argmax())]
        rows.append([*row, *(f"{value:.1f}" for value in ratios[names[0]])])
    header = ["inputs of", "median channel", "largest", "which", "median, with add_outliers", "largest", "which"]
    table([*header, "largest / median as trained", "with add_outliers"], *rows)
    trained, put_in = zip(*ratios.values())
    loudest = max(ratios, key=lambda name: ratios[name][0])
    say(
        f"As trained, the largest channel is {min(trained):.1f} to {max(trained):.1f} times as large as the median one "
        f"(most in {loudest}); with `add_outliers` it is up to {max(put_in):.0f} times as large. The inputs of o_proj "
        "do not change: add_outliers does not touch v_proj, which computes them."
    )
    return loudest


def first_token(stream: Sequence[torch.Tensor]) -> None:
    """The residual stream ``[windows, tokens, channels]`` before each block and the last norm: first token, others."""
    rows, jumps = [], []
    for i, states in enumerate(stream):
        largest = states.abs().amax(dim=-1)  # [windows, tokens]
        first, others = largest[:, 0].median(), largest[:, 1:].median()
        jumps.append((first / others).item())
        by_channel = outlier_ratio(states.flatten(0, 1).abs().mean(dim=0)).item()
        place = f"before block {i}" if i < len(stream) - 1 else "before the last norm"
        rows.append([place, f"{first:.2f}", f"{others:.2f}", f"{jumps[-1]:.2f}", f"{by_channel:.1f}"])
    header = ["residual stream", "largest activation, first token", "other tokens", "first / others"]
    table([*header, "mean size, largest / median channel"], *rows)
    found = "**massive activations, as large models have them**" if max(jumps) > MASSIVE else "no massive activations"
    say(
        f"At its strongest the first token's largest activation is {max(jumps):.1f} times that of the others: {found}. "
        f"(Here, activations are called massive from {MASSIVE} times on.)"
    )


def attention_on_first(attention: Sequence[torch.Tensor], skip: int = 16) -> None:
    """The share of attention that tokens from ``skip`` on give to the first token.

    attention: ``[windows, heads, tokens, tokens]`` for each block.
    """
    later = torch.arange(skip, attention[0].shape[-1])
    even = (1 / (later + 1)).mean().item()
    given = [[a[:, head, later, 0].mean().item() for head in range(a.shape[1])] for a in attention]
    table(
        [
            "attention given to the first token",
            *[f"head {i}" for i in range(len(given[0]))],
            "if all tokens got the same",
        ],
        *[[f"block {i}", *[f"{share:.2%}" for share in heads], f"{even:.2%}"] for i, heads in enumerate(given)],
    )
    most = max(max(heads) for heads in given)
    found = "**an attention sink**" if most > SINK and most > 5 * even else "no attention sink"
    say(
        f"The head that attends most to the first token gives it {most:.1%}, {most / even:.1f} times an even share: "
        f"{found}. (Here, a fifth of all attention or more is called a sink.)"
    )

"""Tables of chapter 04, NF4 and int8."""

import itertools
from collections.abc import Mapping, Sequence

import torch

from qtutor.course.float_blocks import Cost
from qtutor.course.scores import Score, table
from qtutor.course.tables import SAME, say
from qtutor.families import LLAMA

# For each threshold: KL to the float model; and for each layer the share of channels in 16 bits, the share of inputs
# that reach the threshold, and the median size of its inputs.
Swept = Sequence[tuple[float, Mapping[str, Sequence[float]]]]
Line = Sequence[tuple[float, float, str]]  # points: true bits, error, block size
# k_proj, v_proj and up_proj read the same inputs as q_proj and gate_proj, which have a row.
READ_THE_SAME = tuple(name.rpartition(".")[2] for names in LLAMA.shared for name in names[1:])


def use_of_levels(panels: Mapping[str, tuple], errors: Mapping[str, float]) -> None:
    """How evenly the levels of each format are used; ``panels``: format -> (weights, levels, shares of the levels)."""
    rows = []
    for name, (_, _, shares) in panels.items():
        information = -(shares * shares.clamp(min=1e-30).log2()).sum()
        rows.append([name, f"{shares.max():.1%}", f"{shares.min():.1%}", f"{information:.2f}", f"{errors[name]:.2%}"])
    table(["levels", "busiest level", "least used level", "information in a code, bits", "relative error"], *rows)


def equal_bytes(series: Mapping[str, Line], nf4: Sequence[str], integers: str) -> None:
    """Errors by true bits; and for each point of the lines ``nf4``, the error of ``integers`` at the same bits."""
    blocks = [block for *_, block in next(iter(series.values()))]
    rows = [[label, *(f"{bits:.3f}: {error:.2%}" for bits, error, _ in points)] for label, points in series.items()]
    table(["true bits: relative error, all layers", *(f"blocks of {block}" for block in blocks)], *rows)
    lines = []
    for label in nf4:
        for bits, error, block in series[label]:
            integer = error_at(series[integers], bits)
            if integer is None:
                continue
            better = "NF4" if error < integer else "The integers"
            lines.append(
                f"- {label}, blocks of {block}, {bits:.3f} bits: {error:.2%}; the asymmetric integers with the same "
                f"number of bits: {integer:.2%}. **{'About the same' if abs(error / integer - 1) < 0.01 else better}.**"
            )
    say(*lines)


def error_at(line: Line, bits: float) -> float | None:
    """The error at ``bits``, on a straight line between two points of a format; ``None`` outside of all points."""
    for (b0, e0, _), (b1, e1, _) in itertools.pairwise(sorted(line)):
        if b0 <= bits <= b1:
            return e0 + (e1 - e0) * (bits - b0) / (b1 - b0)
    return None


def scales_of(ways: Sequence[tuple], exact: torch.Tensor, weight: torch.Tensor, levels: torch.Tensor) -> None:
    """The cost of storing a layer's scales; ``ways``: (name, scales as stored, codes of the weights, bits a weight)."""
    rows = []
    for name, stored, codes, bits in ways:
        off = ((stored - exact) / exact).square().mean().sqrt()
        back = stored.repeat_interleave(weight.shape[1] // stored.shape[1], dim=1) * levels[codes]
        rows.append([name, f"{bits:.3f}", f"{off:.2%}", f"{(back - weight).norm() / weight.norm():.3%}"])
    table(["scales", "bits a weight for them", "error of the scales", "error of the weights"], *rows)


def by_scale(errors: Mapping[str, Sequence[float]], blocks: Sequence[int], fours: float) -> None:
    """The cost of each kind of scale on the same levels. errors: kind -> one error for each of ``blocks``; the first
    kind is exact. fours: the share of NVFP4's blocks whose largest weight becomes 4.
    """
    exact = next(iter(errors.values()))
    rows = []
    for kind, found in errors.items():
        cells = [f"{error:.2%} ({error / base - 1:+.0%})" for error, base in zip(found, exact)]
        rows.append([kind, *cells])
    table(["scale", *(f"error, blocks of {block}" for block in blocks)], *rows)
    say(
        f"Four over six: in {fours:.0%} of the blocks of 16 the largest weight becomes 4, and in the others it becomes "
        "6."
    )


def costs(found: Mapping[str, Cost], pairs: Sequence[tuple[str, str]]) -> None:
    """What each format costs a decoder; and for each pair, which has the smaller KL, and with how many bits."""
    rows = [[name, f"{cost.bits:.3f}", f"{cost.error:.2%}", f"{cost.kl:.4f}"] for name, cost in found.items()]
    table(["format", "true bits", "relative error", "KL"], *rows)
    lines = []
    for a, b in pairs:
        ratio = found[a].kl / found[b].kl
        words = "about as good as" if 1 - SAME < ratio < 1 + SAME else "better than" if ratio < 1 else "worse than"
        bits = f"{found[a].bits:.2f} against {found[b].bits:.2f} bits"
        lines.append(f"- **{a} is {words} {b}**: {ratio:.2f} times its KL, at {bits}.")
    say(*lines)


def thresholds(swept: Mapping[str, Swept], labels: Sequence[str]) -> None:
    """KL and the share of channels in 16 bits by threshold; ``labels``: the thresholds in words."""
    rows = []
    for name, found in swept.items():
        rows.append([name, "KL", *(f"{kl:.4f}" for kl, _ in found)])
        rows.append([name, "channels in 16 bits", *(f"{100 * share:.1f} %" for share in channels_in_16(found))])
    table(["decoder", "threshold", *labels], *rows)


def inputs_at(swept: Mapping[str, Swept], place: int) -> None:
    """At threshold number ``place``: how many inputs of each layer reach it, and how many channels stay in 16 bits."""
    first = next(iter(swept.values()))[place][1]
    rows = [
        [
            layer.removeprefix(f"{LLAMA.blocks}."),
            f"{median:.2f}",
            *(f"{found[place][1][layer][which]:.1%}" for found in swept.values() for which in (1, 0)),
        ]
        for layer, (_, _, median) in first.items()
        if not layer.endswith(READ_THE_SAME)
    ]
    columns = [f"{what}, {name}" for name in swept for what in ("inputs of 6.0 or more", "channels in 16 bits")]
    table(["inputs of", f"median of their sizes, {next(iter(swept))}", *columns], *rows)


def what_six_takes_back(swept: Mapping[str, Swept], place: int) -> None:
    """How much threshold number ``place`` removes of the cost of rounding the inputs. Thresholds go from 0 to none."""
    lines = []
    for name, found in swept.items():
        floor, six, none = found[0][0], found[place][0], found[-1][0]
        lines.append(
            f"- **{name}**: KL is {none:.4f} without a threshold, {six:.4f} with threshold 6.0, and {floor:.4f} with "
            f"int8 weights alone. So 6.0 removes {(none - six) / (none - floor):.0%} of the cost of rounding the "
            f"inputs, with {100 * channels_in_16(found)[place]:.0f} % of the channels in 16 bits."
        )
    say(*lines)


def channels_in_16(found: Swept) -> list[float]:
    """The share of channels in 16 bits at each threshold, averaged over layers."""
    return [sum(shares[0] for shares in layers.values()) / len(layers) for _, layers in found]


def compared(measured: Mapping[str, Score], pairs: Sequence[tuple[str, str]]) -> None:
    """For each pair of rows, which has the smaller KL, and with how many bits."""
    lines = []
    for a, b in pairs:
        ratio = measured[a].comparison.kl / measured[b].comparison.kl
        words = "better than" if ratio < 1 else "worse than"
        if 1 - SAME < ratio < 1 + SAME:
            words = "about as good as"
        bits = " against ".join(f"{measured[name].bits:.3f}" for name in (a, b))
        lines.append(f"- **{a} is {words} {b}**: {ratio:.2f} times its KL, at {bits} bits.")
    say(*lines)

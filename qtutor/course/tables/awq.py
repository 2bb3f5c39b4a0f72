"""Tables of chapter 05, AWQ."""

import math
from collections.abc import Mapping, Sequence

import torch

from qtutor.course.scores import Score, table
from qtutor.course.tables import SAME, beside, deviation, say
from qtutor.decoder import tasks
from qtutor.methods.awq import Search

Found = Mapping[tuple[str, str], tuple[Search, torch.Tensor]]  # (layers, decoder) -> the search, mean |x| [in]


def one_column_larger(weight: torch.Tensor, tried: Mapping[float, tuple], loud: int) -> None:
    """The effect of a factor on one column of ten weights, ``weight [10]``; number ``loud`` multiplies the loud input.

    tried: s -> (scaled weights, levels of their grid, weights after rounding, changes of the output).
    """
    rows = []
    for s, (scaled, levels, back, change) in tried.items():
        others = torch.cat([change[:loud], change[loud + 1 :]])
        numbers = [levels[1] - levels[0], back[loud], abs(change[loud]), others.norm(), change.norm()]
        step, comes_back, own, *roots = (float(number) for number in numbers)
        row = [s, f"{step:.3f}", f"{scaled[loud]:.2f}", f"{comes_back:.4f}", f"{own:.3f}"]
        rows.append(row + [f"{root:.3f}" for root in roots])
    header = ["s", "step", f"{weight[loud]:.2f} · s", "comes back as", "changes the output by"]
    table([*header, "the other nine", "all ten: root of the sum of squares"], *rows)


def loud_and_others(
    loud: Mapping[float, float], quiet: Mapping[float, float], grown: Mapping[float, torch.Tensor]
) -> None:
    """Errors for each factor s of the loud channel. grown: s -> for every group, its step / its step before scaling."""
    both = {s: loud[s] + quiet[s] for s in loud}
    first = next(iter(both.values()))
    rows = []
    for s, steps in grown.items():
        mean = float(steps.mean())
        row = [s, f"{(steps != 1).float().mean():.0%}", f"{mean:.3f}", f"{mean / s:.3f}"]
        rows.append([*row, f"{loud[s]:.2f}", f"{quiet[s]:.2f}", f"{both[s] / first:.0%}"])
    header = ["s", "groups with a new step", "Δ'/Δ", "Δ'/Δ · 1/s", "error, loud", "error, others", "all / s = 1"]
    table(header, *rows)
    say(f"The sum is smallest at **s = {min(both, key=both.get)}** of those tried.")


def one_factor(factors: Sequence[float], measured: Mapping[str, tuple]) -> None:
    """One factor on the loudest 1 % of channels, compared with keeping these in 16 bits; ``factors`` begin with 1.

    measured: decoder -> (perplexities: float, with each factor, the 1 % kept; share of the expected error in the 1 %).
    """
    rows, lines = [], []
    for name, (exact, found, kept, share) in measured.items():
        rows.append([name, f"{exact:.2f}", *(f"{value:.2f}" for value in found), f"{kept:.2f}", f"{share:.0%}"])
        best = min(range(len(factors)), key=found.__getitem__)
        part = math.log(found[0] / found[best]) / math.log(found[0] / kept)
        gain = f"at best {part:.0%} of this gain, with s = {factors[best]}" if part > 0.1 else "less than a tenth of it"
        lines.append(
            f"- **{name}**: keeping the 1 % in 16 bits lowers perplexity from {found[0]:.2f} to {kept:.2f}. "
            f"Multiplying gives {gain} (in log perplexity)."
        )
    header = ["3 bits, groups of 128", "float", "rounded (s = 1)", *(f"s = {s}" for s in factors[1:])]
    table([*header, "1 % kept in 16 bits", "share of the expected squared error in this 1 %"], *rows)
    say(*lines)


def searches(found: Found) -> None:
    """The ratio that each search chose, the share of the error that is left, and how loud the loudest channel is."""
    rows = []
    for (label, name), (search, mean_abs) in sorted(found.items(), key=lambda item: item[0]):
        louder, spread = mean_abs.max() / mean_abs.median(), search.scale.max() / search.scale.min()
        row = [label, name, f"{search.ratio:.2f}", f"{left(search):.0%}"]
        rows.append([*row, f"{louder:.1f}", f"{spread:.1f}"])
    header = ["layers", "decoder", "ratio chosen", "output error / that of ratio 0", "loudest channel / median"]
    table([*header, "largest / smallest scale"], *rows)


def left(search: Search) -> float:
    """The share of the error at ratio 0 that is left after the search."""
    return min(search.errors) / search.errors[0]


def with_and_without_outliers(found: Found, put_in: torch.Tensor, where: str) -> None:
    """How the searches in the two decoders differ, and how well the search for ``where`` undoes the outliers.

    put_in ``[in]``: the factors by which add_outliers had multiplied the inputs of ``where``.
    """
    plain, harder = dict.fromkeys(name for _, name in found)
    labels = list(dict.fromkeys(label for label, _ in found))
    shares = {name: [left(found[label, name][0]) for label in labels] for name in (plain, harder)}
    means = {name: sum(of) / len(of) for name, of in shares.items()}
    apart = {label: abs(a - b) for label, a, b in zip(labels, shares[plain], shares[harder])}
    differing = max(apart, key=apart.get)
    rest = max(value for label, value in apart.items() if label != differing)
    search, mean_abs = found[where, harder]
    correlation = torch.corrcoef(torch.stack([put_in.log(), mean_abs.log()]))[0, 1]
    say(
        f"On average the search leaves {means[plain]:.0%} of rounding's squared output error in the decoder {plain}, "
        f'and {means[harder]:.0%} {harder}. The two differ most in "{differing}", and elsewhere by {100 * rest:.1f} '
        "points at most.",
        f'`add_outliers` had multiplied the inputs of "{where}" by its own factors. Take the logarithms of these '
        f"factors and of mean |x|, channel by channel: their correlation is {correlation:.2f}. The search chose ratio "
        f"{search.ratio:.2f} there. So the scales undo {'nearly all' if search.ratio > 0.8 else 'a part'} of the "
        "change by `add_outliers`, although they are computed only from the activations.",
    )


def judges(chosen: Mapping[tuple[str, str], Sequence[tuple[float, float]]]) -> None:
    """The ratios that three judges chose, each with the parent's error relative to ratio 0.

    chosen: (layers, decoder) -> for each judge, the ratio and the relative error.
    """
    rows = [[*who, *(f"{ratio:.2f}: {error:.0%}" for ratio, error in of)] for who, of in chosen.items()]
    header = ["layers", "decoder", "judged by the weights", "by the layers' outputs", "by the parent's output"]
    table(header, *rows)
    say("Each cell has the chosen ratio, and then the parent's error with this ratio / that of ratio 0.")


def tokens_counted(label: str, ways: Mapping[str, Search], counts: torch.Tensor) -> None:
    """The ratio that is chosen when tokens count in different ways. counts: how much each token counts."""
    rows = [[how, f"{search.ratio:.2f}", f"{left(search):.0%}"] for how, search in ways.items()]
    table([f"{label}: tokens count", "ratio chosen", "error / that of ratio 0, counted in the same way"], *rows)
    say(f"A token counts between {counts.min():.3f} and {counts.max():.2f} times. The average is 1.")


def ranges(found: Mapping[int, tuple[Sequence[float], Sequence[float]]]) -> None:
    """What ranges do to a layer's output.

    found: bits -> (errors, kept). errors: of the output, with whole ranges, with ranges by the weights, with ranges by
    the output (each group by itself), and with ranges by the output (groups in turns). kept: the mean part of the range
    that the last three keep.
    """
    rows = [
        [bits, *(f"{error:.1%}" for error in errors), " / ".join(f"{share:.0%}" for share in kept)]
        for bits, (errors, kept) in found.items()
    ]
    header = ["bits", "output error, whole ranges", "ranges by the weights", "by the output, each group by itself"]
    table([*header, "by the output, in turns", "share of the range that the last three keep"], *rows)
    harm = {str(bits): errors[1] / errors[0] - 1 for bits, (errors, _) in found.items()}
    harmful = [bits for bits, more in harm.items() if more > SAME]
    near = [bits for bits, more in harm.items() if abs(more) <= SAME]
    say(
        (
            f"With ranges that are best for the weights, the output gets **worse** than with whole ranges at "
            f"{', '.join(harmful)} bits."
            if harmful
            else "Here, ranges by the weights' own error do not harm the output."
        )
        + (f" At {', '.join(near)} bits both are about the same." if near else "")
    )


def one_ratio(ratios: Sequence[float], perplexities: Mapping[str, Sequence[float]]) -> None:
    """Perplexity with one ratio for all layers, from 0 to 1, and how ratio 1 compares with ratio 0."""
    rows = [[name, *(f"{value:.2f}" for value in values)] for name, values in perplexities.items()]
    table(["ratio, the same for all layers", *(f"{ratio:.1f}" for ratio in ratios)], *rows)
    lines = []
    for name, values in perplexities.items():
        best = min(range(len(ratios)), key=values.__getitem__)
        change = values[-1] / values[0] - 1
        against = "about as good as" if abs(change) < 0.02 else "better than" if change < 0 else "worse than"
        lines.append(f"- **{name}**: lowest at ratio {ratios[best]:.1f}; ratio 1 is {against} doing nothing.")
    say(*lines)


def beside_nearest(measured: Mapping[str, Score]) -> None:
    """What follows from :func:`on_text`, and right answers; labels are ``awq, 4 bits...`` and ``rtn, 4 bits``."""
    beside.beside_nearest(measured, _against(measured))


def recovered(measured: Mapping[str, Score], label: str) -> float:
    """The share of rounding to nearest's KL, at the same bits, that AWQ removes in the row ``label``."""
    return beside.recovered(measured, label, _against(measured))


def _against(measured: Mapping[str, Score]) -> dict[str, str]:
    return {label: "rtn" + label[3:11] for label in measured if label.startswith("awq")}


def parts_of_the_gain(measured: Mapping[str, Mapping[str, Score]]) -> None:
    """For each decoder, what AWQ recovers by itself, the scales' part of it, and what propagation adds."""
    lines = []
    for name, scored in measured.items():
        widths = [label[5:] for label in _against(scored) if label.count(",") == 1]
        shares = ", ".join(f"{recovered(scored, f'awq, {bits}'):.0%} at {bits}" for bits in widths)
        scales, clipped, everything = (
            recovered(scored, f"awq, 4 bits{step}") for step in (", scales alone", "", ", propagation")
        )
        lines.append(
            f"**{name}**, AWQ by itself recovers {shares}. At 4 bits, {scales:.0%} come from the scales and "
            f"{clipped - scales:.0%} from clipping, so the scales are {scales / clipped:.0%} of its gain. Propagation, "
            f"which is not a part of AWQ, adds {everything - clipped:.0%}."
        )
    say(*lines)


def what_outliers_cost(plain: Mapping[str, Score], outliers: Mapping[str, Score]) -> None:
    """Whether AWQ undoes the cost of outliers, with 4 bits and without propagation."""
    with_awq, without = (scored["awq, 4 bits"].comparison.kl for scored in (outliers, plain))
    never, own = with_awq / plain["rtn, 4 bits"].comparison.kl, with_awq / without
    say(
        f"At 4 bits, the KL of AWQ with outliers is {never:.0%} of the KL of plain rounding *without* outliers, and "
        f"{own:.2f} times the KL of AWQ without outliers. So AWQ undoes {'most' if own > 1 + SAME else 'all'} of the "
        f"harm of the outliers{', but not all' if own > 1 + SAME else ''}."
    )


def where_it_loses(measured: Mapping[str, Mapping[str, Score]], found: Found, questions: int) -> None:
    """Rows in which plain rounding is better, inputs for which scaling did little, and the role of chance in shares."""
    worse = [
        f"{name}, {label} (in {what.replace('kl', 'KL')})"
        for name, scored in measured.items()
        for label, other in _against(scored).items()
        for what in ("kl", "perplexity")
        if getattr(scored[label].comparison, what) > (1 + SAME) * getattr(scored[other].comparison, what)
    ]
    flat: dict[str, int] = {}
    for (_, name), (search, _) in found.items():
        flat[name] = flat.get(name, 0) + (left(search) > 0.9)
    inputs = " and ".join(f"{count} of {len(found) // len(flat)} inputs {name}" for name, count in flat.items())
    noise = deviation(questions * len(tasks.ARITHMETIC))
    say(
        f"**Here AWQ is worse than plain rounding, by more than {SAME:.0%}**: {'; '.join(worse)}."
        if worse
        else f"In no row is AWQ worse than plain rounding by more than {SAME:.0%}, in KL or in perplexity.",
        f"In the search above, scaling removed less than a tenth of the squared error for {inputs}.",
        f"There are {questions} questions of each kind, and {len(tasks.ARITHMETIC)} kinds are arithmetic. So one "
        f"standard deviation of the share of right answers in arithmetic is at most {noise:.0%}.",
    )

"""Tables of chapter 07, GGUF."""

import struct
from collections.abc import Mapping, Sequence

import numpy as np

import qtutor
from qtutor.course.scores import table
from qtutor.course.tables import SAME, alike, deviation, named, say
from qtutor.decoder import tasks
from qtutor.gguf.reader import GGUFFile
from qtutor.measure.against import Comparison

# For a mix or a recipe: true bits a weight, bytes of the file in words, measured losses, shares of right answers.
Measured = tuple[float, str, Comparison, Sequence[float]]


def block_by_hand(weights: np.ndarray, d: float, block: bytes, shown: int = 4) -> None:
    """The first bytes of codes of a Q4_0 block, and their decoded weights; d: the scale before it was rounded."""
    (stored,) = struct.unpack("<e", block[:2])
    rows = []
    for j in range(shown):
        byte = block[2 + j]
        for place, code in ((j, byte & 15), (16 + j, byte >> 4)):
            back = stored * (code - 8) + 0.0  # a negative d times 0 is -0.0
            rows.append([2 + j, f"{byte:02x}", place, f"{weights[place]:.2f}", code, f"{back:.4f}"])
    say(f"d = {d:.6f}, in 16 bits {stored:.6f}")
    table(["byte", "in hexadecimal", "weight", "is", "code", "comes back as"], *rows)


def tries(stretches: np.ndarray, laid: np.ndarray, fitted: np.ndarray, whole: int) -> None:
    """Errors of a search over grids; ``whole`` is the index of the grid from the smallest to the largest weight."""
    best = int(np.argmin(fitted))
    table(
        ["grid", "steps", "weighted squared error"],
        ["from the smallest to the largest weight", f"{stretches[whole]:g}", f"{laid[whole]:.5f}"],
        ["the same codes, fitted", f"{stretches[whole]:g}", f"{fitted[whole]:.5f}"],
        ["the best grid of all", f"{stretches[best]:.1f}", f"{fitted[best]:.5f}"],
    )


def super_block(d: float, dmin: float, scale_codes: np.ndarray, min_codes: np.ndarray) -> None:
    """The codes of a super-block's scales and minima, and the values that they stand for."""
    table(
        ["sub-block", *range(len(scale_codes))],
        ["scale code", *map(int, scale_codes)],
        ["min code", *map(int, min_codes)],
        ["step", *(f"{d * code:.4f}" for code in scale_codes)],
        ["lowest level", *(f"{-dmin * code:.3f}" for code in min_codes)],
    )
    say(f"d = {d:.6f}, dmin = {dmin:.6f}")


def bit_flips(stored: Mapping) -> None:
    """What single flipped bits do to the decoder's text and to KL; stored: :func:`qtutor.course.bit_flips.document`."""
    kl, same = stored["kl"], sum(text == 0 for text in stored["text_of"])
    grows = (kl[9] / kl[0]) ** (1 / 9)  # bits 0 to 9 of the block are the fraction of d
    say(
        f"- {same:,} of the {len(kl):,} flips leave the text as it is, character for character: {same / len(kl):.0%}.",
        f"- In the fraction of `d` each bit is worth twice the bit before it. KL grows {grows:.1f} times from bit to "
        "bit.",
    )


def what_importance_wins(errors: Mapping[str, Sequence[float]]) -> None:
    """Errors by type: of the weights, without and with importance; of the output, without and with importance."""
    rows, gains = [], {}
    for name, (*of_weights, plain, guided) in errors.items():
        gains[name] = 1 - guided / plain
        numbers = [f"{error:.2%}" for error in (*of_weights, plain, guided)]
        rows.append([name, *numbers, f"{gains[name]:+.0%}"])
    header = ["type", "weights, without", "weights, with", "output, without", "output, with", "output error removed"]
    table(header, *rows)
    best = max(gains, key=gains.get)
    say(f"Importance helps most in **{best}**: it removes {gains[best]:.0%} of the output's error.")


def all_types(errors: Mapping[str, float], points: Mapping[str, Mapping[str, tuple]], measure: str) -> None:
    """Every type with its bits and its error, and how many bits it is worth.

    points: the types that are drawn, by family; only these are compared with the type ``measure``.
    """
    types = qtutor.gguf.TYPES
    drawn = {name for of in points.values() for name in of}
    ordered = sorted(errors, key=lambda name: (types[name].bits_per_weight, errors[name]))
    worth = {name: -np.log2(error) for name, error in errors.items() if error}
    rows = []
    for name in ordered:
        bits = types[name].bits_per_weight
        row = [name, types[name].values, types[name].nbytes, f"{bits:.4g}", f"{errors[name]:.3g}"]
        more = f"{worth[name] - bits:+.2f}" if name in drawn else ""
        rows.append([*row, f"{worth[name]:.2f}" if name in worth else "exact", more])
    header = ["type", "weights in a block", "bytes", "true bits", "relative error", "bits it is worth", "worth - paid"]
    table(header, *rows)
    gains = {name: worth[name] - types[name].bits_per_weight for name in ordered if name in drawn}
    better = [name for name in gains if gains[name] > gains[measure] + 0.1]
    worse = [name for name in gains if gains[name] < gains[measure] - 0.1]
    say(
        f"Worth - paid is over a tenth of a bit higher than for {measure}: {', '.join(better)}; over a tenth lower: "
        f"{', '.join(worse)}.",
        f"Exact: {', '.join(name for name in ordered if not errors[name])}.",
    )


def tensors_by_type(file: GGUFFile) -> None:
    """Which tensors of a file have which type, and the embedding's share of the weights in matrices."""
    kinds: dict[str, list[str]] = {}
    for name, info in file.tensors.items():
        kinds.setdefault(info.type.name, []).append(name.removesuffix(".weight"))
    table(["type", "tensors"], *([kind, ", ".join(names)] for kind, names in kinds.items()))
    sizes = {name: info.rows * info.shape[1] for name, info in file.tensors.items() if len(info.shape) == 2}
    say(f"token_embd holds {sizes['token_embd.weight'] / sum(sizes.values()):.0%} of the weights in matrices.")


def mixes(found: Mapping[str, Measured]) -> None:
    """The cost of each mix, and of rounding to nearest with each number of bits."""
    rows = [
        [label, f"{bits:.2f}", size, f"{c.perplexity:.2f}", f"{c.loss_percent:+.1f} %", f"{c.kl:.4f}", f"{c.flips:.1%}"]
        + [f"{share:.0%}" for share in right]
        for label, (bits, size, c, right) in found.items()
    ]
    header = ["weights", "true bits", "bytes of the file", "perplexity", "rise", "KL", "flips"]
    table([*header, "arithmetic right", "other answers right"], *rows)


def which_mix(found: Mapping[str, Measured], mixed: Sequence[str], guided: Sequence[str], questions: int) -> None:
    """The smallest mix that beats rounding to nearest with 4, 3 and 2 bits, and the KL that importance removes."""
    kl = {label: c.kl for label, (_, _, c, _) in found.items()}
    lines = []
    for label in ("RTN 4", "RTN 3", "RTN 2"):
        closer = [mix for mix in mixed if kl[mix] < (1 - SAME) * kl[label]]
        smallest = min(closer, key=lambda mix: found[mix][0])
        smaller = [mix for mix in mixed if found[mix][0] < found[smallest][0]]
        near = ", ".join(mix for mix in smaller if kl[mix] < (1 + SAME) * kl[label])
        lines.append(
            f"- The smallest mix that is closer to the float model than **{label}** ({found[label][0]:.2f} bits, KL "
            f"{kl[label]:.3f}) is **{smallest}**, with {found[smallest][0]:.2f} bits and KL {kl[smallest]:.3f}."
            + (f" Smaller, and about as close as {label}: {near}." if near else "")
        )
    ratio = kl["Q4_0"] / kl["RTN 4"]
    words = "closer to the float model than" if ratio < 1 else "farther from the float model than"
    if 1 - SAME < ratio < 1 + SAME:
        words = "about as close to the float model as"
    lines.append(
        f"- Q4_0, which does not search, is {words} RTN 4: KL {kl['Q4_0']:.3f}, with {found['Q4_0'][0]:.2f} bits."
    )
    won = ", ".join(f"{1 - kl[f'{mix}, importance'] / kl[mix]:.0%} of the KL of {mix}" for mix in guided)
    lower = [mix for mix in guided if found[f"{mix}, importance"][2].perplexity < 0.99 * found[mix][2].perplexity]
    noise = deviation(questions * len(tasks.ARITHMETIC))
    say(
        *lines,
        f"- Importance removes {won}.",
        f"- Importance lowers perplexity by more than 1 % in: {', '.join(lower) or 'none of the three'}.",
        f"- With {questions} questions of each kind, one standard deviation of the arithmetic share is at most "
        f"{noise:.0%}.",
    )


def helps(kls: Mapping[tuple[str, str, str], float]) -> None:
    """KL by decoder, help and mix; ``kls``: (decoder, help, mix) -> KL."""
    decoders, labels, kinds = (list(dict.fromkeys(names)) for names in zip(*kls))
    rows = [[name, label, *(f"{kls[name, label, mix]:.4f}" for mix in kinds)] for name in decoders for label in labels]
    table(["decoder", "help", *(f"KL, {mix}" for mix in kinds)], *rows)


def tiny_columns(layer: str, divided: np.ndarray, sizes: Mapping[str, float]) -> None:
    """How large the errors of divided columns are; sizes: type -> error divided by the columns' own size."""
    of_own = ", ".join(f"{size:.1f} times ({kind})" for kind, size in sizes.items())
    say(f"- Columns of {layer} divided by 16 or more: {divided.sum()}. Their error is {of_own} their own size.")


def what_helps(kls: Mapping[tuple[str, str, str], float]) -> None:
    """How much of the KL importance and AWQ remove, separately and together; ``kls`` as in :func:`helps`."""
    (plain, harder), _, kinds = (list(dict.fromkeys(names)) for names in zip(*kls))

    def taken(name: str, label: str) -> str:
        return ", ".join(f"{1 - kls[name, label, mix] / kls[name, 'nothing', mix]:.0%} ({mix})" for mix in kinds)

    order = [named(group) for group in alike({mix: kls[harder, "nothing", mix] for mix in kinds})]
    cases = [(name, mix) for name in (plain, harder) for mix in kinds]
    both = sum(
        kls[n, "AWQ and importance", m] < (1 + SAME) * min(kls[n, "AWQ", m], kls[n, "importance", m]) for n, m in cases
    )
    say(
        f"- With outliers and no help, from best to worst: {', '.join(order)}.",
        *(
            f"- With outliers, {label} removes this much of the KL: {taken(harder, label)}."
            for label in ("importance", "AWQ")
        ),
        f"- As trained, AWQ removes {taken(plain, 'AWQ')}. If all inputs are about equally loud, scaling can gain "
        "less.",
        f"- Both together are better than the better of the two alone, or within 5 % of it, in {both} of {len(cases)} "
        "cases.",
    )


def metadata(file: GGUFFile) -> None:
    """The metadata of a file: keys, values and types; for arrays, only the number of values."""
    single, arrays = [], []
    for key, value in file.metadata.items():
        if isinstance(value, list | np.ndarray):
            kind = "str" if isinstance(value, list) else value.dtype
            arrays.append([f"`{key}`", f"{len(value):,} values", f"array of {kind}"])
        elif key != "qtutor.config":  # transformers' config, for reading the file back
            single.append([f"`{key}`", f"`{value}`", type(value).__name__])
    table(["key", "value", "type"], *single, *arrays)

"""Tables of chapter 10, serving."""

from collections.abc import Iterable, Mapping, Sequence

from qtutor.course.ladder.words import rounded
from qtutor.course.scores import table
from qtutor.course.serving.costs import Cost
from qtutor.course.serving.history import used
from qtutor.course.serving.load import Pace
from qtutor.course.serving.sizes import Shape, outgrown
from qtutor.course.tables import say

CLOSE = 0.2  # costs that differ by less than this share are "about the same"


def token_costs(shapes: Iterable[Shape]) -> None:
    """Bytes a token of each model, and the number of tokens from which on its cache is larger than its weights."""
    rows = [
        [
            shape.name,
            f"{shape.weights / 1e9:.3g}",
            shape.layers,
            f"{shape.heads} / {shape.kv_heads}",
            shape.head,
            f"{shape.token_bytes():,.0f}",
            f"{outgrown(shape, 16, 16):,}",
            f"{outgrown(shape, 4, 16):,}",
        ]
        for shape in shapes
    ]
    header = ["model", "billion weights", "layers", "query heads / key heads", "width of a head", "bytes a token"]
    table([*header, "tokens at which the cache outgrows 16-bit weights", "4-bit weights"], *rows)


def used_places(panels: Mapping[str, Sequence[Sequence[str]]]) -> None:
    """How many steps each way takes, and the share of its places that was used."""
    rows, steps = [], {}
    for name, of in panels.items():
        steps[name] = len(of[0])
        rows.append([name, steps[name], f"{used(of):.0%}"])
    table(["batching", "steps", "share of places with an unfinished text"], *rows)
    first, second = steps
    say(f"The same texts take {steps[first] / steps[second]:.2g} times as many steps with {first} batching.")


def paces(found: Sequence[Pace]) -> None:
    """Times under load, a row for each number of requests at once, and the gain of the last over the first."""
    rows = [[of.at_a_time, f"{1e3 * of.first:.1f}", f"{1e3 * of.each:.1f}", f"{of.per_second:.0f}"] for of in found]
    table(["requests at once", "ms to the first token", "ms for each further token", "tokens/s of all together"], *rows)
    few, many = found[0], found[-1]
    say(
        f"With {many.at_a_time} requests at once, all together get about {rounded(many.per_second / few.per_second)} "
        f"times the tokens of {few.at_a_time}. Each of them waits about {rounded(many.each / few.each)} times as long "
        f"for a further token, and {rounded(many.first / few.first)} times as long for its first."
    )


def costs(here: Mapping[str, Cost], there: Mapping[str, Cost]) -> None:
    """KL of each format on the decoder at hand, and the stored one on SmolLM2."""
    rows = [[name, f"{of.kl:.4f}", f"{there[name].kl:.4f}"] for name, of in here.items()]
    table(["what is rounded", "KL, the embedded decoder", "KL, SmolLM2 (stored)"], *rows)


def verdicts(of: Mapping[str, Cost], model: str) -> None:
    """Three sentences: keys against values, keys per channel against per token, and the cost that rotation leaves."""
    token, channel = "int4, keys only, keys per token", "int4, keys only, keys per channel"
    rotated, values = f"{token}, rotated", "int4, values only"
    say(
        f"**{model}.** 4-bit keys per token cost {_beside(of[token].kl / of[values].kl)} 4-bit values.",
        f"Keys per channel cost {_beside(of[channel].kl / of[token].kl)} keys per token.",
        f"Rotated, keys per token cost {_beside(of[rotated].kl / of[token].kl)} those without rotation.",
    )


def _beside(ratio: float) -> str:
    """
    >>> _beside(1.1), _beside(2.0), _beside(0.25)
    ('about as much as', 'about 2.0 times as much as', 'about 25% of')
    """
    if abs(ratio - 1) < CLOSE:
        return "about as much as"
    return f"about {rounded(ratio)} times as much as" if ratio > 1 else f"about {round(100 * ratio)}% of"


def users_that_fit(counts: Mapping[tuple[int, int], int]) -> None:
    """Users by (bits of weights, bits of the cache), and how each compares with 16 and 16."""
    first = counts[16, 16]
    rows = [
        [weights, cache, count, f"{count / first:.1f}" if first else "" if not count else "fits at all"]
        for (weights, cache), count in counts.items()
    ]
    table(["bits of weights", "bits of the cache", "users that fit", "times those of 16 and 16"], *rows)


def in_vllm(found: Mapping) -> None:
    """vLLM's stored tokens a second, and what 4 bits do to bytes and speed in the largest decoder."""
    rows = [
        [row["model"], row["weights"], row["megabytes"], *(f"{speed:,}" for speed in row["tokens a second"])]
        for row in found["rows"]
    ]
    table(["model", "weights", "MB of weights", *(f"tokens/s, {n} at once" for n in found["at once"])], *rows)
    plain, packed = found["rows"][-2:]
    share = packed["megabytes"] / plain["megabytes"]
    first, *_, last = (b / a for a, b in zip(plain["tokens a second"], packed["tokens a second"], strict=True))
    say(
        f"In {plain['model']} of {plain['millions']} million weights, 4 bits need {share:.0%} of the bytes. vLLM then "
        f"has {first:.0%} of the tokens a second with {found['at once'][0]} request, and {last:.0%} with "
        f"{found['at once'][-1]}.",
        f"Measured by `{found['how'].replace('; ', '`; ')}.",
    )

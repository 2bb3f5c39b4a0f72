"""Tables of chapter 00, start here."""

from collections.abc import Mapping, Sequence

from qtutor.course.scores import table
from qtutor.course.tables import say

NEAR = 0.15  # two times that differ by less than this share are "about" the same: other programs disturb them


def bytes_of_parts(bytes_of: Mapping[str, Mapping[str, int]]) -> None:
    """Bytes of each part of a model, a row for each number of bits; all are compared with the first row."""
    first = next(iter(bytes_of.values()))
    whole = sum(first.values())
    rows = [
        [name, *(f"{count:,}" for count in row.values()), f"{sum(row.values()):,}", f"{sum(row.values()) / whole:.0%}"]
        for name, row in bytes_of.items()
    ]
    table(["weights", *first, "together", f"of {next(iter(bytes_of))}"], *rows)


def product_times(tokens: Sequence[int], milliseconds: Sequence[float], weights: int, size: int) -> None:
    """One product shared by more and more tokens; weights: their number. size: their bytes."""
    rows = []
    for count, ms in zip(tokens, milliseconds):
        speeds = f"{size / ms / 1e6:.1f}", f"{2 * weights * count / ms / 1e6:.0f}"
        rows.append([count, f"{ms:.1f}", f"{ms / count:.2f}", *speeds])
    header = ["tokens at once", "milliseconds", "milliseconds a token", "weights read, GB/s"]
    table([*header, "billion operations/s"], *rows)
    longer = milliseconds[-1] / milliseconds[0]
    say(f"{tokens[-1]} tokens are {tokens[-1]} times the work and took {longer:.0f} times as long.")


def fewer_bytes(sizes: Mapping[str, int], seconds: Mapping[str, float]) -> None:
    """Times of one product by format, and whether the gain in speed over the first matches the gain in bytes."""
    first = next(iter(sizes))
    rows, lines = [], []
    for name, size in sizes.items():
        smaller, faster = sizes[first] / size, seconds[first] / seconds[name]
        numbers = [f"{1000 * seconds[name]:.2f}", f"{size / seconds[name] / 1e9:.0f}", f"{faster:.1f}"]
        rows.append([name, f"{size / 1e6:.0f}", *numbers])
        if name != first:
            lines.append(f"- **{name}**: {smaller:.1f} times fewer bytes. {_speed(smaller, faster)}")
    table(["weights", "megabytes", "milliseconds", "GB/s", f"times as fast as {first}"], *rows)
    say(*lines)


def _speed(smaller: float, faster: float) -> str:
    if faster < 1 - NEAR:
        return (
            f"Here it was **{1 / faster:.1f} times slower**: on this processor, or in PyTorch's routine, the "
            "arithmetic costs more time than the fewer bytes save."
        )
    if faster < 1 + NEAR:
        return "Here it was about as fast: the arithmetic costs the time that the fewer bytes save."
    share = faster / smaller
    what = "more" if share > 1 + NEAR else "about as much" if share > 1 - NEAR else "less"
    ending = {
        "more": "its routine uses the bandwidth better",
        "about as much": "only the bytes count",
        "less": "the arithmetic costs a part of the time that is saved",
    }[what]
    return (
        f"Here it was {faster:.1f} times faster, {what} {'as' if what == 'about as much' else 'than'} that: {ending}."
    )


def published_speeds(published: Mapping[str, tuple[float, float]]) -> None:
    """Size and speed of one model at many widths; ``published``: type -> (GiB, tokens a second), the largest first."""
    name, (largest, slowest) = next(iter(published.items()))
    rows = [
        [kind, size, speed, f"{size * speed:.0f}", f"{largest / size:.1f} times", f"{speed / slowest:.1f} times"]
        for kind, (size, speed) in published.items()
    ]
    header = ["type", "GiB", "tokens a second", "implied GiB a second", f"smaller than {name}"]
    table([*header, f"faster than {name}"], *rows)


def price(sizes: Mapping[int, int], lost: Mapping[int, tuple[float, float, float]]) -> None:
    """The cost of fewer bits; ``sizes``: bits -> bytes. lost: bits -> (perplexity, shares of right answers)."""
    rows = [
        [bits, f"{sizes[bits]:,}", f"{perplexity:.2f}", f"{arithmetic:.0%}", f"{others:.0%}"]
        for bits, (perplexity, arithmetic, others) in lost.items()
    ]
    table(["bits", "bytes", "perplexity", "arithmetic right", "other answers right"], *rows)
    rise = {bits: 100 * (of[0] / lost[16][0] - 1) for bits, of in lost.items()}
    say(
        f"From 16 to 4 bits perplexity rises by **{rise[4]:.1f} %**, while the whole model shrinks to "
        f"{sizes[4] / sizes[16]:.0%} of its bytes. Of the answers in arithmetic, {lost[16][1]:.0%} were right with "
        f"16 bits, and {lost[4][1]:.0%} are right with 4.",
        f"At 3 bits perplexity rises by {rise[3]:.0f} %, at 2 by {rise[2]:.0f} %. With 2 bits, {lost[2][1]:.0%} of "
        "the answers in arithmetic are right.",
    )

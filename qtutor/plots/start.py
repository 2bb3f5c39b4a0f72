"""Pictures of chapter 00: the bytes of a decoder's parts, and the time of a product as more tokens share it."""

from matplotlib.figure import Figure

from qtutor.plots.base import BLACK, BLUE, GREEN, MARKERS, ORANGE, PURPLE, RED, new_figure

HATCHES = ("", "///", "...", "xxx")


def stacked_bytes(rows: dict[str, dict[str, int]]) -> Figure:
    """A horizontal bar for each model, cut into its parts, in megabytes; ``rows``: label -> a dict part -> bytes."""
    figure, (ax,) = new_figure(7.5, 0.55 * len(rows) + 1.1)
    parts = list(next(iter(rows.values())))
    left = [0.0] * len(rows)
    for part, colour, hatch in zip(parts, (BLUE, ORANGE, GREEN, PURPLE), HATCHES):
        widths = [row[part] / 1e6 for row in rows.values()]
        ax.barh(list(rows), widths, left=left, color=colour, hatch=hatch, edgecolor="white", label=part)
        left = [start + width for start, width in zip(left, widths)]
    for y, total in enumerate(left):
        ax.text(total, y, f" {total:.2f} MB", va="center", fontsize=9)
    ax.invert_yaxis()
    ax.set(xlabel="megabytes read for every token", xlim=(0, 1.15 * max(left)))
    ax.legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def product_times(tokens: list[int], milliseconds: list[float], floor: float, ceiling: list[float]) -> Figure:
    """The measured time of one product against the number of tokens that share it, with two lower bounds, on log axes.

    floor: milliseconds to read the weights once. ceiling: for each entry of ``tokens``, milliseconds of arithmetic.
    """
    figure, (ax,) = new_figure(6.5, 3.4)
    ax.plot(tokens, milliseconds, marker=MARKERS[0], color=BLUE, label="measured")
    ax.axhline(floor, color=RED, linestyle="--", label="reading the weights once")
    ax.plot(tokens, ceiling, color=BLACK, linestyle=":", label="doing the arithmetic")
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xticks(tokens, tokens)
    ax.set(xlabel="tokens that share the product", ylabel="milliseconds")
    ax.grid(axis="y", alpha=0.3)
    ax.legend(frameon=False, fontsize=8)
    return figure


def bars(values: dict[str, float], title: str, xlabel: str, log: bool = False) -> Figure:
    """A horizontal bar for each label, with its number beside it."""
    figure, (ax,) = new_figure(7.0, 0.4 * len(values) + 0.9)
    ax.barh(list(values), list(values.values()), color=BLUE)
    if log:
        ax.set_xscale("log")
        ax.set_xlim(left=min(1.0, min(values.values()) / 2), right=4 * max(values.values()))
    for y, value in enumerate(values.values()):
        ax.text(value, y, f" {value:,.3g}", va="center", fontsize=9)
    ax.invert_yaxis()
    ax.set(title=title, xlabel=xlabel)
    ax.title.set_size(10)
    return figure


BYTES_OF_PARTS = (
    "Five horizontal bars, the bytes of the decoder at 16, 8, 4, 3 and 2 bits, each cut into MLP, attention, and "
    "embedding with norms. MLP and attention shrink with the bits; the embedding stays and is most of the 2-bit bar."
)
PRODUCT_TIMES = (
    "Milliseconds of one matrix product against the number of tokens that share it, both axes logarithmic: measured, "
    "with a dashed horizontal line for reading the weights and a dotted rising one for the arithmetic."
)

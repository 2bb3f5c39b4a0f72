"""Pictures of chapter 10: bytes that grow with a text, places of a batch over time, users that fit, loud keys."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from qtutor.plots.base import BLACK, BLUE, GREEN, GREY, MARKERS, ORANGE, PURPLE, RED, SAND, SKY, new_figure

LETTERS = (SKY, ORANGE, GREEN, PURPLE, GREY, SAND)  # behind black letters
STYLES = {16: "-", 8: "--", 4: ":"}


def cache_and_weights(
    tokens: Sequence[int], caches: Mapping[str, Sequence[float]], weights: Mapping[str, float]
) -> Figure:
    """Gigabytes against tokens, logarithmic: rising lines of caches, flat ones of weights, named at their ends.

    caches: name -> bytes at each of ``tokens``. weights: name -> bytes.
    """
    figure, (ax,) = new_figure(7.4, 3.8)
    for (name, sizes), colour, marker in zip(caches.items(), (BLUE, GREEN, RED, PURPLE), MARKERS):
        ax.plot(tokens, [size / 1e9 for size in sizes], color=colour, marker=marker, markersize=4, label=name)
    for (name, size), style in zip(weights.items(), ("-", "--", ":")):
        ax.axhline(size / 1e9, color=BLACK, linestyle=style, linewidth=1.2, label=name)
    ax.set(xscale="log", yscale="log", xlabel="tokens in the cache, of all users together", ylabel="gigabytes")
    ax.set_title("a cache grows with its tokens, weights do not", size=10)
    ax.grid(alpha=0.25)
    ax.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def places_over_time(panels: Mapping[str, Sequence[Sequence[str]]]) -> Figure:
    """Places of a batch as rows, steps as columns, one panel below the other on the same axis of steps.

    panels: title -> for each place the letter of its text, step by step; ``"."`` computed for nobody, ``""`` empty.
    """
    heights = [len(rows) for rows in panels.values()]
    figure = Figure(figsize=(7.6, 0.42 * sum(heights) + 1.0 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False, sharex=True, gridspec_kw={"height_ratios": heights})[:, 0]
    letters = sorted({place for rows in panels.values() for row in rows for place in row} - {"", "."})
    colours = {letter: LETTERS[i % len(LETTERS)] for i, letter in enumerate(letters)}
    for ax, (title, rows) in zip(axes, panels.items()):
        for place, row in enumerate(rows):
            for start, end, letter in runs(row):
                if letter == "":
                    continue
                box = {"facecolor": "white", "hatch": "///"} if letter == "." else {"facecolor": colours[letter]}
                ax.add_patch(Rectangle((start, place + 0.1), end - start, 0.8, edgecolor=BLACK, linewidth=0.6, **box))
                if letter != ".":
                    ax.text((start + end) / 2, place + 0.5, letter, ha="center", va="center", fontsize=8)
        ax.set(xlim=(0, max(len(row) for rows in panels.values() for row in rows)), ylim=(len(rows), 0))
        ax.set_yticks([place + 0.5 for place in range(len(rows))], [f"place {place}" for place in range(len(rows))])
        ax.tick_params(axis="y", length=0, labelsize=8)
        ax.set_title(title, size=10)
        ax.spines[["top", "right", "left"]].set_visible(False)
    axes[-1].set_xlabel("step of the model")
    wasted = Patch(facecolor="white", edgecolor=BLACK, hatch="///", label="computed for nobody")
    axes[0].legend(handles=[wasted], frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def runs(row: Sequence[str]) -> list[tuple[int, int, str]]:
    """Join equal neighbours: (start, end, letter).

    >>> runs(["A", "A", "", "B"])
    [(0, 2, 'A'), (2, 3, ''), (3, 4, 'B')]
    """
    found: list[tuple[int, int, str]] = []
    for step, letter in enumerate(row):
        if found and found[-1][2] == letter:
            found[-1] = found[-1][0], step + 1, letter
        else:
            found.append((step, step + 1, letter))
    return found


def users(tokens: Sequence[int], counts: Mapping[tuple[int, int], Sequence[int]], title: str) -> Figure:
    """Users that fit against the tokens of each, logarithmic; counts: (bits of weights, bits of the cache) -> users.

    A curve ends where nobody fits any more.
    """
    figure, (ax,) = new_figure(7.4, 3.6)
    for (weight_bits, cache_bits), fitting in counts.items():
        drawn = [np.nan if count == 0 else count for count in fitting]
        label = f"weights {weight_bits}, cache {cache_bits} bits"
        colour, marker = (RED, "s") if weight_bits == 16 else (BLUE, "o")
        ax.plot(tokens, drawn, STYLES[cache_bits], color=colour, marker=marker, markersize=3.5, label=label)
    ax.set(xscale="log", yscale="log", xlabel="tokens of each user", ylabel="users that fit")
    ax.set_xlim(min(tokens) * 0.9, max(tokens) * 1.1)
    ax.set_ylim(0.8, max(2, 1.5 * max(max(fitting) for fitting in counts.values())))
    if not any(any(fitting) for fitting in counts.values()):
        ax.text(0.5, 0.5, "the weights leave no room", transform=ax.transAxes, ha="center")
    ax.set_title(title, size=10)
    ax.grid(alpha=0.25)
    ax.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def under_load(
    at_a_time: Sequence[int], firsts: Sequence[float], others: Sequence[float], speeds: Sequence[float]
) -> Figure:
    """Three panels against the requests at once: ms to the first token, ms of each further one, tokens a second."""
    figure, axes = new_figure(8.4, 2.9, panels=3)
    panels = (
        ("until the first token", "milliseconds", [1e3 * x for x in firsts], BLUE),
        ("each further token", "milliseconds", [1e3 * x for x in others], GREEN),
        ("all requests together", "tokens a second", speeds, RED),
    )
    for ax, (title, unit, values, colour) in zip(axes, panels):
        ax.plot(at_a_time, values, "o-", color=colour)
        ax.set(xscale="log", xlabel="requests at once", ylabel=unit, ylim=(0, 1.15 * max(values)))
        ax.set_xticks(at_a_time, at_a_time)
        ax.minorticks_off()
        ax.set_title(title, size=10)
        ax.grid(axis="y", alpha=0.3)
    return figure


def cache_costs(names: Sequence[str], models: Mapping[str, Sequence[float]]) -> Figure:
    """KL of each format as dots on a logarithmic axis, one row a format; models: name -> KL in the order of names."""
    figure, (ax,) = new_figure(7.4, 0.3 * len(names) + 1.2)
    places = np.arange(len(names))
    for (model, values), colour, marker in zip(models.items(), (BLUE, RED), MARKERS):
        ax.plot(values, places, marker, color=colour, label=model)
    ax.set_yticks(places, names, fontsize=8)
    ax.set(xscale="log", xlabel="KL divergence, nats a token", ylim=(len(names) - 0.5, -0.5))
    ax.set_title("what rounding keys and values costs", size=10)
    ax.grid(alpha=0.3)
    ax.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def loud_channels(keys: np.ndarray, values: np.ndarray) -> Figure:
    """Sizes of keys and values ``[tokens, channels]`` of one head as two pictures on one colour scale."""
    figure = Figure(figsize=(8.0, 3.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    largest = max(np.abs(keys).max(), np.abs(values).max())
    for ax, of, title in ((axes[0], keys, "keys"), (axes[1], values, "values")):
        shown = ax.imshow(np.abs(of), cmap="viridis", vmin=0, vmax=largest, aspect="auto", interpolation="nearest")
        ax.set_title(f"sizes of {title}", size=10)
        ax.set_xlabel("channel of the head")
    axes[0].set_ylabel("token")
    figure.colorbar(shown, ax=axes, label="size")
    return figure

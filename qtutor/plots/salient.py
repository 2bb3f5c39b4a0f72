"""Pictures of chapter 03, distributions: the gain from keeping some columns in 16 bits."""

import numpy as np
from matplotlib.figure import Figure

from qtutor.plots.base import BLACK, BLUE, GREEN, MARKERS, PURPLE, RED, log_scale


def ways_to_keep(results: dict[tuple, tuple], shares: list[float]) -> Figure:
    """Perplexity for every way to choose the columns that stay in 16 bits, with a panel for each case.

    results: (decoder, bits) -> (perplexity of float, of no column kept, way -> a list over shares of lists over draws,
    anything). More than one draw becomes a mean, with a bar from the lowest to the highest.
    """
    panels = {}
    for (name, bits), (exact, none, found, _) in results.items():
        choices = {}
        for way, by_share in found.items():
            drawn = len(by_share[0]) > 1
            ends = ([min(v) for v in by_share], [max(v) for v in by_share]) if drawn else (None, None)
            choices[way] = ([sum(v) / len(v) for v in by_share], *ends)
        panels[f"{name}, {bits} bits"] = (choices, exact, none)
    labels = [f"{share:.0%}" for share in shares]
    return kept_columns(panels, labels, "input channels kept in 16 bits", "perplexity")


def kept_columns(panels: dict[str, tuple], shares: list[str], xlabel: str, ylabel: str) -> Figure:
    """Several ways to choose the columns kept in 16 bits, against the share of these columns; two panels in a row.

    The vertical axis is logarithmic: equal distances are equal parts of the loss from rounding.
    panels: title -> (choices, float, none). choices: label -> (values, lowest, highest), each as long as ``shares``;
    lowest and highest are the ends of a bar, or ``None``. float, none: the values for all and for no columns kept.
    """
    lines = (len(panels) + 1) // 2
    figure = Figure(figsize=(9.0, 2.9 * lines), layout="constrained")
    axes = figure.subplots(lines, 2, squeeze=False).ravel()
    places = np.arange(len(shares))
    for ax, (title, (choices, exact, none)) in zip(axes, panels.items()):
        for level, name, above in ((exact, "float", False), (none, "nothing kept", True)):
            ax.axhline(level, color=BLACK, linewidth=1.0, linestyle=":" if above else "-")
            ax.text(0.01, level, name, transform=ax.get_yaxis_transform(), va="bottom" if above else "top", fontsize=8)
        for i, ((label, (values, lowest, highest)), colour) in enumerate(
            zip(choices.items(), (BLUE, RED, GREEN, PURPLE))
        ):
            values = np.asarray(values)
            band = None if lowest is None else (values - np.asarray(lowest), np.asarray(highest) - values)
            shifted = places + 0.05 * (i - 1.5)  # side by side, so that bars do not hide each other
            ax.errorbar(shifted, values, yerr=band, marker=MARKERS[i], color=colour, label=label, capsize=3)
        ax.set_xticks(places, shares)
        ax.set(title=title, xlabel=xlabel, ylabel=ylabel, xlim=(-0.5, len(shares) - 0.5))
        ax.title.set_size(10)
        ax.margins(y=0.15)
        log_scale(ax)
        ax.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


# A description of the picture, for readers who cannot see it.
WAYS_TO_KEEP = (
    "Four panels, the decoder as trained and with add_outliers, at 3 and at 2 bits. Perplexity, logarithmic, against "
    "the share of channels kept, between the level of the float model and that of plain rounding, a line for each way "
    "to choose; random draws with a bar from lowest to highest. The numbers are in the table below."
)

"""Pictures of chapter 02, rounding to nearest."""

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure

from qtutor.plots.base import BLACK, BLUE, ORANGE, RED, SKY, curves, numpy


def number_line(lines: dict[str, tuple]) -> Figure:
    """Numbers above grids, with an arrow from every number to its nearest level; title -> ``(values, levels)``.

    A grid is drawn as ticks on a line. A red triangle marks numbers that move further than half a step.
    """
    figure = Figure(figsize=(7.5, 1.45 * len(lines) + 0.7), layout="constrained")
    axes = figure.subplots(len(lines), 1, squeeze=False, sharex=True)[:, 0]
    legend = {}
    for ax, (title, (values, levels)) in zip(axes, lines.items()):
        values, levels = (numpy(torch.as_tensor(x)).ravel() for x in (values, levels))
        half_step = abs(levels[1] - levels[0]) / 2
        ax.axhline(0, color=BLACK, linewidth=0.8)
        ax.plot(levels, 0 * levels, "|", color=BLACK, markersize=14, label="level of the grid")
        nearest = levels[abs(values[:, None] - levels).argmin(axis=1)]
        far = abs(values - nearest) > half_step * 1.001
        for value, level in zip(values, nearest):
            ax.annotate("", (level, 0.03), (value, 0.9), arrowprops={"arrowstyle": "->", "color": "gray"})
        ax.plot(values[~far], 0 * values[~far] + 1, "o", color=BLUE, label="number")
        if far.any():
            ax.plot(values[far], 0 * values[far] + 1, "^", color=RED, label="moved more than half a step")
        ax.set(ylim=(-0.3, 1.3), yticks=[])
        # The text is beside its line: above, it would seem to belong to the line above.
        ax.set_ylabel(title, rotation=0, ha="right", va="center", fontsize=10)
        ax.spines[["top", "right", "left", "bottom"]].set_visible(False)
        ax.tick_params(bottom=ax is axes[-1])
        legend |= {label: handle for handle, label in zip(*ax.get_legend_handles_labels())}
    axes[-1].spines["bottom"].set_visible(True)
    axes[-1].set_xlabel("number")
    figure.legend(
        legend.values(), legend.keys(), loc="outside lower center", ncols=len(legend), frameon=False, fontsize=8
    )
    return figure


def matrices(panels: dict[str, torch.Tensor], limit: float, digits: int = 2) -> Figure:
    """Small matrices, one below the other, as coloured cells with numbers; colours saturate at ``±limit``."""
    figure = Figure(figsize=(7.0, 1.75 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for ax, (title, matrix) in zip(axes, panels.items()):
        matrix = numpy(matrix)
        image = ax.imshow(matrix, cmap="PuOr", vmin=-limit, vmax=limit, aspect="auto")
        for (row, column), value in np.ndenumerate(matrix):
            ink = "white" if abs(value) > 0.7 * limit else BLACK
            text = f"{round(float(value), digits) + 0:.{digits}f}"  # + 0 turns -0.00 into 0.00
            ax.text(column, row, text, ha="center", va="center", fontsize=8, color=ink)
        ax.set(title=title, xticks=[], yticks=range(len(matrix)))
        ax.set_yticklabels([f"row {i}" for i in range(len(matrix))], fontsize=8)
        ax.title.set_size(10)
    figure.colorbar(image, ax=list(axes), extend="both", shrink=0.6)
    return figure


def weights_and_grid(weight: torch.Tensor, quantized, title: str = "", bins: int = 201) -> Figure:
    """Histograms of a layer's weights, with the grid of the group of median scale, and of its rounding errors.

    ``quantized`` is the :class:`~qtutor.core.quantized.QuantizedTensor` of ``weight``. Under a slider the picture has
    to be quick: numpy counts and outlines are many times faster than bars. Fixed margins save time, too, and keep the
    axes at the same places for all settings.
    """
    figure = Figure(figsize=(8.0, 3.0))
    left, right = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.085, right=0.985, bottom=0.16, top=0.9, wspace=0.2)
    error = numpy(quantized.dequantize() - weight.float()).ravel()
    values = numpy(weight).ravel()
    scales = quantized.scales.flatten().float()
    middle = scales.argsort()[len(scales) // 2]
    zero = quantized.grid.middle if quantized.zeros is None else int(quantized.zeros.flatten()[middle])
    levels = float(scales[middle]) * (torch.arange(quantized.grid.largest_code + 1) - zero).numpy()
    reach = abs(values).max()
    counts, edges = np.histogram(values, bins=bins, range=(-reach, reach))
    left.stairs(counts, edges, fill=True, color=SKY, label="weights")
    top = counts.max() * 1.05
    if len(levels) <= 64:
        left.vlines(levels, 0, top, color=RED, linewidth=0.8, linestyle="--", label="levels of one group")
    else:  # so many lines would cover the picture
        left.plot(levels[[0, 0, -1, -1]], [0, top, top, 0], RED, linewidth=1.2, linestyle="--")
        left.lines[0].set_label(f"{len(levels)} levels of one group")
    left.set(title=title, xlabel="weight", ylabel="how many", xlim=(-1.05 * reach, 1.05 * reach))
    far = max(abs(error).max(), 1e-12)
    counts, edges = np.histogram(error, bins=bins, range=(-far, far))
    right.stairs(counts, edges, fill=True, color=ORANGE)
    right.set(title="rounding error", xlabel="rounded minus weight", ylabel="how many")
    right.set_xlim(-1.05 * reach / 2, 1.05 * reach / 2)
    for ax in (left, right):
        ax.title.set_size(10)
        ax.spines[["top", "right"]].set_visible(False)
    left.legend(framealpha=1, fontsize=8, loc="upper right")
    left.set_ylim(top=left.get_ylim()[1] * 1.25)  # room for the legend above the bell
    return figure


def losses_and_skills(measured: dict[str, tuple]) -> Figure:
    """The loss and the skills of the decoder, by its number of bits; ``measured`` as in the chapter's table.

    The loss has a logarithmic axis. Float, which has no loss, has no place on it.
    """
    loss, skill = "what the loss says, %, logarithmic", "what the model can do, %"
    comparisons, arithmetic, others, valid = zip(*measured.values())
    nothing = float("nan")
    return curves(
        {
            loss: {
                "perplexity rise": [c.loss_percent or nothing for c in comparisons],
                "tokens flipped": [100 * c.flips or nothing for c in comparisons],
            },
            skill: {
                "arithmetic right": [100 * share for share in arithmetic],
                "other answers right": [100 * share for share in others],
                "valid Python": [100 * share for share in valid],
            },
        },
        list(measured),
        "bits, groups of 64",
        log=(loss,),
        lowest={skill: 0},
    )


def before_after_error(
    before: torch.Tensor, after: torch.Tensor, corner: tuple[int, int] = (0, 0), group_size: int = 0
) -> Figure:
    """Weights ``[rows, columns]`` as pictures: before rounding, after it, and the error on the same scale of colours.

    corner: the row and column of the first weight in its layer. group_size: thin lines separate groups; 0: no lines.
    Orange is below zero, purple above; darker cells are further from zero, and the largest 2 % saturate.
    """
    before, after = numpy(before), numpy(after)
    rows, columns = before.shape
    colours = colormaps["PuOr"].resampled(33)  # as many steps as the eye can distinguish, and a smaller file
    limit = max(float(np.quantile(abs(before), 0.98)), 1e-12)
    figure = Figure(figsize=(7.5, 4.2))
    axes = figure.subplots(3, 1, sharex=True)
    figure.subplots_adjust(left=0.085, right=0.88, bottom=0.115, top=0.935, hspace=0.35)
    top, left = corner
    edges = (left - 0.5, left + columns - 0.5, top + rows - 0.5, top - 0.5)
    panels = {"before": before, "after": after, "error: after minus before": after - before}
    for ax, (title, matrix) in zip(axes, panels.items()):
        image = ax.imshow(
            matrix, cmap=colours, vmin=-limit, vmax=limit, interpolation="nearest", aspect="auto", extent=edges
        )
        if group_size:
            ax.vlines(np.arange(left + group_size, left + columns, group_size) - 0.5, *edges[2:], BLACK, lw=0.8)
        ax.set_title(title, size=10, loc="left")
        ax.set_ylabel("row")
    axes[-1].set_xlabel("column" + (", black lines between groups" if group_size and group_size < columns else ""))
    figure.colorbar(image, cax=figure.add_axes((0.9, 0.25, 0.015, 0.5), label="<colorbar>"), extend="both")
    return figure


# Descriptions of the larger pictures of the chapter, for readers who cannot see them.
THREE_DIVISORS = (
    "Ten numbers above three number lines with 16 levels each. Divided by 7, the largest number meets the last level "
    "and the first level lies outside all numbers. Divided by 7.5, the largest lies half a step beyond the last "
    "level. Divided by 8, it lies a whole step beyond and is marked with a red triangle."
)
ONE_SCALE_A_ROW = (
    "Three 4 by 8 matrices of coloured cells with their numbers: before, after 3-bit rounding with one scale a row, "
    "and the error. Row 1 holds an outlier of 6; after rounding all its other weights are 0, and the error shows them "
    "in full. The other rows keep their pattern."
)
THREE_SIZES_OF_GROUPS = (
    "The errors of the same matrix three times: with one scale for the tensor errors are large everywhere, with one "
    "scale a row only in row 1, with groups of four only in the right half of row 1."
)
CLIPPED_RANGES = (
    "Signal over error in decibels against the share of the range that the grid covers, a curve for 2, 3, 4 and 8 "
    "bits. The 2-bit curve peaks well below the full range and falls again; with more bits the peak lies further "
    "right and small ranges do harm; at 8 bits it lies at the full range."
)
LOSSES_AND_SKILLS = (
    "Two panels over float, 8, 4, 3 and 2 bits; the numbers are in the table above. Left: perplexity rise and flipped "
    "tokens in per cent. Right: the shares of arithmetic right, other answers right, and valid Python."
)
GROUP_SIZES = (
    "Perplexity rise, logarithmic, against group size, one panel for 3 bits and one for 2 bits, each with a line for "
    "asymmetric, symmetric, and asymmetric with a clipped range; the numbers are in the table below."
)

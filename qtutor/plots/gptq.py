"""Pictures of chapter 06, GPTQ: two weights in the plane, errors pushed to the right, the Hessian, orders."""

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from qtutor.plots.base import BLACK, BLUE, GREEN, ORANGE, RED, SKY, curves, new_figure, numpy

COLOURS = colormaps["PuOr"].resampled(33)  # as many steps as the eye can distinguish, and smaller files


def plane(panels: dict[str, tuple], weight: torch.Tensor, reach: tuple[float, float] = (-0.7, 1.7)) -> Figure:
    """Two weights as a point, whole numbers as the grid, and ellipses of equal output error around the point.

    panels: title -> (hessian ``[2, 2]``, rtn, slid, gptq). The last three are points ``[2]``. rtn: the nearest grid
    point. slid: the first weight is rounded, the second has moved to compensate. gptq: the grid point nearest to that.
    """
    figure, axes = new_figure(4.1 * len(panels), 4.8, panels=len(panels))
    along = np.linspace(*reach, 201)
    x, y = np.meshgrid(along, along)
    w = numpy(weight)
    for ax, (title, (hessian, rtn, slid, gptq)) in zip(axes, panels.items()):
        h = numpy(hessian)
        rtn, slid, gptq = numpy(rtn), numpy(slid), numpy(gptq)

        def cost(first, second, h=h):
            first, second = first - w[0], second - w[1]
            return h[0, 0] * first**2 + 2 * h[0, 1] * first * second + h[1, 1] * second**2

        slide, end, near = (float(cost(*point)) for point in (slid, gptq, rtn))
        levels = {slide, end, near, (end * near) ** 0.5, 1.7 * near, 2.6 * near}  # an ellipse through each end
        ax.contour(x, y, cost(x, y), levels=sorted(levels), colors=[SKY], linewidths=1.0)
        grid = np.arange(np.ceil(reach[0]), np.floor(reach[1]) + 1)
        gx, gy = np.meshgrid(grid, grid)
        ax.plot(gx.ravel(), gy.ravel(), "s", color="gray", markersize=6, label="grid")
        ax.axvline(slid[0], color="gray", linewidth=0.8, linestyle=":")
        turn = np.array([slid[0], w[1]])
        for start, end, colour, line in (
            (w, rtn, RED, "--"),
            (w, turn, BLUE, "-"),
            (turn, slid, BLUE, "-"),
            (slid, gptq, GREEN, "-"),
        ):
            ax.annotate(
                "", end, start, arrowprops={"arrowstyle": "->", "color": colour, "linestyle": line, "linewidth": 1.8}
            )
        ax.plot(*w, "o", color=BLACK, markersize=7, label="the two weights")
        ax.plot(*slid, "o", color=BLUE, markersize=5, label="first rounded, second slid")
        ax.plot(*rtn, "D", color=RED, markersize=9, fillstyle="none", markeredgewidth=2, label="nearest point (RTN)")
        ax.plot(*gptq, "o", color=GREEN, markersize=13, fillstyle="none", markeredgewidth=2, label="GPTQ")
        ax.set(title=title, xlabel="first weight", ylabel="second weight", xlim=reach, ylim=reach, aspect="equal")
        ax.title.set_size(10)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def staircase(steps: torch.Tensor, title: str = "") -> Figure:
    """One row of weights after every step, from top to bottom: ``steps [in + 1, in]``; line k has k rounded weights.

    Rounded weights have a frame; the colour shows how far a weight has moved since the beginning.
    """
    values = numpy(steps)
    moved = values - values[:1]
    lines, columns = values.shape
    limit = max(abs(moved).max(), 1e-12)
    figure = Figure(figsize=(1.25 * columns + 2.2, 0.52 * lines + 0.9), layout="constrained")
    ax = figure.subplots()
    image = ax.imshow(moved, cmap=COLOURS, vmin=-limit, vmax=limit, aspect="auto")
    for (line, column), value in np.ndenumerate(values):
        ink = "white" if abs(moved[line, column]) > 0.7 * limit else BLACK
        weight = "bold" if column < line else "normal"
        text = f"{value + 0.0:.2f}"
        ax.text(column, line, text, ha="center", va="center", fontsize=9, color=ink, fontweight=weight)
        if column < line:
            ax.add_patch(_frame(column, line))
    ax.set(title=title, xticks=range(columns), yticks=range(lines))
    ax.set_xticklabels([f"weight {i}" for i in range(columns)], fontsize=8)
    ax.set_yticklabels(["before", *[f"{i} rounded" for i in range(1, lines)]], fontsize=8)
    ax.title.set_size(10)
    figure.colorbar(image, ax=ax, label="moved by")
    return figure


def _frame(column: int, line: int) -> Rectangle:
    return Rectangle((column - 0.46, line - 0.42), 0.92, 0.84, fill=False, edgecolor=BLACK, linewidth=1.4)


def hessian(matrix: torch.Tensor, title: str = "", limit: float = 0.5) -> Figure:
    """The two parts of H ``[in, in]``: the size of each input (the diagonal), and the correlations between inputs.

    Colours saturate at correlations of ``±limit``. The diagonal is shown as root mean squares over those of the median
    input.
    """
    h = matrix.double().cpu().numpy()
    size = np.sqrt(np.maximum(np.diag(h), 1e-300))
    figure = Figure(figsize=(9.0, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    image = left.imshow(h / np.outer(size, size), cmap=COLOURS, vmin=-limit, vmax=limit, interpolation="nearest")
    left.set(title=f"{title}: correlation of any two inputs", xlabel="input channel", ylabel="input channel")
    figure.colorbar(image, ax=left, extend="both")
    right.stairs(size / np.median(size), np.arange(len(h) + 1) - 0.5, baseline=None, color=BLUE, linewidth=1.0)
    right.axhline(1, color=ORANGE, linestyle="--", linewidth=1.2, label="median input")
    right.set(
        title="size of each input", xlabel="input channel", ylabel="root of H's diagonal / its median", yscale="log"
    )
    right.legend(frameon=False, fontsize=8)
    right.spines[["top", "right"]].set_visible(False)
    for ax in (left, right):
        ax.title.set_size(10)
    return figure


def orders(panels: dict[str, torch.Tensor], diagonal: torch.Tensor, group_size: int) -> Figure:
    """The step at which each column is rounded; ``panels``: title -> the columns in order of rounding, int64 ``[in]``.

    Darker dots are larger inputs (``diagonal [in]`` of H); lines separate the groups.
    """
    figure, axes = new_figure(3.3 * len(panels), 3.2, panels=len(panels))
    size = np.log10(np.maximum(diagonal.double().cpu().numpy(), 1e-300))
    low, high = np.quantile(size, [0.02, 0.98])
    for ax, (title, order) in zip(axes, panels.items()):
        order = order.cpu().numpy()
        dots = ax.scatter(np.arange(len(order)), order, c=size[order], cmap="viridis_r", s=8, vmin=low, vmax=high)
        for border in range(group_size, len(order), group_size):
            ax.axhline(border - 0.5, color="gray", linewidth=0.6)
        ax.set(title=title, xlabel="step", ylabel="column")
        ax.title.set_size(10)
    figure.colorbar(dots, ax=axes, label="log10 of H's diagonal", extend="both")
    return figure


def dampings(values: list[str], few: dict[str, list[float]], many: dict[str, list[float]]) -> Figure:
    """The output error divided by RTN's, against damping; a panel for few tokens of calibration and one for many.

    few, many: name of the text for measuring -> errors. Both panels have the same axis, from 0.
    """
    panels = {f"{name}: output error over RTN's": of for name, of in (("128 tokens", few), ("8192 tokens", many))}
    figure = curves(panels, values, "damping")
    top = 1.05 * max(max(errors) for series in panels.values() for errors in series.values())
    for ax in figure.axes:
        ax.set_ylim(0, top)
    return figure


PLANE = (
    "Two weights as a point at 0.40, 0.45 among the grid points 0 and 1 of the plane. Left, for inputs that are alike, "
    "long thin ellipses of equal output error run from upper left to lower right; the nearest grid point, 0, 0, lies "
    "far out across them. GPTQ goes left to the line of the first weight's 0, slides up along it to 0.82, where the "
    "line touches an ellipse, and on to 0, 1, which lies well inside. Right, for independent inputs, the ellipses are "
    "circles, nothing slides, and both methods end at 0, 0."
)
STAIRCASE = (
    "Four weights after each step, from top to bottom. The first is rounded and the three others move up; then the "
    "second is rounded, and so on to the right, until all four are whole numbers in frames. The numbers are those in "
    "the cells."
)
HESSIAN = (
    "Left, the correlations of the 256 inputs of q_proj in block 1 as a square of coloured cells: a dark diagonal, and "
    "otherwise pale, with some rows and columns that stand out. Right, the size of each input on a logarithmic axis: "
    "most near the median, a few many times larger. The numbers are in the table."
)
DAMPINGS = (
    "Output error of q_proj in block 1 at 3 bits over that of rounding to nearest, against damping from 0.000001 to 1. "
    "With 128 tokens the error on the calibration text is low, falls a little and then rises, while on held-out text "
    "it starts high, falls to a valley and rises again. With 8192 tokens both curves lie close together, flat, and "
    "rise at the end."
)
ORDERS = (
    "Three panels with a dot for every column, step against column, dark for large inputs. From left to right: a "
    "straight line. All columns by size: dots all over, dark ones on the left. By groups: four blocks, one a group, "
    "each with its dark dots on the left."
)

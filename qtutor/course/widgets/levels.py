"""Beat NF4, the game of chapter 04: sixteen levels to drag over a histogram of weights, and their error.

:func:`beat_nf4` is the widget. Its script (live/levels.js) has no weights. For each of :data:`BINS` bins of a
histogram, it has two points with the same count, sum and sum of squares as the bin's weights. These points give the
error of any levels to 0.05 % of the error. The functions here do in torch what the script does. Weights are divided by
the absmax of their block, so all weights are from -1 to 1.
"""

from collections.abc import Mapping, Sequence

import torch

from qtutor.course.widgets.explorer import html_table
from qtutor.course.widgets.frames import frame
from qtutor.course.widgets.live import Live, live
from qtutor.errors import QtutorError
from qtutor.methods import bnb
from qtutor.plots.bnb import levels_over_weights

BINS = 512
BLOCK = 64
INT4 = tuple((code - 8) / 7.5 for code in range(16))  # chapter 02: the largest weight is 7.5 steps
LEVELS = {"int4": INT4, "NF4": tuple(sorted(bnb.NF4.values)), "FP4": tuple(sorted(bnb.FP4.values))}
ALT = (
    "The histogram of the weights under sixteen levels, and the share of the weights that each level gets, for the "
    "evenly spaced levels of int4 and for NF4. The table has the errors."
)


def beat_nf4(sources: Mapping[str, Sequence[torch.Tensor]]) -> Live:
    """The widget. sources: name -> float matrices ``[out, in]`` whose rows are cut into blocks of 64."""
    if not sources or not all(len(matrices) for matrices in sources.values()):
        raise QtutorError("there are no weights for the picture: give {'a name': [weight, ...]}.")
    data = {"formats": {name: list(levels) for name, levels in LEVELS.items()}, "sources": {}}
    rows, panels = [], {}
    for name, matrices in sources.items():
        relative, squares = normalised(matrices)
        points = points_of(relative, squares)
        best = {zero: error_of(points, found) for zero, found in best_levels(points).items()}
        errors = {levels: error_of(points, torch.tensor(LEVELS[levels])) for levels in LEVELS}
        data["sources"][name] = {"points": _short(points), "nf4": round(errors["NF4"], 6)}
        data["sources"][name] |= {"best": round(best[False], 6), "best_with_zero": round(best[True], 6)}
        rows.append([name, *(f"{error:.2%}" for error in (*errors.values(), *best.values()))])
        panels = panels or {f"{name}, {levels}": _panel(relative, levels) for levels in ("int4", "NF4")}
    table = html_table(["weights", *LEVELS, "the best levels", "the best with a 0"], *rows, caption="relative error")
    still = frame((levels_over_weights(panels), table), ALT, small=True)
    return live("levels", data, still, "Beat NF4: sixteen levels to drag over a histogram of weights")


def normalised(matrices: Sequence[torch.Tensor], block: int = BLOCK) -> tuple[torch.Tensor, torch.Tensor]:
    """All weights over the absmax of their block, and the square of that absmax for each: both float64 ``[n]``.

    After the division, a squared error is in units of the absmax's square, so this square is the weight's factor in the
    total error. Blocks of zeros are left out: levels that include 0 give them no error.
    """
    blocks = []
    for weight in matrices:
        if weight.ndim != 2 or weight.shape[1] % block:
            raise QtutorError(
                f"weights of shape {list(weight.shape)} cannot be divided into blocks of {block}: give a matrix "
                f"[out, in] in which in is a multiple of {block}."
            )
        blocks.append(weight.detach().double().cpu().reshape(-1, block))
    blocks = torch.cat(blocks)
    absmax = blocks.abs().amax(dim=1, keepdim=True)
    blocks, absmax = blocks[absmax[:, 0] > 0], absmax[absmax[:, 0] > 0]
    return (blocks / absmax).flatten(), absmax.square().expand_as(blocks).flatten()


def points_of(relative: torch.Tensor, counts: torch.Tensor) -> dict[str, torch.Tensor]:
    """Two points for each bin that has weights, float64 ``[points]``, ascending: x, c, share.

    relative: weights from -1 to 1, ``[n]``; counts: the factor of each weight's squared error, ``[n]``. x is the
    position of a point, share is the part of all weights that the point represents, and c is the sum of their counts,
    in units of the sum of all ``counts * relative**2``. Let m be the mean of a bin and s its standard deviation, with
    weights counted by ``counts``. Then the points are m - s and m + s, with half of the bin each. So the bin's three
    sums, of c, c x and c x^2, stay the same.
    """
    bins = ((relative + 1) * (BINS / 2)).long().clamp(0, BINS - 1)
    counts = counts / (counts * relative.square()).sum()

    def by_bin(values: torch.Tensor) -> torch.Tensor:
        return torch.zeros(BINS, dtype=torch.float64).index_add(0, bins, values.double())

    c, share = by_bin(counts), by_bin(torch.full_like(relative, 1 / max(len(relative), 1)))
    mean = by_bin(counts * relative) / c
    spread = (by_bin(counts * (relative - mean[bins]).square()) / c).sqrt()
    used = c > 0
    x = torch.cat([(mean - spread)[used], (mean + spread)[used]])
    points = {"x": x, "c": c[used].repeat(2) / 2, "share": share[used].repeat(2) / 2}
    order = x.argsort(stable=True)
    return {name: values[order] for name, values in points.items()}


def nearest(x: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """The index of the level nearest to each of ``x``, int64; ``levels`` ascend."""
    return torch.bucketize(x, (levels[1:] + levels[:-1]).double() / 2)


def error_of(points: Mapping[str, torch.Tensor], levels: torch.Tensor) -> float:
    """The error of the weights relative to the weights; ``levels`` ascend."""
    off = points["x"] - levels.double()[nearest(points["x"], levels)]
    return ((points["c"] * off.square()).sum() / (points["c"] * points["x"].square()).sum()).sqrt().item()


def lloyd_step(points: Mapping[str, torch.Tensor], levels: torch.Tensor) -> torch.Tensor:
    """Every level moves to the mean of its weights; a level without weights stays."""
    places, empty = nearest(points["x"], levels), torch.zeros(len(levels), dtype=torch.float64)
    counts = empty.index_add(0, places, points["c"])
    means = empty.index_add(0, places, points["c"] * points["x"]) / counts
    return torch.where(counts > 0, means, levels.double())


def best_levels(points: Mapping[str, torch.Tensor], count: int = 16) -> dict[bool, torch.Tensor]:
    """The ``count`` levels of least squared error, ascending; under ``True``, the best that include a level at 0.

    Lloyd's steps stop if no single step helps, and the result depends on the start. Here, all ways to cut the points
    into ``count`` runs, with one level each, are compared. For some i, the best k runs for the first j points are the
    best k - 1 runs for the first i of them, and one run for the rest. So runs are added one by one.
    """
    x, c = points["x"], points["c"]
    sums = [torch.cat([torch.zeros(1), part.cumsum(0)]) for part in (c, c * x, c * x.square())]
    c, cx, cxx = (part[:, None] - part for part in sums)  # [j, i]: of the points from i up to j
    own = cxx - cx.square() / c  # with a level at their mean
    own[torch.ones_like(own).triu() > 0] = torch.inf  # a run has at least one point
    at_zero = torch.where(own < torch.inf, cxx, torch.inf)
    # Two kinds of answers for the first j points: with no run at zero yet, and with one.
    without, having, cuts = own[:, 0], at_zero[:, 0], []
    for _ in range(count - 1):
        added, before, now = (without + own).min(dim=1), (having + own).min(dim=1), (without + at_zero).min(dim=1)
        cuts.append((added.indices, before.indices, now.indices, now.values < before.values))
        without, having = added.values, torch.minimum(before.values, now.values)

    def walk(zero: bool) -> torch.Tensor:
        end, levels = len(x), []
        for added, before, now, here in reversed(cuts):
            is_zero = zero and bool(here[end])
            begin = int((now if is_zero else before if zero else added)[end])
            levels.append(0.0 if is_zero else (cx[end, begin] / c[end, begin]).item())
            end, zero = begin, zero and not is_zero
        levels.append(0.0 if zero else (cx[end, 0] / c[end, 0]).item())
        return torch.tensor(levels[::-1], dtype=torch.float64)

    return {zero: walk(zero) for zero in (False, True)}


def _short(points: Mapping[str, torch.Tensor]) -> dict[str, list[float]]:
    """The points with six digits each, for a page."""
    return {name: [float(f"{value:.6g}") for value in values.tolist()] for name, values in points.items()}


def _panel(relative: torch.Tensor, levels: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weights, levels and shares of the levels, as arguments of :func:`.levels_over_weights`."""
    values = torch.tensor(LEVELS[levels], dtype=torch.float64)
    places = nearest(relative, values)
    return relative, values, torch.bincount(places, minlength=len(values)) / len(relative)

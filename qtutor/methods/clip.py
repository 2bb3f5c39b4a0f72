"""Clipping: narrow the range of a group of weights to the one whose rounding errors cost least.

A narrower range has finer steps, and cuts off the few largest weights. Each method has its own cost. Rounding to
nearest counts the squared error of the weights (:mod:`qtutor.rtn`). GPTQ counts the error that is left after other
columns have compensated for it. AWQ counts the error of the layer's output, to which all groups contribute.

:func:`search` takes any cost and tries one range after the other. :func:`search_together` is for AWQ. Its cost is
quadratic in the errors, so each tried scale also shows a better one, and few tries are enough.
"""

from collections.abc import Callable, Iterator

import torch
from torch import nn

from qtutor.core.float_grid import TileGrid
from qtutor.core.grid import Grid, fit_groups, storable, wider_ranges
from qtutor.errors import QtutorError
from qtutor.methods import compiled

ROWS = 1024  # rows that are searched together: their intermediate results stay in a processor's cache
FITTED = 1 << 18  # ranges that are fitted together
SHARES = (0.9, 0.8, 0.7, 0.6)  # of the whole range, tried in the first round
STEPS = (0, -4, -3, -2, -1, 1, 2, 3, 4)  # tried in each later round, in these units:
UNITS = (0.4, 0.2, 0.1)  # one for each later round, since few bits need finer steps, too
BESIDE = (0, -4, -2, 2, 4)  # tried below 4 bits with the zero point moved by one code, which is then much of the range
TINY = 2.0**-24  # the smallest scale in float16


def search(
    grouped: torch.Tensor,
    grid: Grid,
    cost: Callable[[torch.Tensor], torch.Tensor],
    steps: int = 20,
    shrink: float = 0.5,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero ``[out, groups]`` of the cheapest range of every group of ``grouped [out, groups, group_size]``.

    cost: a function from rounding errors, shaped like ``grouped``, to ``[out, groups]``; it may change the errors in
    place. The search tries the whole range first, then ``steps`` narrower ones down to ``1 - shrink`` of it, then the
    extra ranges of this grid (:func:`~qtutor.core.grid.wider_ranges`). If costs are equal, the first stays, so no group
    costs more than with its whole range.
    """
    best = None  # cost, scale, zero
    for scales, zeros in ranges(grouped, grid, steps, shrink):
        for scale, zero in zip(scales, zeros):  # every group tries the same shares, and keeps its own best
            tried = cost(rounding_errors(grouped, scale, zero, grid)), scale, zero
            best = tried if best is None else cheaper(best, tried)
    return best[1], best[2]


def ranges(grouped: torch.Tensor, grid: Grid, steps: int, shrink: float) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Scales and zeros, both ``[ranges, out, groups]``, of the ranges that :func:`search` tries, some at a time."""
    if steps:
        check_rows_alone(grid)
    # A fit needs only two weights of a group: the smallest and the largest.
    ends = torch.stack([grouped.amin(dim=-1), grouped.amax(dim=-1)], dim=-1).float().unsqueeze(2)
    shares = [1 - shrink * step / max(steps, 1) for step in range(steps + 1)]
    shares = torch.tensor([*shares, *wider_ranges(grid)], device=ends.device)[:, None]
    # If there are few groups, many shares are fitted at once: an operation on a small tensor takes as long as one on
    # thousands of numbers.
    for some in shares.split(max(1, FITTED // max(1, ends.numel()))):
        scales, zeros = fit_groups((ends * some).flatten(1, 2), grid)  # each share of a group counts as a group
        yield tuple(part.unflatten(1, (-1, len(some))).movedim(-1, 0).contiguous() for part in (scales, zeros))


def check_rows_alone(grid: Grid) -> None:
    """Raise :class:`QtutorError` for a grid in which rows share scales: here each row chooses its own range."""
    if isinstance(grid, TileGrid):
        raise QtutorError(
            f"levels of {grid.name!r} share a scale among {grid.tile} rows, but a narrower range is chosen for each "
            "row alone: use clip='none'."
        )


def search_squares(
    grouped: torch.Tensor, grid: Grid, importance: torch.Tensor | None = None, steps: int = 20, shrink: float = 0.5
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`search` with squared errors, each times its ``importance [groups, group_size]``; times 1 if ``None``.

    For integer grids on a CPU there is a compiled loop (:mod:`.loops`).
    """
    if compiled.takes(grouped, grid):
        return _search_compiled(grouped.float(), grid, importance, steps, shrink)
    factor = 1 if importance is None else importance
    return search(grouped, grid, lambda error: error.square_().mul_(factor).sum(dim=-1), steps, shrink)


def _search_compiled(
    grouped: torch.Tensor, grid: Grid, importance: torch.Tensor | None, steps: int, shrink: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`search_squares` by the compiled loop."""
    weights = grouped.permute(1, 2, 0).contiguous()  # rows are the lanes
    importance = torch.ones(weights.shape[:2]) if importance is None else importance.contiguous()
    costs = torch.full((weights.shape[0], weights.shape[2]), torch.inf)  # lowered by every call of the loop
    found = None
    for scales, zeros in ranges(grouped, grid, steps, shrink):
        turned = scales.transpose(1, 2), zeros.transpose(1, 2)
        best = compiled.cheapest(weights, importance, *turned, grid, costs).T
        # -1: none of these ranges is cheaper than the earlier ones. It is no index, so any other stands in for it.
        chosen = [part.gather(0, best.clamp(min=0).unsqueeze(0))[0] for part in (scales, zeros)]
        found = chosen if found is None else [torch.where(best < 0, old, new) for new, old in zip(chosen, found)]
    return found[0], found[1]


def cheaper(best: tuple[torch.Tensor, ...], tried: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """The cheaper of two (cost, scale, zero) for every group; all tensors are ``[out, groups]``."""
    better = tried[0] < best[0]  # not <=: if equal, the first stays
    return tuple(torch.where(better, new, old) for new, old in zip(tried, best))


def search_together(
    grouped: torch.Tensor,
    hessian: torch.Tensor,
    grid: Grid,
    rounds: int = len(UNITS),
    dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero ``[out, groups]`` with which ``grouped [out, groups, group_size]`` changes the output least.

    hessian: ``X^T X [in, in]``. The errors of a row's groups add up in its output, so each group is judged together
    with the errors of the others. An error e costs ``e H_g e^T + 2 e H_o o^T``. H_g is the group's own part
    of the Hessian, o are the errors of the other groups, and H_o is the part between this group and the others.
    Groups take turns: first a round with coarse steps, then ``rounds`` rounds with finer ones; llm-awq judges each
    group by itself, once. A row never costs more than with whole ranges. dtype: H_o and o are multiplied in it; with
    bfloat16, this limit holds to about 0.4 %.
    """
    check_rows_alone(grid)
    # Costs are only compared; with a mean diagonal of 1 they fit into float32 for any number of tokens.
    hessian = (hessian / hessian.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)).float()
    coupling = hessian.to(dtype)
    # Rows are independent of each other.
    found = [_in_turns(rows, hessian, coupling, grid, rounds) for rows in grouped.split(ROWS)]
    scale, zero = (torch.cat(parts) for parts in zip(*found))
    return scale, zero


def _in_turns(
    grouped: torch.Tensor, hessian: torch.Tensor, coupling: torch.Tensor, grid: Grid, rounds: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`search_together` for some rows. coupling: the Hessian in the dtype for errors of different groups."""
    groups, length = grouped.shape[1:]
    scale, zero = fit_groups(grouped, grid)
    errors = rounding_errors(grouped, scale, zero, grid).flatten(1).to(coupling.dtype)  # [out, in]
    for turn in range(rounds + 1):
        tried = neighbours(grid, turn)
        for group in range(groups):  # in turn: each uses the new errors of the groups before it
            own = slice(group * length, (group + 1) * length)
            errors[:, own] = 0  # the judge tries other errors here
            others = nn.functional.linear(errors, coupling[own]).float()  # the coupling with the other groups
            judge = Judge(grouped[:, group].contiguous(), hessian[own, own], others, grid)
            scale[:, group], zero[:, group] = judge.cheapest(scale[:, group], zero[:, group], *tried)
            errors[:, own] = judge.errors(scale[:, group], zero[:, group])
    return scale, zero


def neighbours(grid: Grid, turn: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What each group tries in round ``turn``: factors for its scale and shifts of its zero, both ``[tries, 1]``.

    The current scale and zero come first: if costs are equal, the first stays.
    """
    if turn == 0:
        tried = [(share, 0) for share in (1.0, *SHARES, *wider_ranges(grid))]
    else:
        # This factor moves the outermost level by part of a step: a change of about this size changes codes.
        unit = UNITS[(turn - 1) % len(UNITS)] / (2**grid.bits - 1)
        tried = [(1 + steps * unit, 0) for steps in STEPS]
        if not grid.symmetric:
            beside = BESIDE if grid.bits < 4 else (0,)
            tried += [(1 + steps * unit, shift) for shift in (-1, 1) for steps in beside]
    factors, shifts = zip(*tried)
    return torch.tensor(factors)[:, None], torch.tensor(shifts)[:, None]


class Judge:
    """Computes the costs of scales and zeros for one group of every row.

    weight ``[out, group_size]``. hessian ``[group_size, group_size]``: the group's own part of the Hessian. others
    ``[out, group_size]``: the other groups' errors times the parts of the Hessian that couple them with this group.
    """

    def __init__(self, weight: torch.Tensor, hessian: torch.Tensor, others: torch.Tensor, grid: Grid):
        self.weight, self.hessian, self.others, self.grid = weight, hessian, others, grid
        self.turned = None  # the layout for the compiled loop, if the loop can be used
        if compiled.takes(weight, grid):
            self.turned = weight.T.contiguous(), hessian, others.T.contiguous()

    def errors(self, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        """The errors of rounding with ``scale`` and ``zero [..., out]``."""
        return rounding_errors(self.weight, scale, zero, self.grid)

    def cost(self, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        """How much ``scale`` and ``zero`` change the output, ``[..., out]``."""
        error = self.errors(scale, zero)
        return (error @ self.hessian).add_(self.others, alpha=2).mul_(error).sum(dim=-1)

    def too_large(self, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        """The share t by which ``scale [out]`` is too large for the codes that it and ``zero`` give.

        Let v be the values of the codes. If the scale is multiplied by 1 - t, they become v - t v. So the cost is a
        parabola in t. The result is the t with the least cost.
        """
        error = self.errors(scale, zero)
        levels = self.weight + error
        coupled = levels @ self.hessian  # it is symmetric, so this product also serves for the errors
        slope, curvature = (error * coupled + levels * self.others).sum(dim=-1), (levels * coupled).sum(dim=-1)
        return slope / curvature.clamp(min=1e-30)

    def cheapest(
        self, scale: torch.Tensor, zero: torch.Tensor, factors: torch.Tensor, shifts: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The cheapest scale and zero ``[out]`` among those around the given ones."""
        scale = self._stored(scale.float() * factors)
        zero = (zero + shifts).clamp(0, 2**self.grid.bits - 1).to(torch.uint8)
        cost, best, share = self.judged(scale, zero)
        scale, zero = (tried.gather(0, best[None])[0] for tried in (scale, zero))
        better = self._stored(scale.float() * (1 - share).clamp(0.8, 1.2))  # best for these codes; some may change
        return torch.where(self.judged(better[None], zero[None])[0] < cost, better, scale), zero

    def judged(self, scale: torch.Tensor, zero: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The least cost of ``[ranges, out]``, the index of its range (the first if equal), and :meth:`too_large`."""
        if self.turned is not None:  # the same in one pass; see :mod:`.loops`
            return compiled.judge(*self.turned, scale, zero, self.grid)
        cost, best = self.cost(scale, zero).min(dim=0)
        chosen = [tried.gather(0, best[None])[0] for tried in (scale, zero)]
        return cost, best, self.too_large(*chosen)

    def _stored(self, scale: torch.Tensor) -> torch.Tensor:
        """``scale`` rounded as it will be stored, since the codes have to fit the stored scale."""
        return storable(scale, self.grid, TINY)


def rounding_errors(grouped: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, grid: Grid) -> torch.Tensor:
    """The number that rounding adds to every weight, shaped like ``grouped``."""
    return grid.nearest(grouped, scale.unsqueeze(-1), zero.unsqueeze(-1)).sub_(grouped)

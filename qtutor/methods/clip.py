"""Clipping: narrow the range of a group of weights to where some cost of its rounding errors is least.

A narrower range makes finer steps, and cuts off the few largest weights. What that may cost is for the method to say:
for rounding to nearest the squared error of the weights (:mod:`qtutor.rtn`), for AWQ what the group adds to the
layer's output, for GPTQ the error that is left after other columns made up for it.
"""

from collections.abc import Callable, Iterator

import torch

from qtutor.calibration.precision import products
from qtutor.core.grid import Grid, fit_groups


def search(
    grouped: torch.Tensor,
    grid: Grid,
    cost: Callable[[torch.Tensor], torch.Tensor],
    steps: int = 20,
    shrink: float = 0.5,
    finer: int = 1,
    ends: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero ``[out, groups]`` of the cheapest range of every group of ``grouped [out, groups, group_size]``.

    cost: rounding errors, shaped like ``grouped``, to ``[out, groups]``; it may change them. The whole range is tried
    first, then ``steps`` narrower ones down to ``1 - shrink`` of it; the first of equals stays, so no group ends above
    what its whole range costs. finer: then those around the best, each step in so many parts. ends: then the lower end
    moves alone, then the upper one.
    """
    # A range reaches 0, so its lower end stays below its upper one however the two are narrowed.
    low, high = grouped.amin(dim=-1).clamp(max=0), grouped.amax(dim=-1).clamp(min=0)
    whole = torch.ones_like(low)
    best = None  # cost, scale, zero, and the shares of the two ends that are kept

    def attempt(keep_low: torch.Tensor, keep_high: torch.Tensor) -> None:
        nonlocal best
        # All that a fit looks at: a group of two, its smallest and its largest weight.
        scale, zero = fit_groups(torch.stack([low * keep_low, high * keep_high], dim=-1), grid)
        tried = cost(rounding_errors(grouped, scale, zero, grid)), scale, zero, keep_low, keep_high
        if best is None:
            best = tried
            return
        better = tried[0] < best[0]  # not <=: of equals the first stays, which is the wider range
        best = tuple(torch.where(better, new, old) for new, old in zip(tried, best))

    def shares(of: int) -> Iterator[torch.Tensor]:
        """What is tried, in turn; the finer ones lie around what is best for end ``of`` by then."""
        for step in range(steps + 1):
            yield whole * (1 - shrink * step / steps)
        centre = best[of]
        for part in range(1, finer):
            for side in (-part, part):
                yield (centre + side * shrink / steps / finer).clamp(max=1.0)  # no weight lies beyond the whole range

    for share in shares(3):
        attempt(share, share)
    if ends and not grid.symmetric:  # a symmetric grid reaches as far down as up: moving one end does nothing
        upper = best[4]
        for share in shares(3):
            attempt(share, upper)
        lower = best[3]
        for share in shares(4):
            attempt(lower, share)
    return best[1], best[2]


def search_together(
    grouped: torch.Tensor,
    hessian: torch.Tensor,
    grid: Grid,
    rounds: int,
    steps: int,
    shrink: float,
    finer: int = 1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero ``[out, groups]`` with which ``grouped [out, groups, group_size]`` changes the output least.

    hessian: ``X^T X [in, in]``. The errors of a row's groups add up in its output, so each group is judged beside what
    the others have: an error e costs ``e H_g e^T + 2 e H_o o^T``, H_g being the group's block of the Hessian, o the
    others' errors and H_o the blocks that couple them. Groups take turns, ``rounds`` times; llm-awq judges each by
    itself, once. steps, shrink, finer: see :func:`search`, whose ``ends`` are moved, too.
    """
    groups, length = grouped.shape[1:]
    # Costs are only compared; a mean diagonal of 1 keeps them in float32, however many tokens there were.
    hessian = (hessian / hessian.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)).float()
    scale, zero = fit_groups(grouped, grid)
    errors = rounding_errors(grouped, scale, zero, grid)
    slopes = errors.flatten(1) @ hessian  # [out, in]: what all errors together add to the price of each one
    for group in list(range(groups)) * rounds:
        own = slice(group * length, (group + 1) * length)
        only, block, before = grouped[:, group, None], hessian[own, own], errors[:, group].clone()
        cost = _cost(block, slopes[:, own] - before @ block)  # the price that the other groups make, without its own
        with products(len(hessian)):
            found = search(only, grid, cost, steps, shrink, finer, ends=True)
        after = rounding_errors(only, *found, grid)
        # What the round before found is not always among the ranges that are tried now.
        better = cost(after) < cost(before.unsqueeze(1))  # [out, 1]
        for kept, new in ((scale, found[0]), (zero, found[1])):
            kept[:, group] = torch.where(better, new, kept[:, group, None])[:, 0]
        errors[:, group] = torch.where(better, after[:, 0], before)
        # Only this group's errors have changed, so its rows of the Hessian are enough.
        slopes += (errors[:, group] - before) @ hessian[own]
    return scale, zero


def rounding_errors(grouped: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, grid: Grid) -> torch.Tensor:
    """What rounding adds to every weight, shaped like ``grouped``."""
    return grid.nearest(grouped, scale.unsqueeze(-1), zero.unsqueeze(-1)).sub_(grouped)


def _cost(block: torch.Tensor, others: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """Errors ``[out, 1, group_size]`` of one group to what they change in the output, ``[out, 1]``.

    block: the group's block of the Hessian. others ``[out, group_size]``: the other groups' errors times the blocks
    that couple them with it.
    """
    return lambda error: ((error[:, 0] @ block + 2 * others) * error[:, 0]).sum(dim=-1, keepdim=True)

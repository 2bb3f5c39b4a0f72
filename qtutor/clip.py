"""Clipping: narrow the range of a group of weights to where some cost of its rounding errors is least.

A narrower range makes finer steps, and cuts off the few largest weights. What that may cost is for the method to say:
for rounding to nearest the squared error of the weights (:mod:`qtutor.rtn`), for AWQ what the group adds to the
layer's output, for GPTQ the error that is left after other columns made up for it.
"""

from collections.abc import Callable

import torch

from qtutor.grid import Grid


def search(
    grouped: torch.Tensor,
    grid: Grid,
    cost: Callable[[torch.Tensor], torch.Tensor],
    steps: int = 20,
    shrink: float = 0.5,
    ends: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero ``[out, groups]`` of the cheapest range of every group of ``grouped [out, groups, group_size]``.

    cost: rounding errors, shaped like ``grouped``, to ``[out, groups]``. The whole range is tried first, then ``steps``
    narrower ones down to ``1 - shrink`` of it; the first of equals stays, so no group ends above what its whole range
    costs. ends: then move the lower end alone, then the upper one.
    """
    low, high = grouped.amin(dim=-1), grouped.amax(dim=-1)
    best = None  # cost, scale, zero, and the shares of the two ends that are kept

    def attempt(keep_low: torch.Tensor | float, keep_high: torch.Tensor | float) -> None:
        nonlocal best
        scale, zero = grid.fit(low * keep_low, high * keep_high)
        codes = grid.encode(grouped, scale.unsqueeze(-1), zero.unsqueeze(-1))
        costs = cost(grid.decode(codes, scale.unsqueeze(-1), zero.unsqueeze(-1)) - grouped)
        tried = costs, scale, zero, torch.ones_like(low) * keep_low, torch.ones_like(low) * keep_high
        if best is None:
            best = tried
            return
        better = costs < best[0]
        best = tuple(torch.where(better, new, old) for new, old in zip(tried, best))

    kept = [1 - shrink * step / steps for step in range(steps + 1)]
    for share in kept:
        attempt(share, share)
    if ends and not grid.symmetric:
        upper = best[4]
        for share in kept:
            attempt(share, upper)
        lower = best[3]
        for share in kept:
            attempt(lower, share)
    return best[1], best[2]

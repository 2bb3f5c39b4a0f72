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
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero ``[out, groups]`` of the cheapest range of every group of ``grouped [out, groups, group_size]``.

    cost: rounding errors, shaped like ``grouped``, to ``[out, groups]``. The whole range is tried first, then ``steps``
    narrower ones down to ``1 - shrink`` of it; the first of equals stays, so no group ends above what its whole range
    costs.
    """
    low, high = grouped.amin(dim=-1), grouped.amax(dim=-1)
    least = scale = zero = None
    for step in range(steps + 1):
        kept = 1 - shrink * step / steps
        tried_scale, tried_zero = grid.fit(low * kept, high * kept)
        codes = grid.encode(grouped, tried_scale.unsqueeze(-1), tried_zero.unsqueeze(-1))
        tried = cost(grid.decode(codes, tried_scale.unsqueeze(-1), tried_zero.unsqueeze(-1)) - grouped)
        if least is None:
            least, scale, zero = tried, tried_scale, tried_zero
            continue
        better = tried < least
        least = torch.where(better, tried, least)
        scale, zero = torch.where(better, tried_scale, scale), torch.where(better, tried_zero, zero)
    return scale, zero

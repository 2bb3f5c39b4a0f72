"""The compiled :mod:`.loops` for tensors: which tensors they accept, and how rows are divided among threads."""

import functools
import importlib
from types import ModuleType

import numpy as np
import torch

from qtutor.compiling import told_if_slow
from qtutor.core.grid import Grid, IntGrid
from qtutor.installed import is_installed
from qtutor.threads import in_shares

SHARE = 2_000_000  # this many weights times ranges, or weights times columns, are worth a thread


def takes(tensor: torch.Tensor, grid: Grid) -> bool:
    """Whether the loops accept ``tensor`` and ``grid``: an integer grid, on a CPU, and numba is installed."""
    return isinstance(grid, IntGrid) and tensor.device.type == "cpu" and tensor.numel() > 0 and _available()


@functools.cache
def _available() -> bool:
    return is_installed("numba")


@functools.cache
def _loops() -> ModuleType:
    """The loops; numba is imported with them, and compiles them before threads share them."""
    loops = importlib.import_module("qtutor.methods.loops")
    with told_if_slow("the loops of GPTQ"):
        many, few, one = (np.ones(shape, np.float32) for shape in ((1, 1, 0), (1, 0), (1, 1)))
        codes, best, none = np.empty((1, 0), np.uint8), np.empty((1, 0), np.int64), few[0]
        loops.cheapest(many, one, many, many, one[0, 0], few, best, 0, 0)
        loops.round_block(few, one, few, few, one[0, 0], codes, few, 0, 0)
        loops.judge(few, one, few, few, few, one[0, 0], none, best[0], none, 0, 0)
    return loops


def cheapest(
    weights: torch.Tensor,
    importance: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor,
    grid: IntGrid,
    costs: torch.Tensor,
) -> torch.Tensor:
    """The index of each group's cheapest range, int64 ``[groups, out]``; -1 if no range costs less than ``costs``.

    weights: float32 ``[groups, group_size, out]``. importance: float32 ``[groups, group_size]``, the cost factors of
    squared errors. scales, zeros: ``[ranges, groups, out]``. costs: float32 ``[groups, out]``, lowered in place.
    """
    best = torch.full(costs.shape, -1)
    given = _floats(weights, importance, scales, zeros)
    loop, largest, work = _loops().cheapest, np.float32(grid.largest_code), len(scales) * weights[:, :, 0].numel()
    places = costs.numpy(), best.numpy()
    in_shares(lambda first, last: loop(*given, largest, *places, first, last), weights.shape[2], SHARE // work)
    return best


def round_block(
    work: torch.Tensor, upper: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, grid: IntGrid
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`qtutor.methods.gptq.round_block`, with the same arguments and results. work: float32, contiguous."""
    shape = len(scale), work.shape[1]
    codes, errors = torch.empty(shape, dtype=torch.uint8), torch.empty(shape)
    given = work.detach().numpy(), *_floats(upper, scale.expand(shape), zero.expand(shape))
    loop, largest, places = _loops().round_block, np.float32(grid.largest_code), (codes.numpy(), errors.numpy())
    least = SHARE // max(1, len(work) * len(scale))
    in_shares(lambda first, last: loop(*given, largest, *places, first, last), work.shape[1], least)
    return codes, errors


def judge(
    weights: torch.Tensor,
    hessian: torch.Tensor,
    others: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor,
    grid: IntGrid,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """:meth:`qtutor.methods.clip.Judge.judged`, ``[out]`` each; for a single range, its share is not computed.

    weights, others: float32 ``[group_size, out]``, both transposed. hessian: float32 ``[group_size, group_size]``.
    scales, zeros: ``[ranges, out]``.
    """
    rows = weights.shape[1]
    costs, best, shares = torch.empty(rows), torch.empty(rows, dtype=torch.int64), torch.empty(rows)
    given = _floats(weights, hessian, others, scales, zeros)
    loop, largest = _loops().judge, np.float32(grid.largest_code)
    places, least = (costs.numpy(), best.numpy(), shares.numpy()), SHARE // max(1, len(scales) * len(hessian) ** 2)
    in_shares(lambda first, last: loop(*given, largest, *places, first, last), rows, least)
    return costs, best, shares


def _floats(*tensors: torch.Tensor) -> list[np.ndarray]:
    """The tensors as the loops need them: float32, contiguous."""
    return [tensor.detach().float().contiguous().numpy() for tensor in tensors]

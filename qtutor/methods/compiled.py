"""The compiled :mod:`.loops` for tensors: which they take, and how their rows are shared out among threads."""

import functools
import importlib
from types import ModuleType

import numpy as np
import torch

from qtutor.compiling import told_if_slow
from qtutor.core.grid import Grid, IntGrid
from qtutor.installed import is_installed
from qtutor.threads import in_shares

SHARE = 2_000_000  # weights times ranges, or times columns, that are worth a thread


def takes(tensor: torch.Tensor, grid: Grid) -> bool:
    """Whether the loops take ``tensor`` and ``grid``: whole numbers, on a CPU, and numba is installed."""
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
    """Which of the ranges is cheapest for each group, int64 ``[groups, out]``; -1 where none is below ``costs``.

    weights: float32 ``[groups, group_size, out]``. importance: float32 ``[groups, group_size]``, what the square of an
    error costs. scales, zeros: ``[ranges, groups, out]``. costs: float32 ``[groups, out]``; it is lowered.
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
    """:func:`qtutor.methods.gptq.round_block`, whose arguments and results these are. work: float32, contiguous."""
    shape = len(scale), work.shape[1]
    codes, errors = torch.empty(shape, dtype=torch.uint8), torch.empty(shape)
    given = work.detach().numpy(), *_floats(upper, scale.expand(shape), zero.expand(shape))
    loop, largest, places = _loops().round_block, np.float32(grid.largest_code), (codes.numpy(), errors.numpy())
    least = SHARE // max(1, len(work) * len(scale))
    in_shares(lambda first, last: loop(*given, largest, *places, first, last), work.shape[1], least)
    return codes, errors


def judge(
    weights: torch.Tensor,
    block: torch.Tensor,
    others: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor,
    grid: IntGrid,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """:meth:`qtutor.methods.clip.Judge.judged`, ``[out]`` each; where there is one range, without its share.

    weights, others: float32 ``[group_size, out]``, the others' axes exchanged, too. block: float32
    ``[group_size, group_size]``. scales, zeros: ``[ranges, out]``.
    """
    rows = weights.shape[1]
    costs, best, shares = torch.empty(rows), torch.empty(rows, dtype=torch.int64), torch.empty(rows)
    given, loop, largest = _floats(weights, block, others, scales, zeros), _loops().judge, np.float32(grid.largest_code)
    places, least = (costs.numpy(), best.numpy(), shares.numpy()), SHARE // max(1, len(scales) * len(block) ** 2)
    in_shares(lambda first, last: loop(*given, largest, *places, first, last), rows, least)
    return costs, best, shares


def _floats(*tensors: torch.Tensor) -> list[np.ndarray]:
    """As the loops want them: float32, in one piece."""
    return [tensor.detach().float().contiguous().numpy() for tensor in tensors]

"""Timing of computations that take turns, so that all of them meet the same load; the shortest run of each counts.

On one thread, processor time is measured and not clock time: other programs do not lengthen processor time.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch

LONG = 0.2  # seconds; a computation that takes longer runs only twice
COARSE = 1e-3  # seconds; if processor time advances in larger steps (Windows), clock time is used


def clock(device: str = "cpu") -> Callable[[], float]:
    """The function that counts seconds: this thread's own time on one CPU thread, else clock time."""
    alone = torch.get_num_threads() == 1 and device == "cpu"
    return time.thread_time if alone and time.get_clock_info("thread_time").resolution < COARSE else time.perf_counter


def race(
    works: Mapping[str, Callable[[], object]], rounds: int = 7, on_clock: tuple[str, ...] = ()
) -> dict[str, float]:
    """Seconds of each computation; other load on the machine can only make a run longer, so the shortest run counts.

    Each computation runs once more than ``rounds``, because the first run compiles it and allocates its memory; a long
    one runs twice. on_clock: the computations that use threads of their own, so that clock time counts.
    """
    best = dict.fromkeys(works, math.inf)
    clocks = {name: time.perf_counter if name in on_clock else clock() for name in works}
    for turn in range(rounds + 1):
        for name, work in works.items():
            if turn >= 2 and best[name] > LONG:
                continue
            start = clocks[name]()
            work()
            best[name] = min(best[name], clocks[name]() - start)
    return best


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Compute on ``count`` threads within a ``with`` block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)

"""Works that take turns, so that all of them meet the same load; the shortest run of each counts.

On one thread the processor's time is taken and not the clock's: other programs on the machine do not lengthen it.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch

LONG = 0.2  # seconds; a work that takes longer runs twice only
COARSE = 1e-3  # seconds; where the processor's time goes on in larger steps (Windows), the clock's is taken


def clock(device: str = "cpu") -> Callable[[], float]:
    """What counts seconds here: this thread's own time on one CPU thread, else the clock's."""
    alone = torch.get_num_threads() == 1 and device == "cpu"
    return time.thread_time if alone and time.get_clock_info("thread_time").resolution < COARSE else time.perf_counter


def race(
    works: Mapping[str, Callable[[], object]], rounds: int = 7, on_clock: tuple[str, ...] = ()
) -> dict[str, float]:
    """Seconds of each work; what else the machine does can only make a run longer, so the shortest one counts.

    Each runs once more than ``rounds``, because in the first run it is compiled and its memory is taken; a long one
    runs twice. on_clock: works that use threads of their own, so that the clock's time counts.
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

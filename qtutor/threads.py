"""Work of compiled loops, shared out among threads.

The loops release Python's lock, so plain threads are enough. They need no layer of their own (numba's may not be
entered from two Python threads, and does not live on after a fork), and torch's count of threads is obeyed:
``torch.set_num_threads``, ``OMP_NUM_THREADS``. The calling thread works, too: it takes shares until none is left, so
nobody waits for a thread that has not begun.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

_pool: ThreadPoolExecutor | None = None
_making = threading.Lock()


def in_shares(work: Callable[[int, int], object], count: int, least: int) -> None:
    """Call ``work(first, last)`` for consecutive shares of ``count`` things, on torch's number of threads.

    least: the smallest share that is worth a thread. An error of any share is raised.
    """
    threads = min(torch.get_num_threads(), max(1, count // max(1, least)))
    if threads < 2:
        work(0, count)
        return
    step = -(-count // (4 * threads))  # smaller shares than threads: who is disturbed takes fewer
    left = iter(range(0, count, step))
    taking = threading.Lock()

    def take() -> None:
        while True:
            with taking:
                first = next(left, None)
            if first is None:
                return
            work(first, min(first + step, count))

    others = [_threads().submit(take) for _ in range(threads - 1)]
    try:
        take()
    finally:
        for other in others:
            if not other.cancel():
                other.result()


def _threads() -> ThreadPoolExecutor:
    global _pool
    with _making:
        if _pool is None:
            _pool = ThreadPoolExecutor(max(1, (os.cpu_count() or 2) - 1), thread_name_prefix="qtutor")
        return _pool


def _after_fork() -> None:
    """A forked child has none of the threads, and perhaps a lock that nobody will open."""
    global _pool, _making
    _pool, _making = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

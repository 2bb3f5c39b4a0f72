"""Work shared out among threads: rows of a GGUF file that is written, columns and tiles of compiled loops.

numpy and compiled loops release Python's lock, so plain threads are enough. Left out: numba's ``prange``. It needs a
threading layer of its own, which may neither be entered from two Python threads nor live on next to torch's OpenMP
after a fork. The calling thread works, too: it takes shares until none is left, so nobody waits for a thread that has
not begun.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

_pool: ThreadPoolExecutor | None = None
_making = threading.Lock()


def thread_count() -> int:
    """As many as this process may use cores, or ``OMP_NUM_THREADS`` where that is set (torch obeys it too)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores, int(wanted)) if wanted.isdigit() and int(wanted) > 0 else cores


def in_shares(work: Callable[[int, int], object], count: int, least: int) -> None:
    """Call ``work(first, last)`` for consecutive shares of ``count`` things, on torch's number of threads.

    torch's: ``torch.set_num_threads`` or ``OMP_NUM_THREADS``. least: the smallest share that is worth a thread. Of the
    errors of shares the first one is raised.
    """
    import torch  # here, because qtutor.gguf does without it

    threads = min(torch.get_num_threads(), max(1, count // max(1, least)))
    if threads < 2:
        work(0, count)
        return
    in_steps(work, count, -(-count // (4 * threads)), threads)  # smaller than needed: who is disturbed takes fewer


def in_steps(work: Callable[[int, int], object], count: int, step: int, threads: int) -> None:
    """Call ``work(first, last)`` for consecutive steps of ``count`` things, on ``threads``; raise its first error."""
    left, taking, errors = iter(range(0, count, step)), threading.Lock(), {}

    def take() -> None:
        # A step that was taken is finished, so whatever comes before one that failed has been looked at.
        while not errors:
            with taking:
                first = next(left, None)
            if first is None:
                return
            try:
                work(first, min(first + step, count))
            except BaseException as error:  # raised below; an interrupt ends the others, too
                errors[first] = error

    others = [_threads().submit(take) for _ in range(min(threads, -(-count // step)) - 1)]
    try:
        take()
    finally:
        for other in others:
            if not other.cancel():
                other.result()
    if errors:
        raise errors[min(errors)]


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

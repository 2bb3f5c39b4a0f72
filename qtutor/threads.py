"""Share work out among threads: rows of a GGUF file while it is written, columns and tiles of compiled loops.

numpy and compiled loops release Python's lock, so plain threads are enough. Left out: numba's ``prange``. It needs a
threading layer of its own. Two Python threads must not enter that layer, and after a fork it cannot run next to torch's
OpenMP. The calling thread works, too: it takes shares until none is left, so it never waits for a thread that has not
begun.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

_pool: ThreadPoolExecutor | None = None
_making = threading.Lock()


def thread_count() -> int:
    """The number of cores that this process may use, or ``OMP_NUM_THREADS`` if that is less (torch obeys it, too)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores, int(wanted)) if wanted.isdigit() and int(wanted) > 0 else cores


def in_shares(work: Callable[[int, int], object], count: int, least: int) -> None:
    """Call ``work(first, last)`` for consecutive shares of ``count`` things, on torch's number of threads.

    That number is set by ``torch.set_num_threads`` or ``OMP_NUM_THREADS``. least: the smallest share that is worth a
    thread. If several shares fail, the error of the first one is raised.
    """
    import torch  # here, because qtutor.gguf does not need it

    threads = min(torch.get_num_threads(), max(1, count // max(1, least)))
    if threads < 2:
        work(0, count)
        return
    in_steps(work, count, -(-count // (4 * threads)), threads)  # smaller than needed: a slower thread takes fewer


def in_steps(work: Callable[[int, int], object], count: int, step: int, threads: int) -> None:
    """Call ``work(first, last)`` for consecutive steps of ``count`` things, on ``threads``; raise its first error."""
    left, taking, errors = iter(range(0, count, step)), threading.Lock(), {}

    def take() -> None:
        # Every step that was taken is finished, so all steps before a failed one have been tried.
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
    """A forked child has none of the threads, and perhaps a lock that no thread will release."""
    global _pool, _making
    _pool, _making = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

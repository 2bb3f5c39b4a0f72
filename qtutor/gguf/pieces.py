"""Rows shared out among threads.

numpy and compiled code release Python's lock, so plain threads are enough. The calling thread works, too: on a busy
machine the others may come late, and nobody waits for one that has not begun. Left out: numba's ``prange``. It needs a
threading layer of its own, which may neither be entered from two Python threads nor live on next to torch's OpenMP
after a fork.
"""

import os
from concurrent.futures import ThreadPoolExecutor

PIECE = 1 << 18  # values that a thread takes at a time: they stay in its cache from the check to the last pass
ROWS = 16  # pieces are whole multiples of so many rows, so that the encoders' lanes are filled


def thread_count() -> int:
    """As many as this process may use cores, or ``OMP_NUM_THREADS`` where that is set (torch obeys it too)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores, int(wanted)) if wanted.isdigit() and int(wanted) > 0 else cores


def in_pieces(work, rows: int, columns: int) -> None:
    """Call ``work(first, last)`` for consecutive pieces of the rows, on all threads; of its errors raise the first."""
    step = max(1, PIECE // max(columns, 1) // ROWS) * ROWS
    pieces = range(0, rows, step)
    left, errors = iter(pieces), {}

    def take() -> None:
        # A piece that was taken is finished, so whatever comes before one that failed has been looked at.
        while not errors and (first := next(left, None)) is not None:
            try:
                work(first, min(first + step, rows))
            except Exception as error:  # raised below
                errors[first] = error

    helpers = min(thread_count(), len(pieces)) - 1
    if helpers < 1:
        take()
    else:
        pool = ThreadPoolExecutor(helpers)
        others = [pool.submit(take) for _ in range(helpers)]
        take()
        pool.shutdown(wait=False, cancel_futures=True)
        for other in others:
            if not other.cancelled():
                other.result()
    if errors:
        raise errors[min(errors)]

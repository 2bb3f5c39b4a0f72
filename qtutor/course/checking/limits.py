"""Limits for a learner's code: a minute, some memory, some lines of print. Settings that it changed are restored.

They cannot stop another thread, or one long call into C (a huge product of matrices): Python interrupts such a call
only at its end. Time is not limited on Windows and outside of the main thread; memory is limited on Linux only.
"""

import contextlib
import io
import random
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import torch

SECONDS = 60  # for all inputs of an exercise together; each takes milliseconds
MEMORY = 4 * 2**30  # bytes that a function may take in addition to those of the process
PRINTED = 20_000  # characters that a function may print during a check
DEPTH = 20_000  # nested calls that a function may set as its limit; leaving millions of them takes minutes

AGAIN = 0.05  # seconds until the alarm rings again, in case a bare `except:` has caught the first


class TimeUp(BaseException):
    """The time is over. This is not an Exception, so ``except Exception`` in a learner's loop does not catch it."""


@contextlib.contextmanager
def bounded(times: int = 1):
    """Apply all limits of this module to a ``with`` block. Raises :class:`TimeUp` in it when the time is over.

    times: how many times :data:`SECONDS` the block may take.
    """
    with settings_kept(), print_limit(PRINTED), memory_limit(MEMORY), time_limit(times * SECONDS):
        yield


@contextlib.contextmanager
def time_limit(seconds: float):
    """Raise :class:`TimeUp` in the ``with`` block after ``seconds``. Afterwards an earlier alarm is set again."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return
    armed, rings, lines = True, 0, 0

    def leave(frame, event, argument):
        nonlocal lines
        lines -= event == "line"
        if armed and event == "line" and lines < 0:
            raise TimeUp
        return leave

    def ring(number, frame):
        nonlocal rings, lines
        # A debugger waits for a person, who may take longer than a minute.
        if not armed or sys.gettrace() not in (None, leave) or _ends_a_with(frame):
            return
        rings += 1
        if rings > 1:
            # A bare `except:` in a loop caught it. Raise it again one line later, at the next ring two lines later, and
            # so on, until one of these lines is outside of every `try`.
            lines = (rings - 2) % 20
            while frame.f_code.co_filename != __file__ and frame.f_back:
                frame.f_trace, frame = leave, frame.f_back
            sys.settrace(leave)
        raise TimeUp

    started, handler = time.monotonic(), signal.signal(signal.SIGALRM, ring)
    left, interval = 0.0, 0.0
    try:
        try:
            left, interval = signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)
            yield
        finally:  # if the alarm rings right here, the outer `finally` still restores everything
            armed = False
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        if sys.gettrace() is leave:
            sys.settrace(None)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if handler is None else handler)  # None: Python did not set it
        if left:  # an alarm that should have rung in the meantime rings at once
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - started), 1e-3), interval)


def _ends_a_with(frame) -> bool:
    """Whether ``frame`` may be about to switch off the alarm. An exception there would leave it on, to ring later.

    This happens if the function takes long to return because much memory is freed: then the alarm rings again.
    """
    return frame.f_code.co_filename == contextlib.__file__ or frame.f_code in (
        bounded.__wrapped__.__code__,
        time_limit.__wrapped__.__code__,
    )


@contextlib.contextmanager
def memory_limit(extra: int):
    """Raise :class:`MemoryError` in a ``with`` block that takes more than ``extra`` bytes, before the system kills us.

    The limit is on writable memory (RLIMIT_DATA), not on the address space, because CUDA reserves much of that.
    """
    if not Path("/proc/self/statm").exists():
        yield
        return
    import resource  # Windows does not have it

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    taken = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    limits = [limit for limit in (soft, hard, taken + extra) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


class _Short(io.TextIOBase):
    """A stream that passes on the first ``room`` characters and drops the rest."""

    def __init__(self, stream, room: int):
        self.stream, self.room = stream, room

    def write(self, text: str) -> int:
        if self.room > 0:
            self.stream.write(text[: self.room])
            if len(text) > self.room:
                self.stream.write("\n... (the rest of what your function prints is left out)\n")
            self.room -= len(text)
        return len(text)

    def flush(self) -> None:
        self.stream.flush()


@contextlib.contextmanager
def print_limit(characters: int):
    """Drop what the ``with`` block prints after the first ``characters``; megabytes of text would stop a notebook."""
    with (
        contextlib.redirect_stdout(_Short(sys.stdout, characters)),
        contextlib.redirect_stderr(_Short(sys.stderr, characters)),
    ):
        yield


@contextlib.contextmanager
def settings_kept():
    """Restore the random states and the settings of Python, numpy and torch after the ``with`` block."""
    depth, set_depth = sys.getrecursionlimit(), sys.setrecursionlimit
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    gradients, threads = torch.is_grad_enabled(), torch.get_num_threads()
    seeds = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 - a learner may use either
    sys.setrecursionlimit = lambda limit: set_depth(min(limit, max(depth, DEPTH)))
    try:
        with np.errstate(), np.printoptions():
            yield
    finally:
        sys.setrecursionlimit = set_depth
        sys.setrecursionlimit(depth)
        torch.set_default_dtype(dtype)
        if torch.get_default_device() != device:
            # None means the CPU, too, and is faster: a device that was set costs time at every call.
            torch.set_default_device(None if device.type == "cpu" else device)
        torch.set_grad_enabled(gradients)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        random.setstate(seeds[0])
        np.random.set_state(seeds[1])  # noqa: NPY002
        torch.set_rng_state(seeds[2])

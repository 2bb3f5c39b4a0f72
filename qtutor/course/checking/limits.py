"""Bounds around a learner's code: a minute, some memory, some lines of print; and settings put back as they were.

What it does not do: stop another thread, or one long call into C (a huge product of matrices), which Python interrupts
only when it is over. On Windows and outside of the main thread there is no limit of time, outside of Linux none of
memory.
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
MEMORY = 4 * 2**30  # bytes that a function may take on top of what the process has
PRINTED = 20_000  # characters that a function may print during a check
DEPTH = 20_000  # calls within calls that a function may ask for; to leave millions of them takes minutes

AGAIN = 0.05  # seconds until the alarm rings again, where a bare `except:` has caught the first


class TimeUp(BaseException):
    """The time is over. It is no Exception, so that ``except Exception`` in a learner's loop does not catch it."""


@contextlib.contextmanager
def bounded():
    """All bounds of this module at once, around a ``with`` block. Raises :class:`TimeUp` in it when time is over."""
    with settings_kept(), print_limit(PRINTED), memory_limit(MEMORY), time_limit(SECONDS):
        yield


@contextlib.contextmanager
def time_limit(seconds: float):
    """Raise :class:`TimeUp` in the block after ``seconds``. The alarm that was set before is set again afterwards."""
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
        if not armed or sys.gettrace() not in (None, leave):
            return
        rings += 1
        if rings > 1:
            # A bare `except:` in a loop caught it. It is raised again a line later, at the next ring two lines later,
            # and so on: one of these lines stands outside of every `try`.
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
        finally:  # where the alarm rings right here, the outer block still puts everything back
            armed = False
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        if sys.gettrace() is leave:
            sys.settrace(None)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if handler is None else handler)  # None: it was not Python's
        if left:  # an alarm that should have rung in the meantime rings at once
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - started), 1e-3), interval)


@contextlib.contextmanager
def memory_limit(extra: int):
    """A block that wants ``extra`` bytes more than the process has gets a :class:`MemoryError`, not the system's kill.

    What counts is memory that can be written (RLIMIT_DATA), and not the address space, of which CUDA reserves a lot.
    """
    if not Path("/proc/self/statm").exists():
        yield
        return
    import resource  # only where there is a Linux

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    taken = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    limits = [limit for limit in (soft, hard, taken + extra) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


class _Short(io.TextIOBase):
    """Passes on the first ``room`` characters that are written, and drops the rest."""

    def __init__(self, stream, room: int):
        self.stream, self.room = stream, room

    def write(self, text: str) -> int:
        if self.room > 0:
            self.stream.write(text[: self.room])
            if len(text) > self.room:
                self.stream.write("\n... (what your function prints beyond this is left out)\n")
            self.room -= len(text)
        return len(text)

    def flush(self) -> None:
        self.stream.flush()


@contextlib.contextmanager
def print_limit(characters: int):
    """What is printed in the block is cut off after so many characters; megabytes stop a notebook."""
    with (
        contextlib.redirect_stdout(_Short(sys.stdout, characters)),
        contextlib.redirect_stderr(_Short(sys.stderr, characters)),
    ):
        yield


@contextlib.contextmanager
def settings_kept():
    """Random numbers and the settings of Python, numpy and torch are after the block what they were before it."""
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
            # None is the CPU too, without the detour that a device that was set takes at every call.
            torch.set_default_device(None if device.type == "cpu" else device)
        torch.set_grad_enabled(gradients)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        random.setstate(seeds[0])
        np.random.set_state(seeds[1])  # noqa: NPY002
        torch.set_rng_state(seeds[2])

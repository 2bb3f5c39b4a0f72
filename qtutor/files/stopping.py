"""Make requests to stop end the work like Ctrl-C: half-written files are removed, and the exit status shows it."""

import contextlib
import signal
import threading
from collections.abc import Iterator


class Stopped(KeyboardInterrupt):
    """A signal that asks to stop. ``status``: 128 plus its number, as in shells: 143 for SIGTERM, 129 for SIGHUP."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


@contextlib.contextmanager
def signals_raise() -> Iterator[None]:
    """SIGTERM (kill, timeout, a shutdown) and SIGHUP (a closed terminal) raise :class:`Stopped` inside the block.

    A signal that is ignored (nohup) or already has a handler does not change. Only the main thread can set handlers; in
    other threads this does nothing.
    """
    names = ["SIGTERM", "SIGHUP"] if threading.current_thread() is threading.main_thread() else []
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    usual = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]

    def stop(number, frame):
        raise Stopped(number)

    try:
        for number in usual:
            signal.signal(number, stop)
        yield
    finally:
        for number in usual:
            signal.signal(number, signal.SIG_DFL)


def interrupt_behind(error: BaseException) -> KeyboardInterrupt | None:
    """The interrupt in whose wake ``error`` was raised, or ``None``."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error

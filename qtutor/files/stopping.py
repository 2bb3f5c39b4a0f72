"""Make requests to stop end the work like Ctrl-C: half-written files are removed, and the exit status shows it."""

import contextlib
import signal
import threading
from collections.abc import Iterator


class Stopped(KeyboardInterrupt):
    """A signal that asks to stop. ``status``: 128 plus its number, as in shells: 130 for Ctrl-C, 143 for SIGTERM."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


@contextlib.contextmanager
def signals_raise() -> Iterator[list[Stopped]]:
    """SIGINT (Ctrl-C), SIGTERM (kill, timeout, a shutdown) and SIGHUP (closed terminal) raise :class:`Stopped` inside.

    The block gets a list of the requests so far. The list is needed because a library may catch a request (an import
    inside of transformers does) and raise an error of its own later. A caller that sees that error looks into the list.

    A signal that is ignored (nohup), or that has another handler already, does not change. Only the main thread can set
    handlers; in other threads this function does nothing.
    """
    asked = []
    names = ["SIGINT", "SIGTERM", "SIGHUP"] if threading.current_thread() is threading.main_thread() else []
    before = {getattr(signal, name): signal.getsignal(getattr(signal, name)) for name in names if hasattr(signal, name)}
    usual = {number: old for number, old in before.items() if old in (signal.SIG_DFL, signal.default_int_handler)}

    def stop(number, frame):
        asked.append(Stopped(number))
        raise asked[-1]

    try:
        for number in usual:
            signal.signal(number, stop)
        yield asked
    finally:
        for number, old in usual.items():
            signal.signal(number, old)


def interrupt_behind(error: BaseException) -> KeyboardInterrupt | None:
    """The interrupt that led to ``error``, or ``None``."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error

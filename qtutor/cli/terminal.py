"""What reaches the terminal: one paragraph for what goes wrong, and no character that it cannot show."""

import contextlib
import os
import sys
import textwrap
import warnings
from collections.abc import Iterator

from qtutor.errors import escaped

WIDTH = 110


def plain_output() -> None:
    """From now on a character that the terminal's encoding lacks is printed as ?, and a closed stream takes all."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # `qtutor inspect out >&-`
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - as long as the program
        elif hasattr(stream, "reconfigure") and stream.errors != "backslashreplace":
            stream.reconfigure(errors="replace")


def paragraph(text: str) -> None:
    """``text`` on stderr as one paragraph; a name in it may hold characters that steer a terminal, or ends of lines."""
    print(
        textwrap.fill(escaped(" ".join(text.split())), WIDTH, break_long_words=False, break_on_hyphens=False),
        file=sys.stderr,
    )


@contextlib.contextmanager
def warnings_in_words() -> Iterator[None]:
    """Warnings as paragraphs, without the line of code that gave them."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: paragraph(f"qtutor: attention, {message}")
        yield


@contextlib.contextmanager
def passes(module, what: str, total: int) -> Iterator[None]:
    """A bar that counts how often ``module`` runs, where that takes over a second and a person is looking.

    total: how often at most.
    """
    from tqdm import tqdm

    with tqdm(total=total, desc=what, unit="pass", delay=1, disable=None, leave=False) as bar:
        hook = module.register_forward_hook(lambda *_: bar.update() and None)  # a hook's value would be the output
        try:
            yield
        finally:
            hook.remove()

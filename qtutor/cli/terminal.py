"""Output on the terminal: one paragraph for an error, and no character that the terminal cannot show."""

import contextlib
import os
import sys
import textwrap
import warnings
from collections.abc import Iterator

from qtutor.errors import escaped

WIDTH = 110


def plain_output() -> None:
    """From now on a character that the terminal's encoding lacks is printed as ?; a closed stream ignores output."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # `qtutor inspect out >&-`
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - open until the program ends
        elif hasattr(stream, "reconfigure") and stream.errors != "backslashreplace":
            stream.reconfigure(errors="replace")


def paragraph(text: str) -> None:
    """Print ``text`` on stderr as one paragraph; names may hold control characters of a terminal, or line ends."""
    print(
        textwrap.fill(escaped(" ".join(text.split())), WIDTH, break_long_words=False, break_on_hyphens=False),
        file=sys.stderr,
    )


@contextlib.contextmanager
def warnings_in_words() -> Iterator[None]:
    """Print warnings as paragraphs, without the line of code that gave them."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: paragraph(f"qtutor: attention, {message}")
        yield


@contextlib.contextmanager
def passes(module, what: str, total: int) -> Iterator[None]:
    """A bar that counts how often ``module`` runs, if that takes over a second and stderr is a terminal.

    total: how often at most.
    """
    from tqdm import tqdm

    with tqdm(total=total, desc=what, unit="pass", delay=1, disable=None, leave=False) as bar:
        hook = module.register_forward_hook(lambda *_: bar.update() and None)  # a hook's value would be the output
        try:
            yield
        finally:
            hook.remove()

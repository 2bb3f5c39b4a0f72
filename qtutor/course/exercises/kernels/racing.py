"""A race of a learner's loop against the package's: compiled by numba, timed in turns on the same words.

The result is the ratio of the two speeds, each in the best of several runs that take turns. The ratio does not depend
on the machine, and only a little on other programs that run on it. Well-written loops reach 0.5 to 1; :data:`LEAST`
leaves a wide margin below them.
"""

import functools
import inspect
from collections.abc import Callable

import numpy as np

from qtutor import compiling
from qtutor.course.exercises.kernels import slow
from qtutor.course.ladder.timing import race, threads
from qtutor.runtime.kernels import cpu

LEAST = 0.25  # of the package's speed; a slower answer does not pass
GOOD = 0.5  # from this ratio on, the text does not say what could be faster
TILES, COLUMNS, GROUP, ROUNDS = 32, 2048, 64, 15
ROWS = 64


def raced(function: Callable) -> tuple[bool, str]:
    """Whether ``function``, right in plain Python, is fast enough when it is compiled; and a text for the learner."""
    if not cpu.available():
        return True, "It was not timed, because numba is not installed: pip install 'qtutor[learn]'."
    tile, problem = compiled(function)
    if problem:
        return False, problem
    given = words_by_chance()
    if not np.allclose(_theirs(tile, *given), _ours(*given), rtol=1e-3, atol=1e-3):
        return False, (
            "It is right in plain Python, but compiled by numba it computes something else. Numbers in numba have a "
            "fixed size: does one overflow?"
        )
    ratio = _ratio(tile, given)
    return ratio >= LEAST, _said(ratio, slow.reasons(function, tile))


def _said(ratio: float, reasons: list[str]) -> str:
    """The text for a learner whose loop has ``ratio`` times the package's speed."""
    if ratio >= GOOD:
        speed = "is as fast as the package's loop" if ratio > 0.85 else f"has about {ratio:.1f} of the package's speed"
        return f"Compiled, it {speed}."
    text = f"Compiled, it takes about {1 / ratio:.1f} times as long as the package's loop"
    if ratio < LEAST:
        text += f" (an answer passes below {1 / LEAST:.0f} times)"
    if not reasons:
        return f"{text}. Its types and its source do not show why. Is the innermost loop the one over the 64 rows?"
    return "\n  ".join([f"{text}. Slow, because", *reasons])


def compiled(function: Callable):
    """(the function as numba compiles it for a tile, "") or (``None``, why it cannot be compiled)."""
    words, x = np.zeros((COLUMNS // 8, ROWS), np.int32), np.zeros((COLUMNS // 8, 8), np.float32)
    of_groups = np.zeros((COLUMNS // GROUP, ROWS), np.float32)
    try:
        plain = inspect.unwrap(function)  # also if the function is compiled already
        tile = compiling.compiled(plain, None, fastmath={"contract"})
        made = tile(x, np.zeros(COLUMNS // GROUP, np.float32), words, of_groups, of_groups)
    except Exception as error:  # from numba, or for an index that plain Python accepts
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        said = next((line for line in lines if not line.startswith(("Failed in", "Traceback"))), type(error).__name__)
        return None, (
            f"It is right in plain Python, but numba cannot compile it: {said[:200]}\nUse whole numbers, floats, numpy "
            "arrays and loops over them; nothing from torch."
        )
    if not isinstance(made, np.ndarray) or made.shape != (ROWS,):
        return None, f"It has to return a numpy array of {ROWS} numbers, because the package continues with it."
    return tile, ""


def words_by_chance() -> tuple[np.ndarray, ...]:
    """Random x, sums, words, scales and zero points of :data:`TILES` tiles."""
    drawn = np.random.default_rng(0)
    x = drawn.standard_normal((COLUMNS // 8, 8)).astype(np.float32)
    words = drawn.integers(-(2**31), 2**31, (TILES, COLUMNS // 8, ROWS)).astype(np.int32)
    scales = drawn.random((TILES, COLUMNS // GROUP, ROWS), np.float32)
    zeros = drawn.integers(0, 16, scales.shape).astype(np.uint8)
    return x, x.reshape(COLUMNS // GROUP, GROUP).sum(1), words, scales, zeros


def _theirs(tile, x, sums, words, scales, zeros) -> np.ndarray:
    y = np.empty((len(words), ROWS), np.float32)
    _over_tiles()(tile, x, sums, words, scales, zeros.astype(np.float32), y)
    return y


def _ours(x, sums, words, scales, zeros) -> np.ndarray:
    from qtutor.runtime.kernels import loops

    y = np.empty((1, len(words) * ROWS), np.float32)
    loops.one(x[None], sums[None], words, scales, zeros, 1, y, 0, len(words))
    return y.reshape(len(words), ROWS)


def _ratio(tile, given: tuple) -> float:
    """The time of the package's loop divided by that of the learner's, each the best of several alternating runs."""
    x, sums, words, scales, zeros = given
    floats, y, loop = zeros.astype(np.float32), np.empty((TILES, ROWS), np.float32), _over_tiles()
    with threads(1):
        took = race(
            {"theirs": lambda: loop(tile, x, sums, words, scales, floats, y), "ours": lambda: _ours(*given)}, ROUNDS
        )
    return took["ours"] / took["theirs"]


@functools.cache
def _over_tiles():
    """The compiled loop over tiles; it calls a given loop for each tile."""

    def over(tile, x, sums, words, scales, zeros, y):
        for t in range(len(words)):
            y[t] = tile(x, sums, words[t], scales[t], zeros[t])

    return compiling.compiled(over, None)


def adapt(theirs: Callable):
    """A learner's loop multiplies one token by every 4-bit layer; the package's loop does the rest."""
    from qtutor.runtime.kernels import loops

    packages = loops.one
    tile, problem = compiled(theirs)

    def one(x, sums, planes, scales, zeros, each, y, first, last):
        if problem or not isinstance(planes, np.ndarray) or planes.dtype != np.int32:
            packages(x, sums, planes, scales, zeros, each, y, first, last)
            return
        own = slice(first, last)
        floats = scales[own].view(np.float16).astype(np.float32) if scales.dtype == np.uint16 else scales[own]
        of_groups = np.broadcast_to(zeros[own] if each else zeros, floats.shape).astype(np.float32)
        out = y[0].reshape(-1, ROWS)[own]
        _over_tiles()(tile, x[0], sums[0], planes[own], floats, of_groups, out)

    return one

"""Interpreter sessions: questions whose answers Python itself computes.

``>>> 37 + 48`` is followed by ``85``, because ``eval`` returns that. Each *kind* of question is a small generator, so
accuracy can be measured per kind: exact tasks such as arithmetic suffer first when weights lose bits.

A tenth of the expressions of every large kind (:data:`HELD_OUT_KINDS`) never occurs in training; a hash of the
expression chooses them, and accuracy is measured on these alone. Products and boolean logic have too few expressions to
hold any out (times tables *are* memory), so training has seen the questions of these kinds.
"""

import random
import zlib
from collections.abc import Callable

PROMPT = ">>> "


def _sum(rng: random.Random) -> str:
    return f"{_number(rng)} + {_number(rng)}"


def _difference(rng: random.Random) -> str:
    a, b = sorted((_number(rng), _number(rng)))
    return f"{b} - {a}"


def _product(rng: random.Random) -> str:
    return f"{rng.randint(0, 12)} * {rng.randint(0, 12)}"


def _compare(rng: random.Random) -> str:
    return f"{_number(rng)} {rng.choice(['<', '>', '<=', '>='])} {_number(rng)}"


def _max(rng: random.Random) -> str:
    numbers = ", ".join(str(_number(rng)) for _ in range(rng.randint(2, 3)))
    return f"{rng.choice(['max', 'min'])}({numbers})"


def _sorted(rng: random.Random) -> str:
    return f"sorted({[rng.randint(0, 9) for _ in range(rng.randint(3, 5))]})"


def _reversed(rng: random.Random) -> str:
    letters = "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(3, 5)))
    return f"'{letters}'[::-1]"


def _logic(rng: random.Random) -> str:
    a, b, c = (rng.choice(["", "not "]) + rng.choice(["True", "False"]) for _ in range(3))
    return rng.choice([f"{a} and {b}", f"{a} or {b}", f"{a} and {b} or {c}", f"{a} and ({b} or {c})"])


def _number(rng: random.Random) -> int:
    return rng.randint(0, rng.choice([9, 99, 99, 99]))  # a quarter of the operands are from 0 to 9


KINDS: dict[str, Callable[[random.Random], str]] = {
    "sum": _sum,
    "difference": _difference,
    "product": _product,
    "compare": _compare,
    "max": _max,
    "sorted": _sorted,
    "reversed": _reversed,
    "logic": _logic,
}
ARITHMETIC = ("sum", "difference", "product")
HELD_OUT_KINDS = ("sum", "difference", "compare", "max", "sorted", "reversed")
# Sums and differences need the most practice. Comparison and logic are learned within minutes.
TRAINING_SHARE = {
    "sum": 4,
    "difference": 4,
    "product": 2,
    "compare": 1,
    "max": 2,
    "sorted": 2,
    "reversed": 2,
    "logic": 1,
}


def held_out(expression: str) -> bool:
    """True for the tenth of all expressions that training never sees."""
    return zlib.crc32(expression.encode()) % 10 == 0


def answer(expression: str) -> str:
    """What Python prints for ``expression``: ``repr(eval(expression))``."""
    return repr(eval(expression, {"__builtins__": {"max": max, "min": min, "sorted": sorted}}))


def questions(kind: str, count: int, seed: int = 0) -> list[tuple[str, str]]:
    """``count`` distinct questions of one kind for evaluation, as ``(expression, answer)``.

    For a kind in :data:`HELD_OUT_KINDS`, training has seen none of them. Raises ``KeyError`` for an unknown kind, and
    ``ValueError`` if the kind has fewer than ``count`` expressions.
    """
    rng = random.Random(f"{kind} {seed}")
    found: dict[str, None] = {}
    for _ in range(200 * count):
        expression = KINDS[kind](rng)
        if kind not in HELD_OUT_KINDS or held_out(expression):
            found[expression] = None
        if len(found) == count:
            return [(expression, answer(expression)) for expression in found]
    raise ValueError(f"kind {kind!r} has fewer than {count} questions; ask for fewer")


def session(rng: random.Random, examples: int) -> str:
    """A training session: ``examples`` questions of mixed kinds with their answers; no question is a held-out one."""
    lines = []
    while len(lines) < examples:
        (kind,) = rng.choices(list(TRAINING_SHARE), weights=TRAINING_SHARE.values())
        expression = KINDS[kind](rng)
        if kind not in HELD_OUT_KINDS or not held_out(expression):
            lines.append(f"{PROMPT}{expression}\n{answer(expression)}\n")
    return "".join(lines)

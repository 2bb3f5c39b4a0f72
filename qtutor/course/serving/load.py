"""Times of the engine under load: until a request's first token, and for each further one. And vLLM's speed."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from qtutor.errors import QtutorError
from qtutor.serving import Engine

STORED = Path(__file__).parents[1] / "stored" / "vllm.json"


@dataclass(frozen=True)
class Pace:
    """at_a_time: requests that are served at once. first: the median over requests of the seconds until the first
    token. each: the median over requests of the mean seconds for each further token. per_second: tokens of all requests
    together.
    """

    at_a_time: int
    first: float
    each: float
    per_second: float


def pace(engine: Engine, prompts: Sequence[list[int]], new: int, at_a_time: int) -> Pace:
    """Serve all ``prompts``, at most ``at_a_time`` at once: a finished request makes room for the next.

    new: the number of tokens that each request wants, two or more. A request that ends with its first token counts only
    for ``first``.
    """
    if new < 2 or not prompts:
        raise QtutorError(f"new is {new} and there are {len(prompts)} prompts; 2 new tokens and a prompt are needed.")
    left, came, times = list(prompts), {}, {}
    start, tokens = time.perf_counter(), 0
    while left or engine.unfinished:
        while left and engine.unfinished < at_a_time:
            asked = time.perf_counter()
            came[engine.add(left.pop(0), new)] = asked
        given = engine.step()
        now = time.perf_counter()
        tokens += len(given)
        for request, _ in given:
            times.setdefault(request, []).append(now)
    took = time.perf_counter() - start
    first = [at[0] - came[request] for request, at in times.items()]
    each = [(at[-1] - at[0]) / (len(at) - 1) for at in times.values() if len(at) > 1]
    return Pace(at_a_time, median(first), median(each) if each else float("nan"), tokens / took)


def in_vllm() -> dict:
    """The results of ``benchmarks/vllm_serving.py``: "how" it was measured, the requests "at once", and "rows"."""
    return json.loads(STORED.read_text(encoding="utf-8"))

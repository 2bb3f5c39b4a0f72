"""Random loads: when each prompt arrives, how many tokens it requests, and how much room the engine has."""

import random
from dataclasses import dataclass

from hypothesis import strategies as st

from tests.models import VOCABULARY

NEW = 12  # the most new tokens of a request
# Every prompt is the beginning of one of three texts, so many prompts begin alike.
BASES = [random.Random(seed).choices(range(VOCABULARY), k=40) for seed in range(3)]
BASES[2][:20] = BASES[1][:20]


@dataclass(frozen=True)
class Asked:
    """A request, and the number of steps after which it arrives."""

    at: int
    prompt: tuple[int, ...]
    new: int


@dataclass(frozen=True)
class Load:
    """Requests, and the engine's sizes. spare: how many blocks there are beyond those of the largest request."""

    asked: list[Asked]
    block_size: int
    spare: int
    budget: int
    sharing: bool

    @property
    def sizes(self) -> dict:
        """Arguments of the engine."""
        largest = max(-(-(len(one.prompt) + one.new - 1) // self.block_size) for one in self.asked)
        sizes = {"blocks": largest + self.spare, "block_size": self.block_size}
        return sizes | {"tokens_a_step": self.budget, "share_prefixes": self.sharing}


def loads(budgets=(3, 8, 24, 256), most: int = 6) -> st.SearchStrategy[Load]:
    """Up to ``most`` requests. Few blocks and short blocks are frequent: they lead to preemption and sharing."""
    lengths = st.sampled_from([1, 2, 3, 4, 5, 8, 15, 16, 17, 20, 31, 32, 33, 40])
    prompts = st.builds(lambda base, length: tuple(base[:length]), st.sampled_from(BASES), lengths)
    asked = st.builds(Asked, st.integers(0, 12), prompts, st.integers(1, NEW))
    return st.builds(
        Load,
        st.lists(asked, min_size=1, max_size=most),
        st.sampled_from([1, 2, 4, 16]),
        st.integers(0, 6),
        st.sampled_from(budgets),
        st.booleans(),
    )


def serve(engine, load: Load, after_step=lambda engine: None) -> list:
    """Add each request when its time has come, step until all are finished, and return them in the load's order."""
    pending = sorted(enumerate(load.asked), key=lambda pair: pair[1].at)
    requests, steps = {}, 0
    while pending or engine.unfinished:
        while pending and pending[0][1].at <= steps:
            index, one = pending.pop(0)
            requests[index] = engine.add(list(one.prompt), one.new)
        engine.step()
        after_step(engine)
        steps += 1
        assert steps < 10_000, "nobody gets on"
    return [requests[index] for index in range(len(load.asked))]

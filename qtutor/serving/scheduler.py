"""Which requests run in a step: texts wait, run, are preempted when blocks run out, and finish.

Continuous batching (Orca, Yu et al., OSDI 2022): texts join and leave at every step, so no text waits for the longest.
A step reads at most ``budget`` tokens. A text that is being written needs one of them. Prompts get the rest, in chunks
(Sarathi, Agrawal et al., arXiv 2308.16369), so a long prompt does not hold up the texts that are being written.

First come, first served: ``running`` and ``waiting`` are always in the order of arrival. When a text needs a block and
none is free, the youngest running text gives back its blocks, and is read again later (recomputation; swapping to other
memory is left out). The oldest text can get the blocks of all others, so it always goes on, and all texts finish.
"""

from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum

import torch

from qtutor.serving.cache import Blocks


class State(StrEnum):
    """The state of a request."""

    WAITING = "waiting"
    RUNNING = "running"
    PREEMPTED = "preempted"  # also waits, in front of requests that have not run yet
    FINISHED = "finished"


@dataclass(eq=False)
class Request:
    """A prompt and the tokens that were written after it.

    tokens: prompt and output. table: its blocks, in order. cached: how many tokens have their keys and values in these
    blocks. temperature 0 chooses the likeliest token; otherwise ``generator`` draws.
    """

    number: int
    prompt: list[int]
    max_new_tokens: int
    temperature: float = 0.0
    generator: torch.Generator | None = None
    tokens: list[int] = field(init=False)
    table: list[int] = field(default_factory=list)
    cached: int = 0
    state: State = State.WAITING
    preemptions: int = 0
    shared: int = 0  # tokens that were found in known blocks and not read, over all its starts

    def __post_init__(self):
        self.tokens = list(self.prompt)

    @property
    def output(self) -> list[int]:
        """The tokens written so far, with the token that ended the text."""
        return self.tokens[len(self.prompt) :]

    @property
    def unread(self) -> int:
        """How many tokens the model has to read before it writes the next: 1 for a text that is being written."""
        return len(self.tokens) - self.cached


@dataclass(frozen=True)
class Piece:
    """Tokens ``start`` to ``end`` of a request; the model reads them in this step."""

    request: Request
    start: int
    end: int

    @property
    def writes(self) -> bool:
        """Whether the model has then read the whole text, and writes the next token."""
        return self.end == len(self.request.tokens)


class Scheduler:
    """Chooses each step's pieces, and gives the requests their blocks."""

    def __init__(self, blocks: Blocks, budget: int):
        self.blocks = blocks
        self.budget = budget
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []

    def add(self, request: Request) -> None:
        """Put a request into the queue. It has to fit into all blocks together, or it would wait for ever."""
        self.waiting.append(request)

    def pick(self) -> list[Piece]:
        """The pieces to read in this step: at most ``budget`` tokens, the oldest request first."""
        # Each text that is being written gets a token: a request is only admitted into a step that has a token left for
        # it, so no more requests run than the budget has tokens.
        left = self.budget - sum(request.unread == 1 for request in self.running)
        pieces = []
        for request in list(self.running):
            if request.state is State.RUNNING and self._has_room(request):  # it was not just preempted for an older one
                count = 1 if request.unread == 1 else min(request.unread, left)
                left -= count if request.unread > 1 else 0
                pieces += self._piece(request, count)
        # A just preempted request is first in the queue, and needs more than it gave back: so none is admitted then.
        while left and self.waiting and self._admit():
            count = min(self.waiting[0].unread, left)
            left -= count
            self.running.append(self.waiting.popleft())
            pieces += self._piece(self.running[-1], count)
        return pieces

    def finish(self, request: Request) -> None:
        """Remove a finished request. Its blocks are free, and stay known until they are used for another text."""
        self.running.remove(request)
        self.blocks.release(request.table)
        request.state = State.FINISHED

    def abandon(self) -> None:
        """After a step that failed half-way: all requests wait again, and the contents of no block are trusted."""
        for request in reversed(self.running):  # the youngest first, because the oldest has to be in front
            self._preempt(request)
        self.blocks.forget_all()

    def _has_room(self, request: Request) -> bool:
        """Make the table hold the whole text; ``False`` if the request itself had to give up its blocks."""
        while not self.blocks.grow(request.table, len(request.tokens)):
            youngest = self.running[-1]  # the request itself, or one that this step has not reached yet
            self._preempt(youngest)
            if youngest is request:
                return False
        return True

    def _admit(self) -> bool:
        """Give the first waiting request blocks for its whole text; ``False`` if too few are free."""
        request = self.waiting[0]
        found = self.blocks.table_for(request.tokens)
        if found is None:
            return False
        request.table, request.cached = found
        request.shared += request.cached
        request.state = State.RUNNING
        return True

    def _piece(self, request: Request, count: int) -> list[Piece]:
        """The request's next ``count`` tokens as a piece; no piece for 0 tokens.

        The blocks that they fill are known from now on. A request that this step admits may share them at once, because
        each layer writes the keys and values of all pieces before it reads any.
        """
        end = request.cached + count
        self.blocks.remember(request.table, request.tokens, request.cached, end)
        return [Piece(request, request.cached, end)] if count else []

    def _preempt(self, request: Request) -> None:
        self.running.remove(request)
        self.blocks.release(request.table)
        request.cached = 0
        request.state = State.PREEMPTED
        request.preemptions += 1
        self.waiting.appendleft(request)

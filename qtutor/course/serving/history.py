"""Requests over time: the package's own scheduler and blocks, without a model, and a note of every step.

No model computes anything here, because the order of service depends only on lengths, arrivals and prompts. So each
text "writes" a number that no other text writes. Static batching, which the package does not have, is a few lines of
arithmetic.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qtutor.errors import QtutorError
from qtutor.serving.cache import Blocks
from qtutor.serving.scheduler import Piece, Request, Scheduler, State

WRITTEN = 1 << 20  # text n writes this + n, a token that no prompt has


@dataclass(frozen=True)
class Asked:
    """A request: a letter for it, the step in which it arrives, its prompt, and the number of tokens that it wants."""

    name: str
    at: int
    prompt: tuple[int, ...]
    new: int


@dataclass(frozen=True)
class Block:
    """A block in one step. owners: the letters of the texts that use it. filled: the places that hold a token.

    known: no text uses the block, but its content would be found again.
    """

    owners: str
    filled: int
    known: bool


@dataclass(frozen=True)
class Text:
    """A running request in one step. table: its blocks. start, end: the tokens that the step reads (end excluded).
    writes: whether the request then writes one more token.
    """

    name: str
    table: tuple[int, ...]
    start: int
    end: int
    writes: bool


@dataclass(frozen=True)
class Moment:
    """One step: what happened in it, who runs, who waits, and all blocks after the tokens of the step were read."""

    events: tuple[str, ...]
    texts: tuple[Text, ...]
    waiting: str
    blocks: tuple[Block, ...]


def continuous(
    asked: Sequence[Asked],
    blocks: int,
    size: int = 16,
    budget: int = 256,
    sharing: bool = True,
    at_a_time: int | None = None,
) -> list[Moment]:
    """A moment for each step until all requests are finished, and a last moment without any request.

    at_a_time: the largest number of requests that run or wait; the others are added later. Raises :class:`QtutorError`
    for a request that does not fit into all blocks together.
    """
    held = Blocks(blocks, size, sharing)
    scheduler, pending = Scheduler(held, budget), sorted(asked, key=lambda one: one.at)
    for one in asked:
        if held.needed(len(one.prompt) + one.new - 1) > blocks:
            raise QtutorError(f"{one.name} needs more than all {blocks} blocks of {size} tokens. Give more blocks.")
    requests: dict[Request, str] = {}
    moments: list[Moment] = []
    left: list[str] = []
    while pending or scheduler.running or scheduler.waiting:
        events = [f"{name} has left" for name in left]
        while pending and pending[0].at <= len(moments):
            if at_a_time is not None and len(scheduler.running) + len(scheduler.waiting) >= at_a_time:
                break
            one = pending.pop(0)
            request = Request(len(requests), list(one.prompt), one.new)
            requests[request] = one.name
            scheduler.add(request)
            events.append(f"{one.name} arrives with {len(one.prompt)} tokens, and wants {one.new} new ones")
        moment, left = _step(scheduler, requests, events)
        moments.append(moment)
    last = _blocks(scheduler, requests)
    return [*moments, Moment(tuple(f"{name} has left" for name in left), (), "", last)]


def _step(scheduler: Scheduler, requests: dict[Request, str], events: list[str]) -> tuple[Moment, list[str]]:
    """One step of the scheduler: its moment, and the names of the requests that left after it."""
    before = {request: (request.state, request.shared, request.preemptions) for request in requests}
    pieces = {piece.request: piece for piece in scheduler.pick()}
    for request, name in requests.items():
        state, shared, preemptions = before[request]
        if request.preemptions > preemptions:
            events.append(f"no block is free: {name} is preempted, gives its blocks back and waits")
        elif request.state is State.RUNNING and state is not State.RUNNING:
            found = request.shared - shared
            known = f", {found} of its tokens are in known blocks" if found else ""
            events.append(f"{name} starts{' again' if preemptions else ''}{known}")
    for request, piece in pieces.items():
        request.cached = piece.end
    texts = tuple(_text(request, requests[request], pieces.get(request)) for request in scheduler.running)
    moment = Moment(tuple(events), texts, "".join(requests[r] for r in scheduler.waiting), _blocks(scheduler, requests))
    left = []
    for request, piece in pieces.items():
        if piece.writes:
            request.tokens.append(WRITTEN + request.number)
            if len(request.output) == request.max_new_tokens:
                scheduler.finish(request)
                left.append(requests[request])
    return moment, left


def _text(request: Request, name: str, piece: Piece | None) -> Text:
    """piece: ``None`` for a prompt that is read further only in a later step: the budget of this step is spent."""
    if piece is None:
        return Text(name, tuple(request.table), request.cached, request.cached, False)
    return Text(name, tuple(request.table), piece.start, piece.end, piece.writes)


def _blocks(scheduler: Scheduler, requests: dict[Request, str]) -> tuple[Block, ...]:
    held = scheduler.blocks
    owners, filled = [""] * len(held.users), [0] * len(held.users)
    for request in scheduler.running:
        for index, block in enumerate(request.table):
            owners[block] += requests[request]
            filled[block] = max(filled[block], min(held.size, max(0, request.cached - index * held.size)))
    known = set(held.known.values())
    return tuple(
        Block(owners[b], filled[b] if owners[b] else held.size * (b in known), not owners[b] and b in known)
        for b in range(len(held.users))
    )


def lanes(moments: Iterable[Moment]) -> list[list[str]]:
    """For each place of the batch, the letter of the text in it, step by step (``""``: no text).

    A text takes the first place that is free when it starts.
    """
    rows: list[list[str]] = []
    for step, moment in enumerate(moments):
        names = [text.name for text in moment.texts]
        for row in rows:
            kept = row[step - 1] if step else ""
            row.append(kept if kept in names else "")
            if kept in names:
                names.remove(kept)
        for name in names:
            free = next((row for row in rows if not row[step]), None)
            if free is None:
                free = [""] * (step + 1)
                rows.append(free)
            free[step] = name
    return rows


def static(asked: Sequence[Asked], places: int) -> list[list[str]]:
    """The same as :func:`lanes` for batches that start together, and end when their longest text ends.

    A finished text keeps its place, shown as ``"."``, because the batch computes on until its end.
    """
    rows: list[list[str]] = [[] for _ in range(places)]
    for start in range(0, len(asked), places):
        batch = asked[start : start + places]
        longest = max(one.new for one in batch)
        for row, one in zip(rows, batch):
            row += [one.name] * one.new + ["."] * (longest - one.new)
        for row in rows[len(batch) :]:
            row += [""] * longest
    return rows


def used(rows: Sequence[Sequence[str]]) -> float:
    """The share of all places and steps in which an unfinished text has the place in the batch.

    Every such step counts, also one in which the text only reads a part of its prompt and writes no token.
    """
    places = [place for row in rows for place in row]
    return sum(place not in ("", ".") for place in places) / len(places)

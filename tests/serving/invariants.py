"""Conditions that an engine's blocks and queues have to fulfil between any two steps."""

from qtutor.serving import Engine
from qtutor.serving.scheduler import State


def check(engine: Engine) -> None:
    """No block is lost, used twice in a table, or shared by different texts. The queues are in the order of arrival."""
    blocks, scheduler = engine.blocks, engine.scheduler
    users = [0] * len(blocks.users)
    owner = {}  # block -> its index in tables, and the text up to its end
    for request in scheduler.running:
        assert request.state is State.RUNNING
        assert blocks.needed(request.cached) <= len(request.table) <= blocks.needed(len(request.tokens))
        assert 0 <= request.cached < len(request.tokens)
        for index, block in enumerate(request.table):
            users[block] += 1
            text = request.tokens[: (index + 1) * blocks.size]
            assert owner.setdefault(block, (index, text)) == (index, text)  # so no table has a block twice
    assert blocks.users == users
    assert set(blocks.free) == {block for block, count in enumerate(users) if count == 0}
    for digest, block in blocks.known.items():
        assert blocks.digests[block] == digest
    for request in scheduler.waiting:
        assert request.state in (State.WAITING, State.PREEMPTED)
        assert not request.table and not request.cached
    order = [request.number for request in (*scheduler.running, *scheduler.waiting)]
    assert order == sorted(order)


def check_empty(engine: Engine) -> None:
    """All requests are finished, and every block is free."""
    check(engine)
    assert engine.unfinished == 0
    assert len(engine.blocks.free) == len(engine.blocks.users)

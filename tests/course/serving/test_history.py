"""Requests over time: a history says what the package's scheduler does."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qtutor.course.serving.history import Asked, continuous, lanes, static, used
from qtutor.errors import QtutorError

LETTERS = "ABCDEFGH"


def asked_by_chance(seed: int, count: int) -> list[Asked]:
    draw = random.Random(seed)
    base = [draw.randrange(9) for _ in range(12)]
    return [
        Asked(LETTERS[i], draw.randrange(6), tuple(base[: draw.randint(1, 12)]), draw.randint(1, 9))
        for i in range(count)
    ]


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(0, 4), st.sampled_from([4, 8, 64]))
@settings(max_examples=60, deadline=None)
def test_blocks_are_those_of_the_tables_and_every_text_writes_what_it_wants(seed, count, spare, budget):
    asked, size = asked_by_chance(seed, count), 4
    most = max(-(-(len(one.prompt) + one.new - 1) // size) for one in asked)
    moments = continuous(asked, most + spare, size, budget)
    wrote = dict.fromkeys((one.name for one in asked), 0)
    for moment in moments:
        for number, block in enumerate(moment.blocks):
            assert list(block.owners) == [text.name for text in moment.texts if number in text.table]
            assert not (block.owners and block.known)
            read = [text.end - size * text.table.index(number) for text in moment.texts if number in text.table]
            assert block.filled == (min(size, max(0, *read, 0)) if read else size * block.known)
        assert sum(text.end - text.start for text in moment.texts) <= budget
        for text in moment.texts:
            wrote[text.name] += text.writes
            assert text.end <= len(text.table) * size
    assert wrote == {one.name: one.new for one in asked}
    assert not moments[-1].texts and not moments[-1].waiting


def test_texts_that_begin_alike_share_and_the_youngest_is_preempted():
    asked = [Asked("A", 0, (1, 2, 3, 4, 5, 6), 8), Asked("B", 1, (1, 2, 3, 4, 9), 6), Asked("C", 2, (7, 8, 7), 7)]
    moments = continuous(asked, 6, 4)
    said = [event for moment in moments for event in moment.events]
    assert "B starts, 4 of its tokens are in known blocks" in said
    assert any(block.owners == "AB" for moment in moments for block in moment.blocks)
    assert "no block is free: C is preempted, gives its blocks back and waits" in said
    assert any(event.startswith("C starts again") for event in said)
    assert "A has left" in said and "C has left" in moments[-1].events
    apart = continuous(asked, 6, 4, sharing=False)
    assert not any(len(block.owners) > 1 or block.known for moment in apart for block in moment.blocks)


def test_a_prompt_that_is_read_in_chunks():
    moments = continuous([Asked("A", 0, (1,) * 10, 2)], 4, 4, budget=4)
    assert [(t.start, t.end, t.writes) for moment in moments for t in moment.texts] == [
        (0, 4, False), (4, 8, False), (8, 10, True), (10, 11, True),
    ]  # fmt: skip


def test_a_request_that_no_cache_holds_is_refused():
    with pytest.raises(QtutorError, match="A needs more than all 2 blocks of 4 tokens"):
        continuous([Asked("A", 0, (1,) * 9, 2)], 2, 4)


def test_places_of_a_batch():
    asked = [Asked("A", 0, (1,), 2), Asked("B", 0, (2,), 4), Asked("C", 0, (3,), 3)]
    rows = lanes(continuous(asked, 9, 4, at_a_time=2)[:-1])
    assert rows == [["A", "A", "C", "C", "C"], ["B", "B", "B", "B", ""]]
    assert used(rows) == 0.9
    rows = static(asked, 2)
    assert rows == [["A", "A", ".", ".", "C", "C", "C"], ["B", "B", "B", "B", "", "", ""]]
    assert used(rows) == pytest.approx(9 / 14)

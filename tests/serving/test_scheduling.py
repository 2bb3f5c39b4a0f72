"""Blocks and queues, without a model: every text reads only itself, whatever else happens."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qtutor.serving.cache import Blocks
from qtutor.serving.scheduler import State
from tests.models import tiny
from tests.serving import invariants
from tests.serving.ghost import ENDS, Ghost, written
from tests.serving.loads import BASES, loads, serve

MODEL = tiny()
MODEL.generation_config.eos_token_id = list(ENDS)


def ghost(**sizes) -> Ghost:
    return Ghost(MODEL, **({"blocks": 64} | sizes))


@settings(max_examples=300, deadline=None)
@given(loads(budgets=(1, 3, 8, 24, 256), most=10))
def test_every_text_is_written_as_if_it_were_alone(load):
    engine = ghost(**load.sizes)
    requests = serve(engine, load, invariants.check)
    for request, asked in zip(requests, load.asked, strict=True):
        assert request.output == written(asked.prompt, asked.new)
        assert request.state is State.FINISHED
    invariants.check_empty(engine)


@settings(max_examples=60, deadline=None)
@given(loads(), st.sets(st.integers(1, 20), min_size=1, max_size=4))
def test_a_step_that_fails_loses_nothing(load, failing):
    class Mended(Ghost):
        def step(self):
            try:
                return super().step()
            except RuntimeError:
                invariants.check(self)
                assert not self.scheduler.running and not self.blocks.known
                return []

    engine = Mended(MODEL, failing=failing, **load.sizes)
    for request, asked in zip(serve(engine, load, invariants.check), load.asked, strict=True):
        assert request.output == written(asked.prompt, asked.new)
    invariants.check_empty(engine)


def test_out_of_blocks_the_youngest_is_preempted_and_comes_back():
    engine = ghost(blocks=4, block_size=4)
    old, young = engine.add(BASES[0][:7], 9), engine.add(BASES[1][:7], 9)
    for _ in range(3):  # 7 tokens and 2 new ones are 9: a third block each
        engine.step()
    assert (old.preemptions, young.preemptions) == (0, 1)
    assert young.state is State.PREEMPTED and len(young.output) == 2
    assert len(old.table) == 3 and not young.table
    third = engine.add(BASES[2][:1], 1)
    list(engine.stream())
    assert third.number == 2 and third.preemptions == 0
    for request in (old, young):
        assert request.output == written(request.prompt, 9)


def test_those_that_write_get_a_token_in_every_step_while_a_long_prompt_is_read():
    engine = ghost(tokens_a_step=8)
    writing = engine.add(BASES[1][:3], 8)
    engine.step()
    long = engine.add(BASES[0], 1)
    read = []
    while long.cached < len(long.prompt) and long.state is not State.FINISHED:
        before = long.cached
        assert writing in [request for request, _ in engine.step()] or writing.state is State.FINISHED
        read.append(long.cached - before)
    assert read[:5] == [7] * 5  # the budget, minus a token for the text that is written
    assert max(engine.lengths) == 8


def test_first_come_first_served():
    engine = ghost(blocks=4, block_size=4)
    first, large, small = engine.add([9] * 8, 1), engine.add([8] * 12, 1), engine.add([7], 1)
    engine.step()
    assert first.state is State.FINISHED
    assert (large.state, small.state) == (State.WAITING, State.WAITING)  # small would fit, but must not overtake
    list(engine.stream())
    assert large.state is small.state is State.FINISHED


def test_equal_beginnings_are_read_once_even_in_one_step():
    common = BASES[0][:33]  # two blocks, and a token of the third
    engine = ghost()
    requests = [engine.add([*common, 100 + number], 1) for number in range(8)]
    engine.step()
    assert [request.shared for request in requests] == [0] + [32] * 7
    assert engine.lengths == [34 + 7 * 2]
    later = engine.add([*common, 99], 1)  # the others have left; what they wrote is still known
    engine.step()
    assert later.shared == 32 and engine.lengths[1] == 2


def test_without_sharing_each_reads_all():
    engine = ghost(share_prefixes=False)
    for _ in range(3):
        engine.add(BASES[0], 1)
    engine.step()
    assert engine.lengths == [3 * 40] and not engine.blocks.known


def test_the_last_token_of_a_prompt_is_always_read():
    engine = ghost()
    for length in (32, 32, 33):  # the second reads its last block again, the third a single token
        request = engine.add(BASES[0][:length], 1)
        engine.step()
    assert engine.lengths == [32, 16, 1] and request.shared == 32


def test_equal_tokens_behind_different_beginnings_are_not_shared():
    engine = ghost()
    engine.add([1] * 16 + [5] * 17, 1)
    request = engine.add([2] * 16 + [5] * 17, 1)
    engine.step()
    assert request.shared == 0


def test_a_block_is_forgotten_when_it_is_needed_the_longest_unused_first():
    blocks = Blocks(4, size=2)
    old, _ = blocks.table_for([1, 2, 3, 4])
    blocks.remember(old, [1, 2, 3, 4], 0, 4)
    kept = list(old)
    blocks.release(old)
    table, cached = blocks.table_for([9] * 4)  # two blocks that were never used
    assert cached == 0 and not set(table) & set(kept)
    assert blocks.grow(table, 5)  # one more: the end of the old text is forgotten before its beginning
    assert table[-1] == kept[1]
    blocks.release(table)
    assert blocks.table_for([1, 2, 3, 4, 5])[1] == 2  # its beginning is still known


def test_too_few_free_blocks_change_nothing():
    blocks = Blocks(3, size=2)
    table, _ = blocks.table_for([1, 2, 3, 4])
    blocks.remember(table, [1, 2, 3, 4], 0, 4)
    before = list(table), list(blocks.users), list(blocks.free)
    assert not blocks.grow(table, 8)
    assert blocks.table_for([7] * 3) is None
    assert before == (table, blocks.users, list(blocks.free))
    blocks.release(table)
    # Known blocks without users count as free. Two of the three are found again, one is new, and none is left.
    assert blocks.table_for([1, 2, 3, 4, 5, 6, 7]) is None
    table, cached = blocks.table_for([1, 2, 3, 4, 5])
    assert cached == 4 and len(set(table)) == 3


def test_a_drawn_text_depends_on_its_seed_and_not_on_its_company():
    class Flat(Ghost):
        def _run(self, pieces):
            return super()._run(pieces) * 3.0

    def drawn(seed, company):
        engine = Flat(MODEL, blocks=8, block_size=4)
        for _ in range(company):
            engine.add(BASES[0][:9], 12)
        request = engine.add(BASES[1][:5], 12, temperature=1.0, seed=seed)
        list(engine.stream())
        return request.output, request.preemptions

    (alone, never), (together, preempted) = drawn(0, 0), drawn(0, 2)
    assert alone == together and never == 0 and preempted > 0
    assert len({tuple(drawn(seed, 0)[0]) for seed in range(4)}) == 4


def test_a_cold_temperature_takes_the_likeliest():
    engine = ghost()
    request = engine.add(BASES[0][:5], 6, temperature=1e-4)
    list(engine.stream())
    assert request.output == written(BASES[0][:5], 6)


@pytest.mark.parametrize("new", [1, 5])
def test_a_request_that_takes_exactly_all_blocks_is_served(new):
    engine = ghost(blocks=2, block_size=8)
    request = engine.add(BASES[0][: 17 - new], new)  # the last token is not read
    list(engine.stream())
    assert request.output == written(BASES[0][: 17 - new], new)

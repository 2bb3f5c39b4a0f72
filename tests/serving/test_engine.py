"""The engine writes what transformers' generate writes, for every family, float and packed."""

import os
from functools import cache, partial

import pytest
import torch
from hypothesis import given, settings

import qtutor
from qtutor.errors import QtutorError
from qtutor.runtime.kv import KVCache, KVFormat, QuantizedPool
from qtutor.serving import Engine
from qtutor.serving.attention import Step
from qtutor.serving.cache import Pool, pool_bytes
from qtutor.serving.scheduler import Piece, Request
from tests.families import small
from tests.models import VOCABULARY, tiny
from tests.serving import invariants
from tests.serving.loads import BASES, NEW, loads, serve

# Double precision: logits of a random net may be nearly equal, and the order of sums must not decide between them.
MODEL = tiny(dtype=torch.float64)
MODEL.generation_config.eos_token_id = list(range(8))  # about one token in 32 ends a text


def generated(model, prompt, new: int, **options) -> list[int]:
    """The greedy continuation, with the token that ended it."""
    ids = torch.tensor([list(prompt)])
    options |= {"do_sample": False, "pad_token_id": 0}
    with torch.inference_mode():
        ids = model.generate(ids, attention_mask=ids * 0 + 1, max_new_tokens=new, **options)
    return ids[0, len(prompt) :].tolist()


@cache
def expected(prompt: tuple[int, ...]) -> list[int]:
    return generated(MODEL, prompt, NEW)


# `make test` has time for this many loads; `make engines` tries 300.
@settings(max_examples=int(os.environ.get("SERVING_LOADS", 25)), deadline=None)
@given(loads())
def test_token_for_token_what_generate_writes(load):
    engine = Engine(MODEL, **load.sizes)
    for request, asked in zip(serve(engine, load, invariants.check), load.asked, strict=True):
        assert request.output == expected(asked.prompt)[: asked.new]
    invariants.check_empty(engine)


@pytest.mark.parametrize("family", small.FAMILIES)
def test_every_family(family):
    """Families have windows shorter than the texts, soft caps, heads of unusual width, or blocks without rope."""
    model = small.random(family).double()
    model.generation_config.eos_token_id = None  # a random net may end a text at once: no preemption
    text = small.unseen()[0].tolist()
    prompts = [text[:40], text[:7], text[:40][::-1], text[:35], text[:33]]
    engine = Engine(model, blocks=11, tokens_a_step=24)
    requests = [engine.add(prompt, 20) for prompt in prompts]
    list(engine.stream())
    assert sum(request.preemptions for request in requests) > 0
    assert sum(request.shared for request in requests) > 0
    for request in requests:
        assert request.output == generated(model, request.prompt, 20)
    invariants.check_empty(engine)


@pytest.mark.parametrize("bits", [None, 4])
def test_the_embedded_decoder_writes_the_same_text(bits):
    model, tokenizer = qtutor.load_decoder()
    if bits:
        qtutor.quantize(model, qtutor.Recipe(bits=bits, group_size=64), progress=False)
    prompts = [">>> 12 + 30\n", ">>> max(3, 41)\n", "def add(a, b):\n", ">>> 'abc'[::-1]\n", ">>> sorted([3, 1, 2])\n"]
    engine = Engine(model, tokenizer, blocks=8, tokens_a_step=16)
    requests = [engine.add(prompt, 24) for prompt in prompts]
    list(engine.stream())
    compared = 0
    for request in requests:
        sure = sure_tokens(model, request.prompt, 24)
        assert request.output[: len(sure)] == sure
        compared += len(sure)
    assert compared > 40


def sure_tokens(model, prompt: list[int], new: int) -> list[int]:
    """The tokens of generate before the first one that a different order of sums could change (single precision)."""
    ids = torch.tensor([prompt])
    options = {"do_sample": False, "pad_token_id": 0, "return_dict_in_generate": True, "output_logits": True}
    with torch.inference_mode():
        out = model.generate(ids, attention_mask=ids * 0 + 1, max_new_tokens=new, **options)
    gaps = [float(logits[0].topk(2).values.diff().abs()) for logits in out.logits]
    count = next((at for at, gap in enumerate(gaps) if gap < 1e-3), len(gaps))
    return out.sequences[0, len(prompt) : len(prompt) + count].tolist()


def test_the_model_stays_as_it_was():
    model = tiny()
    model.train()
    engine = Engine(model)
    engine.add([1, 2, 3], 2)
    before = model.config._attn_implementation
    engine.step()
    assert model.training and model.config._attn_implementation == before

    model.lm_head.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        engine.step()
    assert model.training and model.config._attn_implementation == before


def test_after_an_error_all_goes_on():
    engine = Engine(MODEL, blocks=16, block_size=4)
    requests = [engine.add(base[:20], NEW) for base in BASES]
    engine.step()
    hook = MODEL.model.layers[1].register_forward_pre_hook(lambda *_: 1 / 0)  # after block 0 has written its keys
    try:
        with pytest.raises(ZeroDivisionError):
            engine.step()
    finally:
        hook.remove()
    invariants.check(engine)
    list(engine.stream())
    for request in requests:
        assert request.output == expected(tuple(request.prompt))


def test_requests_may_come_while_others_are_streamed():
    engine, late = Engine(MODEL), []
    first = engine.add(BASES[0][:5], 6)
    seen = []
    for request, token in engine.stream():
        seen.append((request.number, token))
        if not late:
            late.append(engine.add(BASES[1][:5], 3))
    assert [token for number, token in seen if number == 0] == first.output == expected(tuple(BASES[0][:5]))[:6]
    assert [token for number, token in seen if number == 1] == late[0].output == expected(tuple(BASES[1][:5]))[:3]


def test_the_cache_takes_the_bytes_that_were_predicted():
    for dtype in (torch.float32, torch.bfloat16):
        engine = Engine(tiny(dtype=dtype), blocks=5)
        assert engine.pool.nbytes == pool_bytes(engine.model.config, 5 * 16, dtype)
    assert pool_bytes(engine.model.config, 1, torch.bfloat16) == 2 * 2 * 2 * 16 * 2  # k, v; layers; heads; width


def test_another_pool_may_stand_behind_the_blocks():
    class Copy(Pool):
        """Its ``read`` returns copies, so the engine cannot rely on the tensors inside."""

        def read(self, layer, tables):
            return tuple(part.clone() for part in super().read(layer, tables))

    engine = Engine(MODEL, pool=Copy)
    request = engine.add(BASES[0][:9], NEW)
    list(engine.stream())
    assert type(engine.pool) is Copy and request.output == expected(tuple(BASES[0][:9]))


@pytest.mark.parametrize("form", [KVFormat(16), KVFormat(8), KVFormat(4, rotate=True), KVFormat("fp8")])
def test_blocks_of_codes_write_what_generate_writes_with_a_cache_of_codes(form):
    engine = Engine(MODEL, blocks=12, block_size=4, tokens_a_step=16, pool=partial(QuantizedPool, form=form))
    requests = [engine.add(base[:length], NEW) for base in BASES for length in (9, 20)]
    list(engine.stream())
    assert sum(request.preemptions for request in requests) > 0
    for request in requests:
        assert request.output == generated(MODEL, request.prompt, NEW, past_key_values=KVCache(MODEL, form))
    invariants.check_empty(engine)


def test_pieces_that_are_alike_stand_together_and_each_knows_its_end():
    model, size = tiny(), 4
    pool = Pool(model.config, 64, size, model.dtype, model.device)
    requests = [Request(number, list(range(100 * number, 100 * number + 90)), 1) for number in range(4)]
    for request in requests:
        request.table = list(range(10 * request.number, 10 * request.number + 23))
    spans = [(88, 89), (10, 17), (3, 4), (80, 81)]
    pieces = [Piece(request, *span) for request, span in zip(requests, spans, strict=True)]
    step = Step(pool, pieces)
    assert [group.tables.shape[1] for group in step.groups] == [1, 23, 5]  # blocks of a short text, two long, a prompt
    assert step.ids[0, step.ends].tolist() == [88, 116, 203, 380]
    assert step.positions[0].tolist() == [3, 88, 80, *range(10, 17)]
    assert step.slots.tolist() == [20 * 4 + 3, 22 * 4, 50 * 4] + [(10 + at // 4) * 4 + at % 4 for at in range(10, 17)]
    hidden = step.groups[1].mask(None, 2, torch.float64)
    assert hidden.shape == (2, 1, 2, 92) and hidden.dtype == torch.float64
    assert (hidden == 0).sum(-1).flatten().tolist() == [89, 89, 81, 81]
    assert (step.groups[2].mask(4, 2, torch.float32) == 0).sum(-1).flatten().tolist() == [4] * 14


def test_what_is_written_stops_at_the_end_of_the_context():
    model = tiny(dtype=torch.float64)
    model.generation_config.eos_token_id = None
    engine = Engine(model)
    request = engine.add([5] * 60, 100)  # the context is 64
    list(engine.stream())
    assert len(request.output) == 4


@pytest.mark.parametrize(
    ("prompt", "options", "said"),
    [
        ([1] * 40, {}, "a prompt of 40 tokens and up to 24 new ones need 4 blocks of 16 tokens, and the cache has 2"),
        ([1] * 64, {}, "leaves no room in the model's context of 64"),
        ([], {}, "token ids"),
        ([[1, 2], [3, 4]], {}, "add each"),
        (torch.tensor([1.0]), {}, "whole numbers"),
        ([1, VOCABULARY], {}, f"has the token {VOCABULARY}, and the model embeds 0 to {VOCABULARY - 1}"),
        ([-1, 3], {}, "has the token -1"),
        ("text", {}, "needs the tokenizer"),
        ([1], {"max_new_tokens": 0}, "max_new_tokens is 0"),
        ([1], {"temperature": -1}, "temperature is -1"),
        ([1], {"temperature": float("nan")}, "temperature is nan"),
        ([1], {"seed": -1}, "seed is -1"),
        ([1], {"seed": None}, "seed is None"),
    ],
)
def test_a_request_that_cannot_be_served_is_refused_at_once(prompt, options, said):
    engine = Engine(MODEL, blocks=2)
    with pytest.raises(QtutorError, match=said):
        engine.add(prompt, **options)
    assert engine.unfinished == 0 and engine.step() == []


@pytest.mark.parametrize("name", ["blocks", "block_size", "tokens_a_step"])
def test_an_engine_needs_room(name):
    with pytest.raises(QtutorError, match=f"{name} is 0"):
        Engine(MODEL, **{name: 0})


def test_a_rope_that_depends_on_the_batch_is_refused():
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    with pytest.raises(QtutorError, match="rope is of type 'dynamic'"):
        Engine(small.random("llama", rope_parameters=rope))


def test_no_model_is_refused():
    with pytest.raises(QtutorError, match=r"qtutor\.load"):
        Engine("folder")

"""Unusual calls run through the model's own forward, and give the same results."""

import copy
import threading

import pytest
import torch
from transformers import StaticCache
from transformers.cache_utils import DynamicCache

import qtutor
from qtutor.runtime.kv import KVCache, KVFormat
from qtutor.runtime.steps import plan as steps_plan
from qtutor.runtime.steps import quick_steps
from tests.families import small
from tests.models import some_ids, tiny
from tests.runtime.steps.test_steps import NEAR, packed

pytest.importorskip("numba")
IDS = some_ids(1, 8)


@pytest.fixture
def model():
    return packed(small.random("llama"))


def filled(model, ids=IDS):
    return model(ids, use_cache=True).past_key_values


def one_more(model, cache=None, **how):
    """A usual step after :data:`IDS`, with the changes in ``how``."""
    cache = filled(model) if cache is None else cache
    return model(how.pop("input_ids", IDS[:, :1]), past_key_values=cache, **{"use_cache": True, **how})


USUAL = {
    "nothing": {},
    "a mask that masks nothing": {"attention_mask": torch.ones(1, 9, dtype=torch.int64)},
    "its position": {"position_ids": torch.tensor([[8]])},
    "another position": {"position_ids": torch.tensor([[20]])},
    "the last logits": {"logits_to_keep": 1},
    "a dict": {"return_dict": True},
    "no attentions": {"output_attentions": False, "output_hidden_states": None},
}
UNUSUAL = {
    "two tokens": {"input_ids": IDS[:, :2]},
    "a mask that masks": {"attention_mask": torch.tensor([[0] + [1] * 8])},
    "attentions": {"output_attentions": True},
    "hidden states": {"output_hidden_states": True},
    "a tuple": {"return_dict": False},
    "a loss": {"labels": IDS[:, :1]},
    "chosen logits": {"logits_to_keep": torch.tensor([0])},
}


@torch.inference_mode()
@pytest.mark.parametrize("name", [*USUAL, *UNUSUAL])
def test_what_a_call_asks_for(model, name):
    how = USUAL.get(name, UNUSUAL.get(name))
    expected = one_more(model, **how)
    with quick_steps(model) as steps:
        found = one_more(model, **how)
    assert steps.against is None and steps.taken == (name in USUAL)
    assert type(found) is type(expected)
    found, expected = (out[1] if isinstance(out, tuple) and name == "a loss" else out for out in (found, expected))
    first, second = (out[0] if isinstance(out, tuple) else out.logits for out in (found, expected))
    assert torch.equal(first, second) if name in UNUSUAL else small.near(first, second, NEAR)


def test_gradients_training_and_autocast(model):
    with quick_steps(model) as steps:
        assert one_more(model).logits.requires_grad is True
        with torch.no_grad():
            cache = filled(model)
            with torch.autocast("cpu", torch.bfloat16):
                one_more(model, copy.deepcopy(cache))
            one_more(model.train(), copy.deepcopy(cache))
            assert steps.taken == 0
            one_more(model.eval(), cache)
            assert steps.taken == 1


@torch.inference_mode()
def test_other_caches(model):
    caches = {
        "none": None,
        "empty": DynamicCache(config=model.config),
        "of two texts": filled(model, some_ids(2, 8)),
        "static": StaticCache(config=model.config, max_cache_len=16),
        "in codes": KVCache(model, KVFormat(bits=8)),
    }
    model(IDS, past_key_values=caches["static"], use_cache=True)
    model(IDS, past_key_values=caches["in codes"], use_cache=True)
    with quick_steps(model) as steps:
        for name, cache in caches.items():
            ids = IDS[:, :1].expand(2 if name == "of two texts" else 1, 1)
            expected = model(ids, past_key_values=copy.deepcopy(cache), use_cache=True).logits
            assert torch.equal(model(ids, past_key_values=cache, use_cache=True).logits, expected), name
    assert steps.taken == 0


def hooked(model):
    model.model.layers[1].mlp.register_forward_hook(lambda *_: None)


def patched(model):
    norm = model.model.norm
    norm.forward = lambda x: x * 2


def other_activation(model):
    model.model.layers[0].mlp.act_fn = torch.nn.GELU()


def half(model):
    model.half()


def other_norms(model):
    model.model.norm.bfloat16()


def other_attention(model):
    model.config._attn_implementation = "flex_attention"


def a_block_of_somebody_else(model):
    class Block(type(model.model.layers[0])):
        pass

    model.model.layers[1].__class__ = Block


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (hooked, "model.layers.1.mlp has a hook"),
        (patched, "model.norm has a forward of its own"),
        (other_activation, "not SiLU"),
        (half, "float16"),
        (other_norms, "different dtypes"),
        (other_attention, "attention"),
        (a_block_of_somebody_else, "Llama's anatomy"),
    ],
)
def test_a_changed_model_runs_as_it_is(model, change, why):
    change(model)
    with quick_steps(model) as steps:
        assert why in steps.against and "forward" not in vars(model)


def test_float_models_are_left_alone_and_so_is_what_is_no_decoder():
    for given in (tiny(), tiny().model, torch.nn.Linear(2, 2)):
        with quick_steps(given) as steps:
            assert steps.against and "forward" not in vars(given)


def test_functions_of_a_learner_are_called(model, monkeypatch):
    from qtutor.runtime.kernels import reference

    own = reference.dequantize
    monkeypatch.setattr(reference, "dequantize", lambda *given: own(*given))
    with quick_steps(model) as steps:
        assert "fast kernel" in steps.against


def test_hooks_of_the_model_itself_are_called(model):
    seen = []
    model.register_forward_hook(lambda *_: seen.append(1))
    with torch.inference_mode(), quick_steps(model) as steps:
        one_more(model)
    assert len(seen) == 2 and steps.taken == 1


@torch.inference_mode()
def test_numbers_that_are_not_finite(model):
    model.model.embed_tokens.weight[IDS[0, 0]] = float("inf")
    cache = filled(model, IDS[:, 1:])
    expected = one_more(model, copy.deepcopy(cache)).logits
    with quick_steps(model) as steps:
        found = one_more(model, cache).logits
    assert steps.taken == 0 and cache.get_seq_length() == IDS.shape[1]
    torch.testing.assert_close(found, expected, equal_nan=True)


@torch.inference_mode()
def test_the_cache_grows_as_always(model):
    """Code that keeps its tensors, crops it, copies it or writes to it finds the same as in transformers' own cache."""
    with quick_steps(model) as steps:
        cache = filled(model)
        one_more(model, cache)
        kept, was = cache.layers[0].keys, cache.layers[0].keys.clone()
        branch = copy.deepcopy(cache)
        one_more(model, cache)
        assert torch.equal(kept, was) and cache.get_seq_length() == 10 and branch.get_seq_length() == 9
        after = cache.layers[1].values.clone()
        cache.crop(-2)
        assert cache.get_seq_length() == 8
        model(some_ids(1, 1, seed=3), past_key_values=cache, use_cache=True)  # a different token in its place
        assert not torch.equal(cache.layers[1].values[:, :, 8], after[:, :, 8]) and torch.equal(kept, was)
        one_more(model, branch)
        assert torch.equal(branch.layers[1].values, after)
        assert steps.taken == 4
        model(IDS[:, :3], past_key_values=branch, use_cache=True)
        found = one_more(model, branch).logits
        assert steps.taken == 5
    ids = torch.cat([IDS, IDS[:, :1], IDS[:, :1], IDS[:, :3], IDS[:, :1]], 1)
    assert small.near(found[:, -1], model(ids).logits[:, -1], NEAR)


@torch.inference_mode()
def test_bytes_that_are_asked_for_in_between_come_back(model):
    with quick_steps(model) as steps:
        cache = filled(model)
        first = one_more(model, copy.deepcopy(cache)).logits
        assert model.state_dict()["model.layers.0.mlp.up_proj.packed"].numel()
        assert torch.equal(one_more(model, copy.deepcopy(cache)).logits, first)
        model.model.layers[0].mlp.up_proj.packed.zero_()
        found = one_more(model, copy.deepcopy(cache)).logits
        assert steps.taken == 3 and not small.near(found, first, 0.01)
    assert small.near(found, one_more(model, cache).logits, NEAR)


def test_steps_in_and_out_of_inference_mode():
    """Torch does not allow writing to tensors from inference mode outside of that mode."""
    model = packed(small.random("llama"), layers={"*.up_proj": "float"})
    with torch.no_grad(), quick_steps(model) as steps:
        cache = filled(model)
        expected = one_more(model, copy.deepcopy(cache)).logits
        with torch.inference_mode():
            one_more(model, copy.deepcopy(cache))
        assert torch.equal(one_more(model, cache).logits, expected) and steps.taken == 3


@torch.no_grad()
def test_a_plan_serves_until_a_packed_layer_changes(monkeypatch):
    """A plan is made once, not for each step; a float layer is called anew each time, so it cannot be out of date."""
    model, made = packed(small.random("llama"), layers={"*.up_proj": "float"}), []
    plan = steps_plan.Plan
    monkeypatch.setattr(steps_plan, "Plan", lambda model: made.append(plan(model)) or made[-1])
    with quick_steps(model) as steps:
        cache = filled(model)
        for _ in range(3):
            one_more(model, cache)
        assert (steps.taken, len(made)) == (3, 1)
        model.model.layers[0].mlp.up_proj.weight.mul_(2)
        one_more(model, cache)
        assert (steps.taken, len(made)) == (4, 1)
        model.model.layers[0].mlp.down_proj.packed.zero_()
        one_more(model, cache)
        assert (steps.taken, len(made)) == (5, 2)


def test_the_forward_is_put_back_whatever_happens(model):
    with pytest.raises(KeyError), quick_steps(model):
        with quick_steps(model) as inner:  # the outer one stays active
            assert "forward of its own" in inner.against
        assert "forward" in vars(model)
        raise KeyError
    assert "forward" not in vars(model)
    qtutor.guards.model.decoder_of(model)


@torch.inference_mode()
def test_two_threads_do_not_share_a_plan(model):
    expected, found, caches = one_more(model).logits, {}, [filled(model) for _ in range(4)]
    with quick_steps(model):

        def work(index: int) -> None:
            with torch.inference_mode():
                found[index] = [one_more(model, copy.deepcopy(caches[index])).logits for _ in range(5)]

        threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 4 and all(small.near(one, expected, NEAR) for each in found.values() for one in each)

"""The cache in models of transformers: the output of generate with it, its bytes, and what it refuses."""

import copy

import pytest
import torch
from transformers.cache_utils import DynamicCache

import qtutor
from qtutor import QtutorError, runtime
from qtutor.core.quantized import all_finite
from qtutor.runtime.kv import KVCache, KVFormat, cache_bytes
from tests.families import small
from tests.models import some_ids, tiny
from tests.reference.kv_cache import cached

AS_IT_IS = KVFormat(16)
FORMATS = [
    KVFormat(8),
    KVFormat("fp8"),
    KVFormat(4, rotate=True),
    KVFormat(4, keys="channel"),
    KVFormat(4, keys="channel", group=8, value_bits=8, rotate=True),
    KVFormat(16, value_bits=2),
]
WRITE = {"do_sample": False, "pad_token_id": 0, "max_new_tokens": 8, "min_new_tokens": 8}


def written(model, ids: torch.Tensor, form: KVFormat | None = None, **more) -> torch.Tensor:
    """The tokens that greedy decoding writes after ``ids``."""
    stored = {} if form is None else {"past_key_values": KVCache(model, form)}
    return model.generate(ids, **WRITE | stored | more)[:, ids.shape[1] :]


@pytest.mark.parametrize("family", small.FAMILIES)
def test_a_cache_of_16_bits_changes_nothing_and_the_others_take_what_was_predicted(family):
    """All families have grouped queries, most have windows of 12 tokens. Of two texts of 37 tokens, one is padded."""
    model = small.random(family)
    ids = torch.randint(1, 1000, (2, 37), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :9] = 0
    plain = written(model, ids, attention_mask=mask)
    assert torch.equal(written(model, ids, AS_IT_IS, attention_mask=mask), plain)
    for form in (FORMATS[2], FORMATS[4]):
        cache = KVCache(model, form)
        model.generate(ids, attention_mask=mask, past_key_values=cache, **WRITE)
        assert cache.get_seq_length() == 44  # the last token is written, but not read
        assert cache.nbytes == cache_bytes(model.config, form, 44, batch=2, dtype=torch.float32)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
@pytest.mark.parametrize("form", FORMATS)
def test_a_model_attends_to_what_the_cache_gives_back(family, form):
    """Logits are the same for a whole text, for its pieces, and for a text without the other one beside it."""
    if form.keys == "channel":
        form = KVFormat(form.bits, form.value_bits, "channel", form.rotate, group=8)
    model, ids = small.random(family), some_ids(2, 24)
    step = 8 if form.keys == "channel" else 3  # whole windows, or they would not be rounded yet
    with torch.inference_mode():
        whole = model(ids, past_key_values=KVCache(model, form)).logits
        cache = KVCache(model, form)
        pieces = torch.cat([model(part, past_key_values=cache).logits for part in ids.split(step, dim=1)], 1)
        alone = model(ids[1:], past_key_values=KVCache(model, form)).logits
        exact = model(ids).logits
    assert small.near(pieces, whole, 1e-4) and small.near(alone, whole[1:], 1e-4)
    assert not small.near(whole, exact, 1e-4)


def test_transformers_finds_in_the_layers_what_its_own_have():
    model, ids = tiny(), some_ids(1, 8)
    cache, own = KVCache(model, KVFormat(4)), DynamicCache(config=model.config)
    assert not cache.is_initialized and not own.is_initialized
    with torch.inference_mode():
        for one in (cache, own):
            model(ids, past_key_values=one)
    assert cache.is_initialized and own.is_initialized
    for ours, layer in zip(cache.layers, own.layers, strict=True):
        assert (ours.dtype, ours.device) == (layer.dtype, layer.device) == (torch.float32, torch.device("cpu"))
    cache.reset()
    assert not cache.is_initialized and cache.get_seq_length() == 0


def test_keys_and_values_are_those_of_the_slow_version():
    model, ids = tiny(), some_ids(1, 24)
    seen = {}
    for name, form in (("exact", AS_IT_IS), ("rounded", KVFormat(4, keys="channel", group=8, value_bits=2))):
        cache = KVCache(model, form)
        with torch.inference_mode():
            model(ids[:, :21], past_key_values=cache)
        seen[name] = [stored.read()[0] for stored in cache.layers[0].stored]  # layer 0 reads the embeddings
    for head in range(2):
        assert torch.equal(seen["rounded"][0][head], cached(seen["exact"][0][head], 4, 8, True))
        assert torch.equal(seen["rounded"][1][head], cached(seen["exact"][1][head], 2, 8, False))


@pytest.mark.parametrize("form", [AS_IT_IS, *FORMATS])
def test_prompts_of_one_token_and_half_precision(form):
    for dtype in (torch.bfloat16, torch.float16):
        model = tiny(dtype=dtype)
        cache = KVCache(model, form)
        found = model.generate(torch.tensor([[5]]), past_key_values=cache, **WRITE)
        assert found.shape == (1, 9)
        assert cache.nbytes == cache_bytes(model.config, form, 8, dtype=dtype)
        assert all(one.read().dtype == dtype for layer in cache.layers for one in layer.stored)
        assert form != AS_IT_IS or torch.equal(found[:, 1:], written(model, torch.tensor([[5]])))


def test_beams_are_those_of_transformers():
    model, ids = small.random("gemma3_text"), some_ids(2, 20)
    assert torch.equal(written(model, ids, AS_IT_IS, num_beams=3), written(model, ids, num_beams=3))
    rounded = written(model, ids, KVFormat(8), num_beams=3)
    assert rounded.shape == (2, 8)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_speculation_takes_tokens_back(family):
    """Tokens are guessed from the prompt. Most are wrong, and are cropped. The text is the same as without guesses."""
    model = small.random(family)
    ids = torch.tensor([[5, 6, 7, 8] * 5])
    for form in (AS_IT_IS, KVFormat(8)):
        assert torch.equal(written(model, ids, form, prompt_lookup_num_tokens=3), written(model, ids, form))
    assert torch.equal(written(model, ids, AS_IT_IS), written(model, ids))


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_prefix_is_read_once_and_copied(family):
    model, ids = small.random(family), some_ids(1, 24)
    for form in FORMATS:
        cache = KVCache(model, form)
        with torch.inference_mode():
            model(ids[:, :16], past_key_values=cache)
            size = cache.nbytes
            logits = model(ids[:, 16:], past_key_values=copy.deepcopy(cache)).logits
            again = model(ids[:, 16:], past_key_values=cache).logits
        assert cache.nbytes > size or form.keys == "channel"
        assert torch.equal(logits, again)


def test_reset_forgets_everything():
    for family in ("llama", "gemma2"):
        model, ids = small.random(family), some_ids(1, 24)
        cache = KVCache(model, KVFormat(4))
        first = model.generate(ids, past_key_values=cache, **WRITE)
        cache.reset()
        assert cache.get_seq_length() == cache.nbytes == 0
        assert torch.equal(model.generate(ids, past_key_values=cache, **WRITE), first)


def test_crop_of_more_than_is_there():
    model, ids = small.random("llama"), some_ids(1, 24)
    cache = KVCache(model, KVFormat(4))
    with pytest.raises(QtutorError, match=r"crop\(-1\).* 0 tokens"):
        cache.crop(-1)
    with torch.inference_mode():
        model(ids, past_key_values=cache)
        for count in (5, -25):
            with pytest.raises(QtutorError, match=rf"crop\({count}\).*n newest of the 24 tokens"):
                cache.crop(count)
        cache.crop(-4)
        again = model(ids[:, 20:], past_key_values=cache).logits
        assert small.near(again, model(ids, past_key_values=KVCache(model, KVFormat(4))).logits[:, 20:], 1e-4)


def test_crop_behind_a_window_has_to_be_said_beforehand():
    model, ids = small.random("mistral"), some_ids(1, 24)
    with torch.inference_mode():
        cache = KVCache(model, KVFormat(8))
        model(ids, past_key_values=cache)
        with pytest.raises(QtutorError, match=r"layer 0 has a sliding window of 12 tokens.*activate_past_recording"):
            cache.crop(-2)
        cache.crop(0)
        cache = KVCache(model, KVFormat(8))
        cache.activate_past_recording()
        model(ids, past_key_values=cache)
        cache.crop(-4)
        again = model(ids[:, 20:], past_key_values=cache).logits
        assert small.near(again, model(ids, past_key_values=KVCache(model, KVFormat(8))).logits[:, 20:], 1e-4)
        assert cache.nbytes > cache_bytes(model.config, KVFormat(8), 24, dtype=torch.float32)  # until crop is called
        cache.crop(0)
        assert cache.nbytes == cache_bytes(model.config, KVFormat(8), 24, dtype=torch.float32)


def test_numbers_that_are_none_name_the_layer():
    model = tiny()
    with torch.no_grad():
        model.model.layers[1].self_attn.v_proj.weight[3] = float("nan")
    for form in (KVFormat(8), KVFormat(4, keys="channel", group=8)):
        with pytest.raises(QtutorError, match=r"^the cache, values of layer 1: 48 of .* NaN or infinite"):
            model(some_ids(2, 24), past_key_values=KVCache(model, form))
    assert not all_finite(model(some_ids(), past_key_values=KVCache(model, AS_IT_IS)).logits)


def test_what_is_no_model_no_format_or_no_known_family():
    with pytest.raises(QtutorError, match=r"format of the cache is 8; expected a KVFormat"):
        KVCache(tiny(), 8)
    with pytest.raises(QtutorError, match="model is a LlamaConfig"):
        KVCache(tiny().config)
    model = tiny()
    model.config.model_type = "mamba"
    with pytest.raises(QtutorError, match="family 'mamba' is not known"):
        KVCache(model)
    model = tiny()
    model.config.layer_types = ["full_attention", "chunked_attention"]
    model.config.attention_chunk_size = 8
    with pytest.raises(QtutorError, match="layers of the kind 'chunked_attention'"):
        KVCache(model)


def test_the_doors_of_the_package():
    model, tokenizer = qtutor.load_decoder(device="cpu")
    prompt = "def mean(values):"
    plain = qtutor.generate(model, tokenizer, prompt, 16)
    assert qtutor.generate(model, tokenizer, prompt, 16, cache=AS_IT_IS) == plain
    batch = [prompt, ">>> 37 + 48\n"]
    with_int8 = qtutor.evaluate.generate_batch(model, tokenizer, batch, 16, cache=KVFormat(8))
    assert [text.startswith(prompt) for text, prompt in zip(with_int8, batch)] == [True, True]
    with pytest.raises(QtutorError, match="expected a KVFormat"):
        qtutor.generate(model, tokenizer, prompt, 16, cache=8)


def test_packed_weights_have_the_same_caches():
    model, ids = tiny(), some_ids(1, 20)
    qtutor.quantize(model, qtutor.Recipe(bits=4, group_size=32), progress=False)
    runtime.use(model, kernel="reference")  # this one needs no compiler
    assert torch.equal(written(model, ids, AS_IT_IS), written(model, ids))


def test_what_a_cache_costs():
    model, ids = small.random("llama"), some_ids(3, 40)
    cost = {form: qtutor.evaluate.cost_of_cache(model, form, ids).kl for form in (AS_IT_IS, KVFormat(8), KVFormat(2))}
    assert abs(cost[AS_IT_IS]) < 1e-6 < cost[KVFormat(8)] < 0.01 * cost[KVFormat(2)]
    one_by_one = qtutor.evaluate.cost_of_cache(model, KVFormat(2), ids, step=1)
    assert one_by_one.kl == pytest.approx(cost[KVFormat(2)], rel=1e-3) and one_by_one.tokens == 3 * 39
    channel = KVFormat(2, keys="channel")
    assert (
        qtutor.evaluate.cost_of_cache(model, channel, ids, step=1).kl
        < qtutor.evaluate.cost_of_cache(model, channel, ids).kl
    )
    with pytest.raises(QtutorError, match="step = 0"):
        qtutor.evaluate.cost_of_cache(model, KVFormat(8), ids, step=0)
    with pytest.raises(QtutorError, match="expected a KVFormat"):
        qtutor.evaluate.cost_of_cache(model, "int8", ids)

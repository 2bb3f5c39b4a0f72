"""Quick steps give the same results as the model's own forward, for every known family and every kind of layer."""

import contextlib
import copy

import pytest
import torch

import qtutor
from qtutor import runtime
from qtutor.measure.speed import token_times
from qtutor.runtime.steps import quick_steps
from qtutor.runtime.steps.growing import LEAST
from tests.families import small
from tests.models import some_ids, tiny

pytest.importorskip("numba")
PROMPT, STEPS = 5, 14
# Sums of float32 in a different order are off by about 1e-7. Attention of these models (q and k times 8) enlarges this
# up to 4e-5 of the largest logit, in both ways of computing. A mistake is hundreds of times as large.
NEAR = 2e-4
TAKEN = {  # the family, changes of its config, and the steps until the cache would exceed a window of 12
    "llama": ("llama", {}, STEPS),
    "llama, no groups": ("llama", {"num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True}, STEPS),
    "mistral": ("mistral", {}, small.WINDOW - 1 - PROMPT),
    "mistral, no window": ("mistral", {"sliding_window": None}, STEPS),
    "qwen2": ("qwen2", {}, small.WINDOW - 1 - PROMPT),
    "qwen2, no window": ("qwen2", {"use_sliding_window": False}, STEPS),
    "qwen3": ("qwen3", {}, STEPS),
    "granite": ("granite", {}, STEPS),
    "granite, biases": ("granite", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}, STEPS),
    "smollm3": ("smollm3", {}, small.WINDOW - 1 - PROMPT),
    "smollm3, no window": ("smollm3", {"use_sliding_window": False}, STEPS),
}
REFUSED = [family for family in small.FAMILIES if family not in {family for family, _, _ in TAKEN.values()}]


def packed(model, **options):
    qtutor.quantize(model, qtutor.Recipe(**{"bits": 4, "group_size": 32, **options}), progress=False)
    return model


@torch.inference_mode()
def logits_of(model, ids, quick: bool, prompt: int = PROMPT):
    """Logits after each token of ``ids`` behind the prompt, one step at a time; the cache; the count of quick steps."""
    with quick_steps(model) if quick else contextlib.nullcontext() as steps:
        cache, rows = model(ids[:, :prompt], use_cache=True).past_key_values, []
        for at in range(prompt, ids.shape[1]):
            rows.append(model(ids[:, at : at + 1], past_key_values=cache, use_cache=True).logits)
    return torch.cat(rows, 1), cache, steps.taken if quick else 0


def check(model, ids, steps: int, factor: float = 4, exact=None):
    """Check that ``steps`` quick steps are taken, and that their logits are as exact as those of the model's forward.

    The exact logits come from the same model in float64. Both ways round their sums in different, unrelated orders. So
    the error of quick steps may be up to ``factor`` times as large as that of the model's own. Returns both caches.
    """
    exact = copy.deepcopy(model).double() if exact is None else exact
    exact = logits_of(exact, ids, quick=False)[0]
    own, its, _ = logits_of(model, ids, quick=False)
    found, ours, taken = logits_of(model, ids, quick=True)
    assert taken == steps and found.shape == own.shape and found.dtype == own.dtype
    assert (found - exact).norm() <= factor * (own - exact).norm()
    return ours, its


@pytest.mark.parametrize("name", TAKEN)
def test_every_known_family(name):
    family, changes, steps = TAKEN[name]
    cache, its = check(packed(small.random(family, **changes)), some_ids(1, PROMPT + STEPS), steps)
    assert cache.get_seq_length() == its.get_seq_length()
    for ours, theirs in zip(cache.layers, its.layers, strict=True):
        assert ours.keys.shape == theirs.keys.shape and small.near(ours.keys, theirs.keys, NEAR)
        assert small.near(ours.values, theirs.values, NEAR)


@pytest.mark.parametrize("name", TAKEN)
def test_greedy_search_writes_the_same(name):
    family, changes, _ = TAKEN[name]
    model, ids = packed(small.random(family, **changes)), some_ids(1, PROMPT)
    how = {"max_new_tokens": STEPS, "min_new_tokens": STEPS, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(ids, **how)
    with quick_steps(model) as steps:
        assert torch.equal(model.generate(ids, **how), expected)
    assert steps.taken


@pytest.mark.parametrize("family", REFUSED)
def test_other_families_run_as_they_are(family):
    model, ids = packed(small.random(family)), some_ids(1, PROMPT + 2)
    found, _, taken = logits_of(model, ids, quick=True)
    assert taken == 0 and torch.equal(found, logits_of(model, ids, quick=False)[0])
    with quick_steps(model) as steps:
        assert "Llama's anatomy" in steps.against


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "granite"])
def test_bfloat16_is_as_exact_as_the_models_own(family):
    """Both round after every operation, so a different order of sums changes the rounding. Neither is more exact."""
    changes = {"use_sliding_window": False} if family == "qwen2" else {}
    model, ids = packed(small.random(family, **changes).bfloat16()), some_ids(1, 45)
    # 40 rows of 1024 logits: with any order of sums, their total error has nearly the same size.
    cache, _ = check(model, ids, 40, factor=1.25)
    assert cache.layers[0].keys.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "options",
    [
        *({"bits": bits} for bits in (2, 3, 8)),
        *({"method": method} for method in ("nf4", "hqq", "mxfp4")),
        {"symmetric": True},
        {"lm_head": True, "embeddings": True},
        {"layers": {"*.down_proj": "float", "*.k_proj": {"bits": 8}, "*.layers.1.*": {"bits": 5}}},
        {"layers": {"*.q_proj": {"group_size": 64}, "*.v_proj": {"method": "nf4"}}},
    ],
    ids=str,
)
def test_every_kind_of_layer(options):
    model, ids = small.random("llama", attention_bias=True), some_ids(1, PROMPT + STEPS)
    if options.get("method") == "mxfp4":  # no fast kernel takes it, so block 1 has 4 bits
        options = {"layers": {"*.layers.0.*": {"method": "mxfp4"}}}
    check(packed(model, **options), ids, STEPS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inputs_of_eight_bits(dtype):
    """Inputs near the middle between two codes may round to either. So the total errors are compared."""
    model, ids = packed(small.random("llama").to(dtype)), some_ids(1, PROMPT + STEPS)
    float_inputs, exact = logits_of(model, ids, quick=True)[0], copy.deepcopy(model).double()
    runtime.use(model, activations="int8")
    check(model, ids, STEPS, factor=1.5, exact=exact)
    assert not small.near(logits_of(model, ids, quick=True)[0], float_inputs, 1e-3)


def test_the_same_every_time_and_on_any_number_of_threads(monkeypatch):
    from qtutor.runtime.kernels import cpu

    model, ids = packed(small.random("llama")), some_ids(1, PROMPT + STEPS)
    found = logits_of(model, ids, quick=True)[0]
    assert torch.equal(logits_of(model, ids, quick=True)[0], found)
    monkeypatch.setattr(cpu, "SHARE", 64)  # even small products and single heads get a thread
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert torch.equal(logits_of(model, ids, quick=True)[0], found)
    finally:
        torch.set_num_threads(before)


def test_long_texts_move_to_a_larger_room():
    model, ids = packed(small.random("llama")), some_ids(1, 2 * LEAST + 30)
    cache, _ = check(model, ids, ids.shape[1] - PROMPT)
    assert cache.get_seq_length() == ids.shape[1] > PROMPT + LEAST


def test_everything_that_generates_takes_quick_steps(monkeypatch):
    from qtutor.measure import chat, generation, speed

    taken = []

    @contextlib.contextmanager
    def counted(model):
        with quick_steps(model) as steps:
            yield steps
        taken.append(steps.taken)

    for module in (chat, generation, speed):
        monkeypatch.setattr(module, "quick_steps", counted)
    model, tokenizer = qtutor.load_decoder(device="cpu")
    model = packed(model.float())
    token_times(model, some_ids(1, 4), 3)
    qtutor.evaluate.tokens_per_second(model, tokens=3)
    qtutor.generate(model, tokenizer, "def mean(values):", 6)
    assert taken[:2] == [3, 7] and taken[2] >= 1
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    chat.answer(model, tokenizer, [{"role": "user", "content": "def mean(values):"}], 6)
    assert taken[3] >= 1


def test_tied_and_packed_tables():
    for tied in (True, False):
        model, ids = packed(tiny(tied=tied), embeddings=True), some_ids(1, PROMPT + STEPS)
        own = logits_of(model, ids, quick=False)[0]
        found, _, taken = logits_of(model, ids, quick=True)
        assert taken == STEPS and small.near(found, own, NEAR)

"""Mixes: the types that llama.cpp chose for whole models, the bytes it wrote, and what must hold for any model."""

import ctypes
import importlib.util
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qtutor.gguf import TYPES, GGUFError, encode, mixes
from qtutor.gguf.mixes import MIXES, NARROW, Mix, file_type, fitting, tensor_types
from tests.gguf import llama_cpp
from tests.gguf.whole_files import (
    CASES,
    DIGESTED,
    MODELS,
    OLDER,
    PURE,
    REFUSED,
    digest,
    golden,
    importances,
    summary,
    weights,
)

made = golden()
ROOT = Path(__file__).resolve().parent.parent.parent


def types_or_refused(case, model):
    try:
        return summary(case.types(model))
    except GGUFError:
        return {REFUSED: "llama.cpp"}


@pytest.mark.parametrize("model", MODELS)
def test_types_are_those_that_llama_cpp_chose(model):
    ours = {str(case): types_or_refused(case, model) for case in CASES}
    assert len(ours) == 2 * len(OLDER) + len(PURE)
    assert ours == made[model]["types"]


@pytest.mark.parametrize("model", DIGESTED)
def test_bytes_are_those_that_llama_cpp_wrote(model):
    seen = {}
    for key in made[model]["digests"]:
        name, type = key.removesuffix(", importance").rsplit(" ", 1)
        vector = importances(model)[name] if key.endswith(", importance") else None
        seen[key] = digest(encode(weights(model)[name], type, vector))
    assert len({key.split()[1] for key in seen}) >= 11  # types
    assert seen == made[model]["digests"]


RULES = [
    (mix, kind, number)
    for mix in OLDER
    for kind in ("attn_v", "ffn_down", "attn_output", "token_embd")
    for number in range(len(getattr(MIXES[mix], kind)))
]


@pytest.mark.parametrize(("mix", "kind", "number"), RULES)
def test_models_bring_out_every_rule(monkeypatch, mix, kind, number):
    """If the rule is removed, or if its condition is inverted, the types are no longer those of llama.cpp."""
    rules = getattr(MIXES[mix], kind)
    type, where = rules[number]
    dropped = rules[:number] + rules[number + 1 :]
    turned = (*rules[:number], (type, lambda place: not where(place)), *rules[number + 1 :])
    for changed in (dropped, turned):
        monkeypatch.setitem(MIXES, mix, replace(MIXES[mix], **{kind: changed}))
        cases = [case for case in CASES if case.mix == mix and not case.pure]
        assert any(
            types_or_refused(case, model) != made[model]["types"][str(case)] for case in cases for model in MODELS
        )


@settings(deadline=None, max_examples=60)
@given(
    mix=st.sampled_from(list(MIXES)),
    width=st.integers(2, 40).map(lambda n: n * 16) | st.sampled_from([256, 512, 1000]),
    layers=st.integers(1, 90),
    kv_heads=st.sampled_from([1, 2, 8]),
    tied=st.booleans(),
    architecture=st.sampled_from(mixes.ARCHITECTURES),
)
def test_every_type_fits_and_is_no_worse_than_the_mix_promises(mix, width, layers, kv_heads, tied, architecture):
    model = replace(
        MODELS["embedded"], width=width, mlp=width, layers=layers, tied=tied, heads=8, kv_heads=kv_heads,
        architecture=architecture,
    )  # fmt: skip
    shapes = model.shapes()
    types = tensor_types(mix, shapes, heads=8, kv_heads=kv_heads, architecture=architecture, importance=mix == "Q2_K_S")
    assert types.keys() == shapes.keys()
    floats = MIXES[mix].base in ("F32", "F16", "BF16")
    promised = TYPES[fitting(MIXES[mix].base, width)].bits_per_weight
    for name, shape in shapes.items():
        type = TYPES[types[name]]
        assert shape[-1] % type.values == 0
        if len(shape) == 1:
            assert type.name == "F32"
        elif width % 32 and not floats:
            assert type.name == "F16"
        else:
            assert promised <= type.bits_per_weight < (33 if floats else 16)


def test_tied_embeddings_are_stored_as_the_output():
    shapes = {"token_embd.weight": (512, 256), "blk.0.attn_q.weight": (256, 256)}
    separate = shapes | {"output.weight": (512, 256)}
    assert tensor_types("Q4_K_S", shapes, heads=4, kv_heads=4)["token_embd.weight"] == "Q6_K"
    types = tensor_types("Q4_K_S", separate, heads=4, kv_heads=4)
    assert (types["token_embd.weight"], types["output.weight"]) == ("Q4_K", "Q6_K")
    assert set(tensor_types("Q4_K", separate, heads=4, kv_heads=4, pure=True).values()) == {"Q4_K"}


def test_vectors_stay_as_they_are():
    shapes = {"blk.0.attn_norm.weight": (256,), "blk.0.attn_q.bias": (256,), "blk.0.attn_k.weight": (1, 256)}
    shapes |= {"rope_freqs.weight": (32,)}
    for pure in (False, True):
        assert set(tensor_types("Q4_0", shapes, heads=4, kv_heads=1, pure=pure).values()) == {"F32"}


def test_types_in_blocks_of_more_than_32_have_a_narrow_substitute():
    assert set(NARROW) == {name for name, block_type in TYPES.items() if block_type.values > 32}
    assert {TYPES[name].values for name in NARROW.values()} == {32}


def test_bad_arguments():
    shapes = {"blk.0.ffn_up.weight": (512, 256)}
    heads = {"heads": 4, "kv_heads": 2}
    with pytest.raises(GGUFError, match=r"mix = 'Q4_K_XL'.*Choose from F32, .*Q4_K_M.*MXFP4_MOE"):
        tensor_types("Q4_K_XL", shapes, **heads)
    with pytest.raises(GGUFError, match=r"mix = 'MXFP4'.*MXFP4 is a block type, not a mix: pure=True"):
        tensor_types("MXFP4", shapes, **heads)
    with pytest.raises(GGUFError, match=r"mix = 'Q4_K_M' is no block type.*Choose from F32, .*Q4_K"):
        tensor_types("Q4_K_M", shapes, **heads, pure=True)
    with pytest.raises(GGUFError, match=r"architecture = 'falcon'.*llama, qwen2, qwen3"):
        tensor_types("Q4_K_M", shapes, **heads, architecture="falcon")
    with pytest.raises(GGUFError, match=r"'blk.0.ffn_gate_inp.weight' of shape \[8, 256\]: no rule.*ffn_down"):
        tensor_types("Q4_K_M", {"blk.0.ffn_gate_inp.weight": (8, 256)}, **heads)
    with pytest.raises(GGUFError, match=r"'blk.0.ffn_up.weight' of shape \[8, 512, 256\]"):
        tensor_types("Q8_0", {"blk.0.ffn_up.weight": (8, 512, 256)}, **heads)
    with pytest.raises(GGUFError, match=r"Q2_K_S.*'blk.0.ffn_up.weight'.*calibrate"):
        tensor_types("Q2_K_S", shapes, **heads)
    assert tensor_types("Q2_K_S", shapes, **heads, importance=True) == {"blk.0.ffn_up.weight": "Q2_K"}


def test_numbers_of_file_types():
    assert (file_type("Q4_K_M"), file_type("Q4_K"), file_type("Q4_K", pure=True)) == (15, 15, 15)
    assert (file_type("MXFP4_MOE"), file_type("MXFP4", pure=True)) == (38, 38)
    assert [file_type(name, pure=True) for name in ("NVFP4", "Q1_0", "Q2_0")] == [39, 40, 41]  # llama_ftype
    assert len({mix.number for mix in MIXES.values()}) == len(MIXES)
    assert all(isinstance(mix, Mix) and file_type(mix.base, pure=True) >= 0 for mix in MIXES.values())


@pytest.mark.skipif(llama_cpp.library() is None, reason="xllamacpp is not installed here")
def test_numbers_of_file_types_mean_the_same_to_llama_cpp():
    name_of = llama_cpp.library().llama_ftype_name
    name_of.restype, name_of.argtypes = ctypes.c_char_p, [ctypes.c_int]
    for name, mix in MIXES.items():
        said = name_of(mix.number).decode().removeprefix("all ").upper().replace(" MOE", "_MOE")
        base, _, rest = said.partition(" - ")
        alone = name in ("Q2_K", "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0")  # "Q2_K - Medium", "IQ4_NL - 4.5 bpw"
        assert (base if alone or not rest else f"{base}_{rest[0]}") == name


def test_the_committed_table_is_complete():
    page = (ROOT / "benchmarks/gguf_whole_files.md").read_text()
    for case in CASES:
        row = next(line for line in page.splitlines() if line.startswith(f"| {case} |"))
        assert row.count("|") == len(MODELS) + 2
    assert "All tensors, types, bytes and metadata are equal." in page
    assert made["made with"] in page


@pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed here")
def test_live_against_llama_model_quantize():
    """In a separate process, because two copies of llama.cpp do not work in one."""
    command = [sys.executable, "benchmarks/gguf_whole_files.py", "--models", "embedded", "odd, untied", "--mixes"]
    done = subprocess.run([*command, "Q4_K_M", "IQ4_XS", "Q4_0"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("20, 20 | 27, 27") == 8
    assert "All tensors, types, bytes and metadata are equal." in done.stdout

"""Whole files of NVFP4, Q1_0 and Q2_0: types are right, every matrix has llama.cpp's bytes, and llama.cpp runs them.

These types are newer than the llama.cpp that made ``whole_files.json``, so the expected types follow its later source.
"""

import numpy as np
import pytest
import torch

import qtutor
from qtutor import cli
from qtutor.gguf import decode, read
from qtutor.gguf.mixes import file_type, tensor_types
from tests.gguf import llama_cpp
from tests.gguf.small_tokenizers import letters
from tests.models import tiny

MIXES = ("NVFP4", "Q1_0", "Q2_0")
needs_llama_cpp = pytest.mark.skipif(llama_cpp.library() is None, reason="llama.cpp comes with xllamacpp")
SHAPES = {
    "token_embd.weight": (512, 384), "output.weight": (512, 384), "blk.0.attn_v.weight": (128, 384),
    "blk.0.ffn_down.weight": (384, 416), "blk.0.ffn_up.weight": (400, 448), "blk.0.attn_norm.weight": (384,),
}  # fmt: skip


def types(mix: str, **changes) -> dict[str, str]:
    return tensor_types(mix, SHAPES | changes, heads=4, kv_heads=2)


def test_types_by_the_rules():
    """By src/llama-quant.cpp, the output is Q6_K, or Q8_0 if 256 does not divide its width. Q2_0's embeddings: Q4_K."""
    assert types("NVFP4") == {
        "token_embd.weight": "NVFP4", "output.weight": "Q8_0", "blk.0.attn_v.weight": "NVFP4",
        "blk.0.ffn_down.weight": "Q4_0", "blk.0.ffn_up.weight": "NVFP4", "blk.0.attn_norm.weight": "F32",
    }  # fmt: skip
    assert types("Q1_0")["blk.0.attn_v.weight"] == "Q1_0" and types("Q1_0")["blk.0.ffn_up.weight"] == "Q4_0"
    found = types("Q2_0", **{"token_embd.weight": (512, 256), "output.weight": (512, 256)})
    assert (found["token_embd.weight"], found["output.weight"]) == ("Q4_K", "Q6_K")
    assert found["blk.0.ffn_down.weight"] == "Q4_0" and found["blk.0.ffn_up.weight"] == "Q2_0"
    assert [file_type(mix) for mix in MIXES] == [39, 40, 41]


@needs_llama_cpp
@pytest.mark.parametrize("mix", MIXES)
def test_every_matrix_of_a_file_has_the_bytes_of_llama_cpps_encoders(tmp_path, mix):
    """The wheel has the encoders, but no quantizer of whole files. So types are compared with llama.cpp's source."""
    model, tokenizer = qtutor.load_decoder(device="cpu")
    exact, ours = (
        read(qtutor.export(model, tmp_path / f"{kind}.gguf", format="gguf", type=kind, tokenizer=tokenizer))
        for kind in ("F32", mix)
    )
    seen = set()
    for name, info in ours.tensors.items():
        seen.add(info.type.name)
        rows = np.ascontiguousarray(decode(exact.data(name), "F32"))
        if info.type.name != "F32":
            assert np.array_equal(ours.data(name), llama_cpp.encode(rows, info.type.name)), name
    assert seen == {"F32", "Q6_K", mix}


@needs_llama_cpp
@pytest.mark.parametrize("mix", MIXES)
def test_llama_cpp_computes_what_we_compute(tmp_path, mix):
    out = tmp_path / "out.gguf"
    assert cli.main(["quantize", "embedded", str(out), "--type", mix.lower()]) == 0
    model, tokenizer = qtutor.load_decoder(out, device="cpu")
    ids = tokenizer("def mean(values):\n    return sum(values) / len(").input_ids
    with llama_cpp.Model(out) as engine:
        found = engine.logits(ids)
    with torch.inference_mode():
        expected = model(torch.tensor([ids])).logits[0].float().numpy()
    # Both use the same weights, but llama.cpp rounds inputs to 8 bits.
    off = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert off < 0.05, off


@pytest.mark.parametrize("mix", MIXES)
def test_narrow_models_get_what_fits(tmp_path, mix):
    """Rows of 64 and 128."""
    file = read(qtutor.export(tiny(), tmp_path / "out.gguf", format="gguf", type=mix, tokenizer=letters()))
    kinds = {name: info.type.name for name, info in file.tensors.items()}
    assert kinds["blk.0.attn_q.weight"] == ("Q4_0" if mix == "Q1_0" else mix) and kinds["blk.0.ffn_down.weight"] == mix

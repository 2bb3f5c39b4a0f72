"""Types for the matrices of a GGUF file: they fit, lose less than llama.cpp's mixes of that size, or are refused."""

import pytest
import torch

import qtutor
from qtutor import gguf
from qtutor.budget import block_types
from qtutor.decoder.text import calibration_tokens
from qtutor.gguf import imatrix
from qtutor.measure.against import compare
from tests.gguf.small_tokenizers import letters
from tests.models import some_ids, tiny


@pytest.mark.parametrize("mix", ["Q2_K", "Q3_K_M", "Q4_K_M"])
def test_less_is_lost_than_by_the_mix_of_that_size(mix, tmp_path):
    """Measured: 0.56, 0.69 and 0.70 of the mix's KL."""
    model, tokenizer = qtutor.load_decoder()
    held_out = qtutor.evaluate.held_out_tokens(tokenizer, 4096)
    by_rule = qtutor.export(model, tmp_path / "a.gguf", "gguf", tokenizer, type=mix)
    size = by_rule.stat().st_size
    types = block_types.choose(model, calibration_tokens()[:32], tokenizer, target_size=size)
    chosen = qtutor.export(model, tmp_path / "b.gguf", "gguf", tokenizer, types=types)
    assert 0.98 * size < chosen.stat().st_size <= size
    assert {name: info.type.name for name, info in gguf.read(chosen).tensors.items() if name in types} == types
    kl = [compare(qtutor.formats.gguf.load(file), model, held_out).kl for file in (by_rule, chosen)]
    assert kl[1] < 0.85 * kl[0]


@pytest.mark.parametrize("tied", [True, False])
def test_the_size_is_kept_to_the_byte(tied, tmp_path):
    """Every matrix gets a type, and narrow rows get one that fits. A byte less than the smallest file is refused."""
    model, ids = tiny(tied=tied), some_ids(4, 32)
    with pytest.raises(qtutor.QtutorError, match="with every layer at its smallest block type, ") as error:
        block_types.choose(model, ids, letters(), target_size=1)
    smallest = int(str(error.value).split("block type, ")[1].split(" are")[0].replace(",", ""))
    for size in (smallest, smallest + 2000):
        types = block_types.choose(model, ids, letters(), target_size=size)
        file = qtutor.export(model, tmp_path / "out.gguf", "gguf", letters(), types=types)
        assert file.stat().st_size <= size and (size > smallest or file.stat().st_size == size)
    stored = {name for name, info in gguf.read(file).tensors.items() if info.type.name != "F32"}
    assert types.keys() == stored and ("output.weight" in types) == (not tied)
    assert set(types.values()) <= {"Q4_0", "IQ4_NL", "Q5_0", "Q5_1", "Q8_0"}  # 256 does not divide these rows
    with pytest.raises(qtutor.QtutorError, match="are too few"):
        block_types.choose(model, ids, letters(), target_size=smallest - 1)


def test_what_matters_more_gets_more():
    """A layer whose weights are 100 times as large gets more bits. With importance, the same matrices get types."""
    model, ids = tiny(), some_ids(4, 32)
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight.mul_(100)
    types = block_types.choose(model, ids, letters(), bits=5.0)
    assert gguf.TYPES[types["blk.0.attn_output.weight"]].bits_per_weight > 5
    matrix = imatrix.importance(model, ids)
    assert block_types.choose(model, ids, letters(), bits=5.0, importance=matrix).keys() == types.keys()
    other = {"blk.9.attn_q.weight": torch.ones(3).numpy()}
    with pytest.raises(qtutor.QtutorError, match="none of which is a tensor of this model"):
        block_types.choose(model, ids, letters(), bits=5.0, importance=other)


def test_types_by_name_and_pattern(tmp_path):
    model = tiny()
    types = {"blk.*.ffn_down.weight": "Q8_0", "blk.1.ffn_down.weight": "Q5_0"}
    file = gguf.read(qtutor.export(model, tmp_path / "a.gguf", "gguf", letters(), type="Q4_0", types=types))
    found = {name: info.type.name for name, info in file.tensors.items()}
    assert found["blk.0.ffn_down.weight"] == "Q8_0" and found["blk.1.ffn_down.weight"] == "Q5_0"
    assert found["blk.0.attn_q.weight"] == "Q4_0" and "general.file_type" not in file.metadata


@pytest.mark.parametrize(
    ("types", "what"),
    [
        ({"blk.9.attn_q.weight": "Q8_0"}, "no matrix of this model has this name"),
        ({"output_norm.weight": "Q8_0"}, "no matrix of this model has this name"),
        ({"blk.0.attn_q.weight": "Q9_9"}, "qtutor encodes no GGUF type of this name"),
        ({"blk.0.attn_q.weight": "Q4_K"}, "whose blocks have 256 weights, and its rows have .* Q5_0 fits"),
    ],
)
def test_types_that_are_none(types, what, tmp_path):
    with pytest.raises(qtutor.QtutorError, match=what):
        qtutor.export(tiny(), tmp_path / "a.gguf", "gguf", letters(), types=types)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "budget", [{}, {"bits": 4, "target_size": 9}, {"bits": "4"}, {"bits": 1.9}, {"target_size": 0}]
)
def test_budgets_that_are_none(budget):
    with pytest.raises(qtutor.QtutorError, match=r"bits = |target_size = "):
        block_types.choose(tiny(), some_ids(4, 32), letters(), **budget)

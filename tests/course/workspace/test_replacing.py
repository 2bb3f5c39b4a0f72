"""Within ``with mine():`` the package computes with the learner's functions, and afterwards with its own again."""

import importlib
import os
import sys
import types
from pathlib import Path

import pytest
import torch

import qtutor
from qtutor import evaluate, pipeline, rtn
from qtutor.core import grid, packing, quantized
from qtutor.core.codebooks import Codebook
from qtutor.core.grid import IntGrid
from qtutor.course import exercises, mine
from qtutor.course.workspace import answers
from qtutor.errors import QtutorError
from qtutor.methods import clip
from qtutor.runtime import kernels, linear
from qtutor.runtime.kernels import cpu, reference
from qtutor.runtime.linear import QuantLinear
from tests.course import learner
from tests.models import some_ids, tiny

PARTS = ("rtn.fit", "rtn.encode", "rtn.pack", "rtn.dequantize")
HELD = {  # every place in the package that holds a function which mine() replaces
    "grid.fit_groups": lambda: grid.fit_groups,
    "rtn.fit_groups": lambda: rtn.fit_groups,
    "clip.fit_groups": lambda: clip.fit_groups,
    "grid.encode_groups": lambda: grid.encode_groups,
    "rtn.encode_groups": lambda: rtn.encode_groups,
    "packing.pack_rows": lambda: packing.pack_rows,
    "quantized.dequantize": lambda: quantized.dequantize,
    "linear.dequantize": lambda: linear.dequantize,
    "kernels.reference.dequantize": lambda: kernels.reference.dequantize,
    "evaluate.perplexity": lambda: evaluate.perplexity,
    "qtutor.perplexity": lambda: qtutor.perplexity,
}


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    (tmp_path / ".qtutor.json").write_text('{"delivered": {}}')
    monkeypatch.chdir(tmp_path)
    before = {name: held() for name, held in HELD.items()}
    yield tmp_path
    assert {name: held() for name, held in HELD.items()} == before  # whatever the test did


def logits(recipe, seed=0) -> torch.Tensor:
    model = tiny(seed=seed)
    pipeline.quantize(model, recipe, progress=False)
    with torch.inference_mode():
        # More than MOST tokens, because for fewer the fast product sums in a different order.
        return model(some_ids(length=cpu.MOST // 2 + 1)).logits


@pytest.mark.parametrize(
    "recipe",
    [
        {"bits": 4, "group_size": 32},
        {"bits": 3, "group_size": 16, "symmetric": True},
        {"bits": 8, "group_size": -1},
        {"bits": 4, "group_size": 0},
        {"bits": 2, "group_size": 64, "clip": "mse"},
        {"bits": 5, "group_size": 16, "embeddings": True},
    ],
    ids=str,
)
def test_a_decoder_runs_on_the_learners_quantizer(workspace, capsys, recipe):
    recipe = qtutor.Recipe(**recipe)
    expected = logits(recipe)
    learner.keep(*PARTS)
    with mine() as own:
        got = logits(recipe)
    assert own == list(PARTS)
    # The learner's functions use float64. Their products are exact, as the package's are, so logits are bitwise equal.
    assert torch.equal(got, expected)
    assert set(learner.ran) == set(PARTS)
    learner.ran.clear()
    assert torch.equal(logits(recipe), expected) and learner.ran == []


def test_what_the_learners_function_says_is_what_happens(workspace):
    """Results are not equal by chance: if the learner's function makes a different grid, the decoder uses that grid."""
    learner.keep(*PARTS)
    file = answers.path_of(exercises.find("rtn.fit"), workspace)
    file.write_text(file.read_text().replace("(2**bits - 1)).astype", "(2**bits - 1) * 1.25).astype"))
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    plain = rtn.quantize(weight, IntGrid(4), 32)
    with mine():
        wider = rtn.quantize(weight, IntGrid(4), 32)
    assert (wider.scales > 1.2 * plain.scales).all()
    assert not torch.equal(logits(qtutor.Recipe()), logits_of_mine(qtutor.Recipe()))


def test_a_layer_that_has_computed_before_computes_with_the_learners_functions(workspace):
    """A kernel's prepared state holds no function of the package, and the reference replaces compiled kernels."""
    learner.keep(*PARTS)
    layers = [QuantLinear.from_quantized(rtn.quantize(torch.randn(8, 64), IntGrid(4), size)) for size in (64, 16)]
    x = torch.randn(3, 64)
    for layer in layers:
        before, expected = layer(x), reference.run(x, reference.prepare(layer))
        with mine():
            assert torch.equal(layer(x), expected)
        assert learner.ran == ["rtn.dequantize"]
        learner.ran.clear()
        assert torch.equal(layer(x), before) and learner.ran == []


def logits_of_mine(recipe):
    with mine():
        return logits(recipe)


def test_grids_that_the_exercises_are_not_made_for_keep_the_packages(workspace):
    levels = Codebook("eighths", tuple((i - 8) / 8 for i in range(16)))
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    expected = rtn.quantize(weight, levels, 32).dequantize()
    learner.keep(*PARTS)
    with mine():
        assert torch.equal(rtn.quantize(weight, levels, 32).dequantize(), expected)
    assert learner.ran == []


def test_perplexity_can_be_the_learners(workspace):
    model, ids = tiny(), some_ids(1, 60).flatten()
    expected = qtutor.perplexity(model, ids, window=16), qtutor.perplexity(model, some_ids(3, 10))
    learner.keep("start.perplexity")
    with mine():
        got = qtutor.perplexity(model, ids, window=16), qtutor.perplexity(model, some_ids(3, 10))
    assert got == pytest.approx(expected, rel=1e-5)  # the package adds up in float32
    assert learner.ran == ["start.perplexity"] * 7  # 60 tokens are 3 windows of 16 and a rest; then 3 rows


def test_it_says_what_is_whose(workspace, capsys):
    with mine("rtn") as own:
        pass
    assert own == [] and capsys.readouterr().out == (
        "Nothing of yours yet. The package's: rtn.fit, rtn.encode, rtn.pack, rtn.dequantize.\n"
    )
    learner.keep("rtn.pack")
    with mine("rtn"):
        pass
    assert capsys.readouterr().out == (
        f"Yours: rtn.pack. The package's: rtn.fit, rtn.encode, rtn.dequantize. From {workspace}.\n"
    )
    with mine("rtn.pack"):
        pass
    assert capsys.readouterr().out == f"Yours: rtn.pack. From {workspace}.\n"
    with mine("rtn.fit", "start") as own:
        assert packing.pack_rows.__module__ == "qtutor.core.packing"
    assert own == [] and "start.perplexity" in capsys.readouterr().out


def test_unknown_and_unusable_names_are_refused(workspace):
    with pytest.raises(QtutorError, match=r"no exercise 'rtn\.fitt'"), mine("rtn.fitt"):
        pass
    with pytest.raises(QtutorError, match="no function that your answer"), mine("start.true_bytes"):
        pass


def test_everything_is_restored_after_an_error_and_after_nesting(workspace):
    learner.keep(*PARTS)
    original = packing.pack_rows
    with pytest.raises(ZeroDivisionError), mine():
        assert packing.pack_rows is not original
        raise ZeroDivisionError
    assert packing.pack_rows is original
    with mine("rtn.pack"):
        outer = packing.pack_rows
        with mine():
            assert packing.pack_rows not in (outer, original)
            packing.pack(torch.tensor([[1, 2]], dtype=torch.uint8), 4)
        assert packing.pack_rows is outer
    assert packing.pack_rows is original


def test_modules_imported_meanwhile_hold_the_packages_afterwards(workspace, monkeypatch):
    learner.keep("rtn.dequantize")
    meanwhile = types.ModuleType("qtutor.imported_meanwhile")
    with mine("rtn"):
        meanwhile.dequantize = quantized.dequantize  # from qtutor.core.quantized import dequantize
        monkeypatch.setitem(sys.modules, meanwhile.__name__, meanwhile)
        assert meanwhile.dequantize.__module__ == "qtutor.course.exercises.rtn.dequantize"
    assert meanwhile.dequantize is quantized.dequantize


def test_a_kept_file_that_broke_is_named_and_the_packages_stays(workspace, capsys):
    learner.keep("rtn.pack", "rtn.fit")
    answers.path_of(exercises.find("rtn.pack"), workspace).write_text("answer = (")
    with mine("rtn") as own:
        assert packing.pack_rows.__module__ == "qtutor.core.packing"
    assert own == ["rtn.fit"] and "mine/rtn_pack.py does not run any more" in capsys.readouterr().out


def test_outside_of_a_workspace_everything_stays(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    original = rtn.fit_groups
    with mine() as own:
        assert rtn.fit_groups is original
    assert own == [] and "Nothing of yours yet" in capsys.readouterr().out


def test_bad_input_is_refused_on_the_learners_quantizer_too(workspace):
    learner.keep(*PARTS)
    with mine():
        with pytest.raises(QtutorError, match="NaN"):
            rtn.quantize(torch.tensor([[1.0, float("nan")]]), IntGrid(4), 2)
        with pytest.raises(QtutorError, match="float16"):
            rtn.quantize(torch.tensor([[3e38, -3e38]]), IntGrid(4), 2)
        with pytest.raises(QtutorError, match="does not fit in 4 bits"):
            packing.pack(torch.tensor([[16, 2]], dtype=torch.uint8), 4)
        empty = rtn.quantize(torch.zeros(0, 64), IntGrid(4), 32)
        assert empty.dequantize().shape == (0, 64) and empty.nbytes == 0


def test_every_exercise_names_something_that_can_give_way():
    for exercise in exercises.every():
        if exercise.replaces:
            module, _, name = exercise.replaces.rpartition(".")
            assert callable(getattr(importlib.import_module(module), name)), exercise.name


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="Windows has no such owners")
@pytest.mark.parametrize("strange", ["all of it", "mine/"])
def test_nothing_of_another_user_is_run(workspace, monkeypatch, capsys, strange):
    """Another user who can write into a folder above ours could put a workspace with harmful functions there."""
    kept = answers.path_of(exercises.find("rtn.pack"), workspace)
    kept.parent.mkdir()
    kept.write_text("open('ran', 'w')\n\ndef answer(codes, bits, width):\n    raise SystemExit\n")
    if strange == "all of it":
        monkeypatch.setattr("os.geteuid", lambda: workspace.stat().st_uid + 1)
    else:
        owner, stat = os.geteuid(), Path.stat
        odd = types.SimpleNamespace(st_uid=owner + 1, st_mode=kept.stat().st_mode)
        monkeypatch.setattr(Path, "stat", lambda path, **how: odd if path == kept and not how else stat(path, **how))
    (workspace / "below").mkdir()
    monkeypatch.chdir(workspace / "below")
    with mine() as names:
        assert names == []
    out = capsys.readouterr().out
    assert str(workspace if strange == "all of it" else kept) in out and "belongs to another user" in out
    note = answers.keep(exercises.find("rtn.pack"), learner_pack, lambda function: True)
    assert note.startswith("Not kept: ") and "another user" in note
    assert not list(workspace.rglob("ran")) and "raise SystemExit" in kept.read_text()


def learner_pack(codes, bits, width):
    return codes

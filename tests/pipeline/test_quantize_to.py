"""Block by block into a folder: the same bytes as in memory, an exact plan, and errors before the work begins."""

import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import qtutor
from qtutor.calibration.mapped import Weights
from qtutor.formats import folders, shards
from qtutor.formats.streamed import opened
from qtutor.pipeline import planning
from tests.gguf.small_tokenizers import letters
from tests.live_bytes import LiveBytes
from tests.models import FAMILIES, groups_of, some_ids, tiny

IDS = some_ids(16, 32)


def contents(folder) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()
    }


def checkpoint(folder, family="llama", tied=True, dtype=torch.bfloat16, **sizes) -> Path:
    """A float checkpoint with a tokenizer, saved by transformers."""
    tiny(family, tied=tied, dtype=dtype).save_pretrained(folder, **sizes)
    letters().save_pretrained(folder)
    return folder


def in_memory(source, out, recipe, ids=IDS):
    model, tokenizer = qtutor.load(source, dtype="auto", device="cpu")
    report = qtutor.quantize(model, recipe, ids, progress=False)
    qtutor.export(model, out, tokenizer=tokenizer)
    return report


def streamed(source, out, recipe, ids=IDS, said=None):
    tell = [].append if said is None else said.append
    return qtutor.quantize_to(source, out, recipe, ids, device="cpu", progress=False, tell=tell)


RECIPES = {
    "rtn": {},
    "rtn, three bits": {"bits": 3, "symmetric": True, "clip": "mse"},
    "gptq": {"method": "gptq", "propagate": False},
    "gptq, propagated": {"method": "gptq", "propagate": True},
    "awq": {"method": "awq"},
    "awq+gptq": {"method": "awq+gptq", "layers": {"*.0.*.o_proj": "float"}},
    "nf4": {"method": "nf4"},
    "fp4": {"method": "fp4", "double": False},
    "int8": {"method": "int8"},
    "sinq": {"method": "sinq"},
    "sinq among gptq": {"method": "gptq", "lm_head": True, "layers": {"*.down_proj": {"method": "sinq"}}},
    "embeddings": {"embeddings": True},
    "lm_head": {"lm_head": True},
    "both": {"method": "nf4", "embeddings": True, "lm_head": True},
    "kept": {"layers": {"*.0.*": "float", "*.down_proj": {"bits": 8}}},
    "one by gptq": {"layers": {"*.down_proj": {"method": "gptq"}}},
}


UNTIED = ("gptq", "awq+gptq", "embeddings", "lm_head", "both")


@pytest.mark.parametrize(("name", "tied"), [*((n, True) for n in RECIPES), *((n, False) for n in UNTIED)])
def test_the_same_bytes_as_in_memory(tmp_path, name, tied):
    source = checkpoint(tmp_path / "float", tied=tied)
    recipe = qtutor.Recipe(**groups_of(RECIPES[name].get("method", "rtn")) | RECIPES[name])
    in_one = in_memory(source, tmp_path / "memory", recipe)
    in_parts = streamed(source, tmp_path / "streamed", recipe)
    assert in_parts == in_one
    assert contents(tmp_path / "streamed") == contents(tmp_path / "memory")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["float", "memory", "streamed"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_bytes_in_every_family_and_dtype(tmp_path, family, dtype):
    source = checkpoint(tmp_path / "float", family, dtype=dtype)
    recipe = qtutor.Recipe("gptq", bits=3, group_size=32)
    assert streamed(source, tmp_path / "streamed", recipe) == in_memory(source, tmp_path / "memory", recipe)
    assert contents(tmp_path / "streamed") == contents(tmp_path / "memory")


def test_the_same_bytes_from_a_checkpoint_in_several_files_and_dtypes(tmp_path):
    """Norms are in 32 bits, and the tensors are in three files with an index."""
    whole = checkpoint(tmp_path / "whole", tied=False)
    tensors = load_file(whole / "model.safetensors")
    tensors = {name: t.float() if "norm" in name else t for name, t in tensors.items()}
    split = shutil.copytree(whole, tmp_path / "split")
    (split / "model.safetensors").unlink()
    names, parts = sorted(tensors), {}
    for number in range(3):
        file = f"model-{number + 1:05}-of-00003.safetensors"
        save_file({name: tensors[name] for name in names[number::3]}, split / file, metadata={"format": "pt"})
        parts |= dict.fromkeys(names[number::3], file)
    (split / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": parts}))
    recipe = qtutor.Recipe("gptq", group_size=32)
    streamed(split, tmp_path / "streamed", recipe)
    in_memory(split, tmp_path / "memory", recipe)
    assert contents(tmp_path / "streamed") == contents(tmp_path / "memory")
    (split / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(
        qtutor.QtutorError, match=r"names 'model-00002-of-00003\.safetensors', which is not in the fold"
    ):
        streamed(split, tmp_path / "again", recipe)
    assert not (tmp_path / "again").exists()


def test_a_model_in_memory_may_hold_several_dtypes(tmp_path):
    """The plan has the dtype of each tensor, whatever the config says."""
    model, recipe = tiny(tied=False, dtype=torch.bfloat16), qtutor.Recipe("gptq", group_size=32)
    model.model.norm.float()
    model.model.layers[1].input_layernorm.half()
    weights = Weights(model)
    made = qtutor.plan(weights, recipe, IDS)
    streamed(weights, tmp_path / "streamed", recipe)
    qtutor.quantize(model, recipe, IDS, progress=False)
    qtutor.export(model, tmp_path / "memory")
    found = contents(tmp_path / "streamed")
    assert found == contents(tmp_path / "memory") and made.nbytes == sum(map(len, found.values()))


def test_a_dtype_that_no_checkpoint_has_is_refused_before_any_work(tmp_path):
    weights = Weights(tiny(dtype=torch.float64))
    with pytest.raises(qtutor.QtutorError, match=r"float64, which no checkpoint holds"):
        qtutor.plan(weights, qtutor.Recipe(group_size=32))
    with pytest.raises(qtutor.QtutorError, match=r"float64, which no checkpoint holds"):
        streamed(weights, tmp_path / "out", qtutor.Recipe(group_size=32))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("method", "most"), [("rtn", 1), ("nvfp4", 3)])
def test_all_tensors_that_were_read_are_released(tmp_path, monkeypatch, method, most):
    """With NVFP4, layers with one input share a scale, so q, k and v are in use together."""
    weights, _ = opened(checkpoint(tmp_path / "float", tied=False, dtype=torch.float32), "cpu")
    recipe = qtutor.Recipe(method, embeddings=method == "rtn", lm_head=method == "rtn", **groups_of(method))
    used, at_once, read, release = [], [], weights.tensor, weights.release

    def noted(name):
        used.append(read(name))
        at_once.append(len(used))
        return used[-1]

    def let_go(given):
        for tensor in given:
            del used[next(i for i, one in enumerate(used) if one is tensor)]
        release(given)

    monkeypatch.setattr(weights, "tensor", noted)
    monkeypatch.setattr(weights, "release", let_go)
    report = streamed(weights, tmp_path / "out", recipe)
    assert len(report.rows) == 2 * 7 + 2 * recipe.embeddings
    assert not used and max(at_once) == most


def test_a_folder_of_others_is_refused_before_any_work(tmp_path):
    source, said = checkpoint(tmp_path / "float"), []
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(qtutor.QtutorError, match="out exists and is not an export of qtutor"):
        streamed(source, tmp_path / "out", qtutor.Recipe(group_size=32), said=said)
    assert not said and sorted(path.name for path in tmp_path.iterdir()) == ["float", "out"]


def test_the_same_ends_of_a_text_as_in_memory(tmp_path):
    """They may only be in generation_config.json, which the plan counts and the run writes."""
    source, recipe = checkpoint(tmp_path / "float"), qtutor.Recipe(group_size=32)
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7]}))
    in_memory(source, tmp_path / "memory", recipe)
    streamed(source, tmp_path / "streamed", recipe)
    found = contents(tmp_path / "streamed")
    assert found == contents(tmp_path / "memory")
    assert json.loads(found["generation_config.json"])["eos_token_id"] == [2, 7]
    for name in ("generation_config.json", "qtutor.json"):  # for people: a line for each item
        assert found[name].decode() == json.dumps(json.loads(found[name]), indent=1) + "\n"
    assert qtutor.plan(source, recipe, device="cpu").nbytes == sum(map(len, found.values()))


@pytest.mark.parametrize(("tokens", "propagate"), [(8 * 128 - 1, False), (8 * 128, True)])
def test_eight_tokens_for_every_input_of_the_widest_layer_are_enough(tokens, propagate):
    assert planning.propagates(tiny(), qtutor.Recipe("gptq"), tokens) is propagate


def test_several_files_of_weights_come_back(tmp_path, monkeypatch):
    """A result of more than 5 GB has several files; in this test, one of more than 20 kB."""
    source = checkpoint(tmp_path / "float", tied=False)
    recipe = qtutor.Recipe(group_size=32, embeddings=True)
    in_memory(source, tmp_path / "one", recipe)
    monkeypatch.setattr(shards.laid_out, "__defaults__", (20_000,))
    in_memory(source, tmp_path / "memory", recipe)
    made = qtutor.plan(source, recipe, device="cpu")
    streamed(source, tmp_path / "streamed", recipe)
    files = sorted(path.name for path in (tmp_path / "streamed").glob("*.safetensors"))
    assert len(files) == len(made.files) > 3 and files[0] == f"model-00001-of-{len(files):05}.safetensors"
    assert contents(tmp_path / "streamed") == contents(tmp_path / "memory")
    assert made.nbytes == sum(len(data) for data in contents(tmp_path / "streamed").values())
    assert f"bytes in {len(files)} files of weights." in str(made)
    assert " in 2 files of weights." in str(replace(made, files=made.files[:2]))
    one, several = (qtutor.load(tmp_path / name, device="cpu")[0] for name in ("one", "streamed"))
    with torch.inference_mode():
        assert torch.equal(one(IDS).logits, several(IDS).logits)
    streamed(source, tmp_path / "streamed", recipe)  # replaces the result of the run before, also its index
    (tmp_path / "streamed" / files[1]).unlink()
    with pytest.raises(qtutor.QtutorError, match=f"names '{files[1]}', which is not in the folder"):
        qtutor.load_quantized(tmp_path / "streamed")
    (tmp_path / "streamed" / "qtutor.json").write_text("{")
    streamed(source, tmp_path / "streamed", recipe)  # a damaged result is replaced, too


@pytest.mark.parametrize("tied", [True, False])
def test_a_gguf_file_is_a_source_as_well(tmp_path, tied):
    file, recipe, model = tmp_path / "a.gguf", qtutor.Recipe("gptq", group_size=32), tiny("qwen2", tied=tied)
    model.generation_config.eos_token_id = [2, 7]
    qtutor.export(model, file, format="gguf", type="Q8_0", tokenizer=letters())
    assert streamed(file, tmp_path / "out", recipe) == in_memory(file, tmp_path / "memory", recipe)
    found = contents(tmp_path / "out")
    assert found == contents(tmp_path / "memory")
    assert json.loads(found["generation_config.json"])["eos_token_id"] == [2, 7]
    weights = opened(file, "cpu")[0]
    assert all(parameter.is_meta for parameter in weights.model.parameters())
    assert set(weights.tensors) == set(weights.model.state_dict()) and len(weights.tensors) == len(set(weights.tensors))
    with pytest.raises(qtutor.QtutorError, match="quantized already"):
        streamed(tmp_path / "out", tmp_path / "again", recipe)


def test_the_embedded_decoder_brings_its_own_text(tmp_path):
    report = streamed("embedded", tmp_path / "out", qtutor.Recipe("rtn", layers={"*.0.*": {"bits": 3}}), None)
    assert len(report.rows) == 14 and qtutor.load(tmp_path / "out")[1]("x")
    source = checkpoint(tmp_path / "float")
    with pytest.warns(UserWarning, match="of the built-in text"):  # as for any other model
        streamed(source, tmp_path / "other", qtutor.Recipe("gptq", group_size=32), None)


@pytest.mark.parametrize("recipe", [{}, {"method": "gptq"}, {"method": "int8", "lm_head": True}, {"bits": 2}])
def test_the_plan_counts_every_byte(tmp_path, recipe):
    source = checkpoint(tmp_path / "float", "qwen2", tied=False)
    recipe = qtutor.Recipe(**groups_of(recipe.get("method", "rtn")) | recipe)
    made, said = qtutor.plan(source, recipe, IDS, device="cpu"), []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["float"]
    report = streamed(source, tmp_path / "out", recipe, said=said)
    assert made.nbytes == sum(len(data) for data in contents(tmp_path / "out").values())
    assert str(said[0]) == str(made) and f"Result: {made.nbytes:,} bytes." in str(made)
    table = str(made).split("\n\n")[1].splitlines()
    rounded = [row for row in made.rows if not row.why]
    assert len(table) == len(rounded) + 3 and len({len(line) for line in table}) == 1  # the columns stand in line
    assert sum(row.count for row in rounded) == len(report.rows)
    assert sum(row.nbytes for row in rounded) == report.bytes_after
    assert sum(row.bytes_before for row in rounded) == report.bytes_before
    stored = sum(file.size - len(file.header) for file in made.files)
    biases = 2 * 2 * (64 + 32 + 32)  # of q, k and v in packed layers, bfloat16
    assert stored == sum(row.nbytes for row in made.rows) + biases


def test_the_plan_says_what_stays_in_float_and_why(tmp_path):
    source = checkpoint(tmp_path / "float", tied=False)
    keep = {"lm_head": "float", "*.0.*": "float", "model.norm": "float", "*.1.mlp.down_proj": {"bits": 8}}
    text = str(qtutor.plan(source, qtutor.Recipe(group_size=32, layers=keep), device="cpu"))
    assert "7 layers of 2 decoder blocks" in text and "Disk" not in text
    lines = {line.split(",")[0].split(None, 1)[1]: line for line in text.splitlines() if " bytes  " in line}
    assert "kept by the recipe: *.0.*" in lines["model.layers.*.mlp.down_proj"]
    assert "--embeddings quantizes it" in lines["model.embed_tokens"]
    assert "--lm-head quantizes it" in lines["lm_head"]
    assert "one number per channel" in lines["norms"]
    assert next(line.split()[-3] for line in text.splitlines() if "mlp.down_proj" in line) == "8.750"
    with_head = qtutor.Recipe(group_size=32, lm_head=True, layers={"lm_head": "float"})
    assert "kept by the recipe: lm_head" in str(qtutor.plan(source, with_head, device="cpu"))
    kept = qtutor.Recipe(group_size=32, embeddings=True, layers={"model.embed_tokens": "float"})
    assert "kept by the recipe: model.embed_tokens" in str(qtutor.plan(source, kept, device="cpu"))
    assert "which is the output matrix as well" in str(
        qtutor.plan(checkpoint(tmp_path / "tied"), qtutor.Recipe(group_size=32), device="cpu")
    )
    made = qtutor.plan(source, qtutor.Recipe("gptq", group_size=32, propagate=True), IDS, device="cpu")
    states = 2 * 4 * IDS.numel() * 64
    # The float decoder takes more memory: for its states, its block, and the target outputs of o_proj or down_proj.
    alone = qtutor.plan(source, qtutor.Recipe("gptq", group_size=32, propagate=False), IDS, device="cpu")
    block = sum(parameter.numel() for parameter in tiny().model.layers[0].parameters())
    assert made.memory - alone.memory == 4 * (2 * IDS.numel() * 64 + block)
    unused = qtutor.plan(source, qtutor.Recipe("rtn", group_size=32), IDS, device="cpu")  # it needs no text
    assert (unused.states, alone.states, made.states) == (0, states // 2, states)
    assert [plan.propagate for plan in (unused, alone, made)] == [False, False, True]
    # States, the block, the inputs of down_proj, and a Hessian of its size: it and a copy in float64, then a factor.
    assert alone.memory - unused.memory == 4 * (IDS.numel() * (64 + 128) + block) + (8 + 8 + 4 + 4) * 128**2
    fewer = qtutor.plan(source, qtutor.Recipe("gptq", group_size=32, propagate=False), IDS[:4], device="cpu")
    head, none = (qtutor.plan(source, qtutor.Recipe(lm_head=asked), device="cpu") for asked in (True, False))
    assert head.memory - none.memory == 16 * (256 * 64 - 128 * 64)  # the head is larger than any layer of the blocks
    assert alone.memory - fewer.memory == 4 * (IDS.numel() - IDS[:4].numel()) * (64 + 128)
    room = f"{made.nbytes + 2 * states:,}"
    end = f"""Result: {made.nbytes:,} bytes.
Disk: at most {room} bytes until the run is done. The calibration states ({states:,} bytes) are kept after
every block: reading them is cheaper than a forward pass through the finished blocks. If the disk has no room for
them, they are not kept, and a run that is continued makes that pass instead.
Memory: about {round(made.memory / 1e6)} MB."""
    assert str(made).startswith("Plan: 14 layers of 2 decoder blocks are quantized.\n\nkind of layer")
    assert str(made).endswith(f"\n\n{end}")


@pytest.mark.parametrize(("size", "said"), [(0, "all"), (-1, "row"), (32, "32")])
def test_the_plan_says_how_many_weights_share_a_scale(tmp_path, size, said):
    text = str(qtutor.plan(checkpoint(tmp_path / "float"), qtutor.Recipe(group_size=size), device="cpu"))
    rows = [line.split() for line in text.split("\n\n")[1].splitlines()[2:-1]]
    assert rows and {row[-4] for row in rows} == {said}


@pytest.mark.parametrize(("method", "head"), [("gptq", "rtn"), ("awq", "rtn"), ("nf4", "nf4"), ("fp8", "fp8")])
def test_the_plan_names_the_method_that_rounds(tmp_path, method, head):
    """A method that looks at inputs rounds the head to nearest; one with its own levels rounds it to these."""
    made = qtutor.plan(checkpoint(tmp_path / "float"), qtutor.Recipe(method, lm_head=True), IDS, device="cpu")
    found = {row.name: row.method for row in made.rows if not row.why}
    assert found.pop("lm_head") == head and set(found.values()) == {method}


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ({"group_size": 48}, r"model\.layers\.0\.self_attn\.q_proj: groups of 48 do not divide rows of 64"),
        ({"layers": {"*": "float"}}, r"^\* leaves no layer to be quantized"),
        ({"layers": {"*.0.*": {"bits": 3}, "*": "float"}}, r"^\* leaves no layer to be quantized"),
        ({"layers": {"lm_hat": "float"}}, "no layer is called 'lm_hat'"),
        ({"layers": {"model.layers.0.mlp": "float"}}, "no layer is called 'model.layers.0.mlp'"),
        ({"layers": {"lm_head": {"bits": 8}}}, "no layer is called 'lm_head'"),
    ],
)
def test_what_can_be_known_is_refused_before_anything_is_written(tmp_path, recipe, words):
    source = checkpoint(tmp_path / "float")
    with pytest.raises(qtutor.QtutorError, match=words):
        streamed(source, tmp_path / "out", qtutor.Recipe(**groups_of(recipe.get("method", "rtn")) | recipe))
    assert [path.name for path in tmp_path.iterdir()] == ["float"]


def test_no_room_for_temporary_files_is_told_as_such(tmp_path, monkeypatch):
    source = checkpoint(tmp_path / "float")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(qtutor.QtutorError, match=r"temporary files \(TMPDIR\) cannot be written: No such file"):
        streamed(source, tmp_path / "out", qtutor.Recipe(group_size=32))
    assert [path.name for path in tmp_path.iterdir()] == ["float"]


def test_out_must_not_be_inside_of_the_source(tmp_path):
    source = checkpoint(tmp_path / "float")
    before = contents(tmp_path)
    for given in (source, opened(source, "cpu")[0]):
        for out in (source, source / "out", source / "a" / ".." / "b" / "out"):
            with pytest.raises(qtutor.QtutorError, match="which is read"):
                streamed(given, out, qtutor.Recipe(group_size=32))
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "place", ["model.norm.weight", "model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight"]
)
@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_broken_weights_are_named(tmp_path, place, method):
    model = tiny(dtype=torch.bfloat16)
    model.get_parameter(place).data.view(-1)[3] = torch.nan
    model.save_pretrained(tmp_path / "float")
    letters().save_pretrained(tmp_path / "float")
    said = []
    with pytest.raises(qtutor.QtutorError, match=place.removesuffix(".weight").replace(".", r"\.")):
        streamed(tmp_path / "float", tmp_path / "out", qtutor.Recipe(method, group_size=32), said=said)
    assert not (tmp_path / "out").exists()
    kept = [path.name for path in tmp_path.iterdir() if path.name != "float"]
    assert kept == ([".out.qtutor-unfinished"] if "layers.1" in place else [])
    assert any("the finished part is kept" in str(line) for line in said) == bool(kept)


def test_a_mean_of_bits_is_shared_out_before(tmp_path):
    source, recipe = checkpoint(tmp_path / "float"), qtutor.Recipe("rtn", bits=3.5, group_size=32)
    made = qtutor.plan(source, recipe, IDS, device="cpu")
    assert made.states == 0 and not made.propagate  # the text only chooses bits: rounding to nearest needs none
    assert streamed(source, tmp_path / "streamed", recipe) == in_memory(source, tmp_path / "memory", recipe)
    assert contents(tmp_path / "streamed") == contents(tmp_path / "memory")
    rounded = [row for row in made.rows if not row.why]
    assert len({own.bits for own in made.recipes.values()}) > 1 and len({row.bits for row in rounded}) > 1
    weights = sum(row.bytes_before / 2 for row in rounded)
    assert sum(own.bits * made.packed.get_submodule(n).rows * made.packed.get_submodule(n).columns
               for n, own in made.recipes.items()) <= 3.5 * weights  # fmt: skip


def test_nothing_of_a_model_is_read_into_memory_at_once(tmp_path):
    """The model has no values in memory. Only the current block, or the parts around the blocks, are loaded."""
    weights = opened(checkpoint(tmp_path / "float"), "cpu")[0]
    assert all(parameter.is_meta for parameter in weights.model.parameters())
    block = weights.block(1)
    assert not any(parameter.is_meta for parameter in block.parameters())
    with weights.around_blocks():
        assert not weights.model.model.embed_tokens.weight.is_meta and not weights.model.model.norm.weight.is_meta
        assert all(parameter.is_meta for parameter in weights.model.model.layers.parameters())
    assert all(parameter.is_meta for parameter in weights.model.parameters())
    assert weights.model.lm_head.weight is weights.model.model.embed_tokens.weight
    block.mlp.up_proj.weight.add_(1)  # a copy: the file does not change
    expected = load_file(tmp_path / "float" / "model.safetensors")["model.layers.1.mlp.up_proj.weight"]
    assert torch.equal(weights.tensor("model.layers.1.mlp.up_proj.weight"), expected)


@pytest.mark.parametrize("recipe", [{"method": "gptq", "propagate": True}, {"method": "awq"}])
def test_a_block_has_gone_before_the_next_is_brought(tmp_path, monkeypatch, recipe):
    """When a block is loaded, only the calibration states are still in memory."""
    weights, tokenizer = opened(checkpoint(tmp_path / "float"), "cpu")
    block = 4 * sum(parameter.numel() for parameter in weights.model.model.layers[0].parameters())
    states, taken, own = 2 * 4 * 4 * 16 * 64, [], type(weights).block

    def bring(self, index):
        taken.append(live.now)
        return own(self, index)

    monkeypatch.setattr(type(weights), "block", bring)
    with LiveBytes(weights.model) as live:
        live.known |= {mapped.untyped_storage()._cdata for mapped in weights.tensors.values()}
        recipe = qtutor.Recipe(**groups_of(recipe.get("method", "rtn")) | recipe)
        qtutor.quantize_to(weights, tmp_path / "out", recipe, IDS[:4, :16], tokenizer, progress=False, tell=str)
    assert len(taken) == 2 and all(bytes_then < states + block / 4 for bytes_then in taken)


def test_tied_matrices_that_differ_are_refused(tmp_path):
    source = checkpoint(tmp_path / "float")
    tensors = load_file(source / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, source / "model.safetensors")
    streamed(source, tmp_path / "out", qtutor.Recipe(group_size=32))  # two equal matrices are fine
    tensors["lm_head.weight"][0, 0] += 1
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(qtutor.QtutorError, match="holds two different ones"):
        streamed(source, tmp_path / "other", qtutor.Recipe(group_size=32))


def test_a_writer_that_loses_a_tensor_is_found(tmp_path, monkeypatch):
    source = checkpoint(tmp_path / "float")
    streamed(source, tmp_path / "out", qtutor.Recipe(group_size=32))
    before = contents(tmp_path / "out")
    whole = folders.stored_tensors
    monkeypatch.setattr(folders, "stored_tensors", lambda model: dict(list(whole(model).items())[:-1]))
    with pytest.raises(qtutor.QtutorError, match="out was not written, since it could not be read back"):
        streamed(source, tmp_path / "out", qtutor.Recipe(bits=3, group_size=32))
    assert contents(tmp_path / "out") == before

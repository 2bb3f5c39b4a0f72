"""Recipes: the meaning of each method's name, exceptions for single layers, and options that are refused."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from torch import nn

import qtutor
from qtutor import Recipe
from qtutor.calibration import stream
from qtutor.core.float_grid import FP8, FP8_TILES, MXFP4, NVFP4
from qtutor.core.grid import IntGrid
from qtutor.methods import scaling
from qtutor.methods.rounders import Gptq, Hqq, Listed, Nearest, Sinq
from qtutor.recipe import CALIBRATED, METHODS, OF_A_LAYER, SWITCHES
from qtutor.runtime.int8 import Int8Linear
from tests.models import groups_of, some_ids, tiny

NAMES = [f"model.layers.{i}.{name}" for i in (0, 1) for name in ("self_attn.q_proj", "mlp.up_proj", "mlp.down_proj")]


def quantized(model, recipe: Recipe):
    made = copy.deepcopy(model)
    return made, qtutor.quantize(made, recipe, some_ids(16, 32), progress=False)


def test_what_the_short_names_stand_for():
    rounders = {method: Recipe(method).rounder for method in METHODS}
    assert rounders["rtn"] == Nearest("none") and rounders["awq"] == Nearest("output")
    assert rounders["gptq"] == rounders["awq+gptq"] == Gptq("output")
    assert all(rounders[name] == Listed(double=True) for name in ("nf4", "fp4", "int8"))
    assert [name for name in METHODS if Recipe(name).transforms] == ["awq", "awq+gptq"]
    assert CALIBRATED == ("awq", "gptq", "awq+gptq")
    assert all(Recipe(name).needs_calibration == (name in CALIBRATED) for name in METHODS)
    assert Recipe("gptq", clip="none").rounder.clip == "none" and Recipe(clip="mse").rounder.clip == "mse"
    assert Recipe("awq", duo=True).transforms[0].duo
    assert Recipe("gptq", lm_head=True).plain_rounder == Nearest("none")
    assert Recipe("gptq", lm_head=True, clip="mse").plain_rounder == Nearest("mse")
    assert Recipe("nf4").plain_rounder == Listed(double=True)
    assert Recipe("nf4", double=False).rounder == Recipe("nf4", double=False).plain_rounder == Listed(double=False)


def test_fp8_has_a_scale_for_each_row_or_for_the_tensor():
    assert [Recipe("fp8", group_size=size).group_size for size in (None, -1, 0, 128)] == [-1, -1, 0, 128]
    assert Recipe("fp8", group_size=128) == Recipe("fp8", group_size=(128, 128)) == Recipe("fp8", group_size=[128, 128])
    recipe = Recipe("fp8")
    assert (recipe.bits, recipe.symmetric, recipe.rounder, recipe.plain_rounder) == (8, True, Nearest(), Nearest())
    with pytest.raises(qtutor.QtutorError, match="method 'fp8' has 8 bits"):
        Recipe("fp8", bits=6)
    with pytest.raises(qtutor.QtutorError, match="takes every group's whole range"):
        Recipe("fp8", clip="mse")


def test_methods_and_levels_of_blocks_fix_bits_and_groups():
    for name, grid in (("mxfp4", MXFP4), ("nvfp4", NVFP4)):
        for recipe in (Recipe(name), Recipe("rtn", levels=name), Recipe("gptq", levels=name)):
            assert recipe.grid is grid and (recipe.bits, recipe.symmetric, recipe.group_size) == (4, True, grid.block)
        assert Recipe(name).rounder == Recipe("rtn", levels=name).rounder == Nearest("none")
        assert Recipe("gptq", levels=name).rounder == Gptq("output")
        assert Recipe("awq", levels=name).rounder == Nearest("output") and Recipe("awq", levels=name).transforms
        assert Recipe("rtn", levels=name, clip="mse").rounder == Nearest("mse")
    assert Recipe("gptq", levels="fp8").grid == FP8 and Recipe("gptq", levels="fp8").group_size == -1
    assert Recipe("hqq", bits=3).rounder == Hqq() and Recipe("hqq", bits=3).grid == IntGrid(3)
    sinq = Recipe("sinq", bits=3, symmetric=True)
    assert sinq.rounder == Sinq() and sinq.grid == IntGrid(3, True) and sinq.plain_rounder == Nearest()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": "mxfp5"}, "levels = 'mxfp5'"),
        ({"method": "nf4", "levels": "mxfp4"}, "levels = 'mxfp4': method 'nf4' has its own; leave levels out"),
        ({"levels": "mxfp4", "bits": 3}, "bits = 3: levels of 'mxfp4' have 4 bits"),
        ({"method": "mxfp4", "bits": 3}, "bits = 3: method 'mxfp4' has 4 bits"),
        ({"levels": "nvfp4", "target_size": 10**6}, "target_size chooses bits, and levels of 'nvfp4' have 4 bits"),
        ({"method": "nvfp4", "clip": "mse"}, "takes every group's whole range"),
        ({"method": "hqq", "clip": "mse"}, "clip = 'mse': method 'hqq' finds ranges of integers by itself"),
        (
            {"method": "sinq", "levels": "mxfp4"},
            "levels = 'mxfp4', .* method 'sinq' finds ranges of integers by itself",
        ),
        ({"levels": "mxfp4", "layers": {"*": {"bits": 8}}}, "bits = 8: levels of 'mxfp4' have 4 bits"),
    ],
)
def test_levels_that_do_not_go_together(options, message):
    with pytest.raises(qtutor.QtutorError, match=message):
        Recipe(**options)


def test_exceptions_among_levels():
    recipe = Recipe("gptq", levels="mxfp4", layers={
        "a": {"levels": "integers"}, "b": {"levels": "integers", "bits": 8}, "c": {"method": "rtn"},
        "d": {"method": "fp8"}, "e": {"levels": "nvfp4"},
    })  # fmt: skip
    found = {name: (one.method, one.grid, one.group_size) for name, one in recipe.of_layers("abcdef").items()}
    assert found == {
        "a": ("gptq", IntGrid(4), 64), "b": ("gptq", IntGrid(8), 64), "c": ("rtn", MXFP4, 32),
        "d": ("fp8", FP8, -1), "e": ("gptq", NVFP4, 16), "f": ("gptq", MXFP4, 32),
    }  # fmt: skip
    other = Recipe("mxfp4", layers={"a": {"method": "gptq"}, "b": {"method": "gptq", "levels": "nvfp4"}})
    assert {name: (one.grid, one.group_size) for name, one in other.of_layers("ab").items()} == {
        "a": (IntGrid(4), 64),
        "b": (NVFP4, 16),
    }
    assert other.needs_calibration


def test_exceptions_by_pattern_and_the_last_one_counts():
    recipe = Recipe(bits=4, layers={"*.down_proj": {"bits": 8}, "model.layers.0.*": {"group_size": 32}})
    recipes = recipe.of_layers(NAMES)
    assert {name: (r.bits, r.group_size) for name, r in recipes.items()} == {
        "model.layers.0.self_attn.q_proj": (4, 32),
        "model.layers.0.mlp.up_proj": (4, 32),
        "model.layers.0.mlp.down_proj": (8, 32),
        "model.layers.1.self_attn.q_proj": (4, 64),
        "model.layers.1.mlp.up_proj": (4, 64),
        "model.layers.1.mlp.down_proj": (8, 64),
    }
    kept = Recipe(layers={"*.0.*": "float", "*.0.*.up_proj": {"bits": 3}, "*.1.*": {"bits": 2}, "*.1.mlp*": "float"})
    assert {name: r.bits for name, r in kept.of_layers(NAMES).items()} == {
        "model.layers.0.mlp.up_proj": 3,  # the later exception brings it back
        "model.layers.1.self_attn.q_proj": 2,
    }


def test_the_recipe_of_a_layer_is_its_own():
    """It does not contain the exceptions for other layers, nor anything that only those layers need."""
    recipe = Recipe(layers={"*.1.mlp.up_proj": {"method": "gptq"}})
    recipes = recipe.of_layers(NAMES)
    assert all(own.layers == {} for own in recipes.values())
    assert [name for name, own in recipes.items() if own.needs_calibration] == ["model.layers.1.mlp.up_proj"]
    sizes = ("int8", -1, 64), ("fp8", 0, 64), ("nf4", 32, 32), ("fp4", 128, 128), ("rtn", 16, 16)
    for method, group_size, expected in sizes:
        other = Recipe(method, group_size=group_size, layers={"*.down_proj": {"method": "gptq"}}).of_layers(NAMES)
        layer = other["model.layers.0.mlp.down_proj"]
        # Bits, symmetry and the groups of int8 and fp8 belong to these methods. GPTQ only gets chosen group sizes.
        assert (layer.bits, layer.symmetric, layer.group_size) == (4, False, expected)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({"*": {"bits": 1}}, "from 2 to 8"),
        ({"*": {"propagate": True}}, r"'\*' is given \{'propagate': True\}.*dict of what differs: method, bits"),
        ({"*": 8}, "Give 'float' to leave a layer alone"),
        ({"*": {"method": "awq"}}, "AWQ scales whole decoder blocks: choose it for all layers or for none"),
        ({"*.q_proj": {"clip": "output"}}, "clip = 'output' needs inputs"),
    ],
)
def test_exceptions_that_no_layer_can_have(layers, message):
    with pytest.raises(qtutor.QtutorError, match=message):
        Recipe(layers=layers)


def test_a_pattern_that_fits_nothing_is_refused_before_any_work():
    model = tiny()
    with pytest.raises(
        qtutor.QtutorError,
        match=r"no layer is called 'down_proj'.*like model\.layers\.0\.self_attn\.q\S+, \S+, \S+\.v_proj\.$",
    ):
        qtutor.quantize(model, Recipe("gptq", group_size=32, layers={"down_proj": "float"}), some_ids(), progress=False)


@pytest.mark.parametrize("method", METHODS)
def test_layers_of_their_own_width_and_layers_in_float(method):
    model = qtutor.add_outliers(tiny("qwen2"))
    other = {"bits": 8} if METHODS[method].codebook is None else {"method": "rtn", "bits": 8, "group_size": 32}
    layers = {"*.k_proj": other, "*.0.mlp.down_proj": "float", "*.1.self_attn.v_proj": "float"}
    made, report = quantized(model, Recipe(method, layers=layers, **groups_of(method)))
    assert len(report.rows) == 12
    assert type(made.model.layers[0].mlp.down_proj) is nn.Linear
    assert type(made.model.layers[1].self_attn.v_proj) is nn.Linear
    keys = made.model.layers[1].self_attn.k_proj
    assert keys.grid == qtutor.IntGrid(8) and made.model.layers[1].self_attn.q_proj.grid != keys.grid
    errors = {row.name: row.error for row in report.rows}
    assert errors["model.layers.0.self_attn.k_proj"] < 0.02
    coarse, _ = quantized(model, Recipe(bits=2, group_size=32))
    with torch.inference_mode():
        expected, ours, worse = (decoder(some_ids(8, 32, seed=9)).logits for decoder in (model, made, coarse))
    assert (ours - expected).norm() < 0.5 * (worse - expected).norm()


def test_layers_in_float_are_scaled_all_the_same():
    """AWQ divides a layer's inputs and multiplies its weights. A float layer needs both, or its outputs change."""
    model = qtutor.add_outliers(tiny("qwen2"))
    layers = {"*.q_proj": "float", "*.up_proj": "float"}  # one reads a scaled norm; the other is scaled itself
    made, _ = quantized(model, Recipe("awq", bits=8, group_size=32, layers=layers))
    moved = made.model.layers[0].mlp.up_proj.weight != model.model.layers[0].mlp.up_proj.weight
    assert moved.any() and isinstance(made.model.layers[0].mlp.up_proj, nn.Linear)
    difference = (made(some_ids()).logits - model(some_ids()).logits).norm() / model(some_ids()).logits.norm()
    assert difference < 0.01


def test_a_group_of_layers_in_float_is_left_alone_by_awq():
    model = qtutor.add_outliers(tiny())
    made, _ = quantized(model, Recipe("awq", group_size=32, layers={"*self_attn*": "float"}))
    for name in ("input_layernorm.weight", "self_attn.q_proj.weight", "self_attn.o_proj.weight"):
        assert torch.equal(made.model.layers[0].get_parameter(name), model.model.layers[0].get_parameter(name))


def test_one_layer_by_gptq_in_a_model_that_is_rounded_to_nearest():
    recipe = Recipe(bits=3, group_size=32, layers={"*.1.mlp.up_proj": {"method": "gptq"}}, propagate=False)
    assert recipe.needs_calibration
    made, report = quantized(tiny(), recipe)
    nearest, _ = quantized(tiny(), Recipe(bits=3, group_size=32))
    differ = {
        row.name for row in report.rows
        if not torch.equal(made.get_submodule(row.name).packed, nearest.get_submodule(row.name).packed)
    }  # fmt: skip
    assert differ == {"model.layers.1.mlp.up_proj"}
    told = [row.name for row in report.rows if row.output_error is not None]  # gate_proj reads the same input
    assert told == ["model.layers.1.mlp.gate_proj", "model.layers.1.mlp.up_proj"]


def test_everything_that_runs_can_be_switched_off():
    model = qtutor.add_outliers(tiny())
    off = {"propagate": False, "act_order": "none", "clip": "none", "token_weights": False}
    plain, _ = quantized(model, Recipe("gptq", 3, 32, **off))
    for name, value in off.items():
        one_on, _ = quantized(model, Recipe("gptq", 3, 32, **{k: v for k, v in off.items() if k != name}, **(
            {"propagate": True} if name == "propagate" else {})))  # fmt: skip
        packed = [made.model.layers[1].mlp.down_proj.packed for made in (plain, one_on)]
        assert not torch.equal(*packed), (name, value)
    # With all of it off, block 0 equals the result of GPTQ with plain X^T X.
    x = []
    hook = model.model.layers[0].self_attn.q_proj.register_forward_pre_hook(lambda _m, given: x.append(given[0]))
    with torch.no_grad():
        model(some_ids(16, 32))
    hook.remove()
    inputs = x[0].flatten(0, 1).double()
    weight = model.model.layers[0].self_attn.q_proj.weight.detach()
    expected = qtutor.gptq.quantize(weight, inputs.T @ inputs, qtutor.IntGrid(3), 32)
    same = plain.model.layers[0].self_attn.q_proj.quantized().codes == expected.codes
    assert same.float().mean() > 0.99  # a different order of sums may tip a weight that lies half-way


def test_an_exception_for_the_last_layer_changes_no_other():
    """Later layers of a block read what GPTQ made of the earlier ones, whatever the method of the last layer is."""
    recipe, last = Recipe("gptq", 3, 32, propagate=False), "model.layers.1.mlp.down_proj"
    usual, _ = quantized(tiny(), recipe)
    made, _ = quantized(tiny(), replace(recipe, layers={last: {"method": "rtn"}}))
    theirs = made.state_dict()
    same = {name.rpartition(".")[0]: torch.equal(tensor, theirs[name]) for name, tensor in usual.state_dict().items()}
    assert [name for name in same if not same[name]] == [last]


@pytest.mark.parametrize("wide", [32, 1024, None])
@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_how_exactly_a_model_is_multiplied_is_for_the_recipe_to_say(method, wide, monkeypatch):
    seen = set()

    def spy(width, threshold):
        seen.add((width, threshold))
        return products(width, threshold)

    products = stream.products
    monkeypatch.setattr(stream, "products", spy)
    monkeypatch.setattr(scaling, "products", spy)
    quantized(tiny(), Recipe(method, group_size=32, wide=wide))
    assert seen == {(64, wide)}


def test_embeddings_and_the_head_are_rounded_to_nearest_whatever_the_method():
    for method in METHODS:
        made, report = quantized(tiny(), Recipe(method, embeddings=True, lm_head=True, **groups_of(method)))
        assert [row.name for row in report.rows[-2:]] == ["model.embed_tokens", "lm_head"]
        assert isinstance(made.lm_head, Int8Linear) == (method == "int8")
        assert not made.config.tie_word_embeddings and torch.isfinite(made(some_ids()).logits).all()


@pytest.mark.parametrize("options", [{}, {"method": "gptq"}, {"method": "awq", "clip": "none"}])
def test_layers_that_read_the_same_input_share_the_number_for_all_of_nvfp4(options):
    """vLLM joins these layers to one, and uses the largest of their numbers."""
    model = tiny("qwen2")
    with torch.no_grad():
        model.model.layers[0].self_attn.k_proj.weight *= 64
        model.model.layers[1].mlp.up_proj.weight /= 64
    made, _ = quantized(model, Recipe(**options, levels="nvfp4"))
    for block in made.model.layers:
        for layers in ((block.self_attn, ("q_proj", "k_proj", "v_proj")), (block.mlp, ("gate_proj", "up_proj"))):
            found = {getattr(layers[0], name).stored_scales.of_all.item() for name in layers[1]}
            assert len(found) == 1
    first, second = made.model.layers
    assert first.self_attn.q_proj.stored_scales.of_all > 8 * first.self_attn.o_proj.stored_scales.of_all
    exact = model.get_submodule("model.layers.1.mlp.gate_proj").weight
    alone = qtutor.rtn.quantize(exact, Recipe(levels="nvfp4").grid, 16)
    if not options:
        assert torch.equal(second.mlp.gate_proj.quantized().dequantize(), alone.dequantize())


@pytest.mark.parametrize("bits", [4, 4.0, torch.tensor(4), torch.tensor([4.0])[0]])
def test_whole_bits_are_an_int_whatever_they_were_given_as(bits):
    recipe = Recipe(bits=bits)
    assert type(recipe.bits) is int and recipe == Recipe(bits=4)


@pytest.mark.parametrize("name", SWITCHES)
def test_only_propagate_may_be_left_to_the_recipe(name):
    for value in (True, False):
        assert getattr(Recipe(**{name: value}), name) is value
    if name == "propagate":
        assert Recipe(propagate=None).propagate is None
    else:
        with pytest.raises(qtutor.QtutorError, match=rf"^{name} = None: True or False is needed"):
            Recipe(**{name: None})


@pytest.mark.parametrize("clip", ["auto", "none"])
def test_whole_ranges_may_be_asked_for_where_there_are_no_others(clip):
    assert Recipe("nf4", clip=clip).rounder == Recipe("nf4").rounder


def test_an_exception_may_change_all_options_of_a_layer():
    values = {"method": "gptq", "bits": 3, "group_size": 32, "symmetric": True, "clip": "mse", "levels": "integers"}
    values |= {"act_order": "none", "static_groups": True, "damping": 0.1, "double": True}
    assert values.keys() == set(OF_A_LAYER)
    found = Recipe(layers={"b": values}).of_layers(["a", "b"])
    assert found["a"] == Recipe() and found["b"] == Recipe(**values)


def test_what_needs_text_is_named():
    """The part of the recipe that looks at inputs, even if it is meant for some layers only."""
    some = {"*.down_proj": {"method": "gptq"}, "*.0.*": "float"}
    for recipe, why in [
        (Recipe("awq"), "method 'awq'"),
        (Recipe("awq", bits=3.5), "method 'awq'"),
        (Recipe(bits=3.5), "bits = 3.5"),
        (Recipe(target_size=10**6), "target_size"),
        (Recipe(layers=some), "method 'gptq'"),
        (Recipe("nf4", layers=some), "method 'gptq'"),
    ]:
        assert recipe.needs_calibration and recipe.why_text == why
        with pytest.raises(qtutor.QtutorError, match=f"{why} looks at the layers' inputs and needs text"):
            qtutor.quantize(tiny(), recipe, progress=False)


def test_the_recipe_is_saved_and_shown(tmp_path, capsys):
    from qtutor import cli

    recipe = Recipe("gptq", 3, 32, layers={"*.down_proj": {"bits": 8}, "*.0.*.q_proj": "float"})
    made, _ = quantized(tiny(), recipe)
    qtutor.export(made, tmp_path / "out")
    about = json.loads((tmp_path / "out" / "qtutor.json").read_text())
    assert Recipe(**about["recipe"]) == recipe
    assert set(about["recipe"]["layers"]["*.down_proj"]) <= set(OF_A_LAYER)
    again = qtutor.load_quantized(tmp_path / "out", device="cpu")
    qtutor.export(again, tmp_path / "again")
    assert json.loads((tmp_path / "again" / "qtutor.json").read_text())["recipe"] == about["recipe"]
    assert cli.main(["inspect", str(tmp_path / "out")]) == 0
    assert "recipe: method = 'gptq', bits = 3, group_size = 32" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lm_head": "no"}, "lm_head = 'no': True or False"),
        ({"embeddings": 1}, "embeddings = 1: True or False"),
        ({"propagate": "auto"}, "propagate = 'auto': True or False"),
        ({"group_size": True}, "group_size = True: a whole number"),
        ({"group_size": 64.0}, "group_size = 64.0: a whole number"),
        ({"layers": ["*.down_proj"]}, r"layers = \['\*\.down_proj'\]: a dict of exceptions by pattern"),
        ({"layers": {5: "float"}}, "layers = {5: 'float'}: a dict of exceptions by pattern"),
        ({"method": "fp8", "group_size": 32}, "group_size = 32: method 'fp8' has -1 or 0 or 128"),
        ({"method": "fp8", "group_size": 64}, "group_size = 64: method 'fp8' has -1 or 0 or 128"),
        ({"levels": "fp8", "group_size": 64}, "group_size = 64: levels of 'fp8' have -1 or 0 or 128"),
        ({"method": "int8", "group_size": 64}, "group_size = 64: method 'int8' has -1"),
        ({"method": "int8", "group_size": 0}, "group_size = 0: method 'int8' has -1"),
        ({"method": "mxfp4", "group_size": 64}, "group_size = 64: method 'mxfp4' has 32"),
        ({"levels": "nvfp4", "group_size": 32}, "group_size = 32: levels of 'nvfp4' have 16"),
        ({"method": "gptq", "levels": "mxfp4", "group_size": -1}, "group_size = -1: levels of 'mxfp4' have 32"),
        ({"method": "int8", "bits": 4}, "bits = 4: method 'int8' has 8 bits"),
        ({"levels": "fp8", "bits": 4}, "bits = 4: levels of 'fp8' have 8 bits"),
        ({"layers": {"*": {"method": "mxfp4", "group_size": 64}}}, r"layers: '\*': group_size = 64: method 'mxfp4'"),
        ({"method": "fp8", "group_size": (128, 64)}, r"group_size = \(128, 64\): a whole number"),
        ({"group_size": (128, 128)}, r"group_size = \(128, 128\): a whole number"),
    ],
)
def test_options_of_another_kind_are_not_guessed_at(options, message):
    with pytest.raises(qtutor.QtutorError, match=message):
        qtutor.Recipe(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "fp8", "layers": {"*": {"bits": 4}}}, "layers: '\\*': bits = 4: method 'fp8' has 8"),
        ({"method": "nf4", "layers": {"*": {"symmetric": False}}}, "symmetric = False, and method 'nf4' has True"),
        ({"layers": {"*": {"method": "int8", "group_size": 64}}}, "group_size = 64: method 'int8' has -1"),
    ],
)
def test_what_a_method_fixes_is_not_taken_for_something_else(options, message):
    with pytest.raises(qtutor.QtutorError, match=message):
        qtutor.Recipe(**options)


def test_bits_and_groups_that_say_what_a_method_has_anyway():
    """A recipe accepts them, also if it is made from another recipe's ``as_dict()``."""
    own = {"int8": (8, -1), "fp8": (8, -1), "mxfp4": (4, 32), "nvfp4": (4, 16), "nf4": (4, 64)}
    for method, (bits, group_size) in own.items():
        plain = qtutor.Recipe(method)
        assert (plain.bits, plain.group_size) == (bits, group_size)
        assert plain == qtutor.Recipe(method, bits, group_size) == qtutor.Recipe(**plain.as_dict())
    assert (qtutor.Recipe().bits, qtutor.Recipe().group_size) == (4, 64)


def test_an_exception_that_changes_no_levels_keeps_the_groups_of_fp8():
    recipe = qtutor.Recipe("fp8", group_size=0, layers={"a": {"damping": 0.1}})
    assert {one.group_size for one in recipe.of_layers(["a", "b"]).values()} == {0}
    tiles = qtutor.Recipe("fp8", group_size=128, layers={"a": {"damping": 0.1}})
    assert {one.grid for one in tiles.of_layers(["a", "b"]).values()} == {FP8_TILES}


def test_bits_of_the_others_are_not_meant_for_a_method_with_its_own():
    found = qtutor.Recipe(bits=3, layers={"a": {"method": "int8"}, "b": {"levels": "nvfp4"}}).of_layers(["a", "b", "c"])
    assert {name: (one.bits, one.group_size) for name, one in found.items()} == {
        "a": (8, -1),
        "b": (4, 16),
        "c": (3, 64),
    }


def test_a_method_with_sizes_of_its_own_in_a_recipe_with_another():
    recipe = qtutor.Recipe(group_size=32, layers={"a": {"method": "fp8"}, "b": {"method": "fp8", "group_size": 0}})
    tiles = qtutor.Recipe(group_size=128, layers={"a": {"method": "fp8"}, "b": {"method": "fp8", "group_size": 128}})
    assert [one.grid for one in tiles.of_layers(["a", "b"]).values()] == [FP8, FP8_TILES]
    found = recipe.of_layers(["a", "b", "c"])
    assert {name: (one.bits, one.group_size) for name, one in found.items()} == {
        "a": (8, -1),
        "b": (8, 0),
        "c": (4, 32),
    }


@pytest.mark.parametrize(
    ("option", "last", "beyond"),
    [
        ("bits", 2, 1),
        ("bits", 2.001, 1.999),
        ("bits", 8, 9),
        ("bits", 7.999, 8.001),
        ("target_size", 1, 0),
        ("damping", 0, -1e-9),
        ("damping", 1, 1.001),
    ],
)
def test_the_first_and_the_last_number_that_a_recipe_takes(option, last, beyond):
    assert getattr(Recipe(**{option: last}), option) == last
    with pytest.raises(qtutor.QtutorError, match=rf"{option} = {beyond}"):
        Recipe(**{option: beyond})

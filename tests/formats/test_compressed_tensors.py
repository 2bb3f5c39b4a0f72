"""compressed-tensors: bytes packed by hand, round trips of every grid, whole folders, and wrong folders."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qtutor
from qtutor.core.codebooks import INT8
from qtutor.core.float_grid import FP8
from qtutor.formats.compressed_settings import FLOATS, INTEGERS, PACKED
from qtutor.formats.compressed_tensors import FORMAT
from qtutor.formats.foreign import Layout
from qtutor.runtime.fp8 import Fp8Linear
from qtutor.runtime.int8 import Int8Linear
from tests.formats.foreign_folders import (
    check_comes_back,
    edit_settings,
    edit_tensors,
    exported,
    refused,
    round_trip,
    some,
    words,
)
from tests.models import FAMILIES, some_ids
from tests.reference import layouts as slow

RECIPES = [{}, {"bits": 3, "symmetric": True}, {"bits": 5, "group_size": -1}, {"bits": 8, "lm_head": True}]
LAYER, FIRST = "model.layers.1.mlp.up_proj", "model.layers.0.self_attn.q_proj"
MIXED = {"*.down_proj": {"bits": 8, "group_size": 64}, "model.layers.0.*q_proj": "float"}


def wrong(key, value, group=None):
    def change(values):
        (values["config_groups"]["group_0"][group] if group else values)[key] = value

    return change


def test_the_block_of_the_docstring():
    quantized = some(4, True, 1, 8, 8)
    quantized.codes[0] = torch.arange(1, 9)
    packed = FORMAT.encode(quantized, Layout(quantized.grid, 8, PACKED))["weight_packed"]
    assert packed.view(torch.uint8).tolist() == [[0x21, 0x43, 0x65, 0x87]]


@settings(deadline=None, max_examples=60)
@given(
    bits=st.integers(2, 8), symmetric=st.booleans(), rows=st.integers(1, 40), groups=st.integers(1, 5),
    group_size=st.sampled_from([1, 8, 24, -1]), seed=st.integers(0, 99),
)  # fmt: skip
def test_every_grid_comes_back_and_is_packed_as_by_hand(bits, symmetric, rows, groups, group_size, seed):
    columns = groups * abs(group_size) * (7 if group_size == -1 else 1)
    quantized = some(bits, symmetric, rows, columns, group_size, seed)
    tensors = round_trip(FORMAT, quantized, Layout(quantized.grid, group_size, PACKED))
    assert words(tensors["weight_packed"]) == slow.compressed(quantized.codes.tolist(), bits)
    if not symmetric:
        zeros = slow.columns(slow.compressed(quantized.zeros.T.tolist(), bits))
        assert words(tensors["weight_zero_point"]) == zeros


def test_scales_of_others_are_kept_as_they_are():
    """bfloat16 becomes float16 if that is exact, otherwise float32. Nothing is rounded."""
    quantized, layout = some(4, True, 2, 16, 8), Layout(qtutor.IntGrid(4, True), 8, PACKED)
    tensors = FORMAT.encode(quantized, layout)
    for scale, dtype in [(0.0125, torch.float16), (1e-9, torch.float32), (3e5, torch.float32)]:
        exact = torch.full((2, 2), scale, dtype=torch.bfloat16)
        back = FORMAT.decode(tensors | {"weight_scale": exact}, layout, 2, 16)
        assert back.scales.dtype == dtype and torch.equal(back.scales.float(), exact.float())


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_folders_come_back(tmp_path, family, recipe):
    check_comes_back(*exported(tmp_path / "out", "compressed-tensors", family, **recipe))


def test_mixed_bits_are_named_layer_by_layer(tmp_path):
    model, folder = exported(tmp_path / "out", "compressed-tensors", layers=MIXED)
    check_comes_back(model, folder)
    written = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert written["ignore"] == ["model.layers.0.self_attn.q_proj", "lm_head"]
    kinds = {group["weights"]["num_bits"]: group["targets"] for group in written["config_groups"].values()}
    assert kinds[8] == ["model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"] and len(kinds[4]) == 11
    model, folder = exported(tmp_path / "all", "compressed-tensors", symmetric=True)
    written = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert [group["targets"] for group in written["config_groups"].values()] == [["Linear"]]
    assert "dequantize" not in written


def test_int8_comes_back_without_its_threshold(tmp_path):
    with pytest.warns(UserWarning, match="14 int8 layers keep input channels with a value from 6 in float"):
        model, folder = exported(tmp_path / "out", "compressed-tensors", method="int8")
    again = qtutor.load(folder, device="cpu")[0]
    for name, layer in model.named_modules():
        if isinstance(layer, Int8Linear):
            back = again.get_submodule(name)
            assert isinstance(back, Int8Linear) and back.threshold is None
            assert torch.equal(back.packed, layer.packed)
            # A scale was divided by 127 and multiplied again: two roundings of float32.
            assert torch.allclose(back.scales, layer.scales, rtol=2.0**-22, atol=0)
            layer.threshold = None
    exact = model(some_ids()).logits
    assert torch.allclose(again(some_ids()).logits, exact, atol=1e-5 * exact.abs().max().item())
    assert FORMAT.tolerance == 2.0**-22 and INTEGERS in (folder / "config.json").read_text()


@settings(deadline=None, max_examples=40)
@given(rows=st.integers(1, 9), columns=st.integers(1, 40), whole=st.booleans(), seed=st.integers(0, 999))
def test_every_fp8_matrix_comes_back(rows, columns, whole, seed):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    weight[seed % rows] *= 0
    quantized = qtutor.rtn.quantize(weight, FP8, 0 if whole else -1)
    tensors = round_trip(FORMAT, quantized, Layout(FP8, 0 if whole else -1, FLOATS))
    assert tensors["weight_scale"].shape == ((1,) if whole else (rows, 1))
    assert tensors["weight"].view(torch.uint8).tolist() == quantized.codes.tolist()


@pytest.mark.parametrize("recipe", [{}, {"group_size": 0}, {"lm_head": True}])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_fp8_folders_come_back(tmp_path, family, recipe):
    model, folder = exported(tmp_path / "out", "compressed-tensors", family, method="fp8", **recipe)
    check_comes_back(model, folder)
    written = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert written["format"] == "float-quantized"
    (group,) = written["config_groups"].values()
    strategy = "channel" if recipe.get("group_size") is None else "tensor"
    assert (group["weights"]["type"], group["weights"]["strategy"]) == ("float", strategy)
    assert group["input_activations"] == {
        "num_bits": 8, "type": "float", "symmetric": True, "strategy": "token", "group_size": None, "dynamic": True
    }  # fmt: skip


def test_scales_of_others_for_fp8(tmp_path):
    """llm-compressor stores them in the model's dtype. In older files, the scale of a whole tensor has the shape ()."""
    model, folder = exported(tmp_path / "out", "compressed-tensors", method="fp8", group_size=0)

    def theirs(tensors):
        for name in [name for name in tensors if name.endswith("weight_scale")]:
            tensors[name] = tensors[name].bfloat16().reshape(())

    edit_tensors(folder, theirs)
    again = qtutor.load(folder, device="cpu")[0]
    for name, layer in model.named_modules():
        if isinstance(layer, Fp8Linear):
            back = again.get_submodule(name)
            assert torch.equal(back.packed, layer.packed) and back.scales.dtype == torch.float32
            assert torch.equal(back.scales, layer.scales.bfloat16().float())


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (wrong("num_bits", 4, "weights"), ["the format 'float-quantized' of 4 bits float"]),
        (
            lambda v: v["config_groups"]["group_0"]["weights"].update(strategy="group", group_size=32),
            ["the format 'float-quantized' of 8 bits float, strategy 'group'"],
        ),
        (wrong("type", "int", "weights"), ["the format 'float-quantized' of 8 bits int"]),
        (wrong("strategy", "block", "weights"), ["strategy 'block' of None with inputs", "by block of 128 x 128"]),
        (
            wrong("strategy", ["channel"], "weights"),
            ["strategy ['channel']", "qtutor reads scales by group, channel or"],
        ),
        (
            lambda v: v["config_groups"]["group_0"].update(output_activations={"num_bits": 8, "type": "float"}),
            ["outputs are rounded as well (output_activations)"],
        ),
        (wrong("symmetric", False, "weights"), ["the format 'float-quantized'"]),
        (wrong("format", "int-quantized"), ["the format 'int-quantized' of 8 bits float"]),
        (wrong("format", "pack-quantized"), ["the format 'pack-quantized' of 8 bits float"]),
        (
            lambda v: v["config_groups"]["group_0"].update(input_activations=None),
            ["the format 'float-quantized' of 8 bits float, strategy 'channel', with inputs None is not read here"],
        ),
        (
            lambda v: v["config_groups"]["group_0"]["input_activations"].update(dynamic=False, strategy="tensor"),
            ["with inputs {", "rounded token by token as they come"],
        ),
        (
            wrong("strategy", "tensor", "weights"),
            [f"{FIRST}: weight_scale is [64, 1], and the strategy 'tensor' has one"],
        ),
    ],
)
def test_settings_of_fp8_that_are_wrong(tmp_path, change, parts):
    folder = exported(tmp_path / "out", "compressed-tensors", method="fp8")[1]
    edit_settings(folder, change)
    refused(folder, *parts)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (
            lambda t: t[f"{LAYER}.weight"].view(torch.uint8)[3].fill_(0x7F),
            [f"{LAYER}.weight", "64 numbers that are NaN"],
        ),
        (lambda t: t[f"{LAYER}.weight_scale"].fill_(float("inf")), [f"{LAYER}.weight_scale", "infinite"]),
        (
            lambda t: t.update({f"{LAYER}.weight": t[f"{LAYER}.weight"].view(torch.uint8)}),
            [f"{LAYER}.weight is U8 [128, 64], expected F8_E4M3 [128, 64]"],
        ),
        (lambda t: t.pop(f"{LAYER}.weight_scale"), [f"{LAYER}.weight_scale is missing"]),
    ],
)
def test_tensors_of_fp8_that_are_wrong(tmp_path, change, parts):
    folder = exported(tmp_path / "out", "compressed-tensors", method="fp8")[1]
    edit_tensors(folder, change)
    refused(folder, *parts)


def test_what_holds_no_fp8_says_what_does(tmp_path):
    for form in ("gptq", "awq"):
        with pytest.raises(qtutor.QtutorError, match=r"q_proj has the levels of fp8, .*take 'compressed-tensors'"):
            exported(tmp_path / "out", form, method="fp8")
    with pytest.raises(
        qtutor.QtutorError, match=r"q_proj has fp8, .* holds nf4, fp4 and int8: take 'compressed-tensors'"
    ):
        exported(tmp_path / "out", "bitsandbytes", method="fp8")
    assert not list(tmp_path.iterdir())


def test_a_mixture_of_int8_and_4_bits_says_so_for_each_group(tmp_path):
    with pytest.warns(UserWarning, match="2 int8 layers"):
        folder = exported(tmp_path / "out", "compressed-tensors", layers={"*.down_proj": {"method": "int8"}})[1]
    again = qtutor.load(folder, device="cpu")[0]
    assert again.model.layers[1].mlp.down_proj.grid == INT8 and again.model.layers[1].mlp.up_proj.grid.bits == 4
    assert json.loads((folder / "config.json").read_text())["quantization_config"]["format"] == "mixed-precision"


def test_settings_of_others_are_understood(tmp_path):
    """Patterns, ignored patterns, keys that llm-compressor writes, a layer that is float without being ignored."""
    model, folder = exported(tmp_path / "out", "compressed-tensors", layers={"*.0.*v_proj": "float"})

    def theirs(values):
        group = values["config_groups"]["group_0"]
        group["targets"] = ["re:model.layers.[0-9]+.(self_attn|mlp).*_proj$"]
        group["weights"] |= {"observer": "minmax", "observer_kwargs": {}, "actorder": "weight", "block_structure": None}
        values |= {"ignore": ["re:.*lm_head"], "kv_cache_scheme": None, "sparsity_config": {}, "version": "0.12.2"}

    edit_settings(folder, theirs)
    check_comes_back(model, folder)
    edit_settings(folder, lambda values: values["config_groups"]["group_0"].update(targets=["Linear"]))
    check_comes_back(model, folder)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (wrong("config_groups", {}), ["config_groups is {}"]),
        (wrong("config_groups", {"group_0": 3}), ["'group_0' is 3"]),
        (wrong("num_bits", 9, "weights"), ["num_bits is 9; expected 2 to 8"]),
        (wrong("num_bits", "4", "weights"), ["num_bits is '4'"]),
        (wrong("group_size", 48, "weights"), ["groups of 48 do not divide rows of 64"]),
        (wrong("group_size", 0, "weights"), ["group_size is 0"]),
        (
            wrong("group_size", 64, "weights"),
            ["q_proj.weight_scale is F16 [64, 2], expected F16 or BF16 or F32 [64, 1]"],
        ),
        (wrong("symmetric", 1, "weights"), ["symmetric is 1"]),
        (wrong("type", "float", "weights"), ["'pack-quantized' of 4 bits float, strategy 'group'", "is not read here"]),
        (
            wrong("type", "text", "weights"),
            ["weights are 'text'", "qtutor reads 'pack-quantized' (integers of 2 to 8 bits)"],
        ),
        (wrong("dynamic", True, "weights"), ["weights are 'int', dynamic True"]),
        (wrong("strategy", "tensor", "weights"), ["strategy 'tensor'"]),
        (wrong("actorder", "group", "weights"), ["actorder 'group'"]),
        (wrong("format", "nvfp4-pack-quantized"), ["'nvfp4-pack-quantized'"]),
        (wrong("transform_config", {"config_groups": {}}), ["transform_config"]),
        (wrong("ignore", "lm_head"), ["ignore is 'lm_head'"]),
        (
            lambda v: v["config_groups"]["group_0"].update(targets=["model.layers.7.mlp.up_proj"]),
            ["layers.7.mlp.up_proj"],
        ),
        (
            lambda v: v["config_groups"]["group_0"].update(targets=["re:(a+)+$"]),
            ["the pattern '(a+)+$'", "repeats too much"],
        ),
        (lambda v: v["config_groups"]["group_0"].update(targets=["re:["]), ["the pattern '['"]),
        (lambda v: v.update(quant_method="quark"), ["quantized by 'quark', which is not read here"]),
        (lambda v: v.pop("quant_method"), ["quantized by None"]),
    ],
)
def test_settings_that_are_wrong(tmp_path, change, parts):
    folder = exported(tmp_path / "out", "compressed-tensors")[1]
    edit_settings(folder, change)
    refused(folder, *parts)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda t: t.pop(f"{LAYER}.weight_scale"), [f"{LAYER}.weight_scale is missing"]),
        (lambda t: t.pop(f"{LAYER}.weight_packed"), [f"{LAYER}.weight_packed is missing"]),
        (
            lambda t: t.update({f"{LAYER}.weight_packed": t[f"{LAYER}.weight_packed"][:, :7]}),
            ["I32 [128, 7], expected"],
        ),
        (
            lambda t: t.update({f"{LAYER}.weight_scale": t[f"{LAYER}.weight_scale"].double()}),
            ["F64 [128, 2], expected"],
        ),
        (
            lambda t: t[f"{LAYER}.weight_scale"].fill_(float("nan")),
            [f"{LAYER}.weight_scale", "256 numbers that are NaN"],
        ),
        (lambda t: t[f"{LAYER}.weight_shape"].fill_(3), [LAYER, "weight_shape is [3, 3], and the layer is [128, 64]"]),
        (
            lambda t: t.update({"model.layers.9.mlp.up_proj.weight_packed": torch.zeros(1)}),
            ["there are 3 blocks, and its config says 2"],
        ),
        (lambda t: t.update({"model.extra.weight": torch.zeros(1)}), ["not expected: model.extra.weight"]),
        (lambda t: t.pop("model.norm.weight"), ["missing: model.norm.weight"]),
        (
            lambda t: [t.pop(name) for name in list(t) if ".weight_" in name],
            ["quantized by compressed-tensors, but there is no such layer"],
        ),
    ],
)
def test_tensors_that_are_wrong(tmp_path, change, parts):
    folder = exported(tmp_path / "out", "compressed-tensors")[1]
    edit_tensors(folder, change)
    refused(folder, *parts)


def test_a_truncated_file_is_named(tmp_path):
    folder = exported(tmp_path / "out", "compressed-tensors")[1]
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    refused(folder, "model.safetensors", "truncated")


def test_codes_that_are_not_evenly_spaced_are_sent_elsewhere(tmp_path):
    with pytest.raises(qtutor.QtutorError, match=r"q_proj has the levels of nf4, .*take 'bitsandbytes'"):
        exported(tmp_path / "out", "compressed-tensors", method="nf4")
    assert not list(tmp_path.iterdir())

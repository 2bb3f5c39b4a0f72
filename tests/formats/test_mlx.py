"""MLX's affine layout: a word packed by hand, round trips of every grid, both copies of settings, wrong folders."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import qtutor
from qtutor.core.grid import IntGrid
from qtutor.formats.foreign import Layout, resolved_zeros
from qtutor.formats.mlx import BITS, FORMAT, GROUPS
from tests.formats.foreign_folders import check_comes_back, edit_tensors, exported, refused, round_trip, some, words
from tests.models import FAMILIES
from tests.reference import layouts as slow

UP = "model.layers.0.mlp.up_proj"


def edit_both(folder, change) -> None:
    """Like edit_settings, but in both places of MLX's settings."""
    path = folder / "config.json"
    values = json.loads(path.read_text())
    for key in ("quantization", "quantization_config"):
        change(values[key])
    path.write_text(json.dumps(values))


def edit_config(folder, change) -> None:
    path = folder / "config.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def decoded(tensors, layout: Layout, rows: int, columns: int):
    return FORMAT.decode(tensors, layout, rows, columns)


def test_the_word_and_the_group_of_the_docstring():
    quantized = some(4, False, 1, 32, 32)
    quantized.codes[0, :8] = torch.arange(1, 9)
    quantized.scales[:], quantized.zeros[:] = 0.5, 3
    tensors = FORMAT.encode(quantized, Layout(quantized.grid, 32))
    assert words(tensors["weight"].view(torch.int32))[0][0] == 0x87654321
    assert tensors["biases"].tolist() == [[-1.5]] and tensors["scales"].tolist() == [[0.5]]


@settings(deadline=None, max_examples=60)
@given(
    bits=st.sampled_from(BITS), symmetric=st.booleans(), rows=st.integers(1, 9), groups=st.integers(1, 3),
    group_size=st.sampled_from(GROUPS), seed=st.integers(0, 99),
)  # fmt: skip
def test_every_grid_comes_back_and_is_packed_as_by_hand(bits, symmetric, rows, groups, group_size, seed):
    quantized = some(bits, symmetric, rows, groups * group_size, group_size, seed)
    tensors = round_trip(FORMAT, quantized, Layout(IntGrid(bits), group_size))
    assert words(tensors["weight"].view(torch.int32)) == slow.compressed(quantized.codes.tolist(), bits)
    scales, biases = (tensors[kind].repeat_interleave(group_size, 1) for kind in ("scales", "biases"))
    assert torch.equal(scales * quantized.codes + biases, quantized.dequantize())  # in float32, as MLX computes


@settings(deadline=None, max_examples=40)
@given(bits=st.sampled_from(BITS), seed=st.integers(0, 999))
def test_scales_below_zero_stand_for_the_same_weights(bits, seed):
    """MLX counts from the end of a group's range that is farther from 0. For the upper end, scales are negative."""
    quantized = some(bits, False, 4, 64, 32, seed)
    tensors = FORMAT.encode(quantized, Layout(quantized.grid, 32))
    scales, biases = tensors["scales"], tensors["biases"]
    down = torch.rand(scales.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    largest = 2**bits - 1
    turned = quantized.codes.reshape(4, 2, 32)
    turned = torch.where(down[..., None], largest - turned, turned).reshape(4, 64)
    codes = FORMAT.encode(qtutor.QuantizedTensor(turned, *parts(quantized)), Layout(quantized.grid, 32))["weight"]
    other = {
        "weight": codes,
        "scales": torch.where(down, -scales, scales),
        "biases": torch.where(down, biases + largest * scales, biases),
    }
    back = decoded(other, Layout(quantized.grid, 32), 4, 64)
    assert torch.equal(back.dequantize(), quantized.dequantize()) and (back.scales >= 0).all()
    assert torch.equal(back.codes, quantized.codes) and torch.equal(back.zeros, quantized.zeros)


def parts(quantized):
    return quantized.scales, quantized.zeros, quantized.grid, quantized.group_size


def test_16_bits_hold_a_symmetric_layer_and_not_the_biases_of_others():
    """A bias of 8 steps is exact in 16 bits. Most other biases are rounded, so they are not whole numbers of steps."""
    layout = Layout(IntGrid(4), 64)
    even, uneven = (some(4, symmetric, 8, 128, 64) for symmetric in (True, False))
    for quantized in (even, uneven):
        tensors = FORMAT.encode(quantized, layout)
        tensors |= {kind: tensors[kind].half() for kind in ("scales", "biases")}
        if quantized is even:
            back = decoded(tensors, layout, 8, 128)
            assert torch.equal(back.codes, even.codes) and torch.equal(back.zeros, resolved_zeros(even))
        else:
            with pytest.raises(qtutor.QtutorError, match=r"of 16 groups have biases that match no zero point"):
                decoded(tensors, layout, 8, 128)


@pytest.mark.parametrize("zero", [-1, 16])
def test_a_zero_point_beyond_the_codes_is_refused(zero):
    """Such a zero point comes from a group whose weights are all on one side of 0 and far from it."""
    tensors = FORMAT.encode(some(4, False, 2, 32, 32), Layout(IntGrid(4), 32))
    tensors["biases"] = -zero * tensors["scales"]
    with pytest.raises(qtutor.QtutorError, match="2 of 2 groups have biases"):
        decoded(tensors, Layout(IntGrid(4), 32), 2, 32)


@pytest.mark.parametrize("recipe", [{}, {"bits": 3, "symmetric": True, "layers": {"*.1.*up_proj": "float"}}])
@pytest.mark.parametrize("family", FAMILIES)
def test_folders_come_back(tmp_path, family, recipe):
    check_comes_back(*exported(tmp_path / "out", "mlx", family, **recipe))


def test_both_copies_of_the_settings_are_those_that_mlx_lm_writes(tmp_path):
    """mlx-lm 0.32.2, quantize_model and load_model in mlx_lm/utils.py: layers that differ have their own keys."""
    model, folder = exported(tmp_path / "out", "mlx", layers={UP: {"bits": 8}, "*.1.*q_proj": {"group_size": 64}})
    values = json.loads((folder / "config.json").read_text())
    plain = {
        **{"group_size": 32, "bits": 4, "mode": "affine", UP: {"group_size": 32, "bits": 8}},
        "model.layers.1.self_attn.q_proj": {"group_size": 64, "bits": 4},
    }
    assert values["quantization"] == plain and values["quantization_config"] == {"quant_method": "mlx", **plain}
    stored = load_file(folder / "model.safetensors")
    assert {stored[f"{UP}.{kind}"].dtype for kind in ("scales", "biases")} == {torch.float32}
    assert stored[f"{UP}.weight"].dtype == torch.uint32
    check_comes_back(model, folder)
    # mlx-lm's conversions have no quant_method. Older ones have only one of the two copies, and no mode.
    edit_config(folder, lambda values: values["quantization_config"].pop("quant_method"))
    check_comes_back(model, folder)
    edit_config(folder, lambda values: (values.pop("quantization_config"), values["quantization"].pop("mode")))
    check_comes_back(model, folder)
    assert not hasattr(qtutor.load(folder, device="cpu")[0].config, "quantization")  # otherwise an export would keep it


def test_layers_with_dead_groups_are_written(tmp_path):
    """If a scale is 0, all weights of its group are 0, whatever the zero point is."""
    model = exported(tmp_path / "out", "gptq")[0]
    layer = model.get_submodule(UP)
    layer.scales[3] = 0
    folder = qtutor.export(model, tmp_path / "out", "mlx")
    back = qtutor.load_quantized(folder, device="cpu").get_submodule(UP).quantized()
    assert torch.equal(back.dequantize(), layer.quantized().dequantize()) and (back.scales[3] == 0).all()


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"bits": 7}, "q_proj has 7 bits, and the format 'mlx' holds 2, 3, 4, 5, 6, 8"),
        ({"group_size": -1}, "q_proj has one scale a row, and the format 'mlx' holds groups of 32, 64 or 128"),
        ({"group_size": 16}, "q_proj has groups of 16"),
        ({"method": "nf4"}, "q_proj has the levels of nf4"),
    ],
)
def test_what_it_cannot_hold_is_sent_elsewhere(tmp_path, recipe, message):
    with pytest.raises(qtutor.QtutorError, match=message):
        exported(tmp_path / "out", "mlx", **recipe)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"bits": 7}, ["bits is 7; expected 2, 3, 4, 5, 6 or 8"]),
        ({"mode": "mxfp4"}, ["mode is 'mxfp4'; expected 'affine'"]),
        ({"group_size": 16}, ["group_size is 16; expected 32, 64 or 128"]),
        ({"group_size": 64}, ["scales is F32 [64, 2], expected F16 or BF16 or F32 [64, 1]"]),
        ({UP: 3}, [f"{UP} is 3; expected its bits and group_size, or false"]),
        ({UP: {"bits": "4"}}, [f"{UP}: bits is '4'"]),
        ({UP: False}, ["not expected", f"{UP}.biases"]),
    ],
)
def test_settings_that_are_wrong(tmp_path, change, parts):
    folder = exported(tmp_path / "out", "mlx")[1]
    edit_both(folder, lambda values: values.update(change))
    refused(folder, *parts)


def test_copies_of_the_settings_that_differ(tmp_path):
    folder = exported(tmp_path / "out", "mlx")[1]
    edit_config(folder, lambda values: values["quantization"].update(bits=8))
    refused(folder, "quantization_config differs from quantization, which is the one that MLX looks at")


def test_tensors_that_are_wrong(tmp_path):
    folder = exported(tmp_path / "out", "mlx")[1]
    edit_tensors(folder, lambda tensors: tensors[f"{UP}.biases"].add_(1e-3))
    refused(folder, f"{UP}: ", "groups have biases that match no zero point")
    edit_tensors(folder, lambda tensors: tensors.pop(f"{UP}.biases"))
    refused(folder, f"{UP}.biases is missing")


def test_an_embedding_that_mlx_packed_is_named(tmp_path):
    folder = exported(tmp_path / "out", "mlx")[1]
    more = {f"model.embed_tokens.{kind}": torch.ones(24, 2) for kind in ("scales", "biases")}
    edit_tensors(folder, lambda tensors: tensors.update(more))
    refused(folder, "not expected", "model.embed_tokens.biases")

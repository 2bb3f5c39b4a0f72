"""FP8 with one scale per block of 128 x 128 weights: scales by hand, writing and reading, the output of a layer."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import linear

import qtutor
from qtutor import Recipe, awq, gptq, rtn
from qtutor.core.float_grid import FP8_TILES
from qtutor.core.float_scales import TileScales
from qtutor.decoder.text import calibration_tokens
from qtutor.formats.compressed_settings import FLOATS, scheme
from qtutor.formats.compressed_tensors import FORMAT
from qtutor.formats.foreign import Layout
from qtutor.runtime.fp8 import Fp8Linear
from tests.formats.foreign_folders import edit_settings, exported, refused, round_trip
from tests.models import tiny

LAYER = "model.layers.0.self_attn.q_proj"


def some(rows: int, columns: int, seed: int = 0, size: float = 0.02) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * size


@settings(deadline=None, max_examples=20)
@given(rows=st.sampled_from([1, 127, 128, 129, 300]), blocks=st.integers(1, 3), seed=st.integers(0, 999))
def test_a_scale_is_the_largest_weight_of_its_block(rows, blocks, seed):
    weight = some(rows, 128 * blocks, seed)
    weight[-1] *= 5
    made = rtn.quantize(weight, FP8_TILES, 128)
    assert made.scales.shape == (rows, blocks) and made.stored_scales.tiles.shape == (-(-rows // 128), blocks)
    expected = torch.empty_like(weight)
    for row in range(0, rows, 128):
        for column in range(0, 128 * blocks, 128):
            block = weight[row : row + 128, column : column + 128]
            scale = block.abs().max() / 448
            assert made.stored_scales.tiles[row // 128, column // 128] == scale
            levels = (block / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float()
            expected[row : row + 128, column : column + 128] = scale * levels
    assert torch.equal(made.dequantize(), expected)
    assert made.nbytes == weight.numel() + 4 * made.stored_scales.tiles.numel()
    some_rows = torch.tensor([rows - 1, 0])
    assert torch.equal(made.stored_scales.rows(some_rows), made.scales[some_rows])
    round_trip(FORMAT, made, Layout(FP8_TILES, 128, FLOATS))


def test_parts_of_whole_blocks_can_be_split():
    made = rtn.quantize(some(300, 128), FP8_TILES, 128)
    first, second = made.split([256, 44])
    assert torch.equal(torch.cat([first.dequantize(), second.dequantize()]), made.dequantize())
    with pytest.raises(qtutor.QtutorError, match="128 of them share a scale"):
        made.split([100, 200])


def test_a_layer_rounds_its_inputs_in_groups_of_128():
    weight, x = some(130, 256, 1), some(5, 256, 2, 1.0)
    x[:, 200] *= 30  # an outlier makes only the second group of a token coarse
    layer = Fp8Linear.from_quantized(rtn.quantize(weight, FP8_TILES, 128))
    groups = x.reshape(5, 2, 128)
    scale = groups.abs().amax(-1, keepdim=True) / 448
    rounded = ((groups / scale).to(torch.float8_e4m3fn).float() * scale).reshape(5, 256)
    assert torch.allclose(layer(x), linear(rounded, layer.dequantized()), atol=1e-5)
    assert not torch.allclose(layer(x), linear(x, layer.dequantized()), atol=1e-3)
    x.requires_grad_()
    layer(x).sum().backward()
    assert torch.allclose(x.grad, layer.dequantized().sum(0).expand_as(x), atol=1e-5)


@pytest.mark.parametrize("form", ["qtutor", "compressed-tensors"])
def test_folders_come_back(tmp_path, form):
    model, tokenizer = qtutor.load_decoder(device="cpu")
    qtutor.quantize(model, Recipe("fp8", group_size=(128, 128)), progress=False)
    layer = model.get_submodule(LAYER)
    assert isinstance(layer, Fp8Linear) and layer.scale_tiles.shape == (2, 2)
    folder = qtutor.export(model, tmp_path / "out", form, tokenizer)
    again, _ = qtutor.load(folder, device="cpu")
    for name, module in model.named_modules():
        if isinstance(module, Fp8Linear):
            back = again.get_submodule(name)
            assert type(back) is Fp8Linear and back.grid == FP8_TILES and isinstance(back.stored_scales, TileScales)
            assert torch.equal(back.quantized().dequantize(), module.quantized().dequantize())
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        assert torch.equal(again(ids).logits, model(ids).logits)


def weights_with(key: str, value):
    return lambda values: values["config_groups"]["group_0"]["weights"].update({key: value})


def test_settings_are_those_of_fp8_block_and_others_are_refused(tmp_path):
    model, tokenizer = qtutor.load_decoder(device="cpu")
    qtutor.quantize(model, Recipe("fp8", group_size=128), progress=False)
    folder = qtutor.export(model, tmp_path / "out", "compressed-tensors", tokenizer)
    group = json.loads((folder / "config.json").read_text())["quantization_config"]["config_groups"]["group_0"]
    assert (group["weights"]["strategy"], group["weights"]["block_structure"]) == ("block", [128, 128])
    inputs = group["input_activations"]
    assert (inputs["strategy"], inputs["group_size"], inputs["dynamic"]) == ("group", 128, True)
    for key, value in (("block_structure", [64, 128]), ("num_bits", 4), ("type", "int")):
        edit_settings(folder, weights_with(key, value))
        refused(folder, "is not read here")
        edit_settings(folder, weights_with(key, group["weights"][key]))
    edit_settings(folder, lambda values: values["config_groups"]["group_0"]["input_activations"].update(group_size=64))
    refused(folder, "strategy 'block' of [128, 128] with inputs")


def test_a_width_without_whole_blocks_is_refused():
    with pytest.raises(qtutor.QtutorError, match="groups of 128 do not divide rows of 192"):
        rtn.quantize(some(4, 192), FP8_TILES, 128)


def test_a_folder_whose_widths_have_no_whole_blocks_is_refused(tmp_path):
    """llm-compressor's FP8_BLOCK writes such folders. transformers 5.23 loads them, but has no groups of 128 inputs."""
    folder = exported(tmp_path / "out", "compressed-tensors", method="fp8")[1]
    group = {"targets": ["Linear"], **scheme(Layout(FP8_TILES, 128, FLOATS))}
    edit_settings(folder, lambda values: values["config_groups"].update(group_0=group))
    refused(folder, "q_proj: its rows have 64 weights, and FP8 in blocks of 128 x 128", "no engine runs such a layer")


@pytest.mark.parametrize("rows", [128, 384])
def test_transformers_own_decoder_of_such_blocks_comes_to_the_same_weights(rows):
    """The decoder of DeepSeek's files (quant_method "fp8") divides a matrix evenly, so all blocks are whole here."""
    decoder = pytest.importorskip("transformers.integrations.finegrained_fp8").Fp8Dequantize(None)
    made = rtn.quantize(some(rows, 256), FP8_TILES, 128)
    values = made.codes.view(torch.float8_e4m3fn)
    theirs = decoder._dequantize_one(values, made.stored_scales.tiles)
    assert torch.equal(theirs.float(), made.dequantize())


def test_a_layer_whose_width_has_no_whole_blocks_is_named_before_the_work():
    model, ids = tiny(), torch.zeros(1, 8, dtype=torch.long)  # 64 wide
    before = model(ids).logits
    with pytest.raises(
        qtutor.QtutorError, match=r"layers\.0\.self_attn\.q_proj: groups of 128 do not divide rows of 64"
    ):
        qtutor.quantize(model, Recipe("fp8", group_size=128), progress=False)
    assert torch.equal(model(ids).logits, before)
    report = qtutor.quantize(model, Recipe("fp8", group_size=128, layers={"*_proj": {"group_size": -1},
                             "*.down_proj": {"group_size": 128}}), progress=False)  # fmt: skip
    kinds = {row.name.rpartition(".")[2]: model.get_submodule(row.name).group_size for row in report.rows}
    assert kinds["down_proj"] == 128 and kinds["q_proj"] == -1


@pytest.mark.parametrize("rows", [130, 256])
def test_gptq_rounds_to_tiles(rows):
    """The output is better than with rounding to nearest, a block has one scale, and the format returns the same."""
    weight, x = some(rows, 256), some(2048, 256, 1, 1.0) * torch.linspace(0.1, 3, 256)
    made = gptq.quantize(weight, x.T @ x, FP8_TILES, 128)
    nearest = rtn.quantize(weight, FP8_TILES, 128)
    off = [((back.dequantize() - weight) @ x.T).norm() for back in (made, nearest)]
    assert off[0] < 0.99 * off[1]
    assert torch.equal(made.scales, made.stored_scales.tiles.repeat_interleave(128, dim=0)[:rows])
    round_trip(FORMAT, made, Layout(FP8_TILES, 128, FLOATS))


def test_ranges_of_tiles_are_not_narrowed():
    weight, hessian = some(256, 128), torch.eye(128)
    for make in (
        lambda: rtn.quantize(weight, FP8_TILES, 128, clip="mse"),
        lambda: gptq.quantize(weight, hessian, FP8_TILES, 128, clip="output"),
        lambda: awq.quantize(weight, hessian, FP8_TILES, 128),
    ):
        with pytest.raises(qtutor.QtutorError, match=r"a scale among 128 rows.*clip='none'"):
            make()


@pytest.mark.parametrize("method", ["rtn", "gptq", "awq"])
def test_methods_that_read_text_run_on_tiles_and_their_folders_come_back(tmp_path, method):
    model, tokenizer = qtutor.load_decoder(device="cpu")
    recipe = Recipe(method, levels="fp8", group_size=(128, 128))
    assert recipe.grid == FP8_TILES and recipe.group_size == 128 and recipe.rounder.clip == "none"
    texts = calibration_tokens(2, 128) if recipe.needs_calibration else None
    qtutor.quantize(model, recipe, texts, progress=False)
    folder = qtutor.export(model, tmp_path / "out", "compressed-tensors", tokenizer)
    again, _ = qtutor.load(folder, device="cpu")
    ids = calibration_tokens(2, 32)
    with torch.inference_mode():
        assert torch.equal(again(ids).logits, model(ids).logits)


def test_a_range_cannot_be_asked_for_in_a_recipe_either():
    with pytest.raises(qtutor.QtutorError, match="a scale for 128 x 128 weights takes every group's whole range"):
        Recipe("gptq", levels="fp8", group_size=128, clip="output")

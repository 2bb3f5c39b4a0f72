"""Each format's own library decodes our files to exactly our weights."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

import qtutor
from qtutor.core.codebooks import INT8, NF4
from qtutor.core.float_grid import FP8, FP8_TILES, MXFP4, NVFP4
from qtutor.formats import awq, bitsandbytes, compressed_settings, compressed_tensors, gptq, mlx, modelopt
from qtutor.formats.foreign import Layout
from qtutor.methods import bnb
from tests.engines.matrices import encoded, matrix

GRIDS = [(bits, symmetric) for bits in range(2, 9) for symmetric in (True, False)]
# Some rows and columns do not fill whole words. The last shape has one scale per row.
SHAPES = [(64, 128, 32), (7, 40, 8), (33, 96, -1)]


@pytest.mark.parametrize(("bits", "symmetric"), GRIDS)
@pytest.mark.parametrize(("rows", "columns", "group_size"), SHAPES)
def test_compressed_tensors_unpacks_our_weights_and_packs_our_bytes(bits, symmetric, rows, columns, group_size):
    base = pytest.importorskip("compressed_tensors.compressors.pack_quantized.base")
    from compressed_tensors.quantization import QuantizationScheme

    quantized = matrix(bits, symmetric, group_size, rows, columns)
    layout = Layout(quantized.grid, group_size, compressed_tensors.PACKED)
    scheme = QuantizationScheme(targets=["Linear"], **compressed_settings.scheme(layout))
    tensors = encoded(compressed_tensors.FORMAT, quantized, layout)
    compressor = base.PackedQuantizationCompressor
    for dtype in (torch.float16, torch.float32):
        state = tensors | {"weight_scale": quantized.scales.to(dtype)}
        assert torch.equal(compressor.decompress(state, scheme)["weight"], quantized.dequantize(dtype))
    state = {"weight": quantized.dequantize(), "weight_scale": quantized.scales.float()}
    if not symmetric:
        state["weight_zero_point"] = (quantized.zeros.short() - quantized.grid.middle).to(torch.int8)
    packed = compressor.compress(state, scheme)
    for name in tensors.keys() - {"weight_scale"}:
        assert torch.equal(packed[name], tensors[name]), name


def test_compressed_tensors_decodes_int8():
    base = pytest.importorskip("compressed_tensors.compressors.naive_quantized.base")
    from compressed_tensors.quantization import QuantizationScheme

    quantized = bnb.quantize(torch.randn(48, 64, generator=torch.Generator().manual_seed(0)), INT8)
    layout = Layout(INT8, -1, compressed_tensors.INTEGERS)
    scheme = QuantizationScheme(targets=["Linear"], **compressed_settings.scheme(layout))
    assert base.IntQuantizationCompressor.can_compress(torch.nn.Linear, scheme)
    state = encoded(compressed_tensors.FORMAT, quantized, layout)
    back = base.IntQuantizationCompressor.decompress(state, scheme)["weight"]
    # The library computes absmax / 127 * code, our grid absmax * (code / 127): each rounds twice in float32.
    assert torch.allclose(back, quantized.dequantize(), rtol=2.0**-22, atol=0)


@pytest.mark.parametrize("bits", gptq.BITS)
@pytest.mark.parametrize(("symmetric", "version"), [(True, 1), (True, 2), (False, 1), (False, 2)])
@pytest.mark.parametrize("group_size", [32, -1])
def test_gptqmodel_decodes_our_weights(bits, symmetric, version, group_size):
    pytest.importorskip("gptqmodel")
    quantized = matrix(bits, symmetric, group_size)
    if not symmetric and version == 1:
        quantized.zeros.clamp_(min=1)  # version 1 cannot store 0
    layout = Layout(quantized.grid, group_size, gptq.VERSIONS[version])
    back = by_gptqmodel(encoded(gptq.FORMAT, quantized, layout), layout)
    assert torch.equal(back, quantized.dequantize(torch.float16))


def by_gptqmodel(tensors: dict[str, torch.Tensor], layout: Layout) -> torch.Tensor:
    """The weights that gptqmodel decodes from a layer's ``tensors``, float16 ``[64, 128]``."""
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.utils.model import convert_gptq_v1_to_v2_format_module

    bits, symmetric = layout.grid.bits, layout.grid.symmetric
    layer = TorchLinear(bits, layout.group_size, symmetric, layout.ordered, 128, 64, False, register_buffers=True)
    layer.load_state_dict(tensors)
    if layout.kind == gptq.FIRST:
        convert_gptq_v1_to_v2_format_module(layer, bits=bits, pack_dtype=torch.int32)
    layer.optimized = True  # otherwise it is compiled first
    layer.post_init()
    return layer.dequantize_weight().T


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_zero_point_of_0_in_version_1_is_read_as_gptqmodel_writes_it(bits):
    pytest.importorskip("gptqmodel")
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.quantization.config import QuantizeConfig
    from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module

    quantized = matrix(bits, False, 32)
    quantized.zeros[::3] = 0
    layer = TorchLinear(bits, 32, False, False, 128, 64, False, register_buffers=True)
    layer.load_state_dict(encoded(gptq.FORMAT, quantized, Layout(quantized.grid, 32, gptq.SECOND)))
    convert_gptq_v2_to_v1_format_module(layer, QuantizeConfig(bits=bits, group_size=32))
    state = {name: tensor for name, tensor in layer.state_dict().items()}
    back = gptq.decode(state, Layout(quantized.grid, 32, gptq.FIRST), 64, 128)
    assert torch.equal(back.zeros, quantized.zeros) and torch.equal(back.codes, quantized.codes)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [32, 128])
def test_gptqmodel_decodes_our_awq_weights_and_packs_our_words(symmetric, group_size):
    packing = pytest.importorskip("gptqmodel.quantization.awq.utils.packing_utils")

    quantized = matrix(4, symmetric, group_size)
    tensors = encoded(awq.FORMAT, quantized, Layout(quantized.grid, group_size, "gemm"))
    back = packing.dequantize_gemm(tensors["qweight"], tensors["qzeros"], tensors["scales"], 4, group_size)
    assert torch.equal(back.T.to(torch.float16), quantized.dequantize(torch.float16))
    zeros = torch.full_like(quantized.codes[:, : 128 // group_size], 8) if symmetric else quantized.zeros
    words, zero_words = packing.pack_awq(quantized.codes.T.int(), zeros.T.int(), 4)
    assert torch.equal(words, tensors["qweight"]) and torch.equal(zero_words, tensors["qzeros"])


@pytest.mark.parametrize("kind", bitsandbytes.FOUR)
@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("block", [32, 64, 128])
def test_bitsandbytes_decodes_our_weights(kind, double, block):
    functional = pytest.importorskip("bitsandbytes.functional")

    weight = torch.randn(64, 384, generator=torch.Generator().manual_seed(0)) * 0.02
    quantized = bnb.quantize(weight, bitsandbytes.FOUR[kind], block, double)
    tensors = encoded(bitsandbytes.FORMAT, quantized, Layout(quantized.grid, block, kind, double))
    state = {name.removeprefix("weight."): tensor for name, tensor in tensors.items() if name != "weight"}
    state = functional.QuantState.from_dict(state, torch.device("cpu"))
    assert torch.equal(functional.dequantize_4bit(tensors["weight"], state), quantized.dequantize())
    if not double:  # its CPU kernel for codes of scales sometimes misses the nearest code
        theirs, own = functional.quantize_4bit(weight, blocksize=block, quant_type=kind)
        assert torch.equal(theirs, tensors["weight"]) and torch.equal(own.absmax, tensors["weight.absmax"])
    assert kind != "nf4" or torch.equal(functional.get_4bit_type("nf4", device="cpu"), torch.tensor(NF4.values))


def test_bitsandbytes_decodes_our_int8():
    functional = pytest.importorskip("bitsandbytes.functional")

    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(0)).half()
    quantized = bnb.quantize(weight, INT8)
    tensors = encoded(bitsandbytes.FORMAT, quantized, Layout(INT8, -1, "int8"))
    codes, scales, _ = functional.int8_vectorwise_quant(weight)
    assert torch.equal(codes, tensors["weight"]) and torch.equal(scales, tensors["SCB"])
    back = functional.int8_vectorwise_dequant(tensors["weight"], tensors["SCB"])
    # It multiplies by 1/127 in float32, and we divide by 127: a last bit may differ.
    assert torch.allclose(back, quantized.dequantize(), rtol=2.0**-22, atol=0)


@pytest.mark.parametrize("group_size", [32, 128])
def test_modelopt_packs_our_bytes(group_size):
    utils = pytest.importorskip("modelopt.torch.export.quant_utils")

    quantized = matrix(4, True, group_size)
    tensors = encoded(modelopt.FORMAT, quantized, Layout(quantized.grid, group_size, "alone"))
    packed = utils.pack_int4_in_uint8(quantized.dequantize(), quantized.scales.float(), group_size)
    assert torch.equal(packed, tensors["weight"])
    assert torch.equal(tensors["pre_quant_scale"], torch.ones(128, dtype=torch.float16))


@pytest.mark.parametrize("recipe", [{"symmetric": True, "group_size": 32}, {"method": "fp8"}])
def test_modelopt_makes_our_settings(recipe):
    """config.json has all settings that ModelOpt makes from hf_quant_config.json, and keys that ModelOpt ignores."""
    convert = pytest.importorskip("modelopt.torch.export.convert_hf_config")

    model = qtutor.load_decoder()[0]
    qtutor.quantize(model, qtutor.Recipe(**recipe), progress=False)
    layers = {name: module for name, module in model.named_modules() if hasattr(module, "packed")}
    ours = modelopt.settings(layers, ["lm_head"])
    theirs = convert.convert_hf_quant_config_format(modelopt._beside(ours)["hf_quant_config.json"])
    assert theirs == {key: ours[key] for key in theirs}


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(("rows", "columns"), [(48, 64), (1, 40), (7, 33)])
def test_compressed_tensors_decodes_our_fp8_and_makes_our_bytes(whole, rows, columns):
    base = pytest.importorskip("compressed_tensors.compressors.naive_quantized.base")
    from compressed_tensors.quantization import QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)) * 0.02
    weight[rows // 2, : columns // 2] *= 1e-4
    size = 0 if whole else -1
    quantized = qtutor.rtn.quantize(weight, FP8, size)
    layout = Layout(FP8, size, compressed_settings.FLOATS)
    scheme = QuantizationScheme(targets=["Linear"], **compressed_settings.scheme(layout))
    compressor = base.FloatQuantizationCompressor
    assert compressor.can_compress(torch.nn.Linear, scheme)
    tensors = encoded(compressed_tensors.FORMAT, quantized, layout)
    assert torch.equal(compressor.decompress(tensors, scheme)["weight"], quantized.dequantize())
    low, high = (weight.min(), weight.max()) if whole else (weight.amin(1, True), weight.amax(1, True))
    scale, _ = calculate_qparams(low, high, scheme.weights)
    packed = compressor.compress({"weight": weight, "weight_scale": scale}, scheme)
    assert torch.equal(packed["weight_scale"], tensors["weight_scale"])
    assert torch.equal(packed["weight"].view(torch.uint8), tensors["weight"].view(torch.uint8))


@pytest.mark.parametrize(("rows", "columns"), [(256, 384), (128, 128)])
def test_compressed_tensors_decodes_our_fp8_in_blocks_of_128_x_128(rows, columns):
    base = pytest.importorskip("compressed_tensors.compressors.naive_quantized.base")
    from compressed_tensors.quantization import QuantizationScheme

    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)) * 0.02
    weight[:128, :128] *= 1e-3
    quantized = qtutor.rtn.quantize(weight, FP8_TILES, 128)
    layout = Layout(FP8_TILES, 128, compressed_settings.FLOATS)
    scheme = QuantizationScheme(targets=["Linear"], **compressed_settings.scheme(layout))
    compressor = base.FloatQuantizationCompressor
    assert compressor.can_compress(torch.nn.Linear, scheme)
    tensors = encoded(compressed_tensors.FORMAT, quantized, layout)
    assert torch.equal(compressor.decompress(tensors, scheme)["weight"], quantized.dequantize())
    packed = compressor.compress({"weight": weight, "weight_scale": tensors["weight_scale"]}, scheme)
    assert torch.equal(packed["weight"].view(torch.uint8), tensors["weight"].view(torch.uint8))


@pytest.mark.parametrize(("preset", "grid", "size"), [("FP8_DYNAMIC", FP8, -1), ("FP8_BLOCK", FP8_TILES, 128)])
def test_our_fp8_settings_are_those_of_the_schemes(preset, grid, size):
    schemes = pytest.importorskip("compressed_tensors.quantization")

    theirs = schemes.preset_name_to_scheme(preset, ["Linear"])
    layout = Layout(grid, size, compressed_settings.FLOATS)
    ours = schemes.QuantizationScheme(targets=["Linear"], **compressed_settings.scheme(layout))
    # An observer looks at weights while they are quantized. It does not describe the stored tensors.
    assert ours.model_dump(exclude={"weights": {"observer"}}) == theirs.model_dump(exclude={"weights": {"observer"}})
    assert ours.weights.model_dump(exclude={"observer"}) == theirs.weights.model_dump(exclude={"observer"})


def test_modelopt_rounds_to_our_fp8():
    utils = pytest.importorskip("modelopt.torch.export.quant_utils")

    weight = torch.randn(48, 64, generator=torch.Generator().manual_seed(0)) * 0.02
    quantized = qtutor.rtn.quantize(weight, FP8, -1)
    tensors = encoded(modelopt.FORMAT, quantized, Layout(FP8, -1, modelopt.BY_ROW))
    packed = utils.to_quantized_weight(weight, tensors["weight_scale"], utils.QUANTIZATION_FP8_PC_PT)
    assert torch.equal(packed.view(torch.uint8), tensors["weight"].view(torch.uint8))


@pytest.mark.parametrize("bits", mlx.BITS)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", mlx.GROUPS)
def test_mlx_decodes_and_multiplies_our_weights(bits, symmetric, group_size):
    core = pytest.importorskip("mlx.core")

    quantized = matrix(bits, symmetric, group_size, 64, 256)
    tensors = encoded(mlx.FORMAT, quantized, Layout(quantized.grid, group_size))
    arrays = [core.array(tensors[kind].numpy()) for kind in ("weight", "scales", "biases")]
    back = core.dequantize(*arrays, group_size=group_size, bits=bits)
    assert back.dtype == core.float32
    assert torch.equal(torch.tensor(back.tolist()), quantized.dequantize())
    # A row of the unit matrix picks a column: the sum of one weight and zeros is exactly this weight.
    product = core.quantized_matmul(core.eye(256), *arrays, transpose=True, group_size=group_size, bits=bits)
    assert torch.equal(torch.tensor(product.tolist()), quantized.dequantize().T)


@pytest.mark.parametrize("bits", mlx.BITS)
def test_we_read_the_words_that_mlx_packs(bits):
    """MLX's codes are read, however MLX rounds. Its own float16 biases are only nearly whole steps, and are refused.

    At 2 bits, its biases are one or two steps. Half of a float16 number is a float16 number, too, so these biases are
    exactly whole steps, and are read unchanged.
    """
    core = pytest.importorskip("mlx.core")

    weight = torch.randn(32, 256, generator=torch.Generator().manual_seed(0)) * 0.02
    packed, scales, biases = core.quantize(core.array(weight.numpy()).astype(core.float16), 64, bits)
    tensors = {
        "weight": torch.tensor(packed.tolist(), dtype=torch.int64).to(torch.uint32),
        "scales": torch.tensor(scales.tolist()),
        "biases": torch.tensor(biases.tolist()),
    }
    layout = Layout(qtutor.IntGrid(bits), 64)
    with (
        pytest.raises(qtutor.QtutorError, match="MLX's own rounding writes such biases") if bits > 2 else nullcontext()
    ):
        mlx.decode(tensors, layout, 32, 256)
    # If whole steps replace these biases, MLX decodes the same weights as we do, for both signs of its scales.
    steps = (tensors["biases"] / tensors["scales"]).round().clamp(-(2**bits - 1), 0)
    tensors["biases"] = steps * tensors["scales"]
    arrays = [packed, scales.astype(core.float32), core.array(tensors["biases"].numpy())]
    theirs = core.dequantize(*arrays, group_size=64, bits=bits)
    assert (tensors["scales"] < 0).any() and (tensors["scales"] > 0).any()
    assert torch.equal(mlx.decode(tensors, layout, 32, 256).dequantize(), torch.tensor(theirs.tolist()))


@pytest.mark.parametrize("grid", [MXFP4, NVFP4], ids=lambda grid: grid.name)
@pytest.mark.parametrize(("rows", "columns"), [(48, 64), (1, 32), (7, 96)])
def test_compressed_tensors_decodes_our_blocks_and_makes_our_bytes(grid, rows, columns):
    registry = pytest.importorskip("compressed_tensors.compressors")
    from compressed_tensors.quantization import QuantizationScheme

    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)) * 0.02
    weight[rows // 2, :32] *= 1e-4
    quantized = qtutor.rtn.quantize(weight, grid, grid.block)
    kind = {MXFP4: compressed_settings.POWERS, NVFP4: compressed_settings.PRODUCTS}[grid]
    layout = Layout(grid, grid.block, kind)
    scheme = QuantizationScheme(targets=["Linear"], **compressed_settings.scheme(layout))
    compressor = registry.BaseCompressor.get_value_from_registry(kind)
    assert compressor.can_compress(torch.nn.Linear, scheme)
    tensors = encoded(compressed_tensors.FORMAT, quantized, layout)
    back = compressor.decompress(tensors, scheme)["weight"]
    assert torch.equal(back.float(), quantized.dequantize())  # it decodes to bfloat16, which holds these exactly
    state = {"weight": weight, "weight_scale": quantized.scales}
    if grid == NVFP4:  # it expects scales that are already multiplied by the global scale
        state["weight_scale"] = quantized.scales * tensors["weight_global_scale"]
        state["weight_global_scale"] = tensors["weight_global_scale"]
    packed = compressor.compress(state, scheme)
    assert packed.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(packed[name].view(torch.uint8), tensor.view(torch.uint8)), name


@pytest.mark.parametrize("grid", [MXFP4, replace(NVFP4, wider=())], ids=lambda grid: grid.name)
def test_compressed_tensors_finds_our_scales(grid):
    """Without four over six, which the library does not have; our number for the whole tensor is given to it."""
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.quantization import QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(1)) * 0.02
    quantized = qtutor.rtn.quantize(weight, grid, grid.block)
    kind = {MXFP4: compressed_settings.POWERS, NVFP4: compressed_settings.PRODUCTS}[grid]
    scheme = QuantizationScheme(targets=["Linear"], **compressed_settings.scheme(Layout(grid, grid.block, kind)))
    grouped = weight.reshape(64, -1, grid.block)
    inverse = None if grid == MXFP4 else 1 / quantized.stored_scales.of_all.reshape(1)
    found, _ = calculate_qparams(grouped.amin(-1), grouped.amax(-1), scheme.weights, inverse)
    assert torch.equal(found.float() / (1 if inverse is None else inverse), quantized.scales)


@pytest.mark.parametrize(("grid", "preset"), [(MXFP4, "MXFP4A16"), (NVFP4, "NVFP4A16")], ids=["mxfp4", "nvfp4"])
def test_our_settings_of_blocks_are_those_of_the_schemes(grid, preset):
    schemes = pytest.importorskip("compressed_tensors.quantization")

    theirs = schemes.preset_name_to_scheme(preset, ["Linear"])
    kind = {MXFP4: compressed_settings.POWERS, NVFP4: compressed_settings.PRODUCTS}[grid]
    layout = Layout(grid, grid.block, kind)
    ours = schemes.QuantizationScheme(targets=["Linear"], **compressed_settings.scheme(layout))
    exclude = {"observer", "zp_dtype"}  # there are no zero points
    assert ours.weights.model_dump(exclude=exclude) == theirs.weights.model_dump(exclude=exclude)
    assert ours.input_activations is theirs.input_activations is None

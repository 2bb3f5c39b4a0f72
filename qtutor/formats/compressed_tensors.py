"""compressed-tensors: the checkpoints of llm-compressor, which vLLM, SGLang and transformers read.

It replaces compressors/pack_quantized and compressors/naive_quantized of the package compressed-tensors (some 510 lines
of its 17,000), with the bytes that the package writes since version 0.19. For 4-bit floats, it replaces
compressors/mxfp4 and compressors/nvfp4 (some 580 lines, half of them kernels). A layer ``[out, in]`` is one of five
kinds:

    pack-quantized, 2 to 8 bits              W4A16 and similar: the inputs stay in float
      weight_packed      int32 [out, in * bits / 32]     a row's codes as one stream of bits (:mod:`.words`)
      weight_scale       float [out, groups]             groups of a row, or one for the row ("channel")
      weight_zero_point  int32 [out * bits / 32, groups]  only if asymmetric; the stream goes down a column
      weight_shape       int64 [2]                       out and in, since the last word may be partly empty
    int-quantized, 8 bits                    W8A8: the engine rounds the inputs too, each token to its own scale
      weight             int8 [out, in]
      weight_scale       float32 [out, 1]
    float-quantized, FP8                     llm-compressor's FP8_DYNAMIC; the engine rounds the inputs, as above
      weight             float8_e4m3fn [out, in]
      weight_scale       float32 [out, 1]                ("channel"), or [1] ("tensor"), or [out / 128, in / 128]
                                                         ("block"; the engine rounds inputs in groups of 128)
    mxfp4-pack-quantized                     MXFP4A16: groups of 32, the inputs stay in float
      weight_packed      uint8 [out, in / 2]             E2M1, the first of two codes in the low bits
      weight_scale       uint8 [out, in / 32]            powers of two: the exponent plus 127
    nvfp4-pack-quantized                     NVFP4A16: groups of 16, the inputs stay in float
      weight_packed      uint8 [out, in / 2]             as above
      weight_scale       float8_e4m3fn [out, in / 16]
      weight_global_scale  float32 [1]                   scales are divided by it; ours is a power of two

The block of 4 bits with the codes 1, 2, 3 ... 8 in the first 8 columns is 21 43 65 87: the first code is in the lowest
bits. Codes are unsigned here as everywhere in qtutor; the package thinks of them as code - 2^(bits-1) and stores the
same bits.

Two things differ from our own folders. A scale of our int8 grid is the largest weight of the row. A scale here is that
number divided by 127, which float32 rounds: it comes back with an error of at most one last bit. And LLM.int8 keeps
outlier channels of the inputs in float, which no engine does for these files: a warning says so, and the layer that is
read back has no threshold.

Engines round the inputs of W8A8 in different ways: the package itself divides a token's largest value by 127.5, vLLM
and our int8 layers by 127. On the embedded decoder with added outliers, the likeliest next token differs between these
two ways at 3 of 100 places, and between each of them and rounding the weights alone as well. With a reference that
rounds as it does, each agrees at more than 99 (tests/engines).

Files of other tools may have any weight_global_scale. Scales here are multiplied by its inverse, which float32 rounds:
their error is at most one last bit. vLLM makes one layer of q, k and v, and gives it the largest of their global
scales. So layers that vLLM joins should have the same one, and our layers that read the same input do.

If a tensor has one FP8 scale, the package reads it unchanged. vLLM makes one layer of q, k and v, gives it the largest
of their scales and rounds the other two again (process_fp8_weight_tensor_strategy in its fp8_utils.py). This makes the
result worse: choose one scale a row.

Scales are written with all their 16 or 32 bits; an engine that computes in bfloat16 rounds them to 8 when it loads
them.

transformers 5.23 with compressed-tensors 0.19 or 0.20 allocates zero points that are not packed, and so refuses
asymmetric files, unless it decodes all weights when it loads them. ``dequantize: true`` in the settings makes it do
that. It then decodes every layer by the first group, so it reads asymmetric files with one group only. Other engines
ignore the key.

transformers also decodes the 4-bit floats to bfloat16 at the first token, for any dtype of the model: load the model in
bfloat16.

Left out: FP4 with inputs of 4 bits as well (NVFP4, MXFP4 without A16), static scales of inputs, sparsity, rotations
(transform_config), quantized caches, and files of 3, 5, 6 and 7 bits from before 0.19, whose packed bytes differ.
"""

import torch

from qtutor.core.float_grid import FP8_TILES
from qtutor.core.float_scales import FloatScales, PowerScales, TileScales
from qtutor.core.packing import pack, unpack
from qtutor.core.quantized import PER_TENSOR, QuantizedTensor, resolve_group_size
from qtutor.errors import QtutorError
from qtutor.formats import foreign_writing
from qtutor.formats.compressed_settings import (
    BLOCKS,
    FLOATS,
    INTEGERS,
    METHOD,
    PACKED,  # noqa: F401 - tests name the kinds
    PRODUCTS,
    layouts,
    settings,
)
from qtutor.formats.foreign import Format, Layout, Wanted, of_floats, stored_scales
from qtutor.formats.words import from_words, to_words, words_in

target = foreign_writing.target  # the path that save may write to
SCALES = ("F16", "BF16", "F32")
TOLERANCE = 2.0**-22  # of a scale, divided by 127 and multiplied again: twice half a last bit of float32


def save(model, folder, tokenizer=None):
    """Write a quantized ``model`` to ``folder``; see :func:`.foreign_writing.save`."""
    return foreign_writing.save(FORMAT, model, folder, tokenizer)


def tensors_of_layer(layout: Layout, rows: int, columns: int) -> dict[str, Wanted]:
    """The tensors of a layer; see the top of this file."""
    if layout.kind == INTEGERS:
        return {"weight": Wanted((rows, columns), ("I8",)), "weight_scale": Wanted((rows, 1), SCALES)}
    if layout.kind == FLOATS:
        shape = None if layout.group_size == PER_TENSOR else (rows, 1)  # [1], or [] in some older files
        if layout.grid == FP8_TILES:
            if columns % TileScales.TILE:
                raise QtutorError(
                    f"its rows have {columns} weights, and FP8 in blocks of {TileScales.TILE} x {TileScales.TILE} "
                    f"rounds inputs in groups of {TileScales.TILE}: no engine runs such a layer (transformers and vLLM "
                    "stop at the first token). Quantize it with a scale a row (FP8_DYNAMIC)."
                )
            shape = -(-rows // TileScales.TILE), columns // TileScales.TILE
        return {"weight": Wanted((rows, columns), ("F8_E4M3",)), "weight_scale": Wanted(shape, SCALES)}
    if layout.kind in BLOCKS:
        return _stored_blocks(layout, rows, columns)
    bits, groups = layout.grid.bits, columns // resolve_group_size(layout.group_size, columns)
    found = {
        "weight_packed": Wanted((rows, words_in(columns, bits)), ("I32",)),
        "weight_scale": Wanted((rows, groups), SCALES),
        "weight_shape": Wanted((2,), ("I64", "I32")),
    }
    if not layout.grid.symmetric:
        found["weight_zero_point"] = Wanted((words_in(rows, bits), groups), ("I32",))
    return found


def encode(quantized: QuantizedTensor, layout: Layout) -> dict[str, torch.Tensor]:
    """A layer's tensors."""
    bits = layout.grid.bits
    if layout.kind == INTEGERS:
        signed = (quantized.codes.short() - layout.grid.middle).to(torch.int8)
        return {"weight": signed, "weight_scale": quantized.scales.float() / 127}
    if layout.kind == FLOATS:
        scales = quantized.scales.flatten() if layout.group_size == PER_TENSOR else quantized.scales
        if layout.grid == FP8_TILES:
            scales = quantized.stored_scales.tiles
        return {"weight": quantized.codes.view(torch.float8_e4m3fn), "weight_scale": scales}
    if layout.kind in BLOCKS:
        return _encode_blocks(quantized)
    found = {
        "weight_packed": to_words(quantized.codes, bits),
        "weight_scale": quantized.scales,
        "weight_shape": torch.tensor(quantized.shape),
    }
    if quantized.zeros is not None:
        found["weight_zero_point"] = to_words(quantized.zeros.T.contiguous(), bits).T
    return found


def decode(tensors: dict[str, torch.Tensor], layout: Layout, rows: int, columns: int) -> QuantizedTensor:
    """The inverse of :func:`encode`."""
    bits, scales = layout.grid.bits, tensors["weight_scale"]
    if layout.kind == INTEGERS:
        codes = (tensors["weight"].short() + layout.grid.middle).to(torch.uint8)
        return QuantizedTensor(codes, scales.float() * 127, None, layout.grid, layout.group_size)
    if layout.kind == FLOATS:
        if layout.group_size == PER_TENSOR and scales.numel() != 1:
            raise QtutorError(f"weight_scale is {list(scales.shape)}, and the strategy 'tensor' has one scale.")
        if layout.grid == FP8_TILES:
            return of_floats(tensors["weight"], TileScales(scales.float(), rows), layout)
        return of_floats(tensors["weight"], scales, layout)
    if layout.kind in BLOCKS:
        return _decode_blocks(tensors, layout, columns)
    if tensors["weight_shape"].tolist() != [rows, columns]:
        raise QtutorError(f"weight_shape is {tensors['weight_shape'].tolist()}, and the layer is {[rows, columns]}.")
    codes = from_words(tensors["weight_packed"], bits, columns)
    zeros = None
    if not layout.grid.symmetric:
        zeros = from_words(tensors["weight_zero_point"].T, bits, rows).T.contiguous()
    return QuantizedTensor(codes, stored_scales(scales), zeros, layout.grid, layout.group_size)


def _stored_blocks(layout: Layout, rows: int, columns: int) -> dict[str, Wanted]:
    """The tensors of a layer of MXFP4 or NVFP4."""
    scale = "F8_E4M3" if layout.kind == PRODUCTS else "U8"
    found = {
        "weight_packed": Wanted((rows, columns // 2), ("U8",)),
        "weight_scale": Wanted((rows, columns // layout.grid.block), (scale,)),
    }
    return found | ({"weight_global_scale": Wanted((1,), ("F32",))} if layout.kind == PRODUCTS else {})


def _encode_blocks(quantized: QuantizedTensor) -> dict[str, torch.Tensor]:
    """Codes and scales are stored unchanged; the factor for all scales is stored as its inverse."""
    kept, packed = quantized.stored_scales, pack(quantized.codes, quantized.grid.bits)
    if isinstance(kept, PowerScales):
        return {"weight_packed": packed, "weight_scale": kept.codes}
    inverse = (1 / kept.of_all).reshape(1)
    scales = kept.codes.view(torch.float8_e4m3fn)
    return {"weight_packed": packed, "weight_scale": scales, "weight_global_scale": inverse}


def _decode_blocks(tensors: dict[str, torch.Tensor], layout: Layout, columns: int) -> QuantizedTensor:
    """The inverse of :func:`_encode_blocks`."""
    codes = unpack(tensors["weight_packed"], layout.grid.bits, columns)
    scales = tensors["weight_scale"].view(torch.uint8)
    if layout.kind == PRODUCTS:
        inverse = tensors["weight_global_scale"].float().reshape(())
        if not (inverse > 0 and (1 / inverse).isfinite()):
            raise QtutorError(f"weight_global_scale is {inverse.item():.3g}; expected a number above 0.")
        return QuantizedTensor(codes, FloatScales(scales, 1 / inverse), None, layout.grid, layout.group_size)
    if (scales == 255).any():
        raise QtutorError("weight_scale holds 255, which stands for NaN in a scale that is a power of two.")
    return QuantizedTensor(codes, PowerScales(scales), None, layout.grid, layout.group_size)


FORMAT = Format(METHOD, settings, layouts, tensors_of_layer, encode, decode, TOLERANCE)

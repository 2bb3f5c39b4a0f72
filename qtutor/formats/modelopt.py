"""ModelOpt checkpoints of 4 bits (W4A16_AWQ) and FP8; TensorRT-LLM's PyTorch backend reads them, and vLLM the FP8 ones.

It replaces pack_int4_in_uint8 and to_quantized_weight in modelopt/torch/export/quant_utils.py (nvidia-modelopt 0.47),
and its export of a whole folder. A symmetric layer ``[out, in]`` of 4 bits:

    weight           uint8 [out / 2, in]   output 2 r in the low nibble, 2 r + 1 in the high one, signed
    weight_scale     float16 [out, groups]
    pre_quant_scale  float16 [in]          the engine multiplies the layer's input by it

A signed nibble is -8 to 7 in two's complement. The byte of -1 (output 0) and 3 (output 1) of one input is 0x3f. An FP8
layer:

    weight           float8_e4m3fn [out, in]
    weight_scale     float32 [out]     FP8_PER_CHANNEL_PER_TOKEN: the engine rounds each token's inputs at run time
                     float32 []        FP8: one for the tensor; inputs are rounded by a scale that ModelOpt measured,
    input_scale      float32 []        this one

The algorithm FP8 is read, but not written, since qtutor measures no input_scale: without it, TensorRT-LLM uses one
scale for all tokens at once, and vLLM uses none. A layer that was read rounds each token by itself, and a warning says
so.

hf_quant_config.json holds the rest: quant_algo, group_size, and exclude_modules, the layers in float.

pre_quant_scale is 1 in models that we quantized: our AWQ folds its scales into norms and weights. TensorRT-LLM reads a
pre_quant_scale for every layer that it does not join with others, and for no other layer, so it is written for o_proj
and down_proj. If the scales were folded into the norms, ModelOpt writes none either. A layer whose file has other
numbers than 1 becomes one that multiplies its inputs (:mod:`qtutor.runtime.scaled`), which only this format and our own
can hold.

Left out: NVFP4 (no such grid yet), FP8 in blocks, quantized caches (their scales are ignored), asymmetric grids, 4 bits
with one scale a row, mixed algorithms.
"""

import torch

from qtutor.core.float_grid import FP8
from qtutor.core.grid import IntGrid
from qtutor.core.quantized import PER_CHANNEL, PER_TENSOR, QuantizedTensor, resolve_group_size
from qtutor.errors import QtutorError, shown, warn
from qtutor.families.names import ends_half
from qtutor.formats import foreign_writing
from qtutor.formats.foreign import (
    Format,
    Layout,
    Wanted,
    check_integers,
    expect,
    names_at,
    of_floats,
    one_group_size,
    refused,
    stored_scales,
)
from qtutor.runtime.scaled import ScaledLinear

target = foreign_writing.target  # the path that save may write to
METHOD = "modelopt"
FOUR, BY_ROW, BY_TENSOR = "W4A16_AWQ", "FP8_PER_CHANNEL_PER_TOKEN", "FP8"  # quant_algo
BITS = 4
SCALES = ("F16", "BF16", "F32")


def save(model, folder, tokenizer=None):
    """Write a quantized ``model`` to ``folder``; see :func:`.foreign_writing.save`."""
    return foreign_writing.save(FORMAT, model, folder, tokenizer, _beside)


def settings(layers: dict, left: list[str]) -> dict:
    """quantization_config: the keys that ModelOpt writes there, and those that it writes to hf_quant_config.json."""
    whole = all(layer.grid == FP8 for layer in layers.values())
    for name, layer in layers.items():
        if isinstance(layer, ScaledLinear) and not ends_half(name):
            fits = "allows this for o_proj and down_proj only, as TensorRT-LLM does: take 'qtutor'."
            raise refused(name, METHOD, "inputs that are each multiplied by a number", fits)
        (_check_holds_rows if whole else _check_holds)(name, layer)
    about = {"quant_algo": BY_ROW}
    if not whole:
        size = one_group_size(METHOD, layers)
        about = {"quant_algo": FOUR, "group_size": size, "has_zero_point": False, "pre_quant_scale": True}
    return {"quant_method": METHOD, **about, "ignore": left, "producer": {"name": "qtutor", "version": "0"}}


def _beside(settings: dict) -> dict[str, dict]:
    kept = ("quant_algo", "group_size", "has_zero_point", "pre_quant_scale")
    quantization = {key: settings[key] for key in kept if key in settings} | {"kv_cache_quant_algo": None}
    quantization["exclude_modules"] = settings["ignore"]
    return {"hf_quant_config.json": {"producer": settings["producer"], "quantization": quantization}}


def _check_holds(name: str, layer) -> None:
    check_integers(name, METHOD, layer, (BITS,))
    if not layer.grid.symmetric:
        raise refused(name, METHOD, "zero points", "holds none: quantize with symmetric=True.")
    if layer.group_size == PER_CHANNEL:
        raise refused(name, METHOD, "one scale a row", "holds groups: quantize with group_size=128.")
    if layer.rows % 2:
        raise refused(name, METHOD, f"{layer.rows} outputs", "packs two in a byte: leave the layer in float.")


def _check_holds_rows(name: str, layer) -> None:
    if layer.group_size != PER_CHANNEL:
        fits = "also needs scales of the inputs then, which qtutor does not measure: quantize with group_size=-1."
        raise refused(name, METHOD, "one FP8 scale for the matrix", fits)


def layouts(settings: dict, names: list[str], where: str) -> dict[str, Layout]:
    """The layout of each of ``names`` that is quantized, by config.json or hf_quant_config.json."""
    inner = settings.get("quantization", settings)
    algorithm = inner.get("quant_algo") if isinstance(inner, dict) else inner
    if algorithm not in (FOUR, BY_ROW, BY_TENSOR):
        raise QtutorError(f"{where}: quant_algo is {shown(algorithm)}; qtutor reads {FOUR}, {BY_ROW} and {BY_TENSOR}.")
    expect(where, inner, "has_zero_point", lambda flag: flag in (False, None), "false", default=False)
    size = expect(where, inner, "group_size", lambda g: type(g) is int and g > 0, "a size", default=128)
    kept = names_at(where, inner, "exclude_modules" if "exclude_modules" in inner else "ignore")
    exact, starts = set(kept), tuple(name[:-1] for name in kept if name.endswith("*"))
    left = [name for name in names if name not in exact and not (starts and name.startswith(starts))]
    if algorithm != FOUR:
        return dict.fromkeys(left, Layout(FP8, PER_CHANNEL if algorithm == BY_ROW else PER_TENSOR, algorithm))
    return {name: Layout(IntGrid(BITS, True), size, "alone" if ends_half(name) else "joined") for name in left}


def tensors_of_layer(layout: Layout, rows: int, columns: int) -> dict[str, Wanted]:
    """The tensors of a layer; see the top of this file."""
    if layout.grid == FP8:
        number = Wanted(None, SCALES, optional=True)
        found = {"weight": Wanted((rows, columns), ("F8_E4M3",)), "weight_scale": Wanted(None, SCALES)}
        return found | {"input_scale": number, "k_scale": number, "v_scale": number}
    if rows % 2:
        raise QtutorError(f"{rows} outputs are no multiple of two: this layer cannot be stored in this format.")
    return {
        "weight": Wanted((rows // 2, columns), ("U8", "I8")),
        "weight_scale": Wanted((rows, columns // resolve_group_size(layout.group_size, columns)), SCALES),
        "pre_quant_scale": Wanted((columns,), SCALES, optional=True),
    }


def encode(quantized: QuantizedTensor, layout: Layout) -> dict[str, torch.Tensor]:
    """A layer's tensors. Code 0 is -8, so the highest bit of the nibble is inverted."""
    if layout.grid == FP8:
        return {"weight": quantized.codes.view(torch.float8_e4m3fn), "weight_scale": quantized.scales.flatten()}
    nibbles = quantized.codes ^ 8
    found = {"weight": nibbles[0::2] | (nibbles[1::2] << 4), "weight_scale": quantized.scales}
    if layout.kind == "alone":
        found["pre_quant_scale"] = torch.ones(quantized.shape[1], dtype=quantized.scales.dtype)
    return found


def decode(tensors: dict[str, torch.Tensor], layout: Layout, rows: int, columns: int) -> QuantizedTensor:
    """The inverse of :func:`encode`, except for ``pre_quant_scale``, which is no part of the matrix.

    Raises :class:`QtutorError` for a ``pre_quant_scale`` that is not above 0: AWQ divides by it, so no tool writes
    that.
    """
    if layout.grid == FP8:
        return _floats(tensors, layout, rows)
    before = tensors.get("pre_quant_scale")
    if before is not None and not (before > 0).all():
        raise QtutorError(
            f"pre_quant_scale holds {int((~(before > 0)).sum())} of {before.numel()} numbers that are not above 0, the "
            f"least {before.min().item():.3g}: the file is damaged, so copy, download or export it again."
        )
    data = tensors["weight"].view(torch.uint8)
    codes = torch.stack((data & 15, data >> 4), dim=1).reshape(rows, columns) ^ 8
    return QuantizedTensor(codes, stored_scales(tensors["weight_scale"]), None, layout.grid, layout.group_size)


def _floats(tensors: dict[str, torch.Tensor], layout: Layout, rows: int) -> QuantizedTensor:
    scales = tensors["weight_scale"]
    wanted = rows if layout.group_size == PER_CHANNEL else 1
    if scales.numel() != wanted:
        raise QtutorError(f"weight_scale has {scales.numel()} numbers, and {layout.kind} has {wanted} for this layer.")
    if "input_scale" in tensors:
        warn(
            "its engines round the inputs of every layer by a scale that was measured (input_scale); in qtutor, and in "
            "a converted checkpoint, each token has its own scale."
        )
    return of_floats(tensors["weight"], scales, layout)


FORMAT = Format(METHOD, settings, layouts, tensors_of_layer, encode, decode, input_scale="pre_quant_scale")

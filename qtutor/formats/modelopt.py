"""ModelOpt checkpoints, the 4-bit ones (W4A16_AWQ), as TensorRT-LLM's PyTorch backend reads them.

It replaces pack_int4_in_uint8 in modelopt/torch/export/quant_utils.py (nvidia-modelopt 0.47), and its export of a whole
folder. A symmetric layer ``[out, in]`` of 4 bits:

    weight           uint8 [out / 2, in]   output 2 r in the low nibble, 2 r + 1 in the high one, signed
    weight_scale     float16 [out, groups]
    pre_quant_scale  float16 [in]          by which the engine multiplies the layer's input

A signed nibble is -8 to 7 in two's complement. Byte of -1 (output 0) and 3 (output 1) of one input: 0x3f.

hf_quant_config.json says the rest: quant_algo, group_size, and exclude_modules, the layers in float.

pre_quant_scale is 1 here: our AWQ folds its scales into norms and weights. TensorRT-LLM reads one for every layer that
it does not join with others, and for no other layer, so it is written for o_proj and down_proj. Where the norms took in
the scales, ModelOpt writes none either. A file with others than 1 is refused: columns of one group would need scales of
their own.

Left out: FP8 and NVFP4 (no such grid yet), asymmetric grids, one scale a row, mixed algorithms.
"""

import torch

from qtutor.core.grid import IntGrid
from qtutor.core.quantized import PER_CHANNEL, QuantizedTensor, resolve_group_size
from qtutor.errors import QtutorError, shown
from qtutor.formats import foreign_writing
from qtutor.formats.foreign import (
    Format,
    Layout,
    Wanted,
    check_integers,
    expect,
    names_at,
    one_group_size,
    refused,
    stored_scales,
)
from qtutor.formats.foreign_reading import load  # noqa: F401 - every format has it

target = foreign_writing.target  # where save may write
METHOD = "modelopt"
ALGORITHM = "W4A16_AWQ"
BITS = 4
ALONE = (".o_proj", ".down_proj")  # layers that the engine does not join with others
SCALES = ("F16", "BF16", "F32")


def save(model, folder, tokenizer=None):
    """Write a quantized ``model`` to ``folder``; see :func:`.foreign_writing.save`."""
    return foreign_writing.save(FORMAT, model, folder, tokenizer, _beside)


def settings(layers: dict, left: list[str]) -> dict:
    """quantization_config: what ModelOpt itself writes there, and what it writes into hf_quant_config.json."""
    for name, layer in layers.items():
        _check_holds(name, layer)
    size = one_group_size(METHOD, layers)
    return {
        "quant_method": METHOD,
        "quant_algo": ALGORITHM,
        "group_size": size,
        "has_zero_point": False,
        "pre_quant_scale": True,
        "ignore": left,
        "producer": {"name": "qtutor", "version": "0"},
    }


def _beside(settings: dict) -> dict[str, dict]:
    kept = ("quant_algo", "group_size", "has_zero_point", "pre_quant_scale")
    quantization = {key: settings[key] for key in kept} | {"kv_cache_quant_algo": None}
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


def layouts(settings: dict, names: list[str], where: str) -> dict[str, Layout]:
    """The layout of each of ``names`` that is quantized, by config.json or hf_quant_config.json."""
    inner = settings.get("quantization", settings)
    if not isinstance(inner, dict) or inner.get("quant_algo") != ALGORITHM:
        algorithm = inner.get("quant_algo") if isinstance(inner, dict) else inner
        raise QtutorError(f"{where}: quant_algo is {shown(algorithm)}; read is {ALGORITHM!r}.")
    expect(where, inner, "has_zero_point", lambda flag: flag in (False, None), "false", default=False)
    size = expect(where, inner, "group_size", lambda g: type(g) is int and g > 0, "a size", default=128)
    kept = names_at(where, inner, "exclude_modules" if "exclude_modules" in inner else "ignore")
    exact, starts = set(kept), tuple(name[:-1] for name in kept if name.endswith("*"))
    left = [name for name in names if name not in exact and not (starts and name.startswith(starts))]
    return {name: Layout(IntGrid(BITS, True), size, "alone" if name.endswith(ALONE) else "joined") for name in left}


def tensors_of_layer(layout: Layout, rows: int, columns: int) -> dict[str, Wanted]:
    """The tensors of a layer; see the top of this file."""
    if rows % 2:
        raise QtutorError(f"{rows} outputs do not fill bytes of two: this layer cannot be stored like this.")
    return {
        "weight": Wanted((rows // 2, columns), ("U8", "I8")),
        "weight_scale": Wanted((rows, columns // resolve_group_size(layout.group_size, columns)), SCALES),
        "pre_quant_scale": Wanted((columns,), SCALES, optional=True),
    }


def encode(quantized: QuantizedTensor, layout: Layout) -> dict[str, torch.Tensor]:
    """A layer's tensors. Code 0 is -8, so the highest bit of the nibble is the other way round."""
    nibbles = quantized.codes ^ 8
    found = {"weight": nibbles[0::2] | (nibbles[1::2] << 4), "weight_scale": quantized.scales}
    if layout.kind == "alone":
        found["pre_quant_scale"] = torch.ones(quantized.shape[1], dtype=quantized.scales.dtype)
    return found


def decode(tensors: dict[str, torch.Tensor], layout: Layout, rows: int, columns: int) -> QuantizedTensor:
    """The inverse of :func:`encode`. Raises :class:`QtutorError` for a ``pre_quant_scale`` other than 1."""
    before = tensors.get("pre_quant_scale")
    if before is not None and not (before == 1).all():
        raise QtutorError(
            f"its inputs are multiplied by pre_quant_scale, {before.min().item():.3g} to {before.max().item():.3g}, "
            "which is not read here: export the model with these scales folded into the layer before, or take the "
            "float checkpoint."
        )
    data = tensors["weight"].view(torch.uint8)
    codes = torch.stack((data & 15, data >> 4), dim=1).reshape(rows, columns) ^ 8
    return QuantizedTensor(codes, stored_scales(tensors["weight_scale"]), None, layout.grid, layout.group_size)


FORMAT = Format(METHOD, settings, layouts, tensors_of_layer, encode, decode)

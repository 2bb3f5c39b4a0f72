"""MLX's affine checkpoints, as mlx-lm reads them on Apple's machines.

It replaces the affine mode of mlx.core.quantize, and the files that convert in mlx_lm/utils.py (mlx-lm 0.32) writes. A
layer ``[out, in]`` of 2, 3, 4, 5, 6 or 8 bits:

    weight  uint32 [out, in * bits / 32]   a row's codes as one stream of bits, low bits first (:mod:`.words`)
    scales  float32 [out, groups]
    biases  float32 [out, groups]          the weight of code 0 in each group; a layer's own bias is called ``bias``

A weight is scales * code + biases, and so biases are -scales * zero point. The word of 4 bits with the codes 1, 2 ... 8
of the first 8 columns is 0x87654321. A group with the scale 0.5 and the zero point 3 has biases -1.5.

Our scales have 11 significant bits and a zero point has at most 8, so their product is exact in float32, and so is
every step of scales * code + biases: MLX computes with exactly our weights. In float16, or with only the scales in
float16, MLX rounds intermediate results. Then two of three weights of 4 bits differ, by up to a hundredth of a step,
and nearly all of 8 bits, by up to a seventh. Float32 costs 64 bits a group instead of 32, and MLX multiplies in float32
(its types are promoted to the widest one).

config.json has the settings twice: as ``quantization``, which MLX reads, and as ``quantization_config``, which other
readers expect. Layers whose bits or groups differ from those of most layers are listed there by name; layers in float
are recognized by their tensors.

The format has no symmetric grid. A symmetric grid is written with its zero point everywhere, and is read back as an
asymmetric grid with this zero point. A file of other tools is read if its biases are whole steps, for any sign of its
scales. MLX's own rounding makes them nearly whole, in 16 bits. Such a layer has no zero point, which has to be a code,
and is refused.

Left out: 1 bit; groups other than 32, 64 and 128 (MLX has no other); quantized embeddings, which MLX's own conversions
have; its modes of FP4 and FP8 (mxfp4, mxfp8, nvfp4).
"""

import torch

from qtutor.core.grid import IntGrid
from qtutor.core.quantized import QuantizedTensor, resolve_group_size
from qtutor.errors import QtutorError, shown
from qtutor.formats import foreign_writing
from qtutor.formats.foreign import (
    Format,
    Layout,
    Wanted,
    check_integers,
    expect,
    refused,
    resolved_zeros,
    stored_scales,
)
from qtutor.formats.words import from_words, to_words, words_in

target = foreign_writing.target  # the path that save may write to
METHOD, MODE = "mlx", "affine"
BITS = (2, 3, 4, 5, 6, 8)
GROUPS = (32, 64, 128)
FLOATS = ("F16", "BF16", "F32")


def save(model, folder, tokenizer=None):
    """Write a quantized ``model`` to ``folder``; see :func:`.foreign_writing.save`."""
    return foreign_writing.save(FORMAT, model, folder, tokenizer)


def settings(layers: dict, left: list[str]) -> dict:
    """quantization_config: the setting of most layers, and by name those of the others. ``left`` is not needed."""
    for name, layer in layers.items():
        check_integers(name, METHOD, layer, BITS)
        if layer.group_size not in GROUPS:
            found = "one scale a row" if layer.group_size == -1 else f"groups of {layer.group_size}"
            raise refused(name, METHOD, found, "holds groups of 32, 64 or 128: quantize with one of these.")
    kinds = [(layer.group_size, layer.grid.bits) for layer in layers.values()]
    usual = max(set(kinds), key=kinds.count)
    own = {name: _kind(*kind) for name, kind in zip(layers, kinds) if kind != usual}
    return {"quant_method": METHOD, **_kind(*usual), "mode": MODE, **own}


def _kind(group_size: int, bits: int) -> dict:
    return {"group_size": group_size, "bits": bits}


def in_config(settings: dict) -> dict:
    """Both copies. Older versions of mlx-lm pass on all keys of the first, so it has only keys that MLX knows."""
    plain = {key: value for key, value in settings.items() if key != "quant_method"}
    return {"quantization": plain, "quantization_config": settings}


def layouts(settings: dict, names: list[str], where: str) -> dict[str, Layout]:
    """The layout of each of ``names`` that the settings do not leave in float."""
    usual = {key: settings.get(key) for key in ("group_size", "bits", "mode")}
    found = {}
    for name in names:
        own = settings.get(name, {})
        if own is False:
            continue
        if own is not True and not isinstance(own, dict):
            raise QtutorError(f"{where}: {name} is {shown(own)}; expected its bits and group_size, or false.")
        found[name] = _layout(usual | (own if isinstance(own, dict) else {}), f"{where}: {name}" if own else where)
    return found


def _layout(values: dict, where: str) -> Layout:
    bits = expect(where, values, "bits", lambda b: type(b) is int and b in BITS, "2, 3, 4, 5, 6 or 8")
    size = expect(where, values, "group_size", lambda g: type(g) is int and g in GROUPS, "32, 64 or 128")
    expect(where, values, "mode", lambda mode: mode in (None, MODE), "'affine', the one mode that is read here")
    return Layout(IntGrid(bits), size, MODE)


def tensors_of_layer(layout: Layout, rows: int, columns: int) -> dict[str, Wanted]:
    """The tensors of a layer; see the top of this file."""
    groups = columns // resolve_group_size(layout.group_size, columns)
    return {
        "weight": Wanted((rows, words_in(columns, layout.grid.bits)), ("U32", "I32")),
        "scales": Wanted((rows, groups), FLOATS),
        "biases": Wanted((rows, groups), FLOATS),
    }


def encode(quantized: QuantizedTensor, layout: Layout) -> dict[str, torch.Tensor]:
    """A layer's tensors."""
    scales = quantized.scales.float()
    return {
        "weight": to_words(quantized.codes, layout.grid.bits).view(torch.uint32),
        "scales": scales,
        "biases": -scales * resolved_zeros(quantized).float(),
    }


def decode(tensors: dict[str, torch.Tensor], layout: Layout, rows: int, columns: int) -> QuantizedTensor:
    """The inverse of :func:`encode`, also for negative scales. Raises for biases that are no whole steps."""
    grid = layout.grid
    codes = from_words(tensors["weight"].view(torch.int32), grid.bits, columns)
    scales, biases = (tensors[kind].double() for kind in ("scales", "biases"))  # in double, all products are exact
    # A negative scale counts down from a group's top. The same weights count up from its bottom, the last code's place.
    down = scales < 0
    biases = torch.where(down, biases + scales * grid.largest_code, biases)
    codes = torch.where(_each(down, codes), grid.largest_code - codes, codes)
    scales = scales.abs()
    zeros = torch.where(scales > 0, -biases / scales, 0).nan_to_num().round().clamp(0, grid.largest_code)
    _check_whole(biases, scales, zeros)
    return QuantizedTensor(codes, stored_scales(scales.float()), zeros.to(torch.uint8), grid, layout.group_size)


def _each(groups: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Repeat the value of each group for each of its codes: ``[out, in]``."""
    return groups.repeat_interleave(codes.shape[1] // groups.shape[1], 1)


def _check_whole(biases: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor) -> None:
    wrong = (biases != -scales * zeros) & biases.isfinite() & scales.isfinite()  # others are reported elsewhere
    if wrong.any():
        first = tuple(wrong.nonzero()[0].tolist())
        raise QtutorError(
            f"{int(wrong.sum())} of {wrong.numel()} groups have biases that match no zero point, that is, no whole "
            f"number of scales from 0 to the last code: the first is {biases[first]:.6g}, and its scale is "
            f"{scales[first]:.6g}. "
            "MLX's own rounding writes such biases, but here they would give other weights: take the float checkpoint."
        )


FORMAT = Format(METHOD, settings, layouts, tensors_of_layer, encode, decode, in_config=in_config)

"""bitsandbytes checkpoints: NF4, FP4 and int8, as transformers loads them with the package bitsandbytes.

It replaces QuantState.as_dict and from_dict in bitsandbytes/functional.py, and the saving of Linear8bitLt. A layer
``[out, in]`` of 4 bits:

    weight                             uint8 [out * in / 2, 1]  row after row, the first code in the high nibble
    weight.absmax                      float32 [blocks]         the scales, row after row, or
                                       uint8 [blocks]           if they are quantized, too ("double quantization"):
    weight.nested_absmax               float32 [blocks / 256]
    weight.nested_quant_map            float32 [256]            the values of these codes
    weight.quant_map                   float32 [16]             the values of the codes of the weights
    weight.quant_state.bitsandbytes__nf4  uint8 [n]             JSON: blocksize, shape, dtype, nested_offset ...

The byte of the codes 1 and 2 is 0x12. A layer of 8 bits (LLM.int8):

    weight         int8 [out, in]     code - 128
    SCB            float32 [out]      the largest weight of each row; a weight is code * SCB / 127
    weight_format  uint8 []           0: row after row

The int8 layers of bitsandbytes round inputs to float16 before they round them to 8 bits; ours do not. On the embedded
decoder, the likeliest next token therefore differs at 1 of 100 places.

Blocks continue from row to row in bitsandbytes, and end with the row in qtutor. The two are the same if the block size
divides the row. bitsandbytes accepts blocks of 32, 64, 128 ... 4096. transformers has one quant type for a model, so
mixtures are refused.

Left out: packed weights in dtypes other than uint8 (bnb_4bit_quant_storage), 8-bit files in the old tile orders.
"""

import json

import torch

from qtutor.core.codebooks import FP4, INT8, NF4, Codebook
from qtutor.core.quantized import PER_CHANNEL, QuantizedTensor, resolve_group_size
from qtutor.core.scales import NestedScales
from qtutor.errors import QtutorError, shown
from qtutor.families.names import is_head
from qtutor.formats import foreign_writing
from qtutor.formats.documents import parse_json
from qtutor.formats.foreign import Format, Layout, Wanted, expect, names_at, refused
from qtutor.runtime.int8 import Int8Linear

target = foreign_writing.target  # the path that save may write to
METHOD = "bitsandbytes"
FOUR = {"nf4": NF4, "fp4": FP4}
BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
MAP = NestedScales.GRID
USUAL = 64  # weights in a block; the config does not say it, but each layer does


def save(model, folder, tokenizer=None):
    """Write a quantized ``model`` to ``folder``; see :func:`.foreign_writing.save`."""
    return foreign_writing.save(FORMAT, model, folder, tokenizer)


def settings(layers: dict, left: list[str]) -> dict:
    """quantization_config, with all the keys that transformers writes."""
    kinds = {}
    for name, layer in layers.items():
        _check_holds(name, layer)
        kinds.setdefault((layer.grid.name, getattr(layer, "threshold", None), layer.scales_as is NestedScales), name)
    if len(kinds) > 1:
        second = list(kinds.values())[1]
        found = " and ".join(f"{name} {kind[0]}, threshold {kind[1]}, double {kind[2]}" for kind, name in kinds.items())
        raise refused(second, METHOD, f"another kind of codes than the others ({found})", "holds one kind for all.")
    grid, threshold, nested = next(iter(kinds))
    return {
        "quant_method": METHOD,
        "load_in_4bit": grid in FOUR,
        "load_in_8bit": grid == INT8.name,
        "_load_in_4bit": grid in FOUR,
        "_load_in_8bit": grid == INT8.name,
        "bnb_4bit_quant_type": grid if grid in FOUR else "fp4",
        "bnb_4bit_use_double_quant": nested,
        "bnb_4bit_compute_dtype": "float32",
        "bnb_4bit_quant_storage": "uint8",
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False,
        "llm_int8_skip_modules": left,
        "llm_int8_threshold": float(threshold or 0.0),  # 0: no input is an outlier
    }


def _check_holds(name: str, layer) -> None:
    if not isinstance(layer.grid, Codebook):
        levels = getattr(layer.grid, "name", f"{layer.grid.bits} bits, evenly spaced")
        raise refused(name, METHOD, levels, "holds nf4, fp4 and int8: take 'compressed-tensors'.")
    if layer.grid == INT8:
        if not isinstance(layer, Int8Linear) or layer.threshold == 0:
            raise refused(name, METHOD, "the threshold 0 (all channels are outliers)", "reads 0 as no threshold.")
        return
    block = resolve_group_size(layer.group_size, layer.columns)
    if block not in BLOCKS:
        raise refused(name, METHOD, f"blocks of {block}", f"holds blocks of {', '.join(map(str, BLOCKS))}.")


def layouts(settings: dict, names: list[str], where: str) -> dict[str, Layout]:
    """The layout of each of ``names`` that is quantized; the size of its blocks is in the layer's own state."""
    flag = lambda value: type(value) is bool  # noqa: E731
    four = expect(where, settings, "load_in_4bit", flag, "true or false", default=False)
    eight = expect(where, settings, "load_in_8bit", flag, "true or false", default=False)
    if four == eight:
        raise QtutorError(f"{where}: load_in_4bit is {four} and load_in_8bit {eight}; one of them has to be true.")
    kept = names_at(where, settings, "llm_int8_skip_modules", default=filter(is_head, names))
    if four:
        kind = expect(where, settings, "bnb_4bit_quant_type", lambda t: t in list(FOUR), "nf4 or fp4", default="fp4")
        storage = settings.get("bnb_4bit_quant_storage") or "uint8"
        if storage != "uint8":
            raise QtutorError(f"{where}: bnb_4bit_quant_storage is {shown(storage)}; qtutor reads 'uint8'.")
        nested = expect(where, settings, "bnb_4bit_use_double_quant", flag, "true or false", default=False)
        layout = Layout(FOUR[kind], PER_CHANNEL, kind, nested)
    else:
        number = lambda t: type(t) in (int, float) and 0 <= t < 1e30  # noqa: E731
        threshold = expect(where, settings, "llm_int8_threshold", number, "a number from 0", default=6.0)
        layout = Layout(INT8, PER_CHANNEL, "int8", threshold=float(threshold) or None)
    # As in transformers: a whole name, its beginning up to a dot, or its end.
    return {
        name: layout
        for name in names
        if not any(name == part or name.startswith(f"{part}.") or name.endswith(part) for part in kept)
    }


def tensors_of_layer(layout: Layout, rows: int, columns: int) -> dict[str, Wanted]:
    """The tensors of a layer; see the top of this file."""
    if layout.grid == INT8:
        return {
            "weight": Wanted((rows, columns), ("I8",)),
            "SCB": Wanted((rows,), ("F32",)),
            "weight_format": Wanted((), ("U8",), optional=True),
        }
    found = {
        "weight": Wanted((-(-rows * columns // 2), 1), ("U8",)),
        "weight.absmax": Wanted(None, ("U8",) if layout.nested else ("F32",)),
        "weight.quant_map": Wanted((16,), ("F32",)),
        f"weight.quant_state.bitsandbytes__{layout.kind}": Wanted(None, ("U8",)),
    }
    if layout.nested:
        found["weight.nested_absmax"] = Wanted(None, ("F32",))
        found["weight.nested_quant_map"] = Wanted((256,), ("F32",))
    return found


def encode(quantized: QuantizedTensor, layout: Layout) -> dict[str, torch.Tensor]:
    """A layer's tensors."""
    if layout.grid == INT8:
        signed = (quantized.codes.short() - INT8.middle).to(torch.int8)
        return {"weight": signed, "SCB": quantized.scales[:, 0], "weight_format": torch.tensor(0, dtype=torch.uint8)}
    codes = torch.nn.functional.pad(quantized.codes.flatten(), (0, quantized.codes.numel() % 2))
    state = {
        "quant_type": layout.kind,
        "blocksize": resolve_group_size(quantized.group_size, quantized.shape[1]),
        "dtype": "float32",
        "shape": list(quantized.shape),
    }
    found = {
        "weight": ((codes[0::2] << 4) | codes[1::2])[:, None],
        "weight.quant_map": torch.tensor(layout.grid.values),
    }
    scales = quantized.stored_scales
    if isinstance(scales, NestedScales):
        found["weight.absmax"] = scales.codes.flatten()
        found["weight.nested_absmax"] = scales.absmax
        found["weight.nested_quant_map"] = torch.tensor(MAP.values)
        state |= {"nested_blocksize": scales.BLOCK, "nested_dtype": "float32", "nested_offset": scales.offset.item()}
    else:
        found["weight.absmax"] = quantized.scales.flatten()
    text = json.dumps(state).encode()
    found[f"weight.quant_state.bitsandbytes__{layout.kind}"] = torch.tensor(list(text), dtype=torch.uint8)
    return found


def decode(tensors: dict[str, torch.Tensor], layout: Layout, rows: int, columns: int) -> QuantizedTensor:
    """The inverse of :func:`encode`. Raises :class:`QtutorError` for blocks that cross from one row into the next."""
    if layout.grid == INT8:
        if int(tensors.get("weight_format", torch.tensor(0))):
            raise QtutorError("weight_format is not 0: its codes are in an old tile order, which is not read here.")
        codes = (tensors["weight"].short() + INT8.middle).to(torch.uint8)
        return QuantizedTensor(codes, tensors["SCB"][:, None].clone(), None, INT8, PER_CHANNEL)
    block, offset = _state(tensors, layout, rows, columns)
    data = tensors["weight"].flatten()
    codes = torch.stack((data >> 4, data & 15), dim=1).flatten()[: rows * columns].reshape(rows, columns)
    shape = rows, columns // block
    scales = tensors["weight.absmax"]
    if scales.numel() != shape[0] * shape[1]:
        raise QtutorError(f"absmax has {scales.numel()} scales, expected {shape[0] * shape[1]} for blocks of {block}.")
    scales = scales.reshape(shape).clone()
    if layout.nested:
        wanted = -(-scales.numel() // NestedScales.BLOCK)
        if tensors["weight.nested_absmax"].shape != (wanted,):
            raise QtutorError(f"nested_absmax is {list(tensors['weight.nested_absmax'].shape)}, expected [{wanted}].")
        scales = NestedScales(scales, tensors["weight.nested_absmax"].clone(), torch.tensor(offset))
    return QuantizedTensor(codes, scales, None, layout.grid, block)


def _state(tensors: dict[str, torch.Tensor], layout: Layout, rows: int, columns: int) -> tuple[int, float]:
    """The size of a block, and the number that was subtracted from the scales; the rest of the state is checked."""
    text = bytes(tensors[f"weight.quant_state.bitsandbytes__{layout.kind}"].flatten().tolist())
    state, where = parse_json(text, "quant_state"), "quant_state"
    expect(where, state, "quant_type", lambda kind: kind == layout.kind, layout.kind)
    expect(where, state, "shape", lambda shape: shape == [rows, columns], f"[{rows}, {columns}]")
    block = expect(where, state, "blocksize", lambda size: type(size) is int and size in BLOCKS, "a power of two")
    if columns % block:
        raise QtutorError(
            f"blocks of {block} cross from row to row of {columns} weights, and qtutor cannot hold that: take another "
            "version of the model."
        )
    for name, values in [("quant_map", layout.grid.values), ("nested_quant_map", MAP.values)][: 1 + layout.nested]:
        if not torch.allclose(tensors[f"weight.{name}"], torch.tensor(values), rtol=0, atol=1e-6):
            raise QtutorError(f"{name} holds other levels than {layout.kind} has in bitsandbytes.")
    if not layout.nested:
        return block, 0.0
    expect(where, state, "nested_blocksize", lambda size: size == NestedScales.BLOCK, str(NestedScales.BLOCK))
    number = lambda value: type(value) is float and abs(value) < 1e30  # noqa: E731
    return block, expect(where, state, "nested_offset", number, "a number")


FORMAT = Format(METHOD, settings, layouts, tensors_of_layer, encode, decode)

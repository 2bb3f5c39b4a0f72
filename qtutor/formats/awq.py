"""AWQ checkpoints in the layout "gemm": AutoAWQ's, which vLLM, SGLang and transformers (with gptqmodel) read.

It replaces awq/utils/packing_utils.py and WQLinear_GEMM of AutoAWQ, now in gptqmodel/quantization/awq and
gptqmodel/nn_modules/qlinear/gemm_awq.py. A layer ``[out, in]`` of 4 bits is stored transposed:

    qweight  int32 [in, out / 8]       eight outputs in a word
    qzeros   int32 [groups, out / 8]   zero points, in the same order; nothing is subtracted from them
    scales   float16 [groups, out]

Nibble i of a word, from the lowest, is output 8 c + (0, 2, 4, 6, 1, 3, 5, 7)[i]. With this order, a GPU separates the
even and the odd nibbles of a word with two masks, and gets them in pairs. The word of the codes 1, 2 ... 8 of outputs 0
to 7 is 0x86427531.

The format has no symmetric grid. A symmetric grid is written with the zero point 8 everywhere, and is read back as an
asymmetric grid with this zero point.

Any rounding can be stored like this. AWQ's own scales are not in the file: they are folded into norms and weights.

Left out: bits other than 4, the layouts gemv and gemv_fast, quantized heads, mixed bits or groups (none of the readers
accepts them).
"""

import torch

from qtutor.core.grid import IntGrid
from qtutor.core.quantized import PER_CHANNEL, QuantizedTensor, resolve_group_size
from qtutor.errors import QtutorError, shown
from qtutor.families.names import is_head
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
    resolved_zeros,
    stored_scales,
)
from qtutor.formats.words import from_words, to_words

target = foreign_writing.target  # the path that save may write to
METHOD = "awq"
BITS = 4
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the output of each nibble, from the lowest
BACK = (0, 4, 1, 5, 2, 6, 3, 7)  # the nibble of each output


def save(model, folder, tokenizer=None):
    """Write a quantized ``model`` to ``folder``; see :func:`.foreign_writing.save`."""
    return foreign_writing.save(FORMAT, model, folder, tokenizer)


def settings(layers: dict, left: list[str]) -> dict:
    """quantization_config: one setting for all layers."""
    for name, layer in layers.items():
        check_integers(name, METHOD, layer, (BITS,))
        if is_head(name):
            raise refused(name, METHOD, "packed weights", "keeps the head in float: quantize with lm_head=False.")
        if layer.rows % len(ORDER):
            raise refused(name, METHOD, f"{layer.rows} outputs", "packs eight in a word: leave the layer in float.")
    size = one_group_size(METHOD, layers)
    return {
        "quant_method": METHOD,
        "bits": BITS,
        "group_size": size,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": left,
    }


def layouts(settings: dict, names: list[str], where: str) -> dict[str, Layout]:
    """The layout of each of ``names`` that is quantized."""
    expect(where, settings, "bits", lambda bits: bits == BITS and type(bits) is int, "4")
    version = settings.get("version") or settings.get("format") or "gemm"
    if not isinstance(version, str) or version.lower() != "gemm":
        raise QtutorError(f"{where}: version is {shown(version)}; qtutor reads 'gemm', as nearly all files are.")
    size = expect(
        where, settings, "group_size", lambda g: type(g) is int and (g > 0 or g == PER_CHANNEL), "a size, or -1"
    )
    expect(where, settings, "zero_point", lambda flag: flag is True, "true", default=True)
    kept = names_at(where, settings, "modules_to_not_convert")
    layout = Layout(IntGrid(BITS), size, "gemm")
    return {name: layout for name in names if not is_head(name) and not any(part in name for part in kept)}


def tensors_of_layer(layout: Layout, rows: int, columns: int) -> dict[str, Wanted]:
    """The tensors of a layer; see the top of this file."""
    if rows % len(ORDER):
        raise QtutorError(f"{rows} outputs are no multiple of eight: this layer cannot be stored as AWQ.")
    groups = columns // resolve_group_size(layout.group_size, columns)
    return {
        "qweight": Wanted((columns, rows // 8), ("I32",)),
        "qzeros": Wanted((groups, rows // 8), ("I32",)),
        "scales": Wanted((groups, rows), ("F16", "BF16", "F32")),
    }


def encode(quantized: QuantizedTensor, layout: Layout) -> dict[str, torch.Tensor]:
    """A layer's tensors."""
    return {
        "qweight": _interleaved(quantized.codes.T),
        "qzeros": _interleaved(resolved_zeros(quantized).T),
        "scales": quantized.scales.T,
    }


def decode(tensors: dict[str, torch.Tensor], layout: Layout, rows: int, columns: int) -> QuantizedTensor:
    """The inverse of :func:`encode`."""
    codes, zeros = (_straight(tensors[name], rows).T.contiguous() for name in ("qweight", "qzeros"))
    return QuantizedTensor(
        codes, stored_scales(tensors["scales"].T.contiguous()), zeros, layout.grid, layout.group_size
    )


def _interleaved(codes: torch.Tensor) -> torch.Tensor:
    """uint8 ``[n, out]`` to int32 ``[n, out / 8]``."""
    n, rows = codes.shape
    return to_words(codes.reshape(n, rows // 8, 8)[:, :, list(ORDER)].reshape(n, rows), BITS)


def _straight(words: torch.Tensor, rows: int) -> torch.Tensor:
    """The inverse of :func:`_interleaved`."""
    n = words.shape[0]
    return from_words(words, BITS, rows).reshape(n, rows // 8, 8)[:, :, list(BACK)].reshape(n, rows)


FORMAT = Format(METHOD, settings, layouts, tensors_of_layer, encode, decode)

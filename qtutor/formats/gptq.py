"""GPTQ checkpoints, as AutoGPTQ began them; GPTQModel, vLLM, SGLang and transformers (with gptqmodel) read them.

It replaces the packing in gptqmodel/nn_modules/qlinear/__init__.py and the conversions of the format in
gptqmodel/utils/model.py. A layer ``[out, in]`` of 2, 3, 4 or 8 bits is stored transposed, in the order in which a GPU's
threads read it:

    qweight  int32 [in * bits / 32, out]      a column holds the codes of one output, low bits first along in
    qzeros   int32 [groups, out * bits / 32]  zero points, packed along out
    scales   float16 [groups, out]
    g_idx    int32 [in]                       the group of every input; here always i // group_size

The word of 4 bits with the codes 1, 2, 3 ... 8 of inputs 0 to 7 is 0x87654321.

Version 1 stores zero - 1 (a symmetric 4-bit file has 7 everywhere), version 2 the zero itself. Version 1 cannot store
the zero point 0: GPTQModel subtracts across the borders of the codes, other tools do not, so such a zero point is
refused. By default, a symmetric model becomes version 1, which everybody reads, and an asymmetric one version 2.
GPTQModel refuses asymmetric files of version 1 from other tools than itself (models/loader.py in 7.7), and vLLM reads
none at all. So a conversion writes version 2 even from an asymmetric version 1, unless ``version=1`` is given; then it
writes the same bytes again.

A g_idx that is not trivial, from desc_act with groups of scattered columns, is neither written nor read. None of our
recipes produces one: GPTQ rounds columns in any order (act_order, static_groups), but a group always consists of
neighbours in the stored row. So desc_act is false, and engines look nothing up. A QuantizedTensor has no place for such
an index, so a file with one is refused when it is read. Layers whose bits or groups differ from those of most layers
are listed in ``dynamic``, by patterns.

Left out: 5, 6 and 7 bits (GPTQModel's bit planes), Marlin's own layout.
"""

import re

import torch

from qtutor.core.grid import IntGrid
from qtutor.core.quantized import QuantizedTensor, resolve_group_size
from qtutor.errors import QtutorError, check_choice, shown
from qtutor.families.names import is_head
from qtutor.formats import foreign_writing
from qtutor.formats.foreign import (
    Format,
    Layout,
    Wanted,
    check_integers,
    expect,
    pattern,
    refused,
    resolved_zeros,
    stored_scales,
)
from qtutor.formats.words import WORD, from_words, to_words, words_in

target = foreign_writing.target  # the path that save may write to
METHOD = "gptq"
FIRST, SECOND = "gptq", "gptq_v2"  # checkpoint_format
VERSIONS = {1: FIRST, 2: SECOND}
BITS = (2, 3, 4, 8)


def save(model, folder, tokenizer=None, *, version: int | None = None):
    """Write a quantized ``model`` to ``folder`` (:func:`.foreign_writing.save`). version: 1, 2 or ``None`` (best)."""
    check_choice("version", version, (None, *VERSIONS))
    # Older readers expect the settings in a file of their own.
    beside = lambda settings: {"quantize_config.json": settings}  # noqa: E731
    return foreign_writing.save(FORMAT, model, folder, tokenizer, beside, version=version)


def settings(layers: dict, left: list[str], version: int | None = None) -> dict:
    """quantization_config: the setting of most layers, and ``dynamic`` for the others and for those left in float."""
    for name, layer in layers.items():
        check_integers(name, METHOD, layer, BITS)
        _check_words(name, layer.grid.bits, layer.rows, layer.columns)
    kinds = [(layer.grid.bits, layer.group_size, layer.grid.symmetric) for layer in layers.values()]
    bits, group_size, symmetric = usual = max(set(kinds), key=kinds.count)
    dynamic = {}
    for name, kind in zip(layers, kinds):
        if kind != usual:
            dynamic[f"+:^{re.escape(name)}$"] = dict(zip(("bits", "group_size", "sym"), kind))
    dynamic |= {f"-:^{re.escape(name)}$": {} for name in left if not is_head(name)}
    version = version or (1 if all(layer.grid.symmetric for layer in layers.values()) else 2)
    found = {
        "quant_method": METHOD,
        "bits": bits,
        "group_size": group_size,
        "sym": symmetric,
        "desc_act": False,
        "lm_head": any(map(is_head, layers)),  # the format calls the head so in every family
        "checkpoint_format": VERSIONS[version],
        "format": VERSIONS[version],
        "pack_dtype": "int32",
        "meta": {"quantizer": ["qtutor"]},
    }
    return found | ({"dynamic": dynamic} if dynamic else {})


def _check_words(name: str, bits: int, rows: int, columns: int) -> None:
    for what, count in (("inputs", columns), ("outputs", rows)):
        if count * bits % WORD:
            fits = f"packs {bits}-bit codes in whole words of {WORD} bits both ways: take 'compressed-tensors'."
            raise refused(name, METHOD, f"{count} {what}", fits)


def layouts(settings: dict, names: list[str], where: str) -> dict[str, Layout]:
    """The layout of each of ``names`` that is quantized."""
    version = settings.get("checkpoint_format") or settings.get("format") or FIRST
    if version not in VERSIONS.values():
        raise QtutorError(
            f"{where}: checkpoint_format is {shown(version)}; qtutor reads {' and '.join(VERSIONS.values())}."
        )
    expect(where, settings, "pack_dtype", lambda dtype: dtype == "int32", "int32", default="int32")
    head = expect(where, settings, "lm_head", lambda flag: type(flag) is bool, "true or false", default=False)
    usual = {key: settings.get(key) for key in ("bits", "group_size", "sym", "desc_act")}
    rules = expect(where, settings, "dynamic", lambda value: isinstance(value, dict | None), "rules by pattern") or {}
    compiled = [(pattern(re.sub(r"^[+-]:", "", text), where), text, change) for text, change in rules.items()]
    found = {}
    for name in names:
        rule = next(((text, change) for one, text, change in compiled if re.match(one, name)), None)
        if (rule and rule[0].startswith("-:")) or (rule is None and is_head(name) and not head):
            continue
        change = rule[1] if rule else {}
        if not isinstance(change, dict):
            raise QtutorError(f"{where}: dynamic {shown(rule[0])} is {shown(change)}, expected settings that differ.")
        found[name] = _layout(usual | change, version, f"{where}: {name}" if change else where)
    return found


def _layout(values: dict, version: str, where: str) -> Layout:
    bits = expect(where, values, "bits", lambda b: type(b) is int and b in BITS, "2, 3, 4 or 8")
    size = expect(where, values, "group_size", lambda g: type(g) is int and (g > 0 or g == -1), "a size, or -1")
    values = {"sym": True} | {key: value for key, value in values.items() if value is not None}
    symmetric = expect(where, values, "sym", lambda flag: type(flag) is bool, "true or false")
    ordered = expect(where, values, "desc_act", lambda flag: type(flag) is bool, "true or false", default=False)
    # An ordered file has to give the group of each column. In other files it is plain, and older ones do not have
    # g_idx.
    return Layout(IntGrid(bits, symmetric), size, version, ordered=ordered)


def tensors_of_layer(layout: Layout, rows: int, columns: int) -> dict[str, Wanted]:
    """The tensors of a layer; see the top of this file. layout.ordered: g_idx has to be there."""
    bits = layout.grid.bits
    _check_words("the layer", bits, rows, columns)
    groups = columns // resolve_group_size(layout.group_size, columns)
    return {
        "qweight": Wanted((words_in(columns, bits), rows), ("I32",)),
        "qzeros": Wanted((groups, words_in(rows, bits)), ("I32",)),
        "scales": Wanted((groups, rows), ("F16", "BF16", "F32")),
        "g_idx": Wanted((columns,), ("I32", "I64"), optional=not layout.ordered),
    }


def encode(quantized: QuantizedTensor, layout: Layout) -> dict[str, torch.Tensor]:
    """A layer's tensors. Raises :class:`QtutorError` for a zero point of 0 in version 1."""
    bits, columns = layout.grid.bits, quantized.shape[1]
    zeros = resolved_zeros(quantized)
    if layout.kind == FIRST:
        if zeros.numel() and int(zeros.min()) == 0:
            raise QtutorError(
                f"{int((zeros == 0).sum())} of {zeros.numel()} groups have the zero point 0, which GPTQ's version 1 "
                "stores as -1 and which readers decode differently: export with version=2, or quantize symmetrically."
            )
        zeros = zeros - 1
    group = resolve_group_size(layout.group_size, columns)
    return {
        "qweight": to_words(quantized.codes, bits).T,
        "qzeros": to_words(zeros.T.contiguous(), bits),
        "scales": quantized.scales.T,
        "g_idx": (torch.arange(columns) // group).int(),
    }


def decode(tensors: dict[str, torch.Tensor], layout: Layout, rows: int, columns: int) -> QuantizedTensor:
    """The inverse of :func:`encode`. Raises :class:`QtutorError` if columns are not in the order of their groups."""
    bits, grid = layout.grid.bits, layout.grid
    group = resolve_group_size(layout.group_size, columns)
    order = tensors.get("g_idx")
    if order is not None and not torch.equal(order.long(), torch.arange(columns) // group):
        raise QtutorError(
            "its columns are grouped in another order than they are stored in (g_idx, from desc_act), and qtutor holds "
            "no index for every column. Take a version of the model without desc_act, or the float checkpoint."
        )
    codes = from_words(tensors["qweight"].T, bits, columns)
    zeros = zeros_of(tensors["qzeros"], bits, rows, layout.kind)
    scales = stored_scales(tensors["scales"].T.contiguous())
    if not grid.symmetric:
        return QuantizedTensor(codes, scales, zeros, grid, layout.group_size)
    wrong = zeros != grid.middle
    if wrong.any():
        raise QtutorError(
            f"it is symmetric by its settings, so all zero points are {grid.middle}, and {int(wrong.sum())} of "
            f"{wrong.numel()} are not: the first is {int(zeros[wrong][0])}. If all are one too large or too small, "
            f"checkpoint_format is not {layout.kind!r}, but the other one of {FIRST!r} and {SECOND!r}."
        )
    return QuantizedTensor(codes, scales, None, grid, layout.group_size)


def zeros_of(words: torch.Tensor, bits: int, rows: int, version: str) -> torch.Tensor:
    """Zero points uint8 ``[rows, groups]`` from qzeros, int32 ``[groups, rows * bits / 32]``; version: see above."""
    if version == FIRST and bits != 3:  # as in GPTQModel, where a stored -1 carries into the next code
        words = words + to_words(torch.ones(1, rows, dtype=torch.uint8), bits)
    zeros = from_words(words, bits, rows).T.contiguous()
    return (zeros + 1) & 7 if version == FIRST and bits == 3 else zeros


FORMAT = Format(METHOD, settings, layouts, tensors_of_layer, encode, decode)

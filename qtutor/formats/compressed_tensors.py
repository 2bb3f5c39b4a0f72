"""compressed-tensors: the checkpoints of llm-compressor, which vLLM, SGLang and transformers read.

It replaces compressors/pack_quantized and compressors/naive_quantized of the package compressed-tensors (some 510 lines
of its 17,000), by the bytes that it writes since version 0.19. A layer ``[out, in]`` is one of two kinds:

    pack-quantized, 2 to 8 bits              W4A16 and the like: the inputs stay in float
      weight_packed      int32 [out, in * bits / 32]     a row's codes as one stream of bits (:mod:`.words`)
      weight_scale       float [out, groups]             groups of a row, or one for the row ("channel")
      weight_zero_point  int32 [out * bits / 32, groups]  only if asymmetric; the stream goes down a column
      weight_shape       int64 [2]                       out and in, since the last word may be partly empty
    int-quantized, 8 bits                    W8A8: the engine rounds the inputs too, each token to its own scale
      weight             int8 [out, in]
      weight_scale       float32 [out, 1]

Block of 4 bits, codes 1, 2, 3 ... 8 in the first 8 columns: 21 43 65 87, the first in the lowest bits. Codes are
unsigned here as everywhere in qtutor; the package thinks of them as code - 2^(bits-1) and stores the same bits.

Two things are not as in our own folders. A scale of our int8 grid is the largest weight of the row, and a scale here is
that over 127, which float32 rounds: it comes back at most one last bit off. And LLM.int8 keeps outlier channels of the
inputs in float, which no engine does for these files: it says so in a warning, and what comes back has no threshold.

Engines do not round the inputs of W8A8 alike: the package itself divides a token's largest value by 127.5, vLLM and our
int8 layers by 127. On the embedded decoder, which was given outliers, each of the two has another likeliest next token
than the other, and than rounding the weights alone, at 3 of 100 places. Beside a reference that rounds as it does, each
agrees at more than 99 (tests/engines).

Scales are written with all their 16 or 32 bits; an engine that computes in bfloat16 rounds them to 8 as it loads.

transformers 5.23 with compressed-tensors 0.19 or 0.20 makes room for zero points that are not packed, and so refuses
asymmetric files, except where it decodes all weights as it loads. ``dequantize: true`` in the settings has it do that;
it then decodes every layer by the first group, so it reads asymmetric files with one group only. Others ignore the key.

Left out: FP8, FP4 and their scales (no such grid yet), static scales of inputs, sparsity, rotations
(transform_config), quantized caches, and files of 3, 5, 6 and 7 bits from before 0.19, which packed other bytes.
"""

import re
import warnings

import torch

from qtutor.core.codebooks import INT8
from qtutor.core.grid import IntGrid
from qtutor.core.quantized import PER_CHANNEL, QuantizedTensor
from qtutor.errors import QtutorError, shown
from qtutor.formats import foreign_writing
from qtutor.formats.foreign import (
    Format,
    Layout,
    Wanted,
    are_names,
    check_integers,
    expect,
    names_at,
    pattern,
    stored_scales,
)
from qtutor.formats.foreign_reading import load  # noqa: F401 - every format has it
from qtutor.formats.words import from_words, to_words, words_in

target = foreign_writing.target  # where save may write
METHOD = "compressed-tensors"
PACKED, INTEGERS, MIXED = "pack-quantized", "int-quantized", "mixed-precision"
SCALES = ("F16", "BF16", "F32")
TOKENS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "group_size": None, "dynamic": True}
TOLERANCE = 2.0**-22  # of a scale that was divided by 127 and multiplied again, twice half a last bit of float32
UNREAD = ("sparsity_config", "transform_config", "kv_cache_scheme")


def save(model, folder, tokenizer=None):
    """Write a quantized ``model`` to ``folder``; see :func:`.foreign_writing.save`."""
    return foreign_writing.save(FORMAT, model, folder, tokenizer)


def settings(layers: dict, left: list[str]) -> dict:
    """quantization_config. Layers that are alike share a group.

    One group is addressed as all "Linear" layers but those to ignore, as everybody does. Several are addressed by the
    names of their layers: vLLM joins q, k and v into a layer of its own, and finds the class before it looks at names.
    """
    groups: dict[Layout, list[str]] = {}
    for name, layer in layers.items():
        groups.setdefault(_layout_of(name, layer), []).append(name)
    _warn_of_outliers([layer.threshold for layer in layers.values() if layer.grid == INT8])
    kinds = {layout.kind for layout in groups}
    written = {}
    for number, (layout, names) in enumerate(groups.items()):
        group = {"targets": ["Linear"] if len(groups) == 1 else names, **_scheme(layout)}
        written[f"group_{number}"] = group | ({"format": layout.kind} if len(kinds) > 1 else {})
    found = {
        "quant_method": METHOD,
        "format": kinds.pop() if len(kinds) == 1 else MIXED,
        "quantization_status": "compressed",
        "config_groups": written,
        "ignore": left,
    }
    # For transformers alone, see the top of this file.
    return found | ({} if all(layout.grid.symmetric for layout in groups) else {"dequantize": True})


def _layout_of(name: str, layer) -> Layout:
    if layer.grid == INT8:
        return Layout(INT8, PER_CHANNEL, INTEGERS)
    check_integers(name, METHOD, layer, range(2, 9), halves=False)
    return Layout(layer.grid, layer.group_size, PACKED)


def _warn_of_outliers(thresholds: list[float | None]) -> None:
    kept = [threshold for threshold in thresholds if threshold is not None]
    if kept:
        warnings.warn(
            f"{len(kept)} int8 layers keep input channels with a value from {min(kept):g} in float (LLM.int8), and an "
            "engine that reads these files rounds all of them to 8 bits: measure the model again in the engine. The "
            "format 'bitsandbytes' keeps the threshold.",
            stacklevel=2,
        )


def _scheme(layout: Layout) -> dict:
    by_row = layout.group_size == PER_CHANNEL
    weights = {
        "num_bits": layout.grid.bits,
        "type": "int",
        "symmetric": layout.grid.symmetric,
        "strategy": "channel" if by_row else "group",
        "group_size": None if by_row else layout.group_size,
        "dynamic": False,
    }
    return {
        "weights": weights,
        "input_activations": TOKENS if layout.kind == INTEGERS else None,
        "output_activations": None,
    }


def layouts(settings: dict, names: list[str], where: str) -> dict[str, Layout]:
    """The layout of each of ``names`` that a group targets and that is not ignored."""
    groups = expect(where, settings, "config_groups", lambda g: isinstance(g, dict) and g, "groups of layers by name")
    ignored = names_at(where, settings, "ignore")
    for key in UNREAD:
        if settings.get(key) and not (isinstance(settings[key], dict) and settings[key].get("format") == "dense"):
            raise QtutorError(
                f"{where}: {key} = {shown(settings[key])} is not read here: take a plain quantized model."
            )
    targets: dict[str, Layout] = {}
    for label, group in groups.items():
        here = f"{where}: {shown(label)}"
        if not isinstance(group, dict):
            raise QtutorError(f"{here} is {shown(group)}, expected an object with targets and weights.")
        layout = _layout(group, settings.get("format"), here)
        for name in expect(here, group, "targets", are_names, "names of layers"):
            targets[name] = layout
    unknown = [name for name in targets if "." in name and not name.startswith("re:") and name not in names]
    if unknown:
        raise QtutorError(f"{where}: it quantizes {shown(unknown[0], 160)}, which this decoder does not have.")
    kept, wanted = _matcher(ignored, where), _matcher(targets, where)
    return {name: targets[hit] for name in names if kept(name) is None and (hit := wanted(name)) is not None}


def _matcher(targets, where: str):
    """A function from a layer's name to the target that it belongs to: names first, then patterns, then the class."""
    patterns = {text: pattern(text.removeprefix("re:"), where) for text in sorted(targets) if text.startswith("re:")}

    def match(name: str) -> str | None:
        if name in targets:
            return name
        found = (text for text, compiled in patterns.items() if re.match(compiled, name))
        return next(found, "Linear" if "Linear" in targets else None)

    return match


def _layout(group: dict, form: str | None, where: str) -> Layout:
    """The layout that a group of a config describes."""
    weights = expect(where, group, "weights", lambda value: isinstance(value, dict), "how weights are stored")
    where = f"{where}: weights"
    if weights.get("type", "int") != "int" or weights.get("dynamic"):
        raise QtutorError(f"{where} are {shown(weights.get('type'))}; integers of 2 to 8 bits are read here.")
    bits = expect(where, weights, "num_bits", lambda b: type(b) is int and 2 <= b <= 8, "2 to 8", default=8)
    symmetric = expect(where, weights, "symmetric", lambda s: type(s) is bool, "true or false", default=True)
    size = expect(
        where, weights, "group_size", lambda g: g is None or (type(g) is int and (g > 0 or g == -1)), "a size"
    )
    usual = "group" if size is not None and size > 0 else "channel" if size == PER_CHANNEL else "tensor"
    strategy = weights.get("strategy") or usual
    fits = (strategy == "group" and usual == "group") or (strategy == "channel" and usual != "group")
    order = weights.get("actorder")
    if not fits or order in (True, "group", "dynamic"):
        raise QtutorError(
            f"{where}: strategy {shown(strategy)}, group_size {shown(size)}, actorder {shown(order)}; read are scales "
            "by group or by channel, of neighbours in a row."
        )
    kind = group.get("format") or form
    inputs = group.get("input_activations")
    dynamic = isinstance(inputs, dict) and all(
        inputs.get(key) == TOKENS[key] for key in ("num_bits", "type", "symmetric", "strategy", "dynamic")
    )
    if kind == INTEGERS and dynamic and bits == 8 and symmetric and strategy == "channel":
        return Layout(INT8, PER_CHANNEL, INTEGERS)
    if kind != PACKED or inputs:
        raise QtutorError(
            f"{where}: the format {shown(kind)} with inputs {shown(inputs)} is not read here; read are {PACKED!r} with "
            f"inputs in float, and {INTEGERS!r} with weights by channel and inputs by token, both of 8 bits."
        )
    return Layout(IntGrid(bits, symmetric), size if strategy == "group" else PER_CHANNEL, PACKED)


def tensors_of_layer(layout: Layout, rows: int, columns: int) -> dict[str, Wanted]:
    """The tensors of a layer; see the top of this file."""
    bits, groups = layout.grid.bits, 1 if layout.group_size == PER_CHANNEL else columns // layout.group_size
    if layout.kind == INTEGERS:
        return {"weight": Wanted((rows, columns), ("I8",)), "weight_scale": Wanted((rows, 1), SCALES)}
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
    if tensors["weight_shape"].tolist() != [rows, columns]:
        raise QtutorError(f"weight_shape is {tensors['weight_shape'].tolist()}, and the layer is {[rows, columns]}.")
    codes = from_words(tensors["weight_packed"], bits, columns)
    zeros = None
    if not layout.grid.symmetric:
        zeros = from_words(tensors["weight_zero_point"].T, bits, rows).T.contiguous()
    return QuantizedTensor(codes, stored_scales(scales), zeros, layout.grid, layout.group_size)


FORMAT = Format(METHOD, settings, layouts, tensors_of_layer, encode, decode, TOLERANCE)

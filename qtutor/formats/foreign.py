"""Defines a checkpoint format of another tool as five functions, with the helpers that these formats share.

:class:`Format` lists the functions; :mod:`.foreign_writing` writes whole folders with them, :mod:`.foreign_reading`
reads them. Left out, for every format: quantized embeddings, which no engine here reads, and one scale for a matrix.
"""

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from qtutor.core.float_grid import FloatGrid
from qtutor.core.grid import Grid, IntGrid
from qtutor.core.quantized import PER_TENSOR, QuantizedTensor
from qtutor.core.scales import Scales
from qtutor.errors import QtutorError, said, shown
from qtutor.families import family_of
from qtutor.formats.documents import AGAIN
from qtutor.runtime.linear import QuantEmbedding, QuantLinear, QuantWeight
from qtutor.runtime.scaled import ScaledLinear

LONGEST_PATTERN = 300  # characters of a regular expression in a config
MOST_REPEATS = 4


@dataclass(frozen=True)
class Layout:
    """How one layer is stored. kind: the format's own name for this way, if it has several.

    nested: its scales are quantized, too. threshold: of an int8 layer, see :class:`~qtutor.runtime.int8.Int8Linear`.
    ordered: columns may belong to groups in another order than they are stored in, and then the file has to say how.
    """

    grid: Grid
    group_size: int
    kind: str = ""
    nested: bool = False
    threshold: float | None = None
    ordered: bool = False


class Wanted(NamedTuple):
    """A tensor of a stored layer: its shape (``None``: any) and the dtypes that it may have, as named in headers."""

    shape: tuple[int, ...] | None
    dtypes: tuple[str, ...]
    optional: bool = False


def _usual(settings: dict) -> dict:
    return {"quantization_config": settings}


@dataclass(frozen=True)
class Format:
    """A format of another tool, as five functions. Names of layers are full: "model.layers.0.mlp.up_proj".

    method: the value of ``quant_method`` in config.json.
    settings(layers, left, **options): config.json's quantization_config for the packed ``layers`` by name; ``left`` are
    the linear layers that stay in float. It raises :class:`QtutorError` for layers that the format cannot hold.
    layouts(settings, names, where): the inverse, for settings from any tool: the layout of each of ``names`` that is
    quantized. It raises :class:`QtutorError`, beginning with ``where``, for unknown settings.
    tensors_of_layer(layout, rows, columns): the tensors of a layer; the keys are their names without the layer's name
    and the dot after it.
    encode(quantized, layout), decode(tensors, layout, rows, columns): from a :class:`QuantizedTensor` to these tensors,
    and back.
    tolerance: how far a scale may be from the one that was written, as a share of it.
    in_config(settings): the entries of config.json that hold the settings, by key.
    input_scale: the tensor of a layer that its inputs are multiplied by (:class:`.ScaledLinear`), "" if the format has
    none.
    """

    method: str
    settings: Callable[..., dict]
    layouts: Callable[[dict, list[str], str], dict[str, Layout]]
    tensors_of_layer: Callable[[Layout, int, int], dict[str, Wanted]]
    encode: Callable[[QuantizedTensor, Layout], dict[str, torch.Tensor]]
    decode: Callable[[dict[str, torch.Tensor], Layout, int, int], QuantizedTensor]
    tolerance: float = 0.0
    in_config: Callable[[dict], dict] = _usual
    input_scale: str = ""

    def settings_for(self, layers: dict, left: list[str], **options) -> dict:
        """:attr:`settings`, also raising for layers that multiply their inputs, if the format has no place for that."""
        for name, layer in layers.items():
            if isinstance(layer, ScaledLinear) and not self.input_scale:
                raise refused(
                    name, self.method,
                    "inputs that are each multiplied by a number (SINQ's columns, ModelOpt's pre_quant_scale)",
                    "has no place for the numbers: take 'modelopt' or 'qtutor', or quantize the float checkpoint anew.",
                )  # fmt: skip
        return self.settings(layers, left, **options)


def packed_layers(model: nn.Module) -> dict[str, QuantLinear]:
    """The packed linear layers of a model by name. Raises :class:`QtutorError` for layers that no engine would read."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, QuantWeight)}
    if not found:
        raise QtutorError("the model is not quantized: call qtutor.quantize(model, recipe) before qtutor.export.")
    for name, module in found.items():
        if isinstance(module, QuantEmbedding):
            raise QtutorError(
                f"{name} is a quantized embedding, which none of these formats holds: quantize with embeddings=False, "
                "or export in the format 'qtutor' or 'gguf'."
            )
        if module.group_size == PER_TENSOR and not isinstance(module.grid, FloatGrid):
            raise QtutorError(
                f"{name} has one scale for the whole matrix (group_size=0), which none of these formats holds: "
                "quantize with group_size=-1, one scale a row."
            )
    return found


def linear_names(model: nn.Module) -> list[str]:
    """The linear layers of the decoder blocks and the head, packed or not, in the order of the model."""
    family = family_of(model)
    inside = f"{family.blocks}."
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | QuantLinear) and (name.startswith(inside) or name == family.head)
    ]


def refused(name: str, form: str, found: str, fits: str) -> QtutorError:
    """The error for a layer that a format cannot hold; it says what would fit."""
    return QtutorError(f"{name} has {found}, and the format {form!r} {fits}")


def check_integers(name: str, method: str, layer: QuantLinear, bits: Collection[int], halves: bool = True) -> None:
    """Raise :class:`QtutorError` unless a layer has even levels of ``bits`` and, if ``halves``, float16 scales."""
    grid, elsewhere = layer.grid, "take 'compressed-tensors', or leave the layer in float."
    if not isinstance(grid, IntGrid):
        other = "compressed-tensors" if isinstance(grid, FloatGrid) else "bitsandbytes"
        raise refused(name, method, f"the levels of {grid.name}", f"holds evenly spaced ones: take {other!r}.")
    if grid.bits not in bits:
        raise refused(name, method, f"{grid.bits} bits", f"holds {', '.join(map(str, bits))}: {elsewhere}")
    if halves and layer.scales.dtype != torch.float16:
        raise refused(name, method, f"{layer.scales.dtype} scales", f"holds float16: {elsewhere}")


def one_group_size(method: str, layers: dict[str, QuantLinear]) -> int:
    """The group size of all ``layers``. Raises :class:`QtutorError` naming two that differ."""
    sizes = {}
    for name, layer in layers.items():
        sizes.setdefault(layer.group_size, name)
    if len(sizes) > 1:
        (one, first), (other, second) = list(sizes.items())[:2]
        raise refused(
            second,
            method,
            f"groups of {other}, {first} of {one}",
            "holds one size for all: take 'compressed-tensors'.",
        )
    return next(iter(sizes))


def resolved_zeros(quantized: QuantizedTensor) -> torch.Tensor:
    """The zero points of a matrix, uint8 ``[out, groups]``, also for a symmetric grid."""
    if quantized.zeros is not None:
        return quantized.zeros
    return torch.full(quantized.scales.shape, quantized.grid.middle, dtype=torch.uint8, device=quantized.codes.device)


def stored_scales(scales: torch.Tensor) -> torch.Tensor:
    """Scales of a checkpoint in the dtype of our own: float16 if that is exact, otherwise float32."""
    half = scales.to(torch.float16)
    return half if torch.equal(half.float(), scales.float()) else scales.float()


def of_floats(weight: torch.Tensor, scales: torch.Tensor | Scales, layout: Layout) -> QuantizedTensor:
    """A layer that is stored as floats of 8 bits, with one scale a row, one for all, or other :class:`Scales`.

    Raises :class:`QtutorError` for codes that represent no number.
    """
    codes = weight.view(torch.uint8)
    layout.grid.check_codes(codes)
    scales = scales if isinstance(scales, Scales) else scales.float().reshape(-1, 1)
    return QuantizedTensor(codes, scales, None, layout.grid, layout.group_size)


def pattern(text, where: str) -> re.Pattern:
    """A regular expression from a checkpoint. Patterns that could take too long to match are refused."""
    try:
        if not isinstance(text, str) or len(text) > LONGEST_PATTERN:
            raise ValueError("it is too long")
        bare = re.sub(
            r"\\.|\[[^]]*\]|\(\?", "", text
        )  # escapes, classes of characters and kinds of groups repeat nothing
        if re.search(r"\)[*+{]", bare) or len(re.findall(r"[*+{]", bare)) > MOST_REPEATS or bare.count("?") > 8:
            raise ValueError("it repeats too much")
        return re.compile(text)
    except (ValueError, re.error, RecursionError, OverflowError) as error:
        raise QtutorError(f"{where}: the pattern {shown(text)} is not read ({said(error)}). Name the layers.") from None


def names_at(where: str, settings: dict, key: str, default: Iterable[str] = ()) -> list[str]:
    """The names of layers at ``key``; ``default`` if it is missing or null. Raises as :func:`expect` does."""
    if settings.get(key) is None:
        return list(default)
    return expect(where, settings, key, are_names, "names of layers")


def are_names(value) -> bool:
    """Whether a value of a config is a list of names."""
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def expect(where: str, settings: dict, key: str, fits: Callable[[object], bool], wanted: str, default=None):
    """``settings[key]``, checked. Raises :class:`QtutorError` that says what was found and what was expected."""
    value = settings.get(key, default)
    if not fits(value):
        found = shown(value) if key in settings else "missing"
        raise QtutorError(f"{where}: {key} is {found}; expected {wanted}. {AGAIN}")
    return value

"""Reading our own layout (:mod:`.native`): nothing in the folder is trusted before it was compared with the rest.

The order of reading is such that a false claim in a file costs nothing. First comes qtutor.json alone, then the header
of the weights, then the config, whose decoder is built of shapes. Then each layer of qtutor.json is compared with the
layer of the decoder and with the recipe, and every tensor of the header with the stored form of these layers. Only then
are the tensors read and their numbers checked.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from qtutor.core.codebooks import FP4, INT8, NF4
from qtutor.core.float_grid import FP8, FP8_TILES, MXFP4, NVFP4, BlockGrid, FloatGrid
from qtutor.core.float_scales import class_of_scales
from qtutor.core.grid import Grid, IntGrid
from qtutor.core.scales import NestedScales
from qtutor.errors import QtutorError, naming, shown
from qtutor.families import embedding_scale, family_of, linear_layers
from qtutor.formats.checkpoint import GENERATION, config_in, sharded
from qtutor.formats.comparing import check_finite, compare, tensors_of
from qtutor.formats.documents import AGAIN, file_in, read_json
from qtutor.formats.endings import give_back
from qtutor.formats.headers import Stored, read_header
from qtutor.formats.shards import INDEX, WEIGHTS
from qtutor.formats.transformers_files import DTYPES, empty_model, filled
from qtutor.recipe import Recipe
from qtutor.runtime.kinds import linear_for
from qtutor.runtime.linear import QuantEmbedding, QuantLinear, QuantWeight
from qtutor.runtime.scaled import ScaledLinear

LAYOUT = 1
ABOUT = "qtutor.json"
NAMED = {grid.name: grid for grid in (NF4, FP4, INT8, FP8, FP8_TILES, MXFP4, NVFP4)}
LARGEST_THRESHOLD = 1e30  # no input is larger, and float32 holds it
# The module that each kind of layer replaces; and for kinds that allow only some grids, these.
KINDS = {
    **dict.fromkeys(("linear", "int8 linear", "fp8 linear", "scaled linear"), nn.Linear),
    "embedding": nn.Embedding,
}
ONLY = {"int8 linear": (INT8,), "fp8 linear": (FP8, FP8_TILES)}


def load(folder: str | Path, device: str | None = None) -> nn.Module:
    """The model that :func:`.native.save` wrote to ``folder``, on ``device`` (default: the GPU if there is one).

    Raises :class:`QtutorError` naming the file that is missing, damaged or does not fit the others.
    """
    folder = Path(folder)
    model, about, files, where = opened(folder)
    tensors = {}
    for file in files:
        read = tensors_of(file)
        check_finite(str(file), read)
        tensors |= read
    model = filled(model, tensors, where, device)
    for name, layer in model.named_modules():
        if isinstance(layer, QuantWeight):
            _check_numbers(f"{files[0] if len(files) == 1 else folder}: {name}", layer)
    if (folder / GENERATION).exists():
        settings = file_in(folder, GENERATION)
        give_back(model, settings.read_text(encoding="utf-8", errors="replace"), str(folder / GENERATION))
    model.qtutor_recipe = about["recipe"]
    return model


def opened(folder: Path) -> tuple[nn.Module, dict, list[Path], str]:
    """All that can be said without reading a tensor.

    It is the model of shapes alone, qtutor.json, the files with the tensors, and the source of the config. Raises as
    :func:`load` does.
    """
    about = _read_about(folder)
    path, headers = folder / ABOUT, _headers(folder)
    found = {name: stored for tensors in headers.values() for name, stored in tensors.items()}
    config, where = config_in(folder, found)
    model = empty_model(config, where)
    _put_layers(model, about, str(path))
    _compare_with_recipe(model, about["recipe"], str(path))
    tied = ()
    if config.tie_word_embeddings:
        tied = tuple(f"{name}.weight" for name in (family_of(model).embedding, family_of(model).head))
    compare(str(next(iter(headers)) if len(headers) == 1 else folder), found, model, tied)
    return model, about, list(headers), where


def _headers(folder: Path) -> dict[Path, dict[str, Stored]]:
    """The headers of the files with the tensors: of a single file, or of all that an index names."""
    single, index = file_in(folder, WEIGHTS), file_in(folder, INDEX)
    if single is None and index is not None:
        return sharded(folder, index)
    if single is None:
        raise QtutorError(f"{folder / WEIGHTS} does not exist: the checkpoint is incomplete. {AGAIN}")
    return {single: read_header(single).tensors}


def _read_about(folder: Path) -> dict:
    """qtutor.json: layout, dtype, layers, recipe; :func:`_layer` checks the layers one by one."""
    path = file_in(folder, ABOUT)
    if path is None:
        raise QtutorError(
            f"{folder / ABOUT} does not exist: {folder} is not a folder that qtutor.export wrote. For a float "
            "checkpoint use qtutor.load_decoder."
        )
    about = read_json(path)
    _expect(path, about, "layout", lambda value: type(value) is int, "a number")
    if about["layout"] != LAYOUT:
        raise QtutorError(f"{path}: layout {shown(about['layout'])}, but this version reads {LAYOUT}; update qtutor.")
    _expect(path, about, "dtype", lambda value: isinstance(value, str) and value in DTYPES, ", ".join(DTYPES))
    _expect(path, about, "layers", lambda value: isinstance(value, dict) and value, "layers by name")
    about.setdefault("recipe", None)  # exports from before the recipe was stored have none
    _expect(path, about, "recipe", lambda value: isinstance(value, dict | None), "the options of a recipe")
    return about


def _expect(where: str | Path, entry: Mapping, key: str, fits, wanted: str) -> None:
    if key not in entry or not fits(entry[key]):
        found = shown(entry[key]) if key in entry else "missing"
        raise QtutorError(f"{where} is damaged: {key} is {found}; expected {wanted}. Export the model again.")


def _put_layers(model: nn.Module, about: dict, where: str) -> None:
    """Put empty packed layers in the places that qtutor.json names."""
    family, dtype = family_of(model), DTYPES[about["dtype"]]
    places: dict[str, nn.Module] = linear_layers(model)
    places |= {name: model.get_submodule(name) for name in (family.embedding, family.head)}
    for name, layer in about["layers"].items():
        if name not in places:
            raise QtutorError(
                f"{where}: {shown(name, 160)} is no layer of this decoder that can be packed. The file is damaged, or "
                "belongs to another config.json: export the model again."
            )
        with torch.device("meta"):
            model.set_submodule(name, _layer(f"{where}: {name}", layer, places[name], dtype))


def _layer(where: str, layer, place: nn.Module, dtype: torch.dtype) -> QuantWeight:
    """The empty layer that qtutor.json describes and that will replace ``place``."""
    if not isinstance(layer, dict):
        raise QtutorError(f"{where} is damaged: it is {shown(layer)}, expected an object. Export the model again.")
    _expect(where, layer, "kind", lambda kind: isinstance(kind, str) and kind in KINDS, " or ".join(KINDS))
    kind, grid = layer["kind"], _grid(where, layer)
    if not isinstance(place, KINDS[kind]) or grid not in ONLY.get(kind, (grid,)):
        raise QtutorError(
            f"{where} is damaged: kind is {kind!r}, on the grid {shown(layer['grid'])} in the place of a "
            f"{type(place).__name__}. Export the model again."
        )
    rows, columns = place.weight.shape
    has_bias = getattr(place, "bias", None) is not None
    _expect(
        where, layer, "shape", lambda s: _whole(s) and s == [rows, columns], f"[{rows}, {columns}], as in the config"
    )
    _expect(where, layer, "bias", lambda bias: bias is has_bias, f"{str(has_bias).lower()}, as in the config")
    _expect(where, layer, "group_size", lambda size: type(size) is int and -1 <= size <= columns, "-1 or more")
    nested = grid in (NF4, FP4)
    _expect(where, layer, "nested", lambda n: n is False or (n is True and nested), "false, or true with nf4 and fp4")
    scales_as = class_of_scales(grid, layer["nested"])
    with naming(where):
        if kind == "embedding":
            table = QuantEmbedding(rows, columns, grid, layer["group_size"], dtype, scales_as)
            table.multiplier = embedding_scale(place)
            return table
        made = linear_for(grid) if kind in ONLY else ScaledLinear if kind == "scaled linear" else QuantLinear
        module = made(rows, columns, grid, layer["group_size"], has_bias, scales_as)
    if "threshold" in layer:  # exports from before it was stored keep the default of the class
        _expect(
            where, layer, "threshold", lambda t: kind == "int8 linear" and _threshold(t), "null, or a number from 0"
        )
        module.threshold = None if layer["threshold"] is None else float(layer["threshold"])
    return module


def _grid(where: str, layer: dict) -> Grid:
    known = ("integers", *NAMED)
    _expect(where, layer, "grid", lambda name: isinstance(name, str) and name in known, " or ".join(known))
    _expect(where, layer, "bits", lambda bits: type(bits) is int and 2 <= bits <= 8, "2 to 8")
    _expect(where, layer, "symmetric", lambda symmetric: type(symmetric) is bool, "true or false")
    grid = NAMED.get(layer["grid"]) or IntGrid(layer["bits"], layer["symmetric"])
    _expect(where, layer, "bits", lambda bits: bits == grid.bits, f"{grid.bits} on the grid {layer['grid']}")
    _expect(where, layer, "symmetric", lambda found: found == grid.symmetric, f"true on the grid {layer['grid']}")
    return grid


def _whole(shape) -> bool:
    return isinstance(shape, list) and all(type(size) is int for size in shape)


def _threshold(value) -> bool:
    return value is None or (type(value) in (int, float) and 0 <= value <= LARGEST_THRESHOLD)


def _compare_with_recipe(model: nn.Module, recipe: dict | None, where: str) -> None:
    """Compare layers, grids and groups with the recipe's; nf4 and fp4 differ in nothing else that is stored."""
    if recipe is None:
        return
    layers = {name: module for name, module in model.named_modules() if isinstance(module, QuantWeight)}
    floats = [name for name, module in model.named_modules() if list(module.parameters(recurse=False))]
    try:
        made = Recipe(**recipe).of_layers(list(_places(model)), floats)
    except (TypeError, ValueError, KeyError, AttributeError) as error:  # each option can be wrong in its own ways
        raise QtutorError(
            f"{where} is damaged: its recipe cannot be followed ({shown(error, 200)}). Export the model again."
        ) from error
    for name, layer in layers.items():
        own = made.get(name)
        if own is None or (own.grid, own.group_size) != (layer.grid, layer.group_size):
            wanted = "left in float" if own is None else f"{_called(own.grid)}, groups of {own.group_size}"
            raise QtutorError(
                f"{where}: {name} is stored as {_called(layer.grid)}, groups of {layer.group_size}, and by the recipe "
                f"in the file it is {wanted}. The file is damaged: export the model again."
            )


def _places(model: nn.Module) -> list[str]:
    """The names that a recipe's patterns may fit: linear layers of the blocks, packed or not, embedding and head."""
    family = family_of(model)
    inside = [
        name
        for name, module in model.named_modules()
        if name.startswith(f"{family.blocks}.") and isinstance(module, nn.Linear | QuantWeight)
    ]
    return [*inside, family.embedding, family.head]


def _called(grid: Grid) -> str:
    return getattr(grid, "name", f"{grid.bits} bits {'' if grid.symmetric else 'a'}symmetric")


def _check_numbers(where: str, layer: QuantWeight) -> None:
    if not (least := least_scale(layer)) >= 0:  # scales of 8 bits may be NaN, for which every comparison is false
        raise QtutorError(f"{where} has a scale of {least:.3g}; expected none below 0. {AGAIN}")
    if isinstance(layer.grid, BlockGrid) and not layer.stored_scales.decode().isfinite().all():
        raise QtutorError(f"{where} has scales that are no numbers; {AGAIN}")
    if isinstance(layer.grid, FloatGrid):  # with 8 bits a code is a byte, and with 4 every code is a number
        with naming(where):
            layer.grid.check_codes(layer.packed)


def least_scale(layer: QuantWeight) -> float:
    """The least scale of ``layer``: a step between levels, and never negative in our folders.

    Nested scales are rounded, and may be below zero by a little. For these, the scales of the scales are checked.
    """
    scales = layer.stored_scales
    plain = scales.absmax if isinstance(scales, NestedScales) else scales.decode()
    return plain.min().item()

"""quantization_config of compressed-tensors checkpoints: which layers are stored in which way, written and read.

Keys and values are those of llm-compressor's schemes: W4A16 and similar for :data:`PACKED`, W8A8 for :data:`INTEGERS`,
FP8_DYNAMIC for :data:`FLOATS`, MXFP4A16 and NVFP4A16 for :data:`BLOCKS`. The bytes are in :mod:`.compressed_tensors`.
"""

import re

from qtutor.core.codebooks import INT8
from qtutor.core.float_grid import FP8, FP8_TILES, MXFP4, NVFP4
from qtutor.core.grid import IntGrid
from qtutor.core.quantized import PER_CHANNEL, PER_TENSOR
from qtutor.errors import QtutorError, shown, warn
from qtutor.formats.foreign import Layout, are_names, check_integers, expect, names_at, pattern, refused

METHOD = "compressed-tensors"
PACKED, INTEGERS, FLOATS, MIXED = "pack-quantized", "int-quantized", "float-quantized", "mixed-precision"
WHOLE = {INTEGERS: "int", FLOATS: "float"}  # kinds of 8 bits whose inputs are rounded, too; the type of their numbers
TOKENS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "group_size": None, "dynamic": True}
TILE = FP8_TILES.tile
OF_TILES = {"strategy": "block", "group_size": None, "block_structure": [TILE, TILE]}  # FP8_BLOCK's weights
GROUPS = TOKENS | {"type": "float", "strategy": "group", "group_size": TILE}
POWERS, PRODUCTS = "mxfp4-pack-quantized", "nvfp4-pack-quantized"
BLOCKS = {POWERS: MXFP4, PRODUCTS: NVFP4}  # kinds of 4 bits whose scales have 8 bits, and their grids
# For these kinds, the config's names for the scales.
OF_BLOCKS = {
    POWERS: {"strategy": "group", "scale_dtype": "torch.uint8"},
    PRODUCTS: {"strategy": "tensor_group", "scale_dtype": "torch.float8_e4m3fn"},
}
STRATEGIES = {PER_CHANNEL: "channel", PER_TENSOR: "tensor"}
UNREAD = ("sparsity_config", "transform_config", "kv_cache_scheme")
READ = (
    f"qtutor reads {PACKED!r} (integers of 2 to 8 bits), {POWERS!r} and {PRODUCTS!r}, all with inputs in float; with "
    f"inputs of 8 bits, rounded token by token as they come, it reads {INTEGERS!r} (weights by channel) and {FLOATS!r} "
    "(FP8, weights by channel or tensor, or by block of 128 x 128 with inputs in groups of 128)."
)


def settings(layers: dict, left: list[str]) -> dict:
    """quantization_config. Layers that are alike share a group.

    A single group is addressed as all "Linear" layers except those to ignore, as everybody does. Several groups are
    addressed by the names of their layers: vLLM joins q, k and v into a layer of its own, and tries the class before it
    tries names.
    """
    groups: dict[Layout, list[str]] = {}
    for name, layer in layers.items():
        groups.setdefault(_layout_of(name, layer), []).append(name)
    _warn_of_outliers([layer.threshold for layer in layers.values() if layer.grid == INT8])
    kinds = {layout.kind for layout in groups}
    written = {}
    for number, (layout, names) in enumerate(groups.items()):
        group = {"targets": ["Linear"] if len(groups) == 1 else names, **scheme(layout)}
        written[f"group_{number}"] = group | ({"format": layout.kind} if len(kinds) > 1 else {})
    found = {
        "quant_method": METHOD,
        "format": kinds.pop() if len(kinds) == 1 else MIXED,
        "quantization_status": "compressed",
        "config_groups": written,
        "ignore": left,
    }
    # For transformers alone, see the top of compressed_tensors.py.
    return found | ({} if all(layout.grid.symmetric for layout in groups) else {"dequantize": True})


def _layout_of(name: str, layer) -> Layout:
    if layer.grid == INT8:
        return Layout(INT8, PER_CHANNEL, INTEGERS)
    if layer.grid == FP8:
        return Layout(FP8, layer.group_size, FLOATS)
    if layer.grid == FP8_TILES:
        return Layout(FP8_TILES, TILE, FLOATS)
    for kind, grid in BLOCKS.items():
        if layer.grid == grid:
            if layer.group_size != grid.block:
                fits = f"holds {grid.name} in groups of {grid.block} only."
                raise refused(name, METHOD, f"groups of {layer.group_size} on {grid.name}", fits)
            return Layout(grid, grid.block, kind)
    check_integers(name, METHOD, layer, range(2, 9), halves=False)
    return Layout(layer.grid, layer.group_size, PACKED)


def _warn_of_outliers(thresholds: list[float | None]) -> None:
    kept = [threshold for threshold in thresholds if threshold is not None]
    if kept:
        warn(
            f"{len(kept)} int8 layers keep input channels with a value from {min(kept):g} in float (LLM.int8), but an "
            "engine that reads these files rounds all of them to 8 bits: measure the model again in the engine. The "
            "format 'bitsandbytes' keeps the threshold."
        )


def scheme(layout: Layout) -> dict:
    """How layers of one layout are stored, in the terms of config.json."""
    numbers = "float" if layout.kind in BLOCKS else WHOLE.get(layout.kind, "int")
    weights = {
        "num_bits": layout.grid.bits,
        "type": numbers,
        "symmetric": layout.grid.symmetric,
        "strategy": STRATEGIES.get(layout.group_size, "group"),
        "group_size": None if layout.group_size in STRATEGIES else layout.group_size,
        "dynamic": False,
    }
    if layout.grid == FP8_TILES:
        return {"weights": weights | OF_TILES, "input_activations": GROUPS, "output_activations": None}
    return {
        "weights": weights | OF_BLOCKS.get(layout.kind, {}),
        "input_activations": TOKENS | {"type": numbers} if layout.kind in WHOLE else None,
        "output_activations": None,
    }


def layouts(settings: dict, names: list[str], where: str) -> dict[str, Layout]:
    """The layout of each of ``names`` that a group targets and that is not to be ignored."""
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
    """A function from a layer's name to the target that it belongs to: tries names, then patterns, then the class."""
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
    numbers = weights.get("type") or "int"
    if numbers not in ("int", "float") or weights.get("dynamic"):
        raise QtutorError(f"{where} are {shown(numbers)}, dynamic {shown(weights.get('dynamic'))}; {READ}")
    bits = expect(where, weights, "num_bits", lambda b: type(b) is int and 2 <= b <= 8, "2 to 8", default=8)
    symmetric = expect(where, weights, "symmetric", lambda s: type(s) is bool, "true or false", default=True)
    if group.get("output_activations"):
        raise QtutorError(f"{where}: outputs are rounded as well (output_activations); {READ}")
    kind = group.get("format") or form
    inputs = group.get("input_activations")
    if isinstance(kind, str) and kind in BLOCKS:
        if inputs:
            raise QtutorError(f"{where}: the inputs of {kind} are rounded as well ({shown(inputs)}); {READ}")
        return _of_blocks(kind, weights, where)
    if weights.get("strategy") == "block":
        return _of_tiles(kind, weights, inputs, where)
    size = _group_size(weights, where)
    whole = WHOLE.get(kind) if isinstance(kind, str) else None
    if numbers == whole and bits == 8 and symmetric and _by_token(inputs, numbers):
        if kind == FLOATS and size in STRATEGIES:
            return Layout(FP8, size, FLOATS)
        if kind == INTEGERS and size == PER_CHANNEL:
            return Layout(INT8, PER_CHANNEL, INTEGERS)
    if kind != PACKED or numbers != "int" or inputs or size == PER_TENSOR:
        strategy = weights.get("strategy")
        raise QtutorError(
            f"{where}: the format {shown(kind)} of {bits} bits {numbers}, strategy {shown(strategy)}, with inputs "
            f"{shown(inputs)} is not read here; {READ}"
        )
    return Layout(IntGrid(bits, symmetric), size, PACKED)


def _of_tiles(kind: str, weights: dict, inputs, where: str) -> Layout:
    """The layout of FP8 in blocks of 128 x 128, whose inputs are rounded in groups of 128."""
    wanted = OF_TILES | {"num_bits": 8, "type": "float"}
    rounded = isinstance(inputs, dict) and all(inputs.get(key) == value for key, value in GROUPS.items())
    if kind != FLOATS or not rounded or any(weights.get(key) != value for key, value in wanted.items()):
        raise QtutorError(
            f"{where}: the format {shown(kind)}, strategy 'block' of {shown(weights.get('block_structure'))} with "
            f"inputs {shown(inputs)} is not read here; {READ}"
        )
    return Layout(FP8_TILES, TILE, FLOATS)


def _of_blocks(kind: str, weights: dict, where: str) -> Layout:
    """The layout of 4-bit weights whose scales have 8 bits. Older files do not say the dtype of the scales."""
    grid = BLOCKS[kind]
    wanted = {"type": "float", "num_bits": 4, "group_size": grid.block, **OF_BLOCKS[kind]}
    found = {"symmetric": True, "scale_dtype": wanted["scale_dtype"]} | {
        key: value for key, value in weights.items() if value is not None
    }
    for key, value in {**wanted, "symmetric": True}.items():
        if found.get(key) != value:
            raise QtutorError(f"{where}: {key} is {shown(found.get(key))}, and {kind} has {value}; {READ}")
    return Layout(grid, grid.block, kind)


def _group_size(weights: dict, where: str) -> int:
    """How many weights share a scale, by strategy and group_size. Older files have only group_size."""
    size = expect(
        where, weights, "group_size", lambda g: g is None or (type(g) is int and (g > 0 or g == -1)), "a size"
    )
    usual = "group" if size is not None and size > 0 else "channel" if size == PER_CHANNEL else "tensor"
    strategy, order = weights.get("strategy") or usual, weights.get("actorder")
    named = {name: size for size, name in STRATEGIES.items()}
    fits = strategy in list(named) if usual != "group" else strategy == "group"  # a list has no hash
    if not fits or order in (True, "group", "dynamic"):
        raise QtutorError(
            f"{where}: strategy {shown(strategy)}, group_size {shown(size)}, actorder {shown(order)}; qtutor reads "
            "scales by group, channel or tensor, with groups of neighbours in a row."
        )
    return named.get(strategy, size)


def _by_token(inputs, numbers: str) -> bool:
    """Whether inputs are rounded while the model runs, each token with a scale of its own."""
    usual = TOKENS | {"type": numbers}
    keys = ("num_bits", "type", "symmetric", "strategy", "dynamic")
    return isinstance(inputs, dict) and all(inputs.get(key) == usual[key] for key in keys)

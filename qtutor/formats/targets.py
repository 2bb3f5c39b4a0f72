"""What each engine takes, and which format a recipe becomes for it: found out before the hours of work.

    choice = pick("vllm", layer_shapes(model, recipe), recipe)
    quantize(model, recipe); export(model, "out", choice.format, tokenizer, **choice.options)

An engine has ways in (:class:`Way`), the best first. A recipe takes the first one that all of its layers fit; where
none does, the error names the layers, why, and what would fit. Each way says what it is known from: an engine that ran
it here, or the engine's source. Kernels change between versions, so a file that loads is the only proof.

Left out: FP4 whose inputs have 4 bits as well (no such layer here), tensor parallelism (which cuts layers into smaller
ones), and whether a GPU is recent enough.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import nn

from qtutor.core.float_grid import FP8, FP8_TILES
from qtutor.core.quantized import PER_CHANNEL, PER_TENSOR
from qtutor.errors import QtutorError, check_choice
from qtutor.families import family_of, linear_layers
from qtutor.recipe import Recipe
from qtutor.runtime.linear import QuantLinear
from qtutor.runtime.scaled import ScaledLinear

Shape = tuple[int, int]  # out, in
ALONE = (".o_proj", ".down_proj")  # and what none does
JOINED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # what engines make one layer of


@dataclass(frozen=True)
class Way:
    """One format that an engine reads, and what of it. Empty tuples stand for no condition.

    grid: "integers", or another grid's name. bits, symmetric, groups: those that are taken; -1 is one scale a row, and
    0 one a tensor. rows, columns: what has to divide a layer's outputs and inputs. mixed: layers may differ. joined:
    but not those that the engine makes one of. head: the head may be packed. known: from what.
    """

    format: str
    grid: str = "integers"
    bits: tuple[int, ...] = ()
    symmetric: tuple[bool, ...] = (True, False)
    groups: tuple[int, ...] = ()
    rows: int = 1
    columns: int = 1
    mixed: bool = True
    joined: bool = True
    head: bool = False
    known: str = ""


GPU = {"rows": 64, "columns": 128, "groups": (PER_CHANNEL, 32, 64, 128)}  # of the Marlin kernels in vLLM and SGLang
CPU = GPU | {"rows": 32, "columns": 32}  # the group sizes that ran here; others may
FP4 = {"rows": 64, "columns": 128}  # Marlin's again, by prepare_fp4_layer_for_marlin; groups are those of the grid
BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
ALL = tuple(range(2, 9))
RAN = "it ran here"
READ = "by its source, not run here"
CT, GPTQ, AWQ, BNB, MODELOPT, MLX = "compressed-tensors", "gptq", "awq", "bitsandbytes", "modelopt", "mlx"
WAYS = {
    "vllm": (
        Way(CT, bits=ALL, symmetric=(True,), **GPU, known=READ),  # 2, 3, 5, 6, 7 by the Humming kernels, PR 46389
        Way(CT, bits=(4, 8), **GPU, known=READ),
        Way(CT, grid="int8", rows=16, columns=16, known=READ),
        Way(CT, grid="fp8", groups=(PER_CHANNEL, PER_TENSOR), rows=16, columns=16, known=READ),
        Way(CT, grid="fp8 tiles", groups=(128,), rows=128, columns=128, known=READ),  # validate_fp8_block_shape
        Way(CT, grid="mxfp4", groups=(32,), **FP4, known=READ),  # compressed_tensors_w4a16_mxfp4.py
        Way(CT, grid="nvfp4", groups=(16,), **FP4, known=READ),  # compressed_tensors_w4a16_nvfp4.py
        Way(GPTQ, bits=(4, 8), symmetric=(True,), mixed=False, **GPU, known=READ),  # auto_gptq.py, TYPE_MAP
        Way(AWQ, bits=(4,), mixed=False, **GPU, known=READ),
        Way(MODELOPT, grid="fp8", groups=(PER_CHANNEL,), rows=16, columns=16, mixed=False, known=READ),
    ),
    "vllm-cpu": (
        Way(CT, bits=(4,), **CPU, known=RAN),
        Way(CT, grid="int8", known=RAN),
        Way(CT, grid="fp8", groups=(PER_CHANNEL,), rows=16, columns=16, known=RAN),
        Way(GPTQ, bits=(4,), symmetric=(True,), mixed=False, **CPU, known=RAN),
        Way(AWQ, bits=(4,), mixed=False, rows=32, columns=32, known=RAN),
        Way(MODELOPT, grid="fp8", groups=(PER_CHANNEL,), rows=16, columns=16, mixed=False, known=RAN),
    ),
    "sglang": (
        Way(CT, bits=(4, 8), **GPU, known=READ),  # asymmetric since PR 25292
        Way(CT, grid="int8", rows=16, columns=16, known=READ),
        Way(CT, grid="fp8", groups=(PER_CHANNEL, PER_TENSOR), rows=16, columns=16, known=READ),
        Way(CT, grid="mxfp4", groups=(32,), **FP4, known=READ),  # CompressedTensorsW4A16Mxfp4
        Way(CT, grid="nvfp4", groups=(16,), **FP4, known=READ),  # CompressedTensorsW4A16Fp4
        Way(GPTQ, bits=(4, 8), symmetric=(True,), mixed=False, **GPU, known=READ),
        Way(AWQ, bits=(4,), mixed=False, **GPU, known=READ),
    ),
    "tensorrt-llm": (
        # _torch/modules/linear.py, W4A16_AWQ_LinearMethod; its kernels have groups of 64 and 128.
        Way(MODELOPT, bits=(4,), symmetric=(True,), groups=(64, 128), rows=64, columns=64, mixed=False, known=READ),
        # The same file, FP8RowwiseLinearMethod.
        Way(MODELOPT, grid="fp8", groups=(PER_CHANNEL,), rows=16, columns=16, mixed=False, known=READ),
    ),
    "transformers": (
        Way(CT, bits=ALL, symmetric=(True,), joined=False, head=True, known=RAN),
        Way(CT, bits=ALL, mixed=False, joined=False, head=True, known=RAN),  # see the top of .compressed_tensors
        Way(CT, grid="fp8", groups=(PER_CHANNEL, PER_TENSOR), joined=False, head=True, known=RAN),
        Way(CT, grid="fp8 tiles", groups=(128,), columns=128, joined=False, head=True, known=RAN),
        Way(CT, grid="mxfp4", groups=(32,), joined=False, head=True, known=RAN),  # in bfloat16
        Way(CT, grid="nvfp4", groups=(16,), joined=False, head=True, known=RAN),
        Way(BNB, grid="int8", mixed=False, joined=False, head=True, known=RAN),  # first: it keeps the threshold
        Way(BNB, grid="nf4", groups=BLOCKS, mixed=False, joined=False, head=True, known=RAN),
        Way(BNB, grid="fp4", groups=BLOCKS, mixed=False, joined=False, head=True, known=RAN),
    ),
    "mlx": (Way(MLX, bits=(2, 3, 4, 5, 6, 8), groups=(32, 64, 128), joined=False, head=True, known=RAN),),  # on a CPU
}
# llama.cpp's types are grids of their own, rounded to from float weights; the recipe's rounding would be a second one.
GGUF = {2: "Q2_K", 3: "Q3_K_M", 4: "Q4_K_M", 5: "Q5_K_M", 6: "Q6_K", 7: "Q8_0", 8: "Q8_0"}
TARGETS = (*WAYS, "llama.cpp")


@dataclass(frozen=True)
class Choice:
    """What to call :func:`qtutor.export` with. recipe: whether the file holds what the recipe rounds, or, as GGUF does,
    the float weights by its own rounding. known: from what we know that the engine takes it.
    """

    format: str
    options: dict
    recipe: bool
    known: str


def layer_shapes(model: nn.Module, recipe: Recipe) -> dict[str, Shape]:
    """(out, in) of every layer that ``recipe`` may quantize, by name."""
    family = family_of(model)
    heads = {family.head: model.get_submodule(family.head)} if recipe.lm_head else {}
    return {name: tuple(layer.weight.shape) for name, layer in (linear_layers(model) | heads).items()}


def pick(target: str, shapes: Mapping[str, Shape], recipe: Recipe, form: str | None = None) -> Choice:
    """The format for ``target``, one of :data:`TARGETS`. shapes: as :func:`layer_shapes` gives them.

    form: the format to be taken, of those that the target reads. Raises :class:`QtutorError` naming the layers that fit
    none of its ways, and the choices that would.
    """
    ways = ways_into(target, form)
    if target == "llama.cpp":
        return Choice("gguf", {"type": GGUF[min(8, max(2, round(recipe.bits)))]}, False, RAN)
    if recipe.embeddings:
        raise QtutorError(f"{target} reads no quantized embeddings: quantize with embeddings=False.")
    # Of a fraction every layer gets whole bits of its own, from 2 to 8, and nobody knows yet which.
    whole = replace(recipe, bits=int(recipe.bits)) if recipe.is_mixed else recipe
    return _first(target, ways, shapes, whole.of_layers(shapes), recipe.is_mixed)


def pick_for(target: str, layers: Mapping[str, QuantLinear], form: str | None = None) -> Choice:
    """:func:`pick` for what is quantized already: packed ``layers`` by name."""
    ways = ways_into(target, form)
    if target == "llama.cpp":
        return Choice("gguf", {}, False, RAN)
    return _first(target, ways, {name: (layer.rows, layer.columns) for name, layer in layers.items()}, layers, False)


def ways_into(target: str, form: str | None = None) -> tuple[Way, ...]:
    """The ways of ``target``, those of one format if ``form`` is given; none for llama.cpp, which reads GGUF alone.

    Raises :class:`QtutorError` for a target that is not known, and for a format that it does not read.
    """
    check_choice("target", target, TARGETS)
    found = tuple(way for way in WAYS.get(target, ()) if form in (None, way.format))
    reads = list(dict.fromkeys(way.format for way in WAYS.get(target, ()))) or ["gguf"]
    if form is not None and form not in reads:
        raise QtutorError(f"{target} does not read the format {form!r}: take {' or '.join(map(repr, reads))}.")
    return found


def _first(target: str, ways: tuple[Way, ...], shapes: Mapping[str, Shape], own: Mapping, mixed: bool) -> Choice:
    """The first way that all layers fit. own: of each layer what has its grid and group_size. mixed: bits are not yet
    known.
    """
    problems = {way: misfits(way, shapes, own, mixed) for way in ways}
    for way, found in problems.items():
        if not found:
            return Choice(way.format, {}, True, way.known)
    raise QtutorError(_explained(target, problems, own))


def misfits(way: Way, shapes: Mapping[str, Shape], recipes: Mapping, fraction: bool = False) -> dict[str, list]:
    """By layer, what keeps it from going this ``way``, each with a choice that would fit.

    recipes: of each layer what has its grid and group_size, a :class:`Recipe` or a packed layer. fraction: of bits.
    """
    found = {}
    kinds = {name: (own.grid, own.group_size) for name, own in recipes.items()}
    most = max(kinds.values(), key=list(kinds.values()).count) if kinds else None
    for name, own in recipes.items():
        reasons = [*_wrong_grid(way, own), *_wrong_inputs(way, name, own), *_wrong_shape(way, shapes[name])]
        if fraction and (way.joined or not way.mixed or way.bits != ALL):
            reasons.append(("every layer would get bits of its own", "whole bits"))
        if name == "lm_head" and not way.head:
            reasons.append(("the head is packed", "lm_head=False"))
        if not way.mixed and kinds[name] != most:
            reasons.append(("it differs from the other layers", "one bits and group_size for all"))
        if way.joined and any(kinds.get(other) != kinds[name] for other in _joined_with(name, shapes)):
            reasons.append(("the engine joins it with layers that differ from it", "one choice for q, k, v; gate, up"))
        if reasons:
            found[name] = reasons
    return found


def _wrong_grid(way: Way, own: Recipe | QuantLinear) -> list[tuple[str, str]]:
    grid, reasons = own.grid, []
    name = getattr(grid, "name", "integers")
    if name != way.grid:
        sizes = f"group_size={' or '.join(map(str, way.groups))}"
        if {name, way.grid} == {FP8.name, FP8_TILES.name}:
            return [(f"scales of {'blocks of 128 x 128' if name == FP8_TILES.name else 'rows'}", sizes)]
        wanted = "method='rtn', 'gptq' or 'awq'" if way.grid == "integers" else f"method={way.grid!r}"
        return [(f"its levels are {name}", f"method='fp8', {sizes}" if way.grid == FP8_TILES.name else wanted)]
    if name == "int8":
        return []
    if way.bits and grid.bits not in way.bits:
        reasons.append((f"{grid.bits} bits", f"bits={' or '.join(map(str, way.bits))}"))
    if way.grid == "integers" and grid.symmetric not in way.symmetric:
        reasons.append(("zero points", "symmetric=True"))
    if own.group_size not in way.groups if way.groups else own.group_size == PER_TENSOR:
        sizes = way.groups or (PER_CHANNEL, 32, 64, 128)
        reasons.append((f"groups of {own.group_size}", f"group_size={' or '.join(map(str, sizes))}"))
    return reasons


def _wrong_inputs(way: Way, name: str, own: Recipe | QuantLinear) -> list[tuple[str, str]]:
    """SINQ's layers multiply their inputs by numbers, for which ModelOpt's format alone has a place, in some layers."""
    scaled = own.rounder.divides if isinstance(own, Recipe) else isinstance(own, ScaledLinear)
    if not scaled or (way.format == MODELOPT and name.endswith(ALONE)):
        return []
    return [("inputs are multiplied by a number each", "method='hqq' or 'rtn'")]


def _wrong_shape(way: Way, shape: Shape) -> list[tuple[str, str]]:
    pairs = (("outputs", shape[0], way.rows), ("inputs", shape[1], way.columns))
    return [(f"{count} {what}, no multiple of {step}", "float") for what, count, step in pairs if count % step]


def _joined_with(name: str, names: Mapping) -> list[str]:
    parent, _, last = name.rpartition(".")
    others = next((group for group in JOINED if last in group), ())
    return [f"{parent}.{other}" for other in others if other != last and f"{parent}.{other}" in names]


def _explained(target: str, problems: Mapping[Way, Mapping], recipes: Mapping) -> str:
    """The ways with the fewest changes: the layers and reasons of the first, and what would fit each of them."""
    changes = {way: {fits for found in layers.values() for _, fits in found} for way, layers in problems.items()}
    # Another method is another model: that is only advised where nothing else would help.
    same = {way: found for way, found in changes.items() if not any("method" in fits for fits in found)} or changes
    nearest = [way for way in same if len(same[way]) == min(map(len, same.values()))]
    way = min(nearest, key=lambda one: len(problems[one]))
    layers = problems[way]
    reasons = sorted({why for found in layers.values() for why, _ in found})
    others = ["; ".join(sorted(changes[one] - {"float"})) for one in (way, *nearest)]
    advice = [text for text in dict.fromkeys(others) if text]
    kept = [name for name, found in layers.items() if any(fits == "float" for _, fits in found)]
    names = ", ".join(list(layers)[:3]) + (" ..." if len(layers) > 3 else "")
    if kept:
        advice.append(f"layers={{{kept[0]!r}: 'float'{', ...' if len(kept) > 1 else ''}}}, which leaves it as it is")
    return (
        f"{target} would not take {len(layers)} of {len(recipes)} layers ({names}), in the format {way.format!r}, the "
        f"nearest that it reads: {'; '.join(reasons)}. What fits: {', or '.join(advice)}; or another target."
    )

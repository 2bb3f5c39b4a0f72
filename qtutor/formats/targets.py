"""What each engine accepts, and which format fits a recipe for it: decided before the hours of work.

    choice = pick("vllm", layer_shapes(model, recipe), recipe)
    quantize(model, recipe); export(model, "out", choice.format, tokenizer, **choice.options)

An engine has ways in (:mod:`.ways`), the best first: formats, each with its conditions. A recipe uses the first way
that all of its layers fit. If no way fits, the error names the layers, the reasons, and choices that would fit.

Left out: FP4 whose inputs have 4 bits as well (no such layer here), tensor parallelism (which cuts layers into smaller
ones), and whether a GPU is recent enough.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import nn

from qtutor.core.codebooks import INT8
from qtutor.core.float_grid import FP8, FP8_TILES
from qtutor.core.quantized import PER_CHANNEL, PER_TENSOR
from qtutor.errors import QtutorError, check_choice
from qtutor.families import family_of, linear_layers
from qtutor.families.names import ends_half, is_head, reads_with
from qtutor.formats.ways import ALL, MODELOPT, RAN, TARGETS, WAYS, Way
from qtutor.recipe import Recipe
from qtutor.runtime.linear import QuantLinear
from qtutor.runtime.scaled import ScaledLinear

Shape = tuple[int, int]  # out, in
# llama.cpp's types are grids of their own, rounded from float weights; the recipe's rounding would be a second one.
GGUF = {2: "Q2_K", 3: "Q3_K_M", 4: "Q4_K_M", 5: "Q5_K_M", 6: "Q6_K", 7: "Q8_0", 8: "Q8_0"}


@dataclass(frozen=True)
class Choice:
    """The arguments for :func:`qtutor.export`.

    recipe: whether the file holds the weights as the recipe rounds them; a GGUF file rounds the float weights by its
    own rules. known: how we know that the engine accepts it.
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

    form: one of the formats that the target reads, if only this one is allowed. Raises :class:`QtutorError` naming the
    layers that fit none of its ways, and the choices that would.
    """
    ways = ways_into(target, form)
    if target == "llama.cpp":
        return Choice("gguf", {"type": GGUF[min(8, max(2, round(recipe.bits)))]}, False, RAN)
    if recipe.embeddings:
        raise QtutorError(f"{target} reads no quantized embeddings: quantize with embeddings=False.")
    # With a fraction of bits, every layer gets whole bits of its own, from 2 to 8, and they are not known yet.
    whole = replace(recipe, bits=int(recipe.bits)) if recipe.is_mixed else recipe
    return _first(target, ways, shapes, whole.of_layers(shapes), recipe.is_mixed)


def pick_for(target: str, layers: Mapping[str, QuantLinear], form: str | None = None) -> Choice:
    """Like :func:`pick`, for a model that is quantized already: packed ``layers`` by name."""
    ways = ways_into(target, form)
    if target == "llama.cpp":
        return Choice("gguf", {}, False, RAN)
    return _first(target, ways, {name: (layer.rows, layer.columns) for name, layer in layers.items()}, layers, False)


def ways_into(target: str, form: str | None = None) -> tuple[Way, ...]:
    """The ways of ``target``, or those of one format if ``form`` is given; none for llama.cpp, which reads only GGUF.

    Raises :class:`QtutorError` for an unknown target, and for a format that it does not read.
    """
    check_choice("target", target, TARGETS)
    found = tuple(way for way in WAYS.get(target, ()) if form in (None, way.format))
    reads = list(dict.fromkeys(way.format for way in WAYS.get(target, ()))) or ["gguf"]
    if form is not None and form not in reads:
        raise QtutorError(f"{target} does not read the format {form!r}: take {' or '.join(map(repr, reads))}.")
    return found


def _first(target: str, ways: tuple[Way, ...], shapes: Mapping[str, Shape], own: Mapping, mixed: bool) -> Choice:
    """The first way that all layers fit.

    own: by layer, an object with its grid and group_size. mixed: whether bits are not known yet.
    """
    problems = {way: misfits(way, shapes, own, mixed) for way in ways}
    for way, found in problems.items():
        if not found:
            return Choice(way.format, {}, True, way.known)
    raise QtutorError(_explained(target, problems, own))


def misfits(way: Way, shapes: Mapping[str, Shape], recipes: Mapping, fraction: bool = False) -> dict[str, list]:
    """By layer, the reasons why it does not fit this ``way``, each with a choice that would fit.

    recipes: by layer, an object with its grid and group_size: a :class:`Recipe` or a packed layer. fraction: whether
    the recipe's bits are a fraction.
    """
    found = {}
    kinds = {name: (own.grid, own.group_size) for name, own in recipes.items()}
    most = max(kinds.values(), key=list(kinds.values()).count) if kinds else None
    for name, own in recipes.items():
        reasons = [*_wrong_grid(way, own), *_wrong_inputs(way, name, own), *_wrong_shape(way, shapes[name])]
        if fraction and (way.joined or not way.mixed or way.bits != ALL):
            reasons.append(("every layer would get its own number of bits", "whole bits"))
        if is_head(name) and not way.head:
            reasons.append(("the head is packed", "lm_head=False"))
        if not way.mixed and kinds[name] != most:
            reasons.append(("it differs from the other layers", "one bits and group_size for all"))
        joined = [other for other in reads_with(name) if other in shapes]  # engines make one layer of them
        if way.joined and any(kinds.get(other) != kinds[name] for other in joined):
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
    if grid == INT8:
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
    """SINQ's layers multiply their inputs by numbers; only ModelOpt's format has a place for them, in some layers."""
    scaled = own.rounder.divides if isinstance(own, Recipe) else isinstance(own, ScaledLinear)
    if not scaled or (way.format == MODELOPT and ends_half(name)):
        return []
    return [("each input is multiplied by its own number", "method='hqq' or 'rtn'")]


def _wrong_shape(way: Way, shape: Shape) -> list[tuple[str, str]]:
    pairs = (("outputs", shape[0], way.rows), ("inputs", shape[1], way.columns))
    return [(f"{count} {what}, no multiple of {step}", "float") for what, count, step in pairs if count % step]


def _explained(target: str, problems: Mapping[Way, Mapping], recipes: Mapping) -> str:
    """The ways with the fewest changes: the layers and reasons of the best one, and what would fit each of them."""
    changes = {way: {fits for found in layers.values() for _, fits in found} for way, layers in problems.items()}
    # Another method is another model: it is only advised if nothing else would help.
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

"""The rows of a plan, and their text: layers of one kind, and what stays in float, with the reason."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn

from qtutor.families import Family, family_of, linear_layers
from qtutor.guards.promises import is_tied
from qtutor.recipe import KEEP, METHODS, Recipe
from qtutor.runtime.linear import QuantWeight


@dataclass(frozen=True)
class Row:
    """Layers of one kind. name: with ``*`` for the number of a block. why: the reason, if they stay in float."""

    name: str
    count: int
    shape: tuple[int, ...]
    nbytes: int
    bytes_before: int
    bits: float | None = None
    method: str = ""
    group_size: int | None = None
    why: str = ""


def rounded_rows(model: nn.Module, packed: nn.Module, recipes: dict[str, Recipe]) -> Iterator[Row]:
    """The layers that will be quantized, one row for each kind."""
    in_blocks, kinds = linear_layers(model), {}
    for name, own in recipes.items():
        kinds.setdefault((_pattern(name), packed.get_submodule(name).rows, own), []).append(name)
    for (pattern, _, own), names in kinds.items():
        layers = [packed.get_submodule(name) for name in names]
        nbytes = sum(layer.nbytes - _bias_bytes(layer) for layer in layers)
        weights = sum(layer.rows * layer.columns for layer in layers)
        before = sum(model.get_submodule(name).weight.nbytes for name in names)
        shape = layers[0].rows, layers[0].columns
        method = own.method if names[0] in in_blocks or METHODS[own.method].codebook else "rtn"
        yield Row(pattern, len(names), shape, nbytes, before, 8 * nbytes / weights, method, own.group_size)


def kept_rows(packed: nn.Module, tensors: dict[str, torch.Tensor], recipe: Recipe) -> Iterator[Row]:
    """What stays in float, with the reason; norms and biases in one row."""
    family, small, kinds = family_of(packed), [], {}
    for name, tensor in tensors.items():
        owner = name.rpartition(".")[0]
        if isinstance(packed.get_submodule(owner), QuantWeight):
            continue
        if tensor.dim() < 2:
            small.append(tensor)
        else:
            kinds.setdefault((_pattern(owner), tuple(tensor.shape)), []).append((owner, tensor))
    for (pattern, shape), found in kinds.items():
        nbytes = sum(tensor.nbytes for _, tensor in found)
        why = _why([owner for owner, _ in found], family, recipe, tied=is_tied(packed))
        yield Row(pattern, len(found), shape, nbytes, nbytes, why=why)
    if small:
        nbytes = sum(tensor.nbytes for tensor in small)
        yield Row("norms, biases", len(small), (), nbytes, nbytes, why="one number per channel: nothing to gain")


def _why(names: list[str], family: Family, recipe: Recipe, tied: bool) -> str:
    """Why the matrices ``names``, of one kind, stay in float."""
    if names == [family.embedding] and not recipe.embeddings:
        both = ", which is the output matrix as well" if tied else ""
        return f"the embedding{both}: --embeddings quantizes it (Recipe(embeddings=True))"
    if names == [family.head] and not recipe.lm_head:
        return "the output matrix: --lm-head quantizes it (Recipe(lm_head=True))"
    patterns = [pattern for pattern, change in recipe.layers.items() if change == KEEP]
    fitting = [pattern for pattern in patterns if any(fnmatchcase(name, pattern) for name in names)]
    return f"kept by the recipe: {', '.join(fitting)}"


def _bias_bytes(layer: QuantWeight) -> int:
    bias = getattr(layer, "bias", None)
    return 0 if bias is None else bias.nbytes


def _pattern(name: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)


def _called(row: Row) -> str:
    shape = f", {' x '.join(map(str, row.shape))}" if row.shape else ""
    return f"{row.count:3} {row.name}{shape}"


def as_table(rows: Sequence[Row]) -> list[str]:
    """The lines of a table of what is quantized, and of a list of what stays in float."""
    rounded, kept = [row for row in rows if not row.why], [row for row in rows if row.why]
    width = max(len(row.name) for row in rounded) + 4
    head = f"{'kind of layer':{width}}  {'shape':>14}  {'method':>8}  {'group':>5}  {'bits':>6}"
    head += f"  {'before':>14}  {'after':>14}"
    lines = [head, "-" * len(head)]
    for row in rounded:
        shape = f"{row.shape[0]} x {row.shape[1]}"
        group = {-1: "row", 0: "all"}.get(row.group_size, row.group_size)
        lines.append(
            f"{row.count:3} {row.name:{width - 4}}  {shape:>14}  {row.method:>8}  {group:>5}  {row.bits:6.3f}"
            f"  {row.bytes_before:14,}  {row.nbytes:14,}"
        )
    before, after = sum(row.bytes_before for row in rounded), sum(row.nbytes for row in rounded)
    share = f"{after / max(before, 1):.0%}"
    lines.append(f"{'total':{width}}  {'':14}  {'':8}  {'':5}  {share:>6}  {before:14,}  {after:14,}")
    if kept:
        width = max(len(_called(row)) for row in kept)
        lines += ["", "These stay in float:"]
        lines += [f"  {_called(row):{width}}  {row.nbytes:14,} bytes  {row.why}" for row in kept]
    return lines

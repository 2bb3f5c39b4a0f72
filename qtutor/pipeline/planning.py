"""What a run will do, before it begins: the bits of each layer, what stays in float, bytes, disk space and memory.

    print(qtutor.plan("path/to/llama", qtutor.Recipe("rtn")))

Everything follows from shapes, so no weights have to be read. The bytes of the files are exact: the places of the
tensors are computed, and the other files are written once to measure their size. Memory is an estimate.
"""

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from qtutor.calibration.mapped import Weights
from qtutor.core.codebooks import FP4, NF4
from qtutor.core.float_scales import class_of_scales
from qtutor.errors import QtutorError, naming
from qtutor.families import Family, decoder_blocks, family_of, linear_layers
from qtutor.files import as_qtutor_error
from qtutor.formats import folders, native
from qtutor.formats.shards import ShardFile, laid_out
from qtutor.guards.promises import config_to_write, is_tied
from qtutor.methods.propagation import ENOUGH
from qtutor.pipeline.plan_table import Row, as_table, kept_rows, rounded_rows
from qtutor.recipe import KEEP, Recipe
from qtutor.runtime.kinds import linear_for
from qtutor.runtime.linear import QuantEmbedding, QuantWeight
from qtutor.runtime.scaled import ScaledLinear

RUNNING = 300_000_000  # bytes that Python takes with torch and transformers, before any model
OF_A_MATRIX = 24  # bytes for each entry of the widest layer's Hessian: it and a copy in float64, the factor in float32
OF_A_LAYER = 16  # bytes for each weight of the layer that is being rounded: float32 copies, codes, errors


@dataclass(frozen=True)
class Plan:
    """What a run by ``recipe`` will do.

    packed: the quantized decoder with packed layers, as shapes without values; recipes: that of each packed layer, by
    name. files: those that hold its tensors. others: the bytes of all other files. propagate: whether the float decoder
    is carried along. states_shape: that of the calibration states, ``[1 or 2, samples, length, hidden]``, 2 if the
    float decoder is carried along; empty without text. memory: an estimate in bytes.
    """

    recipe: Recipe
    packed: nn.Module
    recipes: dict[str, Recipe]
    files: tuple[ShardFile, ...]
    rows: tuple[Row, ...]
    others: int
    propagate: bool
    states_shape: tuple[int, ...]
    memory: int

    @property
    def family(self) -> Family:
        return family_of(self.packed)

    @property
    def states(self) -> int:
        """Bytes of the calibration states, float32."""
        return 4 * math.prod(self.states_shape) if self.states_shape else 0

    @property
    def nbytes(self) -> int:
        """Bytes of all files of the result."""
        return sum(file.size for file in self.files) + self.others

    @property
    def room(self) -> int:
        """Bytes that the run needs on the disk: new states are written before the old ones are removed."""
        return self.nbytes + 2 * self.states

    def __str__(self) -> str:
        layers, blocks = len(self.recipes), len(decoder_blocks(self.packed))
        several = f" in {len(self.files)} files of weights" if len(self.files) > 1 else ""
        lines = [f"Plan: {layers} layers of {blocks} decoder blocks are quantized.", "", *as_table(self.rows), ""]
        lines += [f"Result: {self.nbytes:,} bytes{several}."]
        if self.states:
            lines += [
                f"Disk: at most {self.room:,} bytes until the run is done. The calibration states ({self.states:,} "
                "bytes) are kept after",
                "every block: reading them is cheaper than a forward pass through the finished blocks. If the disk has "
                "no room for",
                "them, they are not kept, and a run that is continued makes that pass instead.",
            ]
        return "\n".join([*lines, f"Memory: about {self.memory / 1e6:,.0f} MB."])


def plan_of(weights: Weights, recipe: Recipe, token_ids: torch.Tensor | None, tokenizer) -> Plan:
    """The plan for ``weights``. token_ids: the text, int64 ``[samples, length]``, or ``None`` if there is none.

    Raises :class:`QtutorError` for a group size that does not divide a layer's rows, a pattern that matches nothing,
    and a recipe that leaves every layer in float.
    """
    model = weights.model
    folders.check_dtype(config_to_write(model).dtype)
    outside, recipes = outside_layers(model, recipe), recipes_of(model, recipe)
    if not recipes:
        kept = ", ".join(pattern for pattern, change in recipe.layers.items() if change == KEEP)
        raise QtutorError(f"{kept} leaves no layer to be quantized: keep fewer layers in float.")
    packed = _packed(model, recipes, outside)
    tensors = folders.stored_tensors(packed)
    files = tuple(laid_out(folders.kinds(tensors)))
    propagate, states_shape = False, ()
    if token_ids is not None and recipe.needs_calibration:  # text may only have served to choose bits
        propagate = propagates(model, recipe, token_ids.numel())
        states_shape = 1 + propagate, *token_ids.shape, model.config.hidden_size
    rows = (*rounded_rows(model, packed, recipes), *kept_rows(packed, tensors, recipe))
    others = _weighed(packed, tokenizer, recipe, files)
    memory = _memory(model, recipe, states_shape)
    return Plan(recipe, packed, recipes, files, rows, others, propagate, states_shape, memory)


def outside_layers(model: nn.Module, recipe: Recipe) -> dict[str, nn.Module]:
    """The modules outside the blocks that will be quantized, by name."""
    family = family_of(model)
    wanted = [family.embedding] * recipe.embeddings + [family.head] * recipe.lm_head
    return {name: model.get_submodule(name) for name in wanted}


def recipes_of(model: nn.Module, recipe: Recipe) -> dict[str, Recipe]:
    """The recipe of every layer that is quantized, by name, those of the blocks first."""
    return recipe.of_layers([*linear_layers(model), *outside_layers(model, recipe)], float_parts(model))


def float_parts(model: nn.Module) -> list[str]:
    """Modules with weights that stay in float unless a recipe names them: embeddings, norms and lm_head."""
    layers = linear_layers(model)
    return [name for name, module in model.named_modules() if name not in layers and list(module.parameters(False))]


def propagates(model: nn.Module, recipe: Recipe, tokens: int) -> bool:
    """Whether the float decoder is carried along: as the recipe says, or by default if there is enough text."""
    widest = max(layer.in_features for layer in linear_layers(model).values())
    return tokens >= ENOUGH * widest if recipe.propagate is None else recipe.propagate


def _packed(model: nn.Module, recipes: dict[str, Recipe], outside: dict[str, nn.Module]) -> nn.Module:
    """The decoder that ``model`` will become: packed layers, as shapes without values."""
    from qtutor.formats.transformers_files import shapes_alone

    tied, dtypes = is_tied(model), {name: tensor.dtype for name, tensor in model.state_dict().items()}
    empty = shapes_alone(config_to_write(model))
    values = {name: torch.empty_like(shape, dtype=dtypes[name]) for name, shape in empty.state_dict().items()}
    empty.load_state_dict(values, assign=True)
    if tied:
        empty.tie_weights()
    for name, recipe in recipes.items():
        with naming(name), torch.device("meta"):
            scaled = (recipe.plain_rounder if name in outside else recipe.rounder).divides
            empty.set_submodule(name, _empty_layer(empty.get_submodule(name), recipe, scaled))
    empty.generation_config = getattr(model, "generation_config", None)
    return empty


def _empty_layer(place: nn.Module, recipe: Recipe, scaled: bool) -> QuantWeight:
    """The packed layer, shapes alone, that replaces the float layer ``place``. scaled: it will multiply its inputs."""
    rows, columns = place.weight.shape
    scales = class_of_scales(recipe.grid, nested=recipe.grid in (NF4, FP4) and recipe.double)
    if isinstance(place, nn.Embedding):
        return QuantEmbedding(rows, columns, recipe.grid, recipe.group_size, place.weight.dtype, scales)
    kind = ScaledLinear if scaled else linear_for(recipe.grid)
    layer = kind(rows, columns, recipe.grid, recipe.group_size, place.bias is not None, scales)
    if place.bias is not None:
        layer.bias = torch.empty_like(place.bias)
    return layer


def _memory(model: nn.Module, recipe: Recipe, states_shape: tuple[int, ...]) -> int:
    """About how much memory the run takes if blocks are read from files."""
    block = decoder_blocks(model)[0]
    layers = [module for module in block.modules() if isinstance(module, nn.Linear)]
    weights = max(module.weight.numel() for module in (*layers, *outside_layers(model, recipe).values()))
    total = RUNNING + OF_A_LAYER * weights
    if not states_shape:
        return total
    streams, samples, length, hidden = states_shape
    width = max(layer.in_features for layer in layers)
    tokens, twins = samples * length, streams - 1
    carried = tokens * hidden + sum(parameter.numel() for parameter in block.parameters())
    kept = tokens * (width + hidden * twins)  # inputs of a half's last layer, and its target outputs
    return total + 4 * (streams * carried + kept) + OF_A_MATRIX * width**2


def _weighed(packed: nn.Module, tokenizer, recipe: Recipe, files: tuple[ShardFile, ...]) -> int:
    """Bytes of all files but the weights: they are written once to a temporary folder, which may be full, too."""
    with as_qtutor_error("the folder of temporary files (TMPDIR)"), tempfile.TemporaryDirectory() as folder:
        native.write_others(Path(folder), packed, tokenizer, recipe.as_dict(), files)
        return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())

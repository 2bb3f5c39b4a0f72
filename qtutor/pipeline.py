"""``quantize(model, Recipe(...))``: layer after layer is finished, and a sink takes what is.

:func:`finished` goes through the decoder and yields every layer once it is packed; a sink says where it goes.
:class:`IntoModel` holds packed layers beside the model and puts them in place at the end, so that a failure or an
interrupt leaves the model as it was; at 4 bits that adds a quarter of a bf16 model, never a second copy. Embeddings,
norms and lm_head stay as they are unless the recipe says so (AWQ moves its scales into norms).

Methods that look at inputs work on float32 copies of one block at a time (:mod:`~qtutor.calibration.walk`, which says
what memory that takes); rounding to nearest reads the model's own weights.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from tqdm.auto import tqdm

from qtutor.calibration.walk import walk
from qtutor.core.codebooks import INT8
from qtutor.core.quantized import all_finite
from qtutor.decoder import is_embedded
from qtutor.errors import QtutorError, naming
from qtutor.families import decoder_blocks, embedding_scale, family_of, linear_layers
from qtutor.guards.ids import samples_of
from qtutor.guards.model import check_replaceable, decoder_of
from qtutor.methods.blocks import Changed, Rounded, round_block
from qtutor.methods.propagation import ENOUGH
from qtutor.recipe import Recipe
from qtutor.report import LayerReport, Report, weight_error, what_is_lost
from qtutor.runtime.int8 import Int8Linear
from qtutor.runtime.linear import QuantEmbedding, QuantLinear, QuantWeight


def quantize(
    model: nn.Module, recipe: Recipe, calibration: torch.Tensor | None = None, progress: bool = True, tokenizer=None
) -> Report:
    """Quantize ``model`` (a transformers decoder, any float dtype, any device) in place by ``recipe``.

    calibration: token ids, int64 ``[samples, length]``, text like what the model will read, or with the model's
    ``tokenizer`` the texts themselves (:mod:`qtutor.guards.ids`). It may be left out for the embedded decoder, and with
    the ``tokenizer`` for any: then :mod:`qtutor.calibration.builtin` is taken, and a warning says so. Methods that look
    at no inputs (rtn, nf4, fp4, int8) ignore it. Some ten thousand tokens will do.
    progress: show a bar with an estimate where the work takes longer than a second.
    Raises :class:`QtutorError` (naming the layer) for NaN, Inf, a width that no group divides, a family that is not
    known, a model that is not as its config says (:mod:`qtutor.guards.model`), unusable calibration text, or a model
    that is quantized already; the model is then unchanged.
    """
    model = decoder_of(model)  # refuses what cannot be quantized before any work
    if not isinstance(recipe, Recipe):
        raise QtutorError(f"recipe is a {type(recipe).__name__}: pass a qtutor.Recipe, as Recipe(method='gptq').")
    if any(isinstance(module, QuantWeight) for module in model.modules()):
        raise QtutorError("the model is quantized already; load the float checkpoint again to quantize it differently.")
    check_replaceable(model, recipe.needs_calibration, _outside(model, recipe))
    _check_rest(model)
    if recipe.needs_calibration and calibration is None and tokenizer is not None:
        calibration = _builtin(model, tokenizer)
    if recipe.needs_calibration and calibration is not None:
        calibration = samples_of(calibration, tokenizer, getattr(model.config, "max_position_embeddings", None))
    if recipe.is_mixed:
        from qtutor.budget import choose

        token_ids = _calibration(model, recipe) if calibration is None else calibration
        recipe = choose(model, recipe, token_ids, bits=recipe.bits)
    sink = IntoModel(model)
    rows = []
    for item in finished(model, recipe, calibration, progress):
        sink.take(item)
        if isinstance(item, Packed):
            rows.append(item.row)
    sink.finish()
    if recipe.embeddings or recipe.lm_head:
        model.config.tie_word_embeddings = False  # each of the two is now a tensor of its own
    model.qtutor_recipe = recipe.as_dict()  # for what is saved
    return Report(recipe, tuple(rows))


@dataclass(frozen=True)
class Packed:
    """A finished layer: the module that takes the place of ``name``, and its row in the report."""

    name: str
    module: QuantWeight
    row: LayerReport


class IntoModel:
    """The sink that puts what is finished into the model, all at the end."""

    def __init__(self, model: nn.Module):
        self.model, self.items = model, []

    def take(self, item: Packed | Changed) -> None:
        self.items.append(item)

    def finish(self) -> None:
        """The only step that changes the model."""
        for item in self.items:
            if isinstance(item, Packed):
                self.model.set_submodule(item.name, item.module)
            else:
                parameter = self.model.get_parameter(item.name)
                parameter.data = item.value.to(parameter.dtype)


def finished(
    model: nn.Module, recipe: Recipe, calibration: torch.Tensor | None, progress: bool = True
) -> Iterator[Packed | Changed]:
    """Every layer that ``recipe`` quantizes, as soon as it is packed; the model is only read."""
    in_blocks, outside = linear_layers(model), _outside(model, recipe)
    recipes = recipe.of_layers([*in_blocks, *outside])
    todo = {name: module for name, module in (in_blocks | outside).items() if name in recipes}
    bar = {"delay": 1, "disable": not progress}
    if recipe.needs_calibration:
        token_ids = _calibration(model, recipe) if calibration is None else calibration
        propagate = recipe.propagate
        if propagate is None:
            propagate = token_ids.numel() >= ENOUGH * max(layer.in_features for layer in in_blocks.values())
        blocks = walk(model, token_ids, propagate, recipe.token_weights, recipe.wide)
        for block in tqdm(blocks, "quantizing", len(decoder_blocks(model)), unit="block", **bar):
            for item in round_block(block, recipe, recipes):
                yield _packed(item, model.get_submodule(item.name)) if isinstance(item, Rounded) else item
        todo = {name: todo[name] for name in outside if name in todo}
    for name, module in tqdm(todo.items(), desc="quantizing", unit="layer", **bar):
        own, weight = recipes[name], module.weight.detach()
        rounder = own.plain_rounder if name in outside else own.rounder
        with naming(name):
            quantized = rounder.round(weight, own.grid, own.group_size)
        bias = getattr(module, "bias", None)
        yield _packed(Rounded(name, weight, quantized, quantized.dequantize(), bias), module)


def _check_rest(model: nn.Module) -> None:
    """Refuse NaN and Inf in norms, biases, embeddings and lm_head; layers to be rounded are looked at one by one."""
    rounded = {f"{name}.weight" for name in linear_layers(model)}
    for name, parameter in model.named_parameters():
        if name not in rounded and not parameter.is_meta and not all_finite(parameter):
            raise QtutorError(f"{name}: it holds numbers that are NaN or infinite: repair the checkpoint first.")


def _outside(model: nn.Module, recipe: Recipe) -> dict[str, nn.Module]:
    """The modules outside of the blocks that are to be quantized, by name."""
    family = family_of(model)
    wanted = [family.embedding] * recipe.embeddings + [family.head] * recipe.lm_head
    return {name: model.get_submodule(name) for name in wanted}


def _builtin(model: nn.Module, tokenizer) -> torch.Tensor | None:
    """The built-in text, with a word on what it is; ``None`` for the embedded decoder, which has its own."""
    if is_embedded(model.config):
        return None
    from qtutor.calibration.builtin import builtin_calibration
    from qtutor.calibration.text import LENGTH

    text = builtin_calibration(tokenizer, min(LENGTH, getattr(model.config, "max_position_embeddings", None) or LENGTH))
    warnings.warn(
        f"no calibration text was given, so {text.told} are taken. Text like what the model will read does better.",
        stacklevel=3,
    )
    return text.token_ids


def _calibration(model: nn.Module, recipe: Recipe) -> torch.Tensor:
    """Training text for the embedded decoder, an error for any other model."""
    from qtutor.decoder.text import calibration_tokens

    if not is_embedded(model.config):
        raise QtutorError(
            f"method {recipe.method!r} looks at the layers' inputs and needs text: pass calibration=token_ids, int64 "
            "[samples, length], for instance 128 samples of 512 tokens of what the model will read. With tokenizer= "
            "alone the built-in text is taken."
        )
    return calibration_tokens()


def _packed(rounded: Rounded, original: nn.Module) -> Packed:
    """The module that takes the place of ``original``, the model's own."""
    quantized, bias = rounded.quantized, rounded.bias
    if isinstance(original, nn.Embedding):
        module = QuantEmbedding.from_quantized(quantized, original.weight.dtype, embedding_scale(original))
    else:
        bias = None if bias is None else bias.to(original.bias.dtype)
        module = (Int8Linear if quantized.grid == INT8 else QuantLinear).from_quantized(quantized, bias)
    exact = rounded.weight.float()
    error = weight_error(rounded.back, exact)
    lost = what_is_lost(rounded.back, exact, quantized.scales, error)
    if lost:
        warnings.warn(f"{rounded.name}: {lost}", stacklevel=2)
    sizes = quantized.bits_per_weight, original.weight.nbytes, quantized.nbytes
    note = "; ".join(filter(None, [rounded.note, lost]))
    row = LayerReport(rounded.name, quantized.shape, error, *sizes, rounded.output_error, note)
    return Packed(rounded.name, module, row)

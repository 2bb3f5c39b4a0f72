"""``quantize(model, Recipe(...))``: the loop over a decoder's blocks.

Block by block, every ``nn.Linear`` becomes a :class:`~.linear.QuantLinear`. Packed layers are collected beside the
model and put in place at the end, so that a failure or an interrupt leaves the model as it was; at 4 bits that adds a
quarter of a bf16 model, never a second copy. Embeddings, norms and lm_head stay as they are unless the recipe says so
(AWQ moves its scales into norms).

Methods that look at inputs work on float32 copies of one block at a time (:mod:`.walk`, which says what memory
that takes); rounding to nearest reads the model's own weights.
"""

import warnings
from dataclasses import dataclass, field

import torch
from torch import nn
from tqdm.auto import tqdm

from qtutor.calibration.stream import SHARED
from qtutor.calibration.walk import CalibratedBlock, walk
from qtutor.core.quantized import PER_TENSOR, QuantizedTensor, check_weight, resolve_group_size
from qtutor.errors import QtutorError, naming
from qtutor.families import decoder_blocks
from qtutor.methods import awq, bnb, gptq, rtn
from qtutor.methods.propagation import ENOUGH, propagated, strength
from qtutor.recipe import CODEBOOKS, LayerReport, Recipe, Report
from qtutor.runtime.int8 import Int8Linear
from qtutor.runtime.linear import QuantEmbedding, QuantLinear, QuantWeight

ERROR_ROWS = 128


def quantize(
    model: nn.Module, recipe: Recipe, calibration: torch.Tensor | None = None, progress: bool = True
) -> Report:
    """Quantize ``model`` (a transformers decoder, any float dtype, any device) in place by ``recipe``.

    calibration: token ids, int64 ``[samples, length]``, text like what the model will read; for the embedded decoder it
    may be left out. Methods that look at no inputs (rtn, nf4, fp4, int8) ignore it. Some ten thousand tokens will do.
    progress: show a bar with an estimate where the work takes longer than a second.
    Raises :class:`QtutorError` (naming the layer) for NaN, Inf, a width that no group divides, a family that is not
    known, unusable calibration text, or a model that is quantized already; the model is then unchanged.
    """
    decoder_blocks(model)  # refuse an unknown family before any work
    if any(isinstance(module, QuantWeight) for module in model.modules()):
        raise QtutorError("the model is quantized already; load the float checkpoint again to quantize it differently.")
    outcome = Outcome()
    if recipe.needs_calibration:
        token_ids = _calibration(model, recipe) if calibration is None else calibration
        blocks = tqdm(
            walk(model, token_ids, _propagate(model, token_ids, recipe)),
            "quantizing",
            len(decoder_blocks(model)),
            unit="block",
            **_bar(progress),
        )
        for block in blocks:
            _quantize_block(block, model, recipe, outcome)
    targets = {name: module for name, module in _targets(model, recipe).items() if name not in outcome.packed}
    for name, module in tqdm(targets.items(), desc="quantizing", unit="layer", **_bar(progress)):
        weight = module.weight.detach()
        with naming(name):
            if recipe.method in CODEBOOKS:
                quantized = bnb.quantize(weight, recipe.grid, recipe.group_size, recipe.double)
            else:
                quantized = rtn.quantize(weight, recipe.grid, recipe.group_size, recipe.own_clip)
        outcome.add(name, module, weight, quantized, bias=getattr(module, "bias", None))
    outcome.put_into(model)
    if recipe.embeddings or recipe.lm_head:
        model.config.tie_word_embeddings = False  # each of the two is now a tensor of its own
    return Report(recipe, tuple(outcome.rows))


@dataclass
class Outcome:
    """What is ready to be put into the model: packed layers, changed norms; and the report's rows."""

    packed: dict[str, QuantWeight] = field(default_factory=dict)
    changed: dict[str, torch.Tensor] = field(default_factory=dict)
    rows: list[LayerReport] = field(default_factory=list)

    def add(
        self, name, module: nn.Module, weight: torch.Tensor, quantized: QuantizedTensor, *, back=None, bias=None, **more
    ) -> None:
        """Take in a layer: ``module`` is the model's own, ``weight [out, in]`` what ``quantized`` stands for; back:
        ``quantized.dequantize()``, where that is known already."""
        if isinstance(module, nn.Embedding):
            self.packed[name] = QuantEmbedding.from_quantized(quantized, module.weight.dtype)
        else:
            kind = Int8Linear if quantized.grid == bnb.INT8 else QuantLinear
            self.packed[name] = kind.from_quantized(quantized, bias)
        exact = weight.float()
        tiny = torch.finfo(torch.float32).tiny
        back = quantized.dequantize() if back is None else back
        error = (back - exact).norm() / exact.norm().clamp(min=tiny)
        sizes = quantized.bits_per_weight, module.weight.nbytes, quantized.nbytes
        self.rows.append(LayerReport(name, quantized.shape, error.item(), *sizes, **more))

    def put_into(self, model: nn.Module) -> None:
        """The only step that changes ``model``."""
        for name, value in self.changed.items():
            model.get_parameter(name).data = value
        for name, module in self.packed.items():
            model.set_submodule(name, module)


def _bar(progress: bool) -> dict:
    return {"delay": 1, "disable": not progress}


def _targets(model: nn.Module, recipe: Recipe) -> dict[str, nn.Module]:
    """The modules to replace, by name, block by block."""
    targets = {}
    for i, block in enumerate(decoder_blocks(model)):
        for name, module in block.named_modules():
            if isinstance(module, nn.Linear):
                targets[f"model.layers.{i}.{name}"] = module
    if recipe.embeddings:
        targets["model.embed_tokens"] = model.model.embed_tokens
    if recipe.lm_head:
        targets["lm_head"] = model.lm_head
    return targets


def _calibration(model: nn.Module, recipe: Recipe) -> torch.Tensor:
    """Training text for the embedded decoder, an error for any other model."""
    from qtutor.decoder import EMBEDDED
    from qtutor.decoder.text import calibration_tokens

    if str(model.config._name_or_path) != str(EMBEDDED):
        raise QtutorError(
            f"method {recipe.method!r} looks at the layers' inputs and needs text: pass calibration=token_ids, int64 "
            "[samples, length], for instance 128 samples of 512 tokens of what the model will read."
        )
    return calibration_tokens()


def _propagate(model: nn.Module, token_ids: torch.Tensor, recipe: Recipe) -> bool:
    if recipe.propagate is not None:
        return recipe.propagate
    return token_ids.numel() >= ENOUGH * max(model.config.hidden_size, model.config.intermediate_size)


def _quantize_block(block: CalibratedBlock, model: nn.Module, recipe: Recipe, outcome: Outcome) -> None:
    """AWQ or GPTQ, or one after the other, for the layers of one block, in the order in which the block runs them."""
    for name in (name for names in SHARED for name in names):  # before any search, so that errors name the layer
        weight = block.module.get_submodule(name).weight
        with naming(f"{block.name}.{name}"):
            check_weight(weight)
            resolve_group_size(recipe.group_size, weight.shape[1])
    if recipe.method != "gptq":
        scaled = awq.scale_block(block, recipe.grid, recipe.group_size, recipe.duo, _quantizer(recipe))
        for name, value in scaled.items():
            dtype = model.get_parameter(f"{block.name}.{name}").dtype
            outcome.changed[f"{block.name}.{name}"] = value.to(dtype)
    for names in SHARED:
        moments = block.moments(names[0])
        plan, note = None, ""
        if block.twin or recipe.method != "awq":
            plan, note = _plan(moments.hessian, block.tokens, recipe, f"{block.name}.{names[0]}")
        layers = [block.module.get_submodule(name) for name in names]
        weights = [layer.weight for layer in layers]
        share = strength(block.tokens, weights[0].shape[1])
        wanted = weights if plan is None else [propagated(weight, moments, plan, share) for weight in weights]
        with naming(f"{block.name}.{names[0]}"):
            quantized = _round_together(wanted, moments.hessian, plan, recipe)
        hessian = moments.hessian.float()
        for name, layer, before, after in zip(names, layers, wanted, quantized):
            full_name, back = f"{block.name}.{name}", after.dequantize()
            error = _output_error(before, back, hessian)
            original = model.get_submodule(full_name)
            bias = None if layer.bias is None else layer.bias.to(original.bias.dtype)
            outcome.add(full_name, original, layer.weight, after, back=back, bias=bias, output_error=error, note=note)
            if block.twin or recipe.method != "awq":  # the next layer reads what this one makes when rounded
                layer.weight.copy_(back)
    block.advance()


def _plan(hessian: torch.Tensor, tokens: int, recipe: Recipe, name: str) -> tuple[gptq.Plan | None, str]:
    """The Hessian ordered and factored, or ``None`` where it is of no use; and what the report has to say about it."""
    few = f"{tokens} tokens for a width of {len(hessian)}"
    plan, error = _factored(hessian, recipe)
    if plan is None:
        without = "AWQ without propagation" if recipe.method == "awq" else "rounded to nearest"
        note = f"{without}, since its Hessian cannot be used ({few}). {error}"
        warnings.warn(f"{name}: {note}", stacklevel=2)
        return None, note
    notes = []
    if tokens < len(hessian):
        notes.append(f"{few}: too few to tell all inputs apart, damping decides; calibrate with more text")
    if plan.damping > recipe.damping:
        notes.append(f"damping raised from {recipe.damping:g} to {plan.damping:g} to make the Hessian invertible")
    return plan, "; ".join(notes)


def _factored(hessian: torch.Tensor, recipe: Recipe) -> tuple[gptq.Plan | None, gptq.HessianError | None]:
    """GPTQ's plan, or why there is none."""
    try:
        act_order, damping = recipe.act_order, recipe.damping
        return gptq.prepare(hessian, recipe.group_size, act_order=act_order, damping=damping), None
    except gptq.HessianError as error:
        return None, error


def _quantizer(recipe: Recipe) -> awq.Quantizer:
    """How AWQ's scales are judged in the end: by what will really round the layers."""

    def quantizer(weight: torch.Tensor, hessian: torch.Tensor) -> QuantizedTensor:
        plan = None if recipe.method == "awq" else _factored(hessian, recipe)[0]
        return _round(weight, hessian, plan, recipe, thorough=False)  # one tells which of two scales is better

    return quantizer


def _round(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    plan: gptq.Plan | None,
    recipe: Recipe,
    thorough: bool = True,
) -> QuantizedTensor:
    grid, group_size = recipe.grid, recipe.group_size
    if recipe.method == "awq" and recipe.own_clip == "output":
        return awq.quantize(weight, hessian, grid, group_size, thorough)
    if recipe.method != "awq" and plan is not None:
        static, clip = recipe.static_groups, recipe.own_clip
        return gptq.round_columns(weight, plan, grid, group_size, static, clip=clip)
    return rtn.quantize(weight, grid, group_size, "mse" if recipe.clip == "mse" else "none")


def _round_together(
    weights: list[torch.Tensor], hessian: torch.Tensor, plan: gptq.Plan | None, recipe: Recipe
) -> list[QuantizedTensor]:
    """:func:`_round` of layers that read the same input, as one matrix: rows do not know of each other."""
    if recipe.group_size == PER_TENSOR:  # but here they do
        return [_round(weight, hessian, plan, recipe) for weight in weights]
    together = _round(torch.cat(weights), hessian, plan, recipe)
    return together.split([len(weight) for weight in weights])


def _output_error(weight: torch.Tensor, back: torch.Tensor, hessian: torch.Tensor) -> float:
    """``|X (W - Q)^T| / |X W^T|`` for W, ``weight [out, in]``, and Q, ``back``, out of the Hessian.

    ``|X D^T|^2 = trace(D H D^T)``; of a large layer, over :data:`ERROR_ROWS` of its rows, evenly spread.
    """
    rows = slice(None, None, max(len(weight) // ERROR_ROWS, 1))
    weight = weight[rows]
    difference = back[rows] - weight
    squares = [((matrix @ hessian) * matrix).sum().clamp(min=0) for matrix in (difference, weight)]
    return (squares[0] / squares[1].clamp(min=torch.finfo(torch.float32).tiny)).sqrt().item()

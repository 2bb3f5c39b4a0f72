"""``quantize(model, Recipe(...))``: the loop over a decoder's blocks, and its report.

Block by block, every ``nn.Linear`` becomes a :class:`qtutor.linear.QuantLinear`. Packed layers are collected beside the
model and put in place at the end, so that a failure or an interrupt leaves the model as it was; at 4 bits that adds a
quarter of a bf16 model, never a second copy. Embeddings, norms and lm_head stay as they are unless the recipe says so.
"""

from dataclasses import asdict, dataclass

import torch
from torch import nn
from tqdm.auto import tqdm

from qtutor import rtn
from qtutor.errors import QtutorError
from qtutor.grid import IntGrid
from qtutor.linear import QuantEmbedding, QuantLinear, QuantWeight
from qtutor.quantized import QuantizedTensor

METHODS = ("rtn",)
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


@dataclass(frozen=True)
class Recipe:
    """How to quantize.

    method: ``"rtn"`` (others come with their chapters). bits: 2 to 8. group_size: weights that share a scale; -1 one
    scale a row, 0 one a tensor. symmetric: zero point fixed in the middle. clip: ``None`` or ``"mse"``. embeddings,
    lm_head: quantize these too (lm_head of a model with tied embeddings becomes a matrix of its own).
    Raises :class:`QtutorError` for a value outside these.
    """

    method: str = "rtn"
    bits: int = 4
    group_size: int = 64
    symmetric: bool = False
    clip: str | None = None
    embeddings: bool = False
    lm_head: bool = False

    def __post_init__(self):
        if self.method not in METHODS:
            raise QtutorError(f"method = {self.method!r} is not known; choose one of {', '.join(map(repr, METHODS))}.")
        if self.clip not in (None, "mse"):
            raise QtutorError(f"clip = {self.clip!r}: choose 'mse' or None.")
        _ = self.grid

    @property
    def grid(self) -> IntGrid:
        return IntGrid(self.bits, self.symmetric)

    def as_dict(self) -> dict:
        return asdict(self)


@dataclass(frozen=True)
class LayerReport:
    """One quantized layer: its name, shape ``[out, in]``, relative error ``|W - Q| / |W|``, sizes in bytes."""

    name: str
    shape: tuple[int, int]
    error: float
    bits_per_weight: float
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True)
class Report:
    """What :func:`quantize` did: the recipe and a row per layer. ``print(report)`` shows a table."""

    recipe: Recipe
    rows: tuple[LayerReport, ...]

    @property
    def bytes_before(self) -> int:
        return sum(row.bytes_before for row in self.rows)

    @property
    def bytes_after(self) -> int:
        return sum(row.bytes_after for row in self.rows)

    def __str__(self) -> str:
        width = max([len(row.name) for row in self.rows] + [5])
        head = f"{'layer':{width}}  {'shape':>13}  {'error':>7}  {'bits':>6}  {'before':>11}  {'after':>11}"
        lines = [head, "-" * len(head)]
        for row in self.rows:
            shape = f"{row.shape[0]} x {row.shape[1]}"
            lines.append(
                f"{row.name:{width}}  {shape:>13}  {row.error:7.4f}  {row.bits_per_weight:6.3f}  "
                f"{row.bytes_before:11,}  {row.bytes_after:11,}"
            )
        share = self.bytes_after / max(self.bytes_before, 1)
        lines.append(
            f"{'total':{width}}  {'':13}  {'':7}  {f'{share:.0%}':>6}  {self.bytes_before:11,}  {self.bytes_after:11,}"
        )
        return "\n".join(lines)


def decoder_blocks(model: nn.Module) -> nn.ModuleList:
    """The decoder blocks of a Llama, Mistral or Qwen model; :class:`QtutorError` for any other."""
    family = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if family not in FAMILIES:
        raise QtutorError(
            f"the model family {family!r} is not known here. Decoders of these families can be quantized: "
            f"{', '.join(FAMILIES)}. For another one, add it to qtutor.pipeline.FAMILIES once its blocks are checked."
        )
    return model.model.layers


def quantize(
    model: nn.Module, recipe: Recipe, calibration: torch.Tensor | None = None, progress: bool = True
) -> Report:
    """Quantize ``model`` (a transformers decoder, any float dtype, any device) in place by ``recipe``.

    calibration: token ids, int64 ``[samples, length]``; rounding to nearest looks at no inputs and ignores them.
    progress: show a bar with an estimate where the work takes longer than a second.
    Raises :class:`QtutorError` (naming the layer) for NaN, Inf, a width that no group divides, a family that is not
    known, or a model that is quantized already; the model is then unchanged.
    """
    decoder_blocks(model)  # refuse an unknown family before any work
    if any(isinstance(module, QuantWeight) for module in model.modules()):
        raise QtutorError("the model is quantized already; load the float checkpoint again to quantize it differently.")
    targets = _targets(model, recipe)
    packed, rows = {}, []
    for name, module in tqdm(targets.items(), desc="quantizing", unit="layer", delay=1, disable=not progress):
        quantized = rtn.quantize(module.weight.detach(), recipe.grid, recipe.group_size, recipe.clip, name)
        rows.append(_row(name, module.weight, quantized))
        packed[name] = _packed(module, quantized)
    for name, module in packed.items():
        model.set_submodule(name, module)
    if recipe.embeddings or recipe.lm_head:
        model.config.tie_word_embeddings = False  # each of the two is now a tensor of its own
    return Report(recipe, tuple(rows))


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


def _packed(module: nn.Module, quantized: QuantizedTensor) -> QuantWeight:
    if isinstance(module, nn.Embedding):
        return QuantEmbedding.from_quantized(quantized, module.weight.dtype)
    return QuantLinear.from_quantized(quantized, module.bias)


def _row(name: str, weight: torch.Tensor, quantized: QuantizedTensor) -> LayerReport:
    exact = weight.detach().float()
    error = (quantized.dequantize() - exact).norm() / exact.norm().clamp(min=torch.finfo(torch.float32).tiny)
    return LayerReport(name, quantized.shape, error.item(), quantized.bits_per_weight, weight.nbytes, quantized.nbytes)

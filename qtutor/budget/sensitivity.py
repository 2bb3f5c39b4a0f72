"""What rounding a layer costs the model, for every layer and every way to round it, from one pass.

Rounding a layer moves its outputs by ``d = X (W - Q)^T``. The KL divergence between the model and the rounded one is,
to second order, half the expectation of ``(g . d)^2``. Here ``g`` is the gradient of ``-log p(token)`` with respect to
these outputs, for a token drawn from the model's own predictions (the Fisher information; Amari and Nagaoka 2000,
section 2.2). Outputs and tokens are treated as independent, so each counts with its own ``g^2 d^2``. Therefore the
estimate is too low for errors of v, which attention adds up, and too high for those of k, both within a factor of 5.
One forward and one backward pass give the estimate for all layers; benchmarks/budget.py compares it with others.

Left out: how rounding one layer changes the cost of another.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from qtutor.budget.allocation import Choice, Table
from qtutor.core.grid import IntGrid
from qtutor.core.quantized import PER_TENSOR
from qtutor.errors import naming
from qtutor.guards.model import in_eval
from qtutor.methods import rtn
from qtutor.recipe import Recipe

CHOICES = (2, 3, 4, 5, 6, 8)
TOKENS = 2048  # read for the losses; more hardly change the choice
LENGTH = 256  # of a sample
ROWS = 128  # of a layer's outputs
Rounding = Callable[[torch.Tensor], torch.Tensor]  # weights [rows, in] -> rounded weights, float32
Roundings = Mapping[Choice, Rounding]


def losses(model: nn.Module, token_ids: torch.Tensor, recipes: Mapping[str, Recipe], seed: int = 0) -> Table:
    """The cost of each layer of ``recipes`` at every number of bits: KL divergence, in nats per token.

    token_ids: int64 ``[samples, length]``; about :data:`TOKENS` of them are read, from samples spread over all of it.
    Layers are rounded to nearest in the groups of their recipes: how much more one layer suffers than another hardly
    depends on the method. Tokens are drawn with ``seed``, so the same call gives the same table.
    Raises :class:`QtutorError` (naming the layer) for a width that no group divides.
    """
    roundings = {
        name: {bits: partial(_nearest, grid=IntGrid(bits, own.symmetric), size=own.group_size) for bits in CHOICES}
        for name, own in recipes.items()
    }
    whole = {name for name, own in recipes.items() if own.group_size == PER_TENSOR}
    return losses_of(model, token_ids, roundings, whole, seed)


def losses_of(
    model: nn.Module,
    token_ids: torch.Tensor,
    roundings: Mapping[str, Roundings],
    whole: frozenset[str] | set[str] = frozenset(),
    seed: int = 0,
) -> Table:
    """:func:`losses` for any way to round: layer -> name of a choice -> a function that rounds some rows.

    Each row is rounded and counted by itself, so :data:`ROWS` random rows stand for all. In the layers ``whole``, whose
    rows are rounded together, all rows are used.
    """
    ids = _some(token_ids).to(model.device)
    table = {name: {} for name in roundings}
    generator = torch.Generator().manual_seed(seed)
    frozen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad = False  # only outputs need gradients
        with torch.enable_grad(), in_eval(model), _watched(model, roundings, whole, table):
            logits = model(ids, use_cache=False).logits.flatten(0, 1).float()
            predicted = logits.detach().softmax(-1).cpu()
            tokens = torch.multinomial(predicted, 1, generator=generator)[:, 0].to(logits.device)
            cross_entropy(logits, tokens, reduction="sum").backward()
    finally:
        for parameter in frozen:
            parameter.requires_grad = True
    return {name: {choice: loss / ids.numel() for choice, loss in row.items()} for name, row in table.items()}


def _nearest(rows: torch.Tensor, grid: IntGrid, size: int) -> torch.Tensor:
    return rtn.quantize(rows, grid, size).dequantize()


def _some(token_ids: torch.Tensor) -> torch.Tensor:
    """Beginnings of samples, evenly spread: a calibration text often has one kind of text after the other."""
    length = min(token_ids.shape[1], LENGTH)
    return token_ids[:: max(token_ids.shape[0] * length // TOKENS, 1), :length]


@contextmanager
def _watched(model: nn.Module, roundings: Mapping[str, Roundings], whole: set[str], table: dict) -> Iterator[None]:
    """While a backward pass runs inside, fill ``table`` with the loss of every layer."""

    def begin(layer: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        output.requires_grad_()  # no parameter needs a gradient, so the graph begins after the embedding

    def watch(name: str, layer: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        def cost(gradient: torch.Tensor) -> None:
            with naming(name):
                table[name].update(_costs(layer, inputs[0], gradient, roundings[name], name in whole))

        output.register_hook(cost)

    hooks = [model.get_input_embeddings().register_forward_hook(begin)]
    hooks += [model.get_submodule(name).register_forward_hook(partial(watch, name)) for name in roundings]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def _costs(
    layer: nn.Module, inputs: torch.Tensor, gradient: torch.Tensor, roundings: Roundings, whole: bool
) -> dict[Choice, float]:
    """``sum of g^2 d^2 / 2`` over tokens and outputs, for every choice."""
    weight, share, costs = layer.weight, 1.0, {}
    if isinstance(layer, nn.Embedding):
        used, inputs = inputs.unique(return_inverse=True)  # only the tokens that occur
        weight = weight[used]
    elif not whole:
        rows = torch.randperm(len(weight), generator=torch.Generator().manual_seed(0))[:ROWS].to(weight.device)
        share = len(rows) / max(len(weight), 1)
        weight, gradient = weight[rows], gradient[..., rows]
    importance = gradient.float().square()
    for choice, rounding in roundings.items():
        error = weight.float() - rounding(weight)
        moved = error[inputs] if isinstance(layer, nn.Embedding) else inputs.float() @ error.T
        costs[choice] = (importance * moved.square()).sum().item() / 2 / share
    return costs

"""What rounding a layer costs the model, for every layer and every way to round it, from two passes.

Rounding a layer moves its outputs by ``d = X (W - Q)^T``. The KL divergence between the model and the rounded one is,
to second order, half the expectation of ``(g . d)^2``. Here ``g`` is the gradient of ``-log p(token)`` with respect to
these outputs, for a token drawn from the model's own predictions (the Fisher information; Amari and Nagaoka 2000,
section 2.2). Outputs and tokens are treated as independent, so each counts with its own ``g^2 d^2``. Therefore the
estimate is too low for errors of v, which attention adds up, and too high for those of k, both within a factor of 5.
One forward and one backward pass give the estimate for all layers; benchmarks/budget.py compares it with other
estimates.

Memory holds the inputs of all blocks, float32 ``[samples, length, hidden]`` each, and one block with its activations:
the backward pass comes to the blocks in reverse order, and runs each of them forward once more.

Left out: how rounding one layer changes the cost of another.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from qtutor.budget.allocation import Choice, Table
from qtutor.calibration.mapped import Weights
from qtutor.calibration.stream import check_finite
from qtutor.calibration.walk import first_states, in_place_of_blocks
from qtutor.core.grid import IntGrid
from qtutor.core.quantized import PER_TENSOR
from qtutor.errors import naming
from qtutor.families import decoder_blocks, family_of
from qtutor.families.family import embedding_scale
from qtutor.methods import rtn
from qtutor.recipe import Recipe

CHOICES = (2, 3, 4, 5, 6, 8)
TOKENS = 2048  # read for the losses; more hardly change the choice
LENGTH = 256  # of a sample
ROWS = 128  # of a layer's outputs
TOGETHER = 64  # tokens whose logits are computed at once
Rounding = Callable[[torch.Tensor], torch.Tensor]  # weights [rows, in] -> rounded weights, float32
Roundings = Mapping[Choice, Rounding]


def losses(source: nn.Module | Weights, token_ids: torch.Tensor, recipes: Mapping[str, Recipe], seed: int = 0) -> Table:
    """The cost of each layer of ``recipes`` at every number of bits: KL divergence, in nats per token.

    source: the model, or its weights; they are only read. token_ids: int64 ``[samples, length]``; about :data:`TOKENS`
    of them are read, from samples spread over all of it. Layers are rounded to nearest in the groups of their recipes:
    how much more one layer suffers than another hardly depends on the method. Tokens are drawn with ``seed``, so the
    same call gives the same table.
    Raises :class:`QtutorError` (naming the layer) for a width that no group divides, and for NaN or infinite states.
    """
    roundings = {
        name: {bits: partial(_nearest, grid=IntGrid(bits, own.symmetric), size=own.group_size) for bits in CHOICES}
        for name, own in recipes.items()
    }
    whole = {name for name, own in recipes.items() if own.group_size == PER_TENSOR}
    return losses_of(source, token_ids, roundings, whole, seed)


def losses_of(
    source: nn.Module | Weights,
    token_ids: torch.Tensor,
    roundings: Mapping[str, Roundings],
    whole: frozenset[str] | set[str] = frozenset(),
    seed: int = 0,
) -> Table:
    """:func:`losses` for any way to round: layer -> name of a choice -> a function that rounds some rows.

    Each row is rounded and counted by itself, so :data:`ROWS` random rows stand for all. In the layers ``whole``, whose
    rows are rounded together, all rows are used.
    """
    weights = source if isinstance(source, Weights) else Weights(source)
    model, family, ids = weights.model, family_of(weights.model), _some(token_ids)
    table = {name: dict.fromkeys(row, 0.0) for name, row in roundings.items()}
    watched = partial(_watched, roundings=roundings, whole=whole, table=table)
    blocks = len(decoder_blocks(model))
    with tqdm(total=2 * blocks, desc="measuring", unit="block", delay=1, disable=None, leave=False) as bar:
        inputs, arguments, states = _forward(weights, ids, bar)
        with weights.around_blocks(head=True):
            head = {family.head: model.get_submodule(family.head)}
            with watched({name: layer for name, layer in head.items() if name in roundings}):
                gradient = _at_the_end(model, ids, states, torch.Generator().manual_seed(seed))
        for index in reversed(range(blocks)):
            block, begin, x = weights.block(index), f"{family.blocks}.{index}.", inputs.pop()
            layers = {begin + name: layer for name, layer in block.named_modules() if begin + name in roundings}
            with watched(layers), torch.enable_grad():
                made = _run(block, x.requires_grad_(), arguments[index])
                gradient = torch.autograd.grad(made, x, gradient)[0]
            bar.update()
    if family.embedding in roundings:
        with weights.around_blocks():
            embedding = model.get_submodule(family.embedding)
            gradient = _at_the_embedding(model, embedding, ids, gradient)
            _add(table[family.embedding], _costs_of_embedding(embedding, ids, gradient, roundings[family.embedding]))
    return {name: {choice: loss / ids.numel() for choice, loss in row.items()} for name, row in table.items()}


@torch.no_grad()
def _forward(weights: Weights, ids: torch.Tensor, bar: tqdm) -> tuple[list[torch.Tensor], list[dict], torch.Tensor]:
    """The inputs of all blocks, their other arguments, and the states behind the last block."""
    with weights.around_blocks():
        states, arguments = first_states(weights.model, ids)
    inputs = []
    for index in range(len(arguments)):
        inputs.append(states)
        states = _run(weights.block(index), states, arguments[index])
        check_finite(states, f"{family_of(weights.model).blocks}.{index}: its output")
        bar.update()
    return inputs, arguments, states


def _run(block: nn.Module, states: torch.Tensor, arguments: dict) -> torch.Tensor:
    """The output of a decoder block, ``[samples, length, hidden]``."""
    made = block(states, **arguments)
    return made[0] if isinstance(made, tuple) else made


def _at_the_end(model: nn.Module, ids: torch.Tensor, states: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The gradient of the sum of ``-log p(token)`` at ``states [samples, length, hidden]``, for tokens drawn from p."""

    def of_some(tokens: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad(), in_place_of_blocks(model, lambda hidden, **_: given.to(hidden.dtype)):
            logits = model(tokens.to(given.device), use_cache=False).logits.flatten(0, 1).float()
            predicted = logits.detach().softmax(-1).cpu()
            drawn = torch.multinomial(predicted, 1, generator=generator)[:, 0].to(logits.device)
            return torch.autograd.grad(cross_entropy(logits, drawn, reduction="sum"), given)[0]

    # A few tokens at a time: logits are as wide as the vocabulary. Behind the blocks, each token is on its own.
    states = states.detach().requires_grad_()
    pieces = zip(*(given.flatten(0, 1)[None].split(TOGETHER, dim=1) for given in (ids, states)))
    return torch.cat([of_some(*piece) for piece in pieces], dim=1).reshape(states.shape)


def _at_the_embedding(
    model: nn.Module, embedding: nn.Module, ids: torch.Tensor, gradient: torch.Tensor
) -> torch.Tensor:
    """The gradient at the output of ``embedding``, from that at the first block: the model may multiply in between."""
    looked_up, arriving = [], []

    def begin(module: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        looked_up.append(output.detach().requires_grad_())
        return looked_up[0]

    def note(hidden: torch.Tensor, **_) -> torch.Tensor:
        arriving.append(hidden)
        return hidden.detach()

    hook = embedding.register_forward_hook(begin)
    try:
        with torch.enable_grad(), in_place_of_blocks(model, note):
            model.base_model(ids.to(gradient.device), use_cache=False)
            return torch.autograd.grad(arriving[0], looked_up[0], gradient.to(arriving[0].dtype))[0]
    finally:
        hook.remove()


def _nearest(rows: torch.Tensor, grid: IntGrid, size: int) -> torch.Tensor:
    return rtn.quantize(rows, grid, size).dequantize()


def _some(token_ids: torch.Tensor) -> torch.Tensor:
    """Beginnings of samples, evenly spread: a calibration text often has one kind of text after the other."""
    length = min(token_ids.shape[1], LENGTH)
    return token_ids[:: max(token_ids.shape[0] * length // TOKENS, 1), :length]


@contextmanager
def _watched(
    layers: Mapping[str, nn.Module], roundings: Mapping[str, Roundings], whole, table: Table
) -> Iterator[None]:
    """Inside, every backward pass through one of ``layers`` adds its losses to ``table``."""

    def watch(name: str, layer: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        def cost(gradient: torch.Tensor) -> None:
            with naming(name):
                _add(table[name], _costs(layer, inputs[0], gradient, roundings[name], name in whole))

        output.register_hook(cost)

    hooks = [layer.register_forward_hook(partial(watch, name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _add(row: dict[Choice, float], costs: dict[Choice, float]) -> None:
    for choice, cost in costs.items():
        row[choice] += cost


@torch.no_grad()
def _costs(
    layer: nn.Linear, inputs: torch.Tensor, gradient: torch.Tensor, roundings: Roundings, whole: bool
) -> dict[Choice, float]:
    """``sum of g^2 d^2 / 2`` over tokens and outputs, for every choice."""
    weight, share = layer.weight, 1.0
    if not whole:
        rows = torch.randperm(len(weight), generator=torch.Generator().manual_seed(0))[:ROWS].to(weight.device)
        share = len(rows) / max(len(weight), 1)
        weight, gradient = weight[rows], gradient[..., rows]
    importance, inputs = gradient.float().square(), inputs.float()
    moved = {choice: inputs @ (weight.float() - rounding(weight)).T for choice, rounding in roundings.items()}
    return {choice: (importance * d.square()).sum().item() / 2 / share for choice, d in moved.items()}


@torch.no_grad()
def _costs_of_embedding(
    embedding: nn.Embedding, ids: torch.Tensor, gradient: torch.Tensor, roundings: Roundings
) -> dict[Choice, float]:
    """:func:`_costs` of an embedding, of whose rows only those of the tokens in ``ids`` are rounded."""
    used, places = ids.to(embedding.weight.device).unique(return_inverse=True)
    weight, costs = embedding.weight[used], {}
    importance = (gradient.float() * embedding_scale(embedding)).square()
    for choice, rounding in roundings.items():
        moved = (weight.float() - rounding(weight))[places]
        costs[choice] = (importance * moved.square()).sum().item() / 2
    return costs

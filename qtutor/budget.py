"""Which layer gets how many bits: the least loss that a given number of bits, or of bytes, allows.

A layer that matters little can be stored in 2 or 3 bits, and what it saves gives another one 5 or 6. Two numbers are
needed for that, for every layer and every choice of bits: what it takes, and what it costs.

**What it costs** (:func:`losses`). Rounding a layer moves its outputs by ``d = X (W - Q)^T``. The KL divergence between
the model and the rounded one is, to second order, half the expectation of ``(g . d)^2``, where ``g`` is the gradient of
``-log p(token)`` by these outputs, for a token drawn from what the model itself predicts (the Fisher information; Amari
and Nagaoka 2000, section 2.2). Outputs and tokens are taken as independent, so each counts with its own ``g^2 d^2``:
errors of v, which attention adds up, come out too cheap, those of k too dear, both within a factor of 5. One pass
forward and one backward give it for all layers; benchmarks/budget.py compares it with other predictions.

**Who gets what** (:func:`allocate`). For a price ``p`` of a byte, every layer alone chooses what costs least in all,
``loss + p * bytes``. A higher price makes all of it smaller, so bisection finds the price whose choices just fit
(a Lagrange multiplier; Everett 1963, "Generalized Lagrange Multiplier Method").

Left out: what one rounded layer changes for the loss of another.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from qtutor.calibration.mapped import Weights
from qtutor.core.grid import IntGrid
from qtutor.core.quantized import PER_TENSOR, nbytes_of
from qtutor.errors import QtutorError, naming
from qtutor.guards.model import in_eval
from qtutor.methods import rtn
from qtutor.pipeline.planning import plan_of, recipes_of
from qtutor.recipe import Recipe

CHOICES = (2, 3, 4, 5, 6, 8)
TOKENS = 2048  # read for the losses; more hardly change the choice
LENGTH = 256  # of a sample
ROWS = 128  # of a layer's outputs
MARGIN = 200  # bytes a layer: the written recipe names the bits of each
Table = Mapping[str, Mapping[int, float]]  # layer -> bits -> a number


def choose(weights: Weights, recipe: Recipe, token_ids: torch.Tensor, tokenizer=None) -> Recipe:
    """``recipe`` with bits of its own for every layer: the least loss within the budget that it gives.

    The budget is ``recipe.target_size``, bytes of the folder that will be written (with the files of ``tokenizer``), or
    a fraction in ``recipe.bits``, the mean bits of the codes. Layers for which ``recipe.layers`` names bits, a method
    or "float" keep what they are given there, and do not count for the mean. token_ids: int64 ``[samples, length]``.
    Raises :class:`QtutorError` for a budget that nothing fits, naming the smallest one.
    """
    plain = replace(recipe, bits=Recipe.bits, target_size=None)
    free = free_layers(weights.model, plain)
    if not free:
        raise QtutorError("the recipe leaves no layer whose bits could be chosen: keep fewer, or name bits for fewer.")
    layers = {name: weights.model.get_submodule(name) for name in free}
    with weights.whole():
        table = losses(weights.model, token_ids, free)
    if recipe.target_size is None:
        sizes = {name: {b: b * layer.weight.numel() for b in CHOICES} for name, layer in layers.items()}
        budget, unit, rest = recipe.bits * sum(layer.weight.numel() for layer in layers.values()), "bits", 0
    else:
        sizes = {name: {b: packed_bytes(layers[name], own, b) for b in CHOICES} for name, own in free.items()}
        rest = _bytes_of_the_rest(weights, plain, sizes, token_ids, tokenizer)
        budget, unit = recipe.target_size - rest, "bytes"
    chosen = allocate(sizes, table, budget, unit, rest)
    return replace(plain, layers={**recipe.layers, **{name: {"bits": bits} for name, bits in chosen.items()}})


def _bytes_of_the_rest(weights: Weights, plain: Recipe, sizes: Table, token_ids, tokenizer) -> int:
    """What the folder takes beside the layers of ``sizes``, and some bytes for names that become longer."""
    layers = sum(row[plain.bits] for row in sizes.values())
    return plan_of(weights, plain, token_ids, tokenizer).nbytes - layers + MARGIN * len(sizes)


def free_layers(model: nn.Module, recipe: Recipe) -> dict[str, Recipe]:
    """The layers whose bits nothing fixes, by name, each with its own recipe."""

    def fixed(name: str) -> bool:
        changes = [change for pattern, change in recipe.layers.items() if fnmatchcase(name, pattern)]
        return any("bits" in change or "method" in change for change in changes)

    return {name: own for name, own in recipes_of(model, recipe).items() if not fixed(name)}


def packed_bytes(layer: nn.Module, recipe: Recipe, bits: int) -> int:
    """What the codes, scales and zero points of ``layer`` take at so many bits."""
    return nbytes_of(*layer.weight.shape, IntGrid(bits, recipe.symmetric), recipe.group_size)


def losses(model: nn.Module, token_ids: torch.Tensor, recipes: Mapping[str, Recipe], seed: int = 0) -> Table:
    """What each layer of ``recipes`` costs at every number of bits, in nats a token of KL divergence.

    token_ids: int64 ``[samples, length]``; about :data:`TOKENS` of them are read, from samples all over it. Layers are
    rounded to nearest in the groups of their recipes: how much more one layer suffers than another hardly depends on
    the method. Tokens are drawn with ``seed``, so the same call gives the same table.
    Raises :class:`QtutorError` (naming the layer) for a width that no group divides.
    """
    ids = _some(token_ids).to(model.device)
    table = {name: {} for name in recipes}
    generator = torch.Generator().manual_seed(seed)
    frozen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad = False  # gradients are wanted by outputs alone
        with torch.enable_grad(), in_eval(model), _watched(model, recipes, table):
            logits = model(ids, use_cache=False).logits.flatten(0, 1).float()
            predicted = logits.detach().softmax(-1).cpu()
            tokens = torch.multinomial(predicted, 1, generator=generator)[:, 0].to(logits.device)
            cross_entropy(logits, tokens, reduction="sum").backward()
    finally:
        for parameter in frozen:
            parameter.requires_grad = True
    return {name: {bits: loss / ids.numel() for bits, loss in row.items()} for name, row in table.items()}


def _some(token_ids: torch.Tensor) -> torch.Tensor:
    """Beginnings of samples, evenly spread: a calibration text often has one kind of text after the other."""
    length = min(token_ids.shape[1], LENGTH)
    return token_ids[:: max(token_ids.shape[0] * length // TOKENS, 1), :length]


@contextmanager
def _watched(model: nn.Module, recipes: Mapping[str, Recipe], table: dict) -> Iterator[None]:
    """While a backward pass runs inside, fill ``table`` with the loss of every layer."""

    def begin(layer: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        output.requires_grad_()  # no parameter wants a gradient, so the graph begins behind the embedding

    def watch(name: str, layer: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        output.register_hook(
            lambda gradient: table[name].update(_costs(name, layer, inputs[0], gradient, recipes[name]))
        )

    hooks = [model.get_input_embeddings().register_forward_hook(begin)]
    hooks += [model.get_submodule(name).register_forward_hook(partial(watch, name)) for name in recipes]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def _costs(
    name: str, layer: nn.Module, inputs: torch.Tensor, gradient: torch.Tensor, recipe: Recipe
) -> dict[int, float]:
    """``sum of g^2 d^2 / 2`` over tokens and outputs, for every choice of bits.

    Rows are rounded by themselves and count by themselves, so :data:`ROWS` of them, drawn at random, stand for all.
    """
    weight, importance = layer.weight, gradient.float().square()
    share, costs = 1.0, {}
    if isinstance(layer, nn.Embedding):
        used, inputs = inputs.unique(return_inverse=True)  # of a vocabulary, only the tokens that occur
        weight = weight[used]
    elif recipe.group_size != PER_TENSOR:
        rows = torch.randperm(len(weight), generator=torch.Generator().manual_seed(0))[:ROWS].to(weight.device)
        share = len(rows) / max(len(weight), 1)
        weight, importance = weight[rows], importance[..., rows]
    for bits in CHOICES:
        with naming(name):
            back = rtn.quantize(weight, IntGrid(bits, recipe.symmetric), recipe.group_size).dequantize()
        error = weight.float() - back
        moved = error[inputs] if isinstance(layer, nn.Embedding) else inputs.float() @ error.T
        costs[bits] = (importance * moved.square()).sum().item() / 2 / share
    return costs


def allocate(sizes: Table, costs: Table, budget: float, unit: str = "bytes", rest: int = 0) -> dict[str, int]:
    """The bits of every layer: the least sum of ``costs`` among those whose ``sizes`` sum to ``budget`` at most.

    Choices that no price leads to are not found (those above the convex hull of size and cost), so what is left of the
    budget is spent afterwards, step by step where it helps most. rest: what is needed besides, for the error's text.
    Raises :class:`QtutorError` where nothing fits, naming the least that would.
    """
    smallest = sum(min(row.values()) for row in sizes.values())
    if smallest > budget:
        raise QtutorError(
            f"{budget + rest:,.0f} {unit} are too few: with every layer at {min(CHOICES)} bits, {smallest + rest:,.0f} "
            "are needed. Allow more, use larger groups, or quantize embeddings and lm_head, too."
        )

    def cheapest(price: float) -> dict[str, int]:
        return {
            name: min(row, key=lambda bits: (costs[name][bits] + price * row[bits], bits))
            for name, row in sizes.items()
        }

    low, high = (
        0.0,
        max(max(row.values()) for row in costs.values()) + 1e-30,
    )  # at that price, a byte outweighs any loss
    for _ in range(200):
        middle = (low + high) / 2
        if _total(sizes, cheapest(middle)) <= budget:
            high = middle
        else:
            low = middle
    return _spend_the_rest(sizes, costs, budget, cheapest(high))


def _spend_the_rest(sizes: Table, costs: Table, budget: float, chosen: dict[str, int]) -> dict[str, int]:
    """One layer after the other gets more, the one first where a byte gains most, as long as there is room."""
    while True:
        left = budget - _total(sizes, chosen)
        gains = [
            ((costs[name][now] - costs[name][bits]) / (row[bits] - row[now]), name, bits)
            for name, row in sizes.items()
            for now in [chosen[name]]
            for bits in row
            if 0 < row[bits] - row[now] <= left and costs[name][bits] < costs[name][now]
        ]
        if not gains:
            return chosen
        _, name, bits = max(gains)
        chosen = chosen | {name: bits}


def _total(sizes: Table, chosen: Mapping[str, int]) -> float:
    return sum(sizes[name][bits] for name, bits in chosen.items())

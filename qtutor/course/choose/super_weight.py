"""The search for a super weight: a single weight whose removal makes a language model useless.

Yu et al. 2024, "The Super Weight in Large Language Models" (arXiv 2411.07191), section 3: one prompt goes through the
model, and at each ``down_proj`` (the last layer of an MLP) one looks for spikes: the largest input and the largest
output over all tokens. The channel of the output spike is the row, and the channel of the input spike is the column.
The weight at this place turned the input spike into the output spike. The paper's search continues, with found weights
removed, until no spike is left; here, the weight of every block is tried.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from qtutor.families import family_of, linear_layers


@dataclass(frozen=True)
class Spike:
    """The largest input and output of one ``down_proj``. row, column: their channels; weight: the weight at this place.

    sticks_out: the largest output of the layer, divided by the median over all tokens of each token's largest output.
    """

    layer: str
    row: int
    column: int
    weight: float
    largest_in: float
    largest_out: float
    sticks_out: float


@torch.inference_mode()
def spikes(model, token_ids: torch.Tensor) -> list[Spike]:
    """One :class:`Spike` for each block. token_ids: int64 ``[count]``, one prompt."""
    layers = last_layers(model)
    found, hooks = {}, []
    for name, layer in layers.items():
        hooks.append(layer.register_forward_hook(lambda _, x, y, name=name: found.update({name: (x[0][0], y[0])})))
    try:
        model(token_ids[None], use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return [_spike(name, layers[name].weight, *found[name]) for name in layers]


def last_layers(model) -> dict[str, torch.nn.Linear]:
    """The last layer of each MLP, by name: ``down_proj`` in most families."""
    last = family_of(model).halves[1].last
    return {name: layer for name, layer in linear_layers(model).items() if name.endswith(f".{last}")}


def _spike(name: str, weight: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> Spike:
    """x: inputs ``[tokens, in]``; y: outputs ``[tokens, out]``."""
    into, out = x.abs().amax(dim=0), y.abs().amax(dim=0)
    row, column = int(out.argmax()), int(into.argmax())
    usual = y.abs().amax(dim=1).median().clamp(min=1e-30)
    return Spike(
        name, row, column, weight[row, column].item(), into.max().item(), out.max().item(), (out.max() / usual).item()
    )


@contextmanager
def without(model, layer: str, row: int, column: int) -> Iterator[None]:
    """Within a ``with`` block, one weight of a float layer is 0."""
    weight = model.get_submodule(layer).weight
    with torch.no_grad():
        kept = weight[row, column].item()
        weight[row, column] = 0
    try:
        yield
    finally:
        with torch.no_grad():
            weight[row, column] = kept

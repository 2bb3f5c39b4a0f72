"""What rounding a layer costs, slow and obvious: the whole model in one graph, all outputs and their gradients kept.

Knows nothing of qtutor. Every module is run once more with its rounded weights, and its output with the original
weights is subtracted.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy


def losses(
    model: nn.Module, ids: torch.Tensor, names: list[str], rounded: Callable[[torch.Tensor], torch.Tensor], seed: int
) -> dict[str, float]:
    """By module, half the sum of ``g^2 d^2`` over tokens and outputs, per token.

    g: the gradient of ``-log p(token)`` at the module's output, for tokens drawn from p. d: the change of this output
    if ``rounded`` changes its weights.
    """
    seen, hooks = {}, []
    for name in names:

        def keep(module: nn.Module, inputs: tuple, output: torch.Tensor, name: str = name) -> None:
            if not output.requires_grad:
                output.requires_grad_()
            output.retain_grad()
            seen[name] = module, inputs[0].detach(), output

        hooks.append(model.get_submodule(name).register_forward_hook(keep))
    logits = model(ids).logits.float()
    for hook in hooks:
        hook.remove()
    generator = torch.Generator().manual_seed(seed)
    tokens = [torch.multinomial(sample.detach().softmax(-1), 1, generator=generator)[:, 0] for sample in logits]
    cross_entropy(logits.flatten(0, 1), torch.cat(tokens), reduction="sum").backward()
    found = {}
    for name, (module, inputs, output) in seen.items():
        with torch.no_grad():
            d = functional_call(module, {"weight": rounded(module.weight)}, inputs) - module(inputs)
        found[name] = ((output.grad * d) ** 2).sum().item() / 2 / ids.numel()
    return found

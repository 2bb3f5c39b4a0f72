"""What zero points that are off by one do to a decoder: weights moved by a whole step, and inputs that lean.

A weight that is a step off is 3.5 times as wrong as one that is rounded. What ruins a model is that all of them are off
to the same side: then all outputs of a layer move together, and the next layer adds them up.
"""

import copy

import torch
from torch import nn

from qtutor.runtime.linear import QuantLinear

# One layer of those that read the same input.
READERS = {"q_proj": "q, k, v", "o_proj": "o", "gate_proj": "gate, up", "down_proj": "down"}


def stepped(packed: nn.Module, random: bool = False) -> nn.Module:
    """A float copy of a ``packed`` decoder in which every quantized weight is one step of its scale too large.

    random: to either side by chance, the same in every run, in place of all to the same side.
    """
    moved = copy.deepcopy(packed)
    generator = torch.Generator().manual_seed(0)
    for name, layer in list(moved.named_modules()):
        if isinstance(layer, QuantLinear):
            stored = layer.quantized()
            step = stored.scales.float().repeat_interleave(layer.columns // stored.scales.shape[1], dim=1)
            if random:
                step = step * (torch.randint(0, 2, step.shape, generator=generator) * 2 - 1)
            plain = nn.Linear(layer.columns, layer.rows, bias=layer.bias is not None)
            plain.weight.data = stored.dequantize() + step
            if layer.bias is not None:
                plain.bias.data = layer.bias.float()
            moved.set_submodule(name, plain)
    return moved


def lean(model: nn.Module, ids: torch.Tensor) -> dict[str, float]:
    """How far the inputs of each layer lie to one side, 0 to 1, by "block: layers", in the order of the decoder.

    That is |mean| / root mean square of a token's inputs, averaged over the tokens of ``ids`` ``[texts, tokens]``. Of
    numbers with either sign by chance it is near 0; of numbers that are all equal it is 1.
    """
    found, hooks = {}, []

    def look(label: str):
        def hook(module, arguments):
            x = arguments[0].detach().float()
            found[label] = (x.mean(-1).abs() / x.square().mean(-1).sqrt()).mean().item()

        return hook

    for name, module in model.named_modules():
        last = name.rpartition(".")[2]
        if last in READERS:
            block = next(part for part in name.split(".") if part.isdigit())
            hooks.append(module.register_forward_pre_hook(look(f"{block}: {READERS[last]}")))
    try:
        with torch.inference_mode():
            model(ids)
    finally:
        for hook in hooks:
            hook.remove()
    return found

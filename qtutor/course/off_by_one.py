"""What zero points that are off by one do to a decoder: weights move by a whole step, and inputs lean to one side.

A weight that is one step off is 3.5 times as wrong as a rounded weight. But the model is ruined because all weights are
off to the same side: then all outputs of a layer move together, and the next layer adds them up.
"""

import copy

import torch
from torch import nn

from qtutor.families import decoder_blocks, family_of
from qtutor.runtime.linear import QuantLinear


def stepped(packed: nn.Module, random: bool = False) -> nn.Module:
    """A float copy of a ``packed`` decoder in which every quantized weight is one step of its scale too large.

    random: move each weight up or down at random, the same in every run; otherwise, all move to the same side.
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
    """How much the inputs of each layer lean to one side, 0 to 1, by "block: layers", in the order of the decoder.

    That is |mean| / root mean square of a token's inputs, averaged over the tokens of ``ids`` ``[texts, tokens]``. For
    numbers with random signs it is near 0; for numbers that are all equal it is 1.
    """
    found, hooks = {}, []

    def look(label: str):
        def hook(module, arguments):
            x = arguments[0].detach().float()
            found[label] = (x.mean(-1).abs() / x.square().mean(-1).sqrt()).mean().item()

        return hook

    for index, block in enumerate(decoder_blocks(model)):
        for names in family_of(model).shared:
            reader = block.get_submodule(names[0])  # the others read the same
            hooks.append(reader.register_forward_pre_hook(look(f"{index}: {', '.join(map(_short, names))}")))
    try:
        with torch.inference_mode():
            model(ids)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _short(name: str) -> str:
    """A layer's name without its parent and its kind: ``self_attn.q_proj`` as "q"."""
    last = name.rpartition(".")[2]
    return last.rpartition("_")[0] or last

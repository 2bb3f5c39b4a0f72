"""Give a small model the activation outliers of a large one, by a change of its weights that keeps its outputs."""

import torch
from torch import nn

from qtutor.families import decoder_blocks, family_of


@torch.no_grad()
def add_outliers(model: nn.Module, share: float = 0.05, largest: float = 32.0, seed: int = 0) -> nn.Module:
    """Give ``model`` the activation outliers of a large model, without changing the function it computes.

    Some channels of every norm's gain, and some rows of every ``up_proj``, are multiplied by a power of two up to
    ``largest``. The matching columns of the layers that read them are divided by the same power. Powers of two change
    only exponents, so the logits of the float model stay the same, in bf16 too. But quantized weights change: a few
    columns now matter far more than the rest, as in models of billions of parameters (Dettmers et al. 2022, arXiv
    2208.07339, section 4). Changes ``model`` in place, and returns it.
    """
    generator = torch.Generator().manual_seed(seed)

    def factors(width: int) -> torch.Tensor:
        exponents = torch.randint(1, int(torch.tensor(largest).log2()) + 1, (width,), generator=generator)
        chosen = torch.rand(width, generator=generator) < share
        return torch.where(chosen, 2.0**exponents, torch.ones(width))

    family = family_of(model)
    for block in decoder_blocks(model):
        for pair in family.pairs:
            if pair.source in family.halves[0].readers:
                continue  # v -> o: with grouped-query attention, one channel of v feeds several columns of o
            readers = [block.get_submodule(name) for name in pair.readers]
            module = block.get_submodule(pair.source)
            source, bias = module.weight, getattr(module, "bias", None)
            factor = factors(readers[0].in_features).to(source.device, source.dtype)
            outputs = source[-len(factor) :]
            if source.dim() == 1:
                outputs.add_(family.norm_offset).mul_(factor).sub_(family.norm_offset)
            else:
                outputs.mul_(factor[:, None])
            if bias is not None:
                bias[-len(factor) :].mul_(factor)
            for layer in readers:
                layer.weight.div_(factor)
    return model

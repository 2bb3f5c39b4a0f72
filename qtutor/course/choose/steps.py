"""What rounding does to a training step: a weight on a grid returns to its old value unless the step is large."""

import torch

from qtutor.core.quantized import QuantizedTensor
from qtutor.runtime.linear import QuantLinear


def moved(quantized: QuantizedTensor, step: torch.Tensor) -> float:
    """The share of the codes that change if ``step [out, in]`` is added to the weights and the weights are rounded
    again, with the same scales and zero points.
    """
    return (recoded(quantized, step) != quantized.codes).float().mean().item()


def recoded(quantized: QuantizedTensor, step: torch.Tensor) -> torch.Tensor:
    """The codes, uint8 ``[out, in]``, of the weights plus ``step``."""
    rows, columns = quantized.shape
    scale = quantized.scales.float()
    weight = (quantized.dequantize() + step).reshape(*scale.shape, -1)
    grid = quantized.grid
    zero = torch.full_like(scale, grid.middle) if quantized.zeros is None else quantized.zeros.float()
    return grid.encode(weight, scale[..., None], zero[..., None]).reshape(rows, columns).to(quantized.codes.dtype)


def moved_in_model(model, size: float, seed: int = 0) -> float:
    """The share of all codes that change if Adam moves each weight by ``size`` (the learning rate), up or down.

    Adam's first step has exactly this size, and later steps are seldom larger.
    """
    changed = total = 0
    for number, layer in enumerate(m for m in model.modules() if isinstance(m, QuantLinear)):
        quantized = layer.quantized()
        draw = torch.Generator().manual_seed(seed + number)
        step = size * (2 * torch.randint(0, 2, quantized.codes.shape, generator=draw) - 1)
        changed += (recoded(quantized, step) != quantized.codes).sum().item()
        total += step.numel()
    return changed / total

"""Scales that no engine can compute with."""

import torch

from qtutor.core.float_grid import FloatGrid
from qtutor.core.grid import IntGrid
from qtutor.doctor.patient import Layer

LARGEST, SMALLEST = 65504.0, 2.0**-25  # of float16; a number below half its smallest step becomes 0
MANY = 32  # so many scales are not all below 0 by chance, even if each of them may be


def not_finite(layer: Layer) -> str | None:
    """NaN and infinities among the scales."""
    for kind, tensor in _scales(layer):
        if not torch.isfinite(tensor).all():
            wrong = ~torch.isfinite(tensor)
            return (
                f"{layer.name}.{kind} holds {int(wrong.sum())} of {tensor.numel()} numbers that are NaN or infinite "
                f"({tensor[wrong][0].item()}), which spread over every token: quantize the layer again with scales "
                "that fit, or leave it in float."
            )
    return None


def too_large(layer: Layer) -> str | None:
    """Scales in bfloat16 or float32 that float16 does not hold."""
    for kind, tensor in _scales(layer):
        if tensor.numel() == 1:
            continue
        most = tensor.abs().max().item()
        if LARGEST < most < float("inf"):
            return (
                f"{layer.name}.{kind} holds the scale {most:.3g} in {str(tensor.dtype)[6:]}. It becomes "
                f"infinite in an engine that computes in float16 (up to {LARGEST:.0f}): run it in bfloat16, or "
                "leave the layer in float."
            )
    return None


def vanished(layer: Layer) -> str | None:
    """Scales of 0 although the codes say that there were weights."""
    if layer.quantized is None:
        return None
    scales, grid = layer.quantized.scales.float(), layer.quantized.grid
    # Engines keep the scales of FP8, which are the weights' size over 448, in float32.
    small = scales == 0 if isinstance(grid, FloatGrid) else scales.abs() < SMALLEST
    if not small.any() or not torch.isfinite(scales).all():
        return None
    codes = layer.quantized.codes.reshape(*scales.shape, -1)
    zeros = layer.quantized.zeros
    middle = torch.full_like(codes[..., :1], grid.middle) if zeros is None else zeros.unsqueeze(-1)
    levels = grid.decode(codes, torch.ones(1), middle if isinstance(grid, IntGrid) else None)
    lost = small & (levels != 0).any(-1)
    if not lost.any():
        return None
    return (
        f"{layer.name}: {int(lost.sum())} of {lost.numel()} scales are 0 in float16, though their codes are not, so "
        "these groups of weights became 0: leave the layer in float, or store its scales in more bits."
    )


def negative(layer: Layer) -> str | None:
    """Nothing but scales below 0: each weight has the wrong sign. Good files have some (llama.cpp's Q4_0, MLX)."""
    if layer.quantized is None or layer.quantized.scales.numel() < MANY or not (layer.quantized.scales < 0).all():
        return None
    return (
        f"{layer.name}: all of its {layer.quantized.scales.numel()} scales are below 0, so that its weights have the "
        "wrong sign: convert or export it again."
    )


def _scales(layer: Layer):
    """The float tensors of more than 8 bits; those of 8 bits are weights, which the reader checks."""
    floats = [(kind, tensor) for kind, tensor in layer.tensors.items() if tensor.is_floating_point()]
    return [(kind, tensor) for kind, tensor in floats if tensor.dtype.itemsize > 1]

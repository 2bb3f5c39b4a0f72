"""Torch's own product with 4 bits, ``torch._weight_int4pack_mm_for_cpu``, for comparison: it must be requested by name.

It computes ``y = x @ ((code - 8) s + z).T`` in bfloat16, scales included, so it is about a thousand times less exact
than :mod:`.cpu`, which was also faster in measurements (``benchmarks/packed_matmul.md``). The order of its codes is
internal to torch and depends on the CPU. So the layer keeps its packed bytes, and this kernel needs as many bytes
again.
"""

from dataclasses import dataclass

import torch

from qtutor.core.grid import IntGrid
from qtutor.runtime.kernels import gradients, reference

GROUPS = 32, 64, 128, 256


@dataclass(frozen=True)
class State:
    """matrix: the codes in torch's order. scales: with zero points, bfloat16 ``[groups, rows, 2]``.

    plain: the state of the reference, which computes if a gradient is needed.
    """

    matrix: torch.Tensor
    scales: torch.Tensor
    group_size: int
    plain: reference.State


def reason_against(layer, dtype: torch.dtype) -> str | None:
    """Why this kernel does not support ``layer`` or inputs of ``dtype``, in words that end a sentence, or ``None``."""
    if not isinstance(layer.grid, IntGrid) or layer.grid.bits != 4:
        return "codes are not whole numbers of 4 bits"
    if dtype != torch.bfloat16:
        return f"inputs are {str(dtype)[6:]}, and not bfloat16"
    if layer.group_size not in GROUPS or layer.columns % layer.group_size or layer.rows % 16 or not layer.rows:
        return f"it needs groups of {', '.join(map(str, GROUPS))} and a multiple of 16 rows"
    if not hasattr(torch, "_weight_int4pack_mm_for_cpu"):
        return f"torch {torch.__version__} does not have it"
    return None


def prepare(layer) -> State:
    """A second copy of the codes of ``layer``, in torch's order, and its scales rounded to bfloat16."""
    quantized = layer.quantized()
    scales = quantized.scales.float()
    zeros = layer.grid.middle if quantized.zeros is None else quantized.zeros
    both = torch.stack([scales, (8.0 - zeros) * scales], dim=-1)
    matrix = torch._convert_weight_to_int4pack_for_cpu(quantized.codes.int(), 1)
    both = both.transpose(0, 1).bfloat16().contiguous()
    return State(matrix, both, layer.group_size, reference.prepare(layer))


def manner(batch: int, dtype: torch.dtype) -> str:
    """How a batch is multiplied, in words."""
    return "torch multiplies in bfloat16, from a copy of the codes"


def run(x: torch.Tensor, state: State) -> torch.Tensor:
    """``x [..., in] @ weight.T`` -> ``[..., out]``, bfloat16."""
    if not x.numel() or gradients.wanted(x):
        return reference.run(x, state.plain)
    flat = x.reshape(-1, x.shape[-1]).contiguous()
    y = torch._weight_int4pack_mm_for_cpu(flat, state.matrix, state.group_size, state.scales)
    return y.reshape(*x.shape[:-1], -1)

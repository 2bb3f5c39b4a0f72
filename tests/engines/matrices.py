"""Small quantized matrices, and their tensors in a format, as if they were read from a file."""

import torch

import qtutor
from qtutor.core.quantized import QuantizedTensor
from qtutor.formats.foreign import Format, Layout


def matrix(bits: int, symmetric: bool, group_size: int, rows: int = 64, columns: int = 128) -> QuantizedTensor:
    """A matrix of random weights, rounded to nearest; every code and, if asymmetric, many zero points occur."""
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(bits)) * 0.02
    weight[: rows // 2] += 0.01  # ranges that are not around zero
    return qtutor.rtn.quantize(weight, qtutor.IntGrid(bits, symmetric), group_size)


def encoded(form: Format, quantized: QuantizedTensor, layout: Layout) -> dict[str, torch.Tensor]:
    """The tensors of ``quantized`` in a format, contiguous as in a file."""
    return {kind: tensor.contiguous() for kind, tensor in form.encode(quantized, layout).items()}

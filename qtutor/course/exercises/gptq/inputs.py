"""Shared by the exercises of chapter 06.

References do not use the shortcuts of the solutions: they minimise the output error, or invert the rest of the Hessian
after every column, in float64. No weight is near the middle between two levels, because either choice would be right.
"""

import torch


def hessian(seed: int, width: int, tokens: int = 40, shared: float = 1.0) -> torch.Tensor:
    """X^T X, float64 ``[width, width]``, of whole-number inputs; ``shared`` is the size of the part that all share."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, width, generator=generator) + shared * torch.randn(tokens, 1, generator=generator)
    x = (2 * x).round().double()
    return x.T @ x

"""What the exercises of chapter 06 share.

References know nothing of the shortcuts that the solutions take: they minimise the output error, or invert what is left
of the Hessian after every column, in float64. Inputs hold no weight near the middle between two levels: which way a tie
goes is nobody's mistake.
"""

import torch

CHAPTER = "06_gptq"


def random(seed: int, *shape: int) -> torch.Tensor:
    """Bell-shaped weights, the same on every machine, with as few digits as a message should show."""
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 100).round() / 100


def hessian(seed: int, width: int, tokens: int = 40, shared: float = 1.0) -> torch.Tensor:
    """X^T X, float64 ``[width, width]``, of whole-numbered inputs that have ``shared`` of something in common."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, width, generator=generator) + shared * torch.randn(tokens, 1, generator=generator)
    x = (2 * x).round().double()
    return x.T @ x

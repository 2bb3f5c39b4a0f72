"""Random numbers for the inputs of several exercises."""

import torch


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    """Numbers from a normal distribution, float32; the same ``seed`` gives the same numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

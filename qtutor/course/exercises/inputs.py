"""What exercises of several topics draw their inputs from."""

import torch


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    """Numbers of a normal distribution, float32, the same for the same ``seed``."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

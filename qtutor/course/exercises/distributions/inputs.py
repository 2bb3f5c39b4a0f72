"""What the exercises of chapter 03 share."""

import torch

CHAPTER = "03_distributions"


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

"""What the exercises of chapter 09 share: codes by chance, and where they stand."""

import torch

CHAPTER = "09_quantized_decoder"


def codes_of(seed: int, *shape: int) -> torch.Tensor:
    """Codes of 4 bits as whole numbers, int64; the same ``seed`` gives the same codes."""
    return torch.randint(0, 16, shape, generator=torch.Generator().manual_seed(seed))

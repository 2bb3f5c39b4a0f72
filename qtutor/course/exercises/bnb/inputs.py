"""What the exercises of chapter 04 share.

References are plain loops in Python's own floats. No input lies halfway between two levels or codes, because either
choice would be right.
"""

import torch

CHAPTER = "04_nf4_and_int8"


def random(seed: int, *shape: int) -> torch.Tensor:
    """Normally distributed numbers, the same on every machine, with few digits so that messages stay short."""
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 1000).round() / 1000

"""What the exercises of chapter 04 share.

References are plain loops in Python's own floats. No input lies halfway between two levels or two codes: which way a
tie goes is nobody's mistake.
"""

import torch

CHAPTER = "04_nf4_and_int8"


def random(seed: int, *shape: int) -> torch.Tensor:
    """Bell-shaped numbers, the same on every machine, with as few digits as a message should show."""
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 1000).round() / 1000

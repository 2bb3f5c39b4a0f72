"""Weights that are hard to round, by name: a chapter's check tries them beside ordinary ones."""

import torch


def weights() -> dict[str, torch.Tensor]:
    """Matrices ``[16, 64]``, float32, the same in every run: bells, tails, one side only, rows of equal numbers."""
    generator = torch.Generator().manual_seed(1)

    def bell() -> torch.Tensor:
        return torch.randn(16, 64, generator=generator)

    lone = torch.zeros(16, 64)
    lone[2, 5] = 9.0
    return {
        "bell-shaped": bell(),
        "heavy tails": bell() ** 3,
        "one-sided": torch.rand(16, 64, generator=generator),
        "all negative": -torch.rand(16, 64, generator=generator),
        "very small": 1e-4 * bell(),
        "a row of zeros": bell().index_fill(0, torch.tensor([3]), 0.0),
        "a constant row": bell().index_fill(0, torch.tensor([3]), 0.25),
        "one single outlier": lone,
    }

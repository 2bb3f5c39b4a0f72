"""Random numbers and codes as inputs of exercises: the same ``seed`` gives the same numbers on every machine."""

import torch


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    """Numbers from a normal distribution, float32."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def short(seed: int, *shape: int, digits: int = 3) -> torch.Tensor:
    """Like :func:`noise`, but with few digits after the point, so that messages stay short."""
    return (noise(*shape, seed=seed) * 10**digits).round() / 10**digits


def codes_of(seed: int, *shape: int, bits: int = 4, least: int = 0) -> torch.Tensor:
    """Random codes from ``least`` to ``2**bits - 1``, uint8 as in the package."""
    return torch.randint(least, 2**bits, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)

"""Shared by the exercises of chapter 07. They use numpy, like :mod:`qtutor.gguf`, because a file is bytes."""

import numpy as np


def drawn(seed: int, *shape: int) -> np.ndarray:
    """Normally distributed float32 weights; the same ``seed`` gives the same weights."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)

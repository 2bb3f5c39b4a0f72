"""What the exercises of chapter 07 share. They work in numpy, as :mod:`qtutor.gguf` does: a file is bytes."""

import numpy as np

CHAPTER = "07_gguf"


def drawn(seed: int, *shape: int) -> np.ndarray:
    """Bell-shaped float32 weights, the same each time."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)

"""Products of activations with packed weights: the readable reference first, faster ones later."""

from qtutor.runtime.kernels.reference import matmul

__all__ = ["matmul"]

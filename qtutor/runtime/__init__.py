"""Layers that store packed bytes and compute with them."""

from qtutor.runtime.kernels.choosing import explain, use

__all__ = ["explain", "use"]

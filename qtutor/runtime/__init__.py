"""Layers that store packed bytes and compute with them."""

from qtutor.runtime.kernels.choosing import explain

__all__ = ["explain"]

"""What every packed layer says about itself, for code that counts weights or compares shapes and computes nothing.

Such code need not import the layers (:mod:`.linear`) and their kernels.
"""

from torch import nn


class Packed(nn.Module):
    """A module that stores a matrix ``[rows, columns]`` as packed bytes: all of its buffers, but not its bias."""

    rows: int
    columns: int

"""A linear layer that multiplies FP8 values of its weights by FP8 values of its inputs."""

from qtutor.runtime.kernels import fp8
from qtutor.runtime.linear import QuantLinear


class Fp8Linear(QuantLinear):
    """A :class:`QuantLinear` on the grid :data:`FP8` or :data:`FP8_TILES` that rounds its inputs, too.

    On :data:`FP8` every token has its own scale; on :data:`FP8_TILES` every group of a token has one. Engines that read
    FP8 files with dynamic inputs round in the same way, so measurements here show what those engines will do.
    """

    own = fp8

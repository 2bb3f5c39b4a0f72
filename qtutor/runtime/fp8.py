"""A linear layer that multiplies FP8 values of its weights by FP8 values of its inputs."""

from qtutor.runtime.kernels import fp8
from qtutor.runtime.linear import QuantLinear


class Fp8Linear(QuantLinear):
    """A :class:`QuantLinear` on the grid :data:`FP8` that rounds its inputs, too, each token to a scale of its own; or
    on :data:`FP8_TILES`, and then every group of a token has one.

    So do the engines that read FP8 files with dynamic inputs, and what is measured here is what they will do.
    """

    own = fp8

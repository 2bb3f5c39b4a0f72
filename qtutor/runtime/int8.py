"""A linear layer that multiplies int8 codes of its weights by int8 codes of its inputs: LLM.int8."""

from qtutor.methods.bnb import THRESHOLD
from qtutor.runtime.kernels import int8
from qtutor.runtime.linear import QuantLinear


class Int8Linear(QuantLinear):
    """A :class:`QuantLinear` on the grid :data:`INT8` that quantizes its inputs, too: LLM.int8.

    threshold: a channel with an input of at least this size is an outlier; ``None``: no channel is.
    """

    threshold: float | None = THRESHOLD
    own = int8

    def _stamp(self) -> tuple:
        return self.threshold, *super()._stamp()

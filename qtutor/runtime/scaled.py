"""A linear layer that multiplies each input channel by a number before the product: ModelOpt's ``pre_quant_scale``.

AWQ multiplies the columns of the weights by factors, and divides the inputs by the same factors. Usually the division
is folded into the norm or the layer before, and nothing is left to do. If that is impossible (grouped-query attention:
a channel of v feeds several of o), a checkpoint stores the numbers beside the weights. They are kept as they are:
folded into the weights, they would need a scale for each column of a group; folded into norms, they would be rounded,
because norms are stored in 16 bits.
"""

import torch

from qtutor.runtime.linear import QuantLinear


class ScaledLinear(QuantLinear):
    """``y = (x * input_scale) @ weight.T + bias``. input_scale: float32 ``[in]``, for every dtype of the model."""

    def __init__(self, out_features: int, in_features: int, *others, **named):
        super().__init__(out_features, in_features, *others, **named)
        self.register_buffer("input_scale", torch.ones(in_features, dtype=torch.float32))

    @classmethod
    def from_scaled(cls, quantized, input_scale: torch.Tensor, bias: torch.Tensor | None = None) -> "ScaledLinear":
        """A layer that computes with ``quantized [out, in]`` on inputs times ``input_scale``."""
        layer = cls.from_quantized(quantized, bias)
        layer.input_scale = input_scale.float()
        return layer

    def dequantized(self) -> torch.Tensor:
        """The weights for inputs that are not scaled, ``[out, in]``."""
        return super().dequantized() * self.input_scale

    def _apply(self, fn, recurse=True):
        kept = self.input_scale
        super()._apply(fn, recurse)
        self.input_scale = kept.to(self.packed.device)  # as for the scales of groups: only the device changes
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward((x * self.input_scale).to(x.dtype))

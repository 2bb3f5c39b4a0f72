"""A linear layer that multiplies its inputs by a number each before the product: ModelOpt's ``pre_quant_scale``.

AWQ divides inputs by what it multiplied the weights' columns by. Mostly the norm or the layer before takes the numbers
in, and nothing is left. Where none can (grouped-query attention: a channel of v feeds several of o), a checkpoint has
them beside the weights. They are kept as they are: columns of one group would need scales of their own, and norms are
stored in 16 bits, which would round the product.
"""

import torch

from qtutor.runtime.linear import QuantLinear


class ScaledLinear(QuantLinear):
    """``y = (x * input_scale) @ weight.T + bias``. input_scale: float32 ``[in]``, whatever dtype the model has."""

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
        """The weights for inputs as they come, ``[out, in]``."""
        return super().dequantized() * self.input_scale

    def _apply(self, fn, recurse=True):
        kept = self.input_scale
        super()._apply(fn, recurse)
        self.input_scale = kept.to(self.packed.device)  # as the scales of groups: the device changes, and no number
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward((x * self.input_scale).to(x.dtype))

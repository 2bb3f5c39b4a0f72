"""A linear layer whose inputs are rounded to 8 bits, token by token, in plain steps. Knows nothing of qtutor.

Engines multiply whole numbers; here a rounded number becomes a float again, which gives the same product.
"""

import torch
from torch import nn


class RoundedInputs(nn.Module):
    """x @ weight.T, after each token of x is rounded to 8 bits.

    weight: float ``[out, in]``. largest: the code of a token's largest value; codes above 127 become 127. dtype: the
    dtype to which inputs are rounded first. threshold: a channel with a value of at least this size in any token is not
    rounded. sums: the dtype in which products are added.
    """

    def __init__(
        self, weight, largest: float = 127.0, dtype=torch.float32, threshold: float = float("inf"), sums=torch.float64
    ):
        super().__init__()
        self.weight, self.largest, self.dtype, self.threshold = weight.to(sums), largest, dtype, threshold

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.reshape(-1, x.shape[-1])
        halves = tokens.to(self.dtype).float()
        outliers = (halves.abs() >= self.threshold).any(dim=0)
        small = torch.where(halves.abs() < self.threshold, halves, 0.0)
        steps = small.abs().amax(dim=1, keepdim=True) / self.largest  # [tokens, 1]
        codes = (small / torch.where(steps > 0, steps, 1.0)).round().clamp(-128, 127)
        rounded = torch.where(outliers, tokens, codes * steps)
        return (rounded.to(self.weight.dtype) @ self.weight.T).to(x.dtype).reshape(*x.shape[:-1], -1)

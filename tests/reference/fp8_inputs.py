"""A linear layer whose weights and inputs are E4M3 values, in plain steps. Knows nothing of qtutor."""

import torch
from torch import nn

# Sign, four bits of exponent, three of mantissa; 1.111 * 2^8 is NaN, so 448 is the largest.
POSITIVE = [m / 8 * 2.0**-6 for m in range(8)] + [
    (1 + m / 8) * 2.0 ** (e - 7) for e in range(1, 16) for m in range(8) if (e, m) != (15, 7)
]


def e4m3(x: torch.Tensor) -> torch.Tensor:
    """The nearest E4M3 value for every number of ``x``, float64; in a tie, the one whose last mantissa bit is 0."""
    levels = torch.tensor(POSITIVE, dtype=torch.float64)
    size = x.double().abs().clamp(max=448)
    above = torch.searchsorted(levels, size.contiguous()).clamp(max=len(levels) - 1)
    below = (above - 1).clamp(min=0)
    up, down = levels[above] - size, size - levels[below]
    nearer = torch.where((up < down) | ((up == down) & (above % 2 == 0)), above, below)
    return levels[nearer] * torch.where(x < 0, -1.0, 1.0)


class Fp8Inputs(nn.Module):
    """x @ weight.T, after each token of x is rounded to E4M3 values, with its largest number at 448.

    weight: ``[out, in]``. group: the count of a token's numbers that share a scale; None: all of them. sums: the dtype
    in which products are added.
    """

    def __init__(self, weight, group: int | None = None, sums=torch.float64):
        super().__init__()
        self.weight, self.group = weight.to(sums), group or weight.shape[1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        groups = x.reshape(-1, self.group).float()
        scale = groups.abs().amax(dim=1, keepdim=True) / 448  # [tokens * groups, 1]
        scale = torch.where(scale > 0, scale, 1.0)
        rounded = (e4m3(groups / scale) * scale.double()).reshape(-1, x.shape[-1])
        return (rounded.to(self.weight.dtype) @ self.weight.T).to(x.dtype).reshape(*x.shape[:-1], -1)

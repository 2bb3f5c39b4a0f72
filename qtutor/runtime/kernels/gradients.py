"""Whether a product's gradient is wanted; and that of products whose inputs are rounded, which passes the rounding as
if it were not there."""

import torch
from torch.nn.functional import linear


def wanted(x: torch.Tensor) -> bool:
    """Whether somebody will ask for the gradient of what is computed from ``x``."""
    return x.requires_grad and torch.is_grad_enabled()


def of_exact(product: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """``product [tokens, out]`` as it is, with the gradient of ``x [tokens, in] @ weight.T``.

    Rounding has the gradient 0 nearly everywhere. What torch would find without this is that of the scale alone, which
    only the largest input of a token has a part in.
    """
    exact = linear(x.to(weight.dtype), weight)
    return product.detach() + (exact - exact.detach())

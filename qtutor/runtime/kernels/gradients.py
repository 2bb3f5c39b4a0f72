"""Whether a product needs a gradient, and the gradient of products with rounded inputs, which ignores the rounding."""

import torch
from torch.nn.functional import linear


def wanted(x: torch.Tensor) -> bool:
    """Whether results computed from ``x`` need a gradient."""
    return x.requires_grad and torch.is_grad_enabled()


def of_exact(product: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """``product [tokens, out]`` as it is, with the gradient of ``x [tokens, in] @ weight.T``.

    Rounding has the gradient 0 nearly everywhere. Without this function, torch would find only the gradient of the
    scale, which depends only on the largest input of a token.
    """
    exact = linear(x.to(weight.dtype), weight)
    return product.detach() + (exact - exact.detach())

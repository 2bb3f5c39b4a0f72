"""How far decoded weights are from FLOAT's."""

import torch


def distance(weights: torch.Tensor, exact: torch.Tensor) -> float:
    """``|W - c r W'| / |W|`` for the best factors c of columns and r of rows; 1 if the two have nothing in common.

    weights, exact: float32 ``[out, in]``. AWQ and other methods move factors from a layer into the norm or the layer
    before it. So both the columns and the rows of a sound checkpoint may be scaled.
    """
    for dim in (0, 1):
        factor = (weights * exact).sum(dim, keepdim=True) / weights.square().sum(dim, keepdim=True).clamp(min=1e-30)
        weights = weights * factor
    return ((weights - exact).norm() / exact.norm().clamp(min=1e-30)).item()

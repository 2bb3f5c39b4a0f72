"""A Hessian prepared for rounding: an order of the columns, and the factor of its inverse that GPTQ's loop needs.

The paper's script (IST-DASLab/gptq, ``gptq.py``) computes a Cholesky factorisation, an inverse and another Cholesky
factorisation. Here one factorisation and a triangular inverse are enough, in place.
"""

from dataclasses import dataclass

import torch

from qtutor.core.quantized import resolve_group_size
from qtutor.errors import QtutorError, check_choice

DAMPING = 0.01
ACT_ORDERS = ("none", "columns", "groups")


def check_damping(damping: float) -> None:
    """Raise :class:`QtutorError` unless ``damping`` is a share of the Hessian's mean diagonal."""
    if not 0 <= damping <= 1:
        raise QtutorError(f"damping = {damping!r}: a share of the Hessian's mean diagonal is needed, from 0 to 1.")


class HessianError(QtutorError):
    """A Hessian that GPTQ cannot use: NaN, Inf, or so far from positive definite that no damping helps."""


@dataclass(frozen=True)
class Prepared:
    """A Hessian prepared for rounding; all layers that read the same inputs share it.

    order: int64 ``[in]``, the columns in the order of rounding. upper: float32 ``[in, in]``, upper triangular U with
    ``(H + damping)^-1 = U^T U``, rows and columns in that order. damping: the share of the diagonal's mean that was
    added. scattered: the order mixes the columns of all groups. Then the columns of a group are not rounded one after
    the other, so all grids have to be fitted beforehand.
    """

    order: torch.Tensor
    upper: torch.Tensor
    damping: float
    scattered: bool = False


def prepare(
    hessian: torch.Tensor,
    group_size: int,
    *,
    act_order: str = "none",
    damping: float = DAMPING,
) -> Prepared:
    """Order the columns of ``hessian [in, in]`` and factor its inverse (in float64)."""
    check_choice("act_order", act_order, ACT_ORDERS)
    check_damping(damping)
    if hessian.dim() != 2 or hessian.shape[0] != hessian.shape[1] or not hessian.is_floating_point():
        raise QtutorError(
            f"the Hessian is {hessian.dtype} of shape {list(hessian.shape)}; X^T X is floating point [in, in]."
        )
    hessian = hessian.double()
    if not torch.isfinite(hessian.sum()) and not torch.isfinite(hessian).all():  # the sum takes a tenth of the time
        row, column = (~torch.isfinite(hessian)).nonzero()[0].tolist()
        raise HessianError(
            f"the Hessian holds {hessian[row, column].item()} at [{row}, {column}]. The layer's inputs were "
            "NaN, infinite or too large during calibration: look at the activations, or compute them in float32."
        )
    length = max(resolve_group_size(group_size, hessian.shape[0]), 1)  # also without any inputs
    order = column_order(hessian.diagonal(), length, act_order)
    upper, damping = factor(hessian, damping, order)
    return Prepared(order, upper.float(), damping, scattered=act_order == "columns")


def column_order(diagonal: torch.Tensor, length: int, act_order: str) -> torch.Tensor:
    """The columns in the order of rounding, int64 ``[in]``, for H's ``diagonal [in]`` and groups of ``length``."""
    if act_order == "none":
        return torch.arange(len(diagonal), device=diagonal.device)
    if act_order == "columns":
        return diagonal.argsort(descending=True, stable=True)
    # Groups stay whole, so each can still be fitted when it is reached.
    grouped = diagonal.reshape(-1, length)
    inside = grouped.argsort(dim=1, descending=True, stable=True)
    groups = grouped.amax(dim=1).argsort(descending=True, stable=True)
    return (groups[:, None] * length + inside[groups]).flatten()


def factor(hessian: torch.Tensor, damping: float, order: torch.Tensor | None = None) -> tuple[torch.Tensor, float]:
    """Upper triangular U, float32, with ``(H + d)^-1 = U^T U``, and the damping that was needed.

    Reverse the order of the rows and columns of H, and factor it: ``H = L L^T``, so ``H^-1 = L^-T L^-1``. Reverse the
    order of L^-1 again: this is U. So one Cholesky factorisation and one triangular inverse are enough; the paper's
    script needs a Cholesky, an inverse and a Cholesky.
    order: the order of the rows and columns of U, int64 ``[in]``; the order of ``hessian [in, in]`` (float64) if
    ``None``.
    """
    diagonal = hessian.diagonal()
    dead = diagonal == 0
    # Channels that no token uses say nothing about the size of the others.
    mean = diagonal[~dead].mean() if not dead.all() else diagonal.new_ones(())
    backward = torch.arange(len(hessian), device=hessian.device).flip(0) if order is None else order.flip(0)
    while True:
        # Nothing couples a dead column to the others: with any positive number on its diagonal, it stays independent.
        damped = torch.where(dead, mean, diagonal + damping * mean)
        # These matrices are the largest of all, so there is only one copy, and L overwrites it (H is its own
        # transpose).
        turned = hessian[backward[:, None], backward].mT
        turned.diagonal().copy_(damped[backward])
        failed = torch.empty((), dtype=torch.int32, device=hessian.device)
        torch.linalg.cholesky_ex(turned, out=(turned, failed))
        if not failed:
            turned = turned.float()  # the float64 copy is freed
            upper = invert_lower(turned).flip(0, 1)
            if torch.isfinite(upper).all():  # in float32, a nearly singular H may have no inverse
                return upper, damping
        if damping >= 1:
            raise HessianError(
                f"the Hessian is not positive definite, even with its mean diagonal ({mean.item():.3g}) added "
                f"to the diagonal, which runs from {diagonal.min().item():.3g} to {diagonal.max().item():.3g}. For "
                "X^T X of real inputs, this addition always helps: check how the Hessian was computed, or round "
                "this layer to nearest."
            )
        damping = min(max(2 * damping, DAMPING), 1.0)  # no more than needed: damping weakens the corrections


def invert_lower(lower: torch.Tensor) -> torch.Tensor:
    """The inverse of a lower triangular ``[n, n]``, in place: the halves first, then the corner ``-C^-1 B A^-1``.

    A triangular solve against the identity would take three times as many operations, and slower ones.
    """
    size = len(lower)
    if size <= 128:
        identity = torch.eye(size, dtype=lower.dtype, device=lower.device)
        return lower.copy_(torch.linalg.solve_triangular(lower, identity, upper=False))
    upto, behind = slice(None, size // 2), slice(size // 2, None)
    first, second = invert_lower(lower[upto, upto]), invert_lower(lower[behind, behind])
    torch.mm(second, lower[behind, upto] @ first, out=lower[behind, upto]).neg_()
    return lower

"""What earlier layers did to its inputs, a layer can partly make up for: change its weights before they are rounded.

Once the layers before it are rounded, a layer reads x where it would have read x'. The weights that then come closest
to what the float layer made of x' are not W, but the least squares solution W' of ``W' x = W x'`` over the calibration
tokens: ``W' = W + W C H^-1`` with ``H = sum x x^T`` and ``C = sum (x' - x) x^T`` (both come from
:meth:`qtutor.calibration.block.Reading.moments`). Whatever rounds the layer then rounds W'.

A layer whose output is added to the residual stream r can make up for the stream's drift, too: what has to come close
to ``r' + W x'`` is ``r + W' x``. So it is y = ``W x' + r' - r`` that ``W' x`` has to come close to, and W C becomes
``T - W H`` with ``T = sum y x^T``.

A least squares solution over few tokens fits their chance, too. So only a part of the way to W' is gone: ``n / (n +
12 in)`` for n tokens. On the embedded decoder (excerpts of training text) the whole way was best from some 128 tokens
an input on, half of it at 16, and at 4 the whole way did harm.

Arai & Ichikawa 2025 (*Quantization Error Propagation*, arXiv 2504.09629) do this at a strength between 0 and 1 that is
chosen by hand, and without the stream; GPTAQ (Li et al. 2025, arXiv 2504.02692) does it inside GPTQ's loop.
"""

import torch

from qtutor.calibration.moments import Moments
from qtutor.methods.hessian import Plan

NOISE = 12
ENOUGH = 8  # tokens for every input of the widest layer; below, propagation gains next to nothing


def strength(tokens: int, width: int) -> float:
    """Which share of the change that calibration text asks for is worth making: of few tokens, much of it is chance."""
    return tokens / (tokens + NOISE * width)


def propagated(weight: torch.Tensor, moments: Moments, plan: Plan, strength: float = 1.0) -> torch.Tensor:
    """W' for ``weight [out, in]``, float32, or so much of the way to it; ``plan`` holds the damped inverse of
    ``moments.hessian``.

    Without a drift, or where the inputs did not change, that is ``weight`` itself.
    """
    if moments.target is not None:  # the difference of two large sums, which float32 would leave little of
        change = (moments.target - weight.double() @ moments.hessian).float()
    elif moments.drift is not None:
        change = weight @ moments.drift.float()
    else:
        return weight
    change = change[:, plan.order] @ plan.upper.T @ plan.upper  # U's columns stand in the plan's order
    return weight + strength * change[:, plan.order.argsort()]

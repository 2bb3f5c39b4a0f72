"""A layer can partly compensate for the errors of earlier layers: change its weights before they are rounded.

Let x' be a layer's input in the float decoder, and x its input once the layers before it are rounded. The best weights
for x are then not W. The best ones give outputs ``W' x`` that are closest to the float layer's outputs ``W x'``: W' is
the least squares solution of ``W' x = W x'`` over the calibration tokens. It is ``W' = W + W C H^-1`` with
``H = sum x x^T`` and ``C = sum (x' - x) x^T`` (both come from :meth:`qtutor.calibration.block.Reading.moments`). The
method of the layer then rounds W' instead of W.

If a layer's output is added to the residual stream r, the layer can also compensate for the stream's drift. The float
decoder's stream is r', and ``r + W' x`` has to be close to ``r' + W x'``. So the target of ``W' x`` is y =
``W x' + r' - r``, and W C becomes ``T - W H`` with ``T = sum y x^T``.

A least squares solution over few tokens also fits their noise. So only a part of the change to W' is made:
``n / (n + 12 in)`` of it for n tokens. On the embedded decoder (excerpts of training text) the whole change was best
from about 128 tokens per input on, and half of it at 16 tokens. At 4 tokens per input, the whole change did harm.

Arai & Ichikawa 2025 (*Quantization Error Propagation*, arXiv 2504.09629) use a strength between 0 and 1 that is chosen
by hand, and leave out the stream; GPTAQ (Li et al. 2025, arXiv 2504.02692) makes this correction inside GPTQ's loop.
"""

import torch

from qtutor.calibration.moments import Moments
from qtutor.methods.hessian import Prepared

NOISE = 12
ENOUGH = 8  # tokens for every input of the widest layer; with fewer, propagation gains next to nothing


def strength(tokens: int, width: int) -> float:
    """The share of the change to W' that is made: with few tokens, much of that change is noise."""
    return tokens / (tokens + NOISE * width)


def propagated(weight: torch.Tensor, moments: Moments, prepared: Prepared, strength: float = 1.0) -> torch.Tensor:
    """W' for ``weight [out, in]``, float32, or the part ``strength`` of the change to it.

    ``prepared`` holds the damped inverse of ``moments.hessian``.

    Without a drift, or if the inputs did not change, the result is ``weight`` itself.
    """
    if moments.target is not None:  # a small difference of two large sums: float32 is too coarse
        change = (moments.target - weight.double() @ moments.hessian).float()
    elif moments.drift is not None:
        change = weight @ moments.drift.float()
    else:
        return weight
    change = change[:, prepared.order] @ prepared.upper.T @ prepared.upper  # U's columns are in this order
    return weight + strength * change[:, prepared.order.argsort()]

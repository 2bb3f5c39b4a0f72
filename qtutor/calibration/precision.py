"""How exactly models are multiplied while they are calibrated, and by which of torch's two libraries."""

import contextlib
import functools
from collections.abc import Iterator

import torch

WIDE = 1024
SIZE = 256  # of the products that tell what a CPU does: no library takes another way for smaller ones


@contextlib.contextmanager
def products(width: int, wide: int | None = WIDE) -> Iterator[None]:
    """How a block of hidden size ``width`` multiplies: from ``wide`` on with factors rounded to bfloat16.

    wide: ``None`` for float32 at every size. Sums stay in float32. bfloat16 halves the time on a CPU with AMX; others
    go on in float32. Forced on the embedded decoder it changed the share of the loss that GPTQ wins back at 4, 3 and 2
    bits by less than 0.005. Small models are exact all the same, so that chapters and tests say the same on every CPU.

    To ask torch for bfloat16 is also to ask for oneDNN in place of MKL. On a CPU that rounds no factors that is all
    there is to it, and oneDNN is asked for at every size: one of AMD's multiplies by it 1.2 times as fast.
    """
    matmul = torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    asked = (wide is not None and width >= wide) or not rounds_factors()
    try:
        matmul.fp32_precision = "bf16" if asked else before
        yield
    finally:
        matmul.fp32_precision = before


def in_float32() -> contextlib.AbstractContextManager[None]:
    """:func:`products` that are never rounded."""
    return products(0, None)


@functools.cache
def rounds_factors() -> bool:
    """Whether this CPU rounds the factors of a float32 product to bfloat16 when it is asked to.

    Tried out, since what torch and oneDNN do with a CPU changes from version to version. Rounded factors are off by up
    to 2^-9, sums in float32 by some 2^-21.
    """
    factor = torch.arange(SIZE * SIZE).reshape(SIZE, SIZE).double().sin().float()  # no sums of one sign: errors show
    with products(SIZE, SIZE):  # wide, so what this function says is not asked for
        made = torch.nn.functional.linear(factor, factor)
    exact = factor.double() @ factor.double().T
    return bool((made - exact).norm() > 2.0**-14 * exact.norm())

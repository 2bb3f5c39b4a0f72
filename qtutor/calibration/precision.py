"""How exactly models are multiplied while they are calibrated, and by which of torch's two libraries.

What arrives at a layer decides how its weights are rounded, but not to the last bit: other text changes it by far more.
So models of some size are multiplied in bfloat16, and what their layers read is rounded to bytes before its products
are summed, on CPUs with instructions for that. On SmolLM2 GPTQ's KL stayed what it was (0.1008 beside 0.1018 at 4 bits,
on average of three draws of the text), in two thirds of the time. On the embedded decoder, forced to do so, KL is 2 %
less to 3 % more.
"""

import contextlib
import functools
from collections.abc import Iterator

import torch

WIDE = 512
SIZE = 256  # of the products that tell what a CPU does: no library takes another way for smaller ones
LEVELS = 127  # of a signed byte, on each side of zero


def rounds(width: int, wide: int | None = WIDE) -> bool:
    """Whether a model of hidden size ``width`` may multiply rounded numbers: from ``wide`` on; ``None``: none may.

    Small models are exact, so that chapters and tests say the same on every CPU.
    """
    return wide is not None and width >= wide


def product_dtype(width: int, wide: int | None = WIDE) -> torch.dtype:
    """What a CPU multiplies in for a model of hidden size ``width``: bfloat16 if it may and is quick at it."""
    return torch.bfloat16 if rounds(width, wide) and quick_in("avx512_bf16") else torch.float32


@contextlib.contextmanager
def products(width: int, wide: int | None = WIDE) -> Iterator[None]:
    """How a block of hidden size ``width`` multiplies: if it :func:`rounds`, as torch's autocast does, in bfloat16.

    Layers then read and make bfloat16, their sums are float32 inside, and what was float32 before a block (the residual
    stream, norms) stays so. That takes half the time on a CPU with instructions for it; others go on in float32.

    Float32 is multiplied by MKL, or by oneDNN if torch is asked for bfloat16 factors. A CPU that rounds no factors then
    multiplies float32 exactly, and one of AMD's 1.2 times as fast: there oneDNN is asked for at every size.
    """
    quick = product_dtype(width, wide) == torch.bfloat16
    # No cache of converted weights: methods change weights in place.
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=quick, cache_enabled=False)
    with _bfloat16_factors(asked=not rounds_factors()), autocast:
        yield


@contextlib.contextmanager
def _bfloat16_factors(asked: bool) -> Iterator[None]:
    """Inside, torch is ``asked`` for bfloat16 factors of float32 products, and so for oneDNN in place of MKL."""
    matmul = torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    try:
        matmul.fp32_precision = "bf16" if asked else before
        yield
    finally:
        matmul.fp32_precision = before


def in_float32() -> contextlib.AbstractContextManager[None]:
    """:func:`products` that are never rounded."""
    return products(0, None)


def bytes_of(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``x [tokens, channels]`` to the nearest of 127 steps on each side of zero: int8, and a channel's step, float32.

    The square of what is lost is a twelfth of a step's on average. A channel's sum of squares is at least its largest
    square, so all that is lost is about ``tokens / (12 * 127^2)`` of it at most: 1 % for 2,048 tokens where one of them
    has it all, and a tenth of that in most channels.
    """
    step = torch.maximum(x.amax(0), -x.amin(0)).float().clamp(min=1e-30) / LEVELS  # a channel of zeros has no step
    return (x / step).round_().to(torch.int8), step


@functools.cache
def quick_in(instructions: str) -> bool:
    """Whether this CPU has ``instructions`` (``"avx512_bf16"``, ``"avx512_vnni"``), and torch may use them."""
    # Torch's own functions know of them only where they may use AVX-512 (ATEN_CPU_CAPABILITY).
    allowed = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return allowed and bool(torch.cpu.get_capabilities().get(instructions))


@functools.cache
def sums_bytes() -> bool:
    """Whether this CPU multiplies bytes fast, and torch's sums of these products are exact."""
    return quick_in("avx512_vnni") and bytes_are_exact()


@functools.cache
def bytes_are_exact() -> bool:
    """Tried out: where oneDNN may not use instructions for bytes, it adds up pairs of products in 16 bits: too few."""
    most = torch.full((SIZE, SIZE), LEVELS, dtype=torch.int8)
    return bool((torch._int_mm(most, most) == SIZE * LEVELS**2).all())


@functools.cache
def rounds_factors() -> bool:
    """Whether this CPU rounds the factors of a float32 product to bfloat16 when it is asked to.

    Tried out, since what torch and oneDNN do with a CPU changes from version to version. Rounded factors are off by up
    to 2^-9, sums in float32 by some 2^-21.
    """
    factor = torch.arange(SIZE * SIZE).reshape(SIZE, SIZE).double().sin().float()  # no sums of one sign: errors show
    with _bfloat16_factors(asked=True):
        made = torch.nn.functional.linear(factor, factor)
    exact = factor.double() @ factor.double().T
    return bool((made - exact).norm() > 2.0**-14 * exact.norm())

"""How exactly models multiply during calibration, and with which of torch's two libraries.

The inputs of a layer decide how its weights are rounded, but their last bits do not matter: other text changes the
inputs far more. So models of some size multiply in bfloat16, and the inputs of their layers are rounded to bytes before
their products are summed, on CPUs with instructions for this. On SmolLM2, GPTQ's KL stayed about the same (0.1008 with
rounding, 0.1018 without, at 4 bits, the mean of three draws of the text), in two thirds of the time. On the embedded
decoder, if it is forced to round, KL is 2 % less to 3 % more.
"""

import contextlib
import functools
from collections.abc import Iterator

import torch

WIDE = 512
SIZE = 256  # of the products that test a CPU: large enough that no library uses its method for small matrices
LEVELS = 127  # of a signed byte, on each side of zero


def rounds(width: int, wide: int | None = WIDE) -> bool:
    """Whether a model of hidden size ``width`` may multiply rounded numbers: from ``wide`` on; with ``None``, none may.

    Small models are exact, so that chapters and tests give the same results on every CPU.
    """
    return wide is not None and width >= wide


def product_dtype(width: int, wide: int | None = WIDE) -> torch.dtype:
    """The dtype of products on a CPU for a model of hidden size ``width``: bfloat16 if this is allowed and fast."""
    return torch.bfloat16 if rounds(width, wide) and quick_in("avx512_bf16") else torch.float32


@contextlib.contextmanager
def products(width: int, wide: int | None = WIDE) -> Iterator[None]:
    """Inside, a block of hidden size ``width`` multiplies in bfloat16 (torch's autocast) if it :func:`rounds`.

    The inputs and outputs of layers are then bfloat16, their sums are float32 inside, and other float32 tensors (the
    residual stream, norms) stay float32. This takes half the time on a CPU with instructions for it; other CPUs
    continue in float32.

    Products in float32 are computed by MKL, or by oneDNN if torch is set to bfloat16 factors. With oneDNN, a CPU that
    rounds no factors still multiplies float32 exactly, and a CPU of AMD is 1.2 times as fast. So on CPUs that round no
    factors, oneDNN is used at every size.
    """
    quick = product_dtype(width, wide) == torch.bfloat16
    # No cache of converted weights: methods change weights in place.
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=quick, cache_enabled=False)
    with _bfloat16_factors(asked=not rounds_factors()), autocast:
        yield


@contextlib.contextmanager
def _bfloat16_factors(asked: bool) -> Iterator[None]:
    """Inside, if ``asked``, torch may round factors of float32 products to bfloat16, and so uses oneDNN, not MKL."""
    matmul = torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    try:
        matmul.fp32_precision = "bf16" if asked else before
        yield
    finally:
        matmul.fp32_precision = before


def in_float32() -> contextlib.AbstractContextManager[None]:
    """:func:`products` without any rounding."""
    return products(0, None)


def bytes_of(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round ``x [tokens, channels]`` to 127 steps on each side of zero: int8, and the step of each channel, float32.

    The squared error is a twelfth of the squared step on average. A channel's sum of squares is at least its largest
    square, so the sum of the squared errors is at most about ``tokens / (12 * 127^2)`` of it: 1 % for 2,048 tokens if a
    single token has the whole sum, and a tenth of that in most channels.
    """
    step = torch.maximum(x.amax(0), -x.amin(0)).float().clamp(min=1e-30) / LEVELS  # a channel of zeros has no step
    return (x / step).round_().to(torch.int8), step


@functools.cache
def quick_in(instructions: str) -> bool:
    """Whether this CPU has ``instructions`` (``"avx512_bf16"``, ``"avx512_vnni"``), and torch may use them."""
    # Torch's own functions use these instructions only if they may use AVX-512 (ATEN_CPU_CAPABILITY).
    allowed = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return allowed and bool(torch.cpu.get_capabilities().get(instructions))


@functools.cache
def sums_bytes() -> bool:
    """Whether this CPU multiplies bytes fast, and torch's sums of these products are exact."""
    return quick_in("avx512_vnni") and bytes_are_exact()


@functools.cache
def bytes_are_exact() -> bool:
    """Test for exact sums: without instructions for bytes, oneDNN adds pairs of products in 16 bits: too few."""
    most = torch.full((SIZE, SIZE), LEVELS, dtype=torch.int8)
    return bool((torch._int_mm(most, most) == SIZE * LEVELS**2).all())


@functools.cache
def rounds_factors() -> bool:
    """Whether this CPU rounds the factors of a float32 product to bfloat16 if torch is set to do so.

    This is tested with a product, since the behaviour of torch and oneDNN on a CPU changes from version to version. The
    error of rounded factors is up to 2^-9, that of sums in float32 about 2^-21.
    """
    factor = torch.arange(SIZE * SIZE).reshape(SIZE, SIZE).double().sin().float()  # terms of both signs: errors show
    with _bfloat16_factors(asked=True):
        made = torch.nn.functional.linear(factor, factor)
    exact = factor.double() @ factor.double().T
    return bool((made - exact).norm() > 2.0**-14 * exact.norm())

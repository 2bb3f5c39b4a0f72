"""Statistics of weights and activations: tails, outliers, channels, and their effect on the rounding error.

Kurtosis is the mean fourth power of the standardised values (Pearson 1905), minus 3 so that the normal distribution has
0. The ratio of a group's largest weight to its root mean square, which engineers call the crest factor, determines the
step of a symmetric grid relative to its weights, and so the error. Keeping the important channels in 16 bits is table 1
of AWQ (Lin et al. 2023, arXiv 2306.00978) and, with a threshold, LLM.int8 (Dettmers et al. 2022, arXiv 2208.07339).

Left out: keeping single weights (SpQR, SqueezeLLM), and a kernel that multiplies with two kinds of columns.
"""

import torch

from qtutor.core.quantized import PER_TENSOR, QuantizedTensor, check_weight, resolve_group_size
from qtutor.errors import QtutorError, naming


def excess_kurtosis(x: torch.Tensor, dim: int | None = -1) -> torch.Tensor:
    """Mean of the fourth power of ``(x - mean) / std`` along ``dim`` (``None``: of all), minus 3; float64.

    0 for a normal distribution, -1.2 for a uniform one, at least -2 (half the values -1, half 1), and at most about the
    number of values (a single outlier). Values that are all equal have no shape; they get 0, so that a dead row neither
    looks heavy-tailed nor spoils an average. Computed in float64, since fourth powers of small weights vanish in 16
    bits. Raises :class:`QtutorError` for no values at all, NaN or Inf.

    >>> excess_kurtosis(torch.tensor([1.0, -1.0, 1.0, -1.0]))
    tensor(-2., dtype=torch.float64)
    """
    x, dim = _checked(x, dim)
    square = (x - x.mean(dim=dim, keepdim=True)).square()
    variance = square.mean(dim=dim)
    constant = x.amax(dim=dim) == x.amin(dim=dim)  # the mean of equal values may be rounded; then the variance is not 0
    kurtosis = square.square().mean(dim=dim) / torch.where(constant, torch.ones_like(variance), variance).square()
    return torch.where(constant, torch.zeros_like(kurtosis), kurtosis - 3)


def outlier_ratio(x: torch.Tensor, dim: int | None = -1) -> torch.Tensor:
    """Largest over median ``|x|`` along ``dim`` (``None``: of all), float64: how far the largest sticks out.

    At least 1. Infinite if the median is 0; 1 if all values are 0. The median of an even number of values is the mean
    of the middle two. Raises :class:`QtutorError` for no values at all, NaN or Inf.
    """
    x, dim = _checked(x, dim)
    ordered = x.abs().sort(dim=dim).values
    count = x.shape[dim]
    median = (ordered.select(dim, count // 2) + ordered.select(dim, (count - 1) // 2)) / 2
    largest = ordered.select(dim, count - 1)
    return torch.where(largest == 0, torch.ones_like(largest), largest / median)


def crest_factor(weight: torch.Tensor, group_size: int) -> torch.Tensor:
    """Largest ``|w|`` over root mean square of every group of ``weight [out, in]``: float64 ``[out, groups]``.

    From 1 (all weights of one size) to the root of the group size (one weight, and zeros). A group of zeros has 1.
    group_size: as in :func:`qtutor.rtn.quantize`; 0, one group for the whole matrix, gives ``[1, 1]``. Raises
    :class:`QtutorError` for an empty matrix, NaN, Inf, or groups that do not divide a row.
    """
    check_weight(weight)
    rows, columns = weight.shape
    length = max(resolve_group_size(group_size, columns), 1)
    shape = (1, 1, rows * columns) if group_size == PER_TENSOR else (rows, columns // length, length)
    weight, _ = _checked(weight, None)
    size = weight.abs().reshape(shape)  # [out, groups, group_size]
    largest, rms = size.amax(dim=-1), size.square().mean(dim=-1).sqrt()
    return torch.where(largest == 0, torch.ones_like(largest), largest / rms)


def expected_error(crest: torch.Tensor, bits: int) -> torch.Tensor:
    """The relative rounding error ``|W - Q| / |W|`` that follows from a crest factor on a symmetric grid.

    The step is ``2 * absmax / (2**bits - 1)``. If the errors are spread evenly within half a step of zero, their root
    mean square is a step over the root of 12. This holds if steps are small compared with the weights; at 2 bits it
    holds only roughly.
    """
    return 2 * crest / (2**bits - 1) / 12**0.5


def top_channels(importance: torch.Tensor, share: float) -> torch.Tensor:
    """Indices, ascending, of the ``share`` of channels with the largest ``importance [in]``; at least one.

    If two are equal, the lower index is chosen. Raises :class:`QtutorError` for NaN or a share outside of 0 to 1.
    """
    with naming("importance"):
        importance, _ = _checked(importance, 0)
    if not 0 < share <= 1:
        raise QtutorError(f"share = {share!r}: the part of the channels to choose, above 0 and up to 1 (0.01 is 1 %).")
    count = max(1, round(share * len(importance)))
    return importance.sort(descending=True, stable=True).indices[:count].sort().values


def keep_channels(weight: torch.Tensor, quantized: QuantizedTensor, channels: torch.Tensor) -> torch.Tensor:
    """Mixed precision: the quantized weights ``[out, in]``, with the input ``channels`` as they were in ``weight``.

    channels: int64 indices of columns. Returns a new matrix in the dtype of ``weight``.
    Raises :class:`QtutorError` if the two matrices or the indices do not fit each other.
    """
    if tuple(weight.shape) != quantized.shape:
        raise QtutorError(
            f"weight is {list(weight.shape)} but its quantized form {list(quantized.shape)}: are they of one layer?"
        )
    columns = weight.shape[1]
    if len(channels) and not 0 <= int(channels.min()) <= int(channels.max()) < columns:
        raise QtutorError(
            f"channels run from {int(channels.min())} to {int(channels.max())}; the weight has input channels 0 to "
            f"{columns - 1}. (Output channels are rows; kept are columns.)"
        )
    mixed = quantized.dequantize(weight.dtype)
    mixed[:, channels] = weight[:, channels]
    return mixed


def mixed_bytes(quantized: QuantizedTensor, kept: int) -> int:
    """True size in bytes with ``kept`` input channels in 16 bits beside the packed matrix, and a 16-bit index for each.

    The codes of kept columns stay where they are, unused: taking them out would leave groups of uneven length.
    """
    rows, _ = quantized.shape
    return quantized.nbytes + kept * (2 * rows + 2)


def _checked(x: torch.Tensor, dim: int | None) -> tuple[torch.Tensor, int]:
    """``x`` in float64, flattened if ``dim`` is None, and the dim to reduce; refuses empty tensors, NaN and Inf."""
    if x.numel() == 0:
        raise QtutorError(f"a tensor of shape {list(x.shape)} holds no values, so nothing can be said of them.")
    bad = ~torch.isfinite(x)
    if bad.any():
        where = bad.nonzero()[0].tolist()
        raise QtutorError(
            f"{int(bad.sum())} of {x.numel()} values are NaN or infinite, the first at {where} "
            f"({x[tuple(where)].item()}). One of them spoils the whole statistic: find where it comes from first."
        )
    return (x.flatten().double(), 0) if dim is None else (x.double(), dim)

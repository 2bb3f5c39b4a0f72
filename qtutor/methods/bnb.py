"""The methods of bitsandbytes: NF4 and FP4 with double quantization, and LLM.int8.

NF4 (Dettmers et al. 2023, QLoRA, arXiv 2305.14314, section 3): 16 levels at quantiles of the normal distribution, so
that weights with about this distribution use all levels about equally often; 64 weights share one float32 scale, the
largest |weight|. FP4: the values of a float with 2 bits of exponent and 1 of mantissa. Double quantization: the scales,
half a bit per weight, are themselves quantized to 8 bits in blocks of 256. Then they take an eighth of a bit.

LLM.int8 (Dettmers et al. 2022, arXiv 2208.07339, section 3): weights *and* inputs in int8, with a scale for each row of
W and each token of x. Input channels that hold a value of 6 or more in this batch are left out and multiplied in float,
because the other channels would have too few levels beside them.

Codes and scales equal those of bitsandbytes on a CPU. Left out: its parts for training, and kernels that multiply int8
by int8 in integers; the same product is computed here, exactly, in float64.
"""

import torch
from torch.nn.functional import linear

from qtutor.core.codebooks import FP4, INT8, NF4, TINY, Codebook
from qtutor.core.quantized import PER_CHANNEL, QuantizedTensor
from qtutor.core.scales import NestedScales
from qtutor.methods import rtn

__all__ = ["FP4", "INT8", "NF4", "THRESHOLD", "mixed_product", "nest", "quantize", "quantize_rows"]

THRESHOLD = 6.0  # a channel with an input of at least this size is an outlier


def quantize(weight: torch.Tensor, grid: Codebook = NF4, group_size: int = 64, double: bool = True) -> QuantizedTensor:
    """Round ``weight [out, in]`` (any float dtype) to the nearest level of :data:`NF4`, FP4 or :data:`INT8`.

    group_size: the number of weights of a row that share a scale (bitsandbytes: 64; its groups continue into the next
    row, which is the same if groups divide the row). For ``INT8``, a row always has one scale, and group_size is
    ignored. double: store the scales in 8 bits too (not for ``INT8``, which has few). Raises :class:`QtutorError` for
    NaN, Inf, or a group size that does not divide the row.
    """
    if grid == INT8:
        return rtn.quantize(weight, grid, PER_CHANNEL)
    quantized = rtn.quantize(weight, grid, group_size)
    if not double or not quantized.scales.numel():
        return quantized
    return QuantizedTensor(quantized.codes, nest(quantized.scales), None, grid, group_size)


def nest(scales: torch.Tensor) -> NestedScales:
    """Quantize float32 ``scales [out, groups]`` to 8 bits: their differences from their mean, in blocks of 256.

    The codes of the weights were found with the exact scales and stay as they are, as in bitsandbytes. (Its CPU kernel
    finds codes in a table, and about one code in a thousand is next to the nearest; here all are the nearest.)
    """
    offset = scales.mean()
    flat = (scales - offset).flatten()
    padded = torch.nn.functional.pad(flat, (0, -len(flat) % NestedScales.BLOCK)).reshape(-1, NestedScales.BLOCK)
    absmax = padded.abs().amax(dim=1)
    codes = NestedScales.GRID.encode(padded, absmax[:, None]).flatten()[: len(flat)]
    return NestedScales(codes.reshape(scales.shape), absmax, offset)


def quantize_rows(x: torch.Tensor, threshold: float | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows of ``x [tokens, in]`` as int8 codes in float32, a scale per row (its largest |x|), and the outlier channels.

    outliers: bool ``[in]``, the channels that hold a value of at least ``threshold``; their codes are 0. If
    ``threshold`` is ``None``, there are no outliers.
    """
    x = x.float()
    large = x.abs() >= (torch.inf if threshold is None else threshold)
    outliers = large.any(dim=0)
    kept = x.masked_fill(large, 0.0)
    absmax = kept.abs().amax(dim=1) if x.shape[1] else x.new_zeros(len(x))
    codes = torch.round(kept * (127.0 / absmax.clamp(min=TINY))[:, None])
    return codes.masked_fill(outliers, 0.0), absmax, outliers


def mixed_product(
    x: torch.Tensor,
    codes: torch.Tensor,
    absmax: torch.Tensor,
    outliers: torch.Tensor,
    weight: torch.Tensor,
    weight_absmax: torch.Tensor,
) -> torch.Tensor:
    """``x [tokens, in]`` times a matrix in int8: ``[tokens, out]``, float64.

    codes, absmax, outliers: of ``x``, as :func:`quantize_rows` returns them. weight: codes ``[out, in]``, -127 to 127;
    weight_absmax: ``[out]``. Sums of such codes are exact in float64, as they are in the int32 of an engine.
    """
    product = linear(codes.double(), weight.double()) * (absmax.double() / 127)[:, None]
    if outliers.any():  # these channels of W are int8, too, but the inputs are float
        product += linear(x[:, outliers].double(), weight[:, outliers].double())
    return product * (weight_absmax.double() / 127)

"""What bitsandbytes does: NF4 and FP4 with double quantization, and LLM.int8.

NF4 (Dettmers et al. 2023, QLoRA, arXiv 2305.14314, section 3): 16 levels at quantiles of the normal distribution, so
that weights that are about normal use every level about equally often; one float32 scale, the largest |weight|, for 64
weights. FP4: the values of a float with 2 bits of exponent and 1 of mantissa. Double quantization: the scales, half a
bit a weight, are themselves quantized to 8 bits in blocks of 256, which leaves an eighth of a bit.

LLM.int8 (Dettmers et al. 2022, arXiv 2208.07339, section 3): weights *and* inputs in int8, a scale for each row of W
and each token of x. Input channels that hold a value of 6 or more in this batch are left out of that and multiplied in
float, because they would take the whole range from the others.

Codes and scales equal those of bitsandbytes on a CPU. Left out: its parts for training, and kernels that multiply int8
by int8 in integers; the same product is computed here, exactly, in float64.
"""

import torch
from torch.nn.functional import linear

from qtutor import rtn
from qtutor.grid import Codebook
from qtutor.kernels.reference import BLOCK_ROWS
from qtutor.linear import QuantLinear
from qtutor.packing import unpack
from qtutor.quantized import PER_CHANNEL, NestedScales, QuantizedTensor

THRESHOLD = 6.0  # an input of at least this size makes its channel an outlier
TINY = 1e-35  # 127 over less than this is infinite in float32

# Normal quantiles at 8 probabilities from 0.9677083 down to 0.5 (which is left out), minus those at 7, and 0; all over
# the largest. bitsandbytes computed them in float32, so these are its very numbers (a test recomputes them to 2e-7).
NF4 = Codebook(
    "nf4",
    (
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ),
)
# Sign, two bits of exponent, one of mantissa; in the order of the bit patterns, which bitsandbytes numbers its own way.
FP4 = Codebook("fp4", tuple(sign * value / 12 for sign in (1, -1) for value in (0, 0.0625, 8, 12, 4, 6, 2, 3)))


class EvenCodebook(Codebook):
    """-127/127 ... 127/127, stored as 1 ... 255 (code 0 is never used): evenly spaced, so rounding finds the code."""

    def encode(self, weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None = None) -> torch.Tensor:
        """The nearest code (uint8); exact halves go to the even one, as in bitsandbytes."""
        code = torch.round(weight.float() * (127.0 / scale.float().clamp(min=TINY)))
        return (code.clamp(-127, 127) + self.middle).to(torch.uint8)


INT8 = EvenCodebook("int8", tuple((code - 128) / 127 for code in range(256)))


def quantize(
    weight: torch.Tensor, grid: Codebook = NF4, group_size: int = 64, double: bool = True, name: str = "weight"
) -> QuantizedTensor:
    """Round ``weight [out, in]`` (any float dtype) to the nearest level of :data:`NF4`, :data:`FP4` or :data:`INT8`.

    group_size: weights of a row that share a scale (bitsandbytes: 64; it goes on into the next row where a row ends,
    which is the same where groups divide the row). For ``INT8`` a row has one scale, whatever is said here.
    double: store the scales in 8 bits too (not for ``INT8``, which has few). Raises :class:`QtutorError` for NaN, Inf,
    or a group size that does not divide the row.
    """
    if grid == INT8:
        return rtn.quantize(weight, grid, PER_CHANNEL, name=name)
    quantized = rtn.quantize(weight, grid, group_size, name=name)
    if double and quantized.scales.numel():
        quantized.nested = nest(quantized.scales)
        quantized.scales = quantized.nested.decode()
    return quantized


def nest(scales: torch.Tensor) -> NestedScales:
    """Quantize float32 ``scales [out, groups]`` to 8 bits: what is above or below their mean, in blocks of 256.

    The codes of the weights were found with the exact scales and stay as they are, as in bitsandbytes. (Its CPU kernel
    looks codes up in a table and misses the nearest by one in about one of a thousand; these are the nearest.)
    """
    offset = scales.mean()
    flat = (scales - offset).flatten()
    padded = torch.nn.functional.pad(flat, (0, -len(flat) % NestedScales.BLOCK)).reshape(-1, NestedScales.BLOCK)
    absmax = padded.abs().amax(dim=1)
    codes = NestedScales.GRID.encode(padded, absmax[:, None]).flatten()[: len(flat)]
    return NestedScales(codes.reshape(scales.shape), absmax, offset)


def quantize_rows(x: torch.Tensor, threshold: float | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows of ``x [tokens, in]`` to int8 codes in float32, a scale a row (its largest |x|), and the outlier channels.

    outliers: bool ``[in]``, the channels that hold a value of at least ``threshold``; their codes are 0. ``threshold``
    ``None``: there are none.
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
    if outliers.any():  # these channels of W are int8 as well, but the inputs are not
        product += linear(x[:, outliers].double(), weight[:, outliers].double())
    return product * (weight_absmax.double() / 127)


class Int8Linear(QuantLinear):
    """A :class:`QuantLinear` on the grid :data:`INT8` that quantizes its inputs too: LLM.int8.

    threshold: inputs of at least this size make their channel an outlier; ``None``: there are none.
    """

    threshold: float | None = THRESHOLD

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.reshape(-1, self.columns)
        inputs = quantize_rows(flat, self.threshold)
        y = torch.empty(len(flat), self.rows, dtype=x.dtype, device=x.device)
        for start in range(0, self.rows, BLOCK_ROWS):
            rows = slice(start, start + BLOCK_ROWS)
            weight = unpack(self.packed[rows], self.grid.bits, self.columns).double() - self.grid.middle
            y[:, rows] = mixed_product(flat, *inputs, weight, self.scales[rows, 0]).to(x.dtype)
        y = y.reshape(*x.shape[:-1], self.rows)
        return y if self.bias is None else y + self.bias.to(y.dtype)

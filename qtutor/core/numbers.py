"""Numbers as bits: the values of the codes in a float or integer format, and rounding to these values.

A float has a sign S, an exponent E and a mantissa M. Its value is ``(-1)^S * 1.M * 2^(E - bias)``; if E = 0, it is the
subnormal number ``(-1)^S * 0.M * 2^(1 - bias)`` (IEEE 754-2019, section 3.4). The largest exponent has three meanings:

    "ieee"   infinity (M = 0) and NaN          fp32, bf16, fp16, fp8 E5M2
    "nan"    a number, but M = all ones is NaN fp8 E4M3 (Micikevicius et al. 2022, arXiv 2209.05433, section 3)
    "none"   a number like any other           FP4 and FP6 (OCP Microscaling Formats v1.0, 2023)

Rounding is to the nearest value, ties to the even code. Left out: formats over 32 bits, unsigned ones such as the
scales of MXFP4, NaN payloads, stochastic rounding.
"""

from dataclasses import dataclass

import torch

from qtutor.errors import QtutorError

SPECIALS = ("ieee", "nan", "none")


@dataclass(frozen=True)
class FloatFormat:
    """A float of ``1 + exponent_bits + mantissa_bits`` bits; the top of this file explains ``specials``.

    Raises :class:`QtutorError` for widths that are too small for a format, and for more than 32 bits.
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    specials: str = "ieee"

    def __post_init__(self):
        if self.specials not in SPECIALS:
            raise QtutorError(f"{self.name}: specials = {self.specials!r}; choose one of {', '.join(SPECIALS)}.")
        needed = {"ieee": 1, "nan": 1, "none": 0}[self.specials]  # the mantissa distinguishes infinity from NaN
        if self.exponent_bits < 1 or self.mantissa_bits < needed or self.bits > 32:
            raise QtutorError(
                f"{self.name}: {self.exponent_bits} exponent and {self.mantissa_bits} mantissa bits. Give at least "
                f"1 exponent and {needed} mantissa bits, and at most 32 bits together with the sign."
            )

    @property
    def bits(self) -> int:
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def bias(self) -> int:
        return 2 ** (self.exponent_bits - 1) - 1

    @property
    def layout(self) -> str:
        """A letter for every bit, the highest bit first: ``"SEEEEMMM"``."""
        return "S" + "E" * self.exponent_bits + "M" * self.mantissa_bits

    @property
    def largest_code(self) -> int:
        """The code of :attr:`largest`; only infinity and NaN come after it."""
        top = 2 ** (self.bits - 1) - 1
        return {"ieee": top - 2**self.mantissa_bits, "nan": top - 1, "none": top}[self.specials]

    @property
    def largest(self) -> float:
        """The largest finite value."""
        return float(self.decode(self.largest_code))

    @property
    def smallest_normal(self) -> float:
        return 2.0 ** (1 - self.bias)

    @property
    def smallest_subnormal(self) -> float:
        return 2.0 ** (1 - self.bias - self.mantissa_bits)

    def fields(self, codes) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The fields sign, exponent and mantissa of ``codes``, int64; the exponent includes its bias."""
        codes = _check_codes(codes, self)
        exponent = (codes >> self.mantissa_bits) & (2**self.exponent_bits - 1)
        return codes >> (self.bits - 1), exponent, codes & (2**self.mantissa_bits - 1)

    def decode(self, codes) -> torch.Tensor:
        """The values of ``codes`` (whole numbers, any shape), exact in float64."""
        sign, exponent, mantissa = self.fields(codes)
        significand = mantissa.double() / 2**self.mantissa_bits + (exponent > 0)  # the hidden 1; 0 if subnormal
        value = significand * _power_of_two(exponent.clamp(min=1) - self.bias)
        past = (exponent << self.mantissa_bits) + mantissa > self.largest_code
        value = torch.where(past & (mantissa == 0), torch.inf, value)
        value = torch.where(past & (mantissa != 0), torch.nan, value)
        return torch.where(sign == 1, -value, value)

    def encode(self, values) -> torch.Tensor:
        """The codes (int64) of the values nearest to ``values`` (numbers or a tensor of any dtype); ties to even.

        A value that is half a step or more beyond :attr:`largest` becomes infinity. In a format without infinity, it
        becomes the largest value, and so does infinity itself, as in torch's casts to fp8 since 2.13 (before, they gave
        NaN).
        Raises :class:`QtutorError` for NaN if the format has none.
        """
        values = torch.as_tensor(values, dtype=torch.float64)
        broken = torch.isnan(values)
        if self.specials == "none" and broken.any():
            raise QtutorError(_no_nan(self.name, broken))
        infinite = torch.isinf(values)
        magnitude = torch.where(broken | infinite, 0, values.abs())
        lowest = 1 - self.bias
        exponent = (torch.frexp(magnitude).exponent.long() - 1).clamp(min=lowest)
        exponent = torch.where(magnitude == 0, lowest, exponent)
        steps = torch.round(magnitude / _power_of_two(exponent - self.mantissa_bits)).long()
        # The steps of a normal number include its hidden 1. So if a mantissa rounds up to the next power of two, the
        # carry goes into the exponent without further work: codes of positive floats have the same order as their
        # values.
        code = ((exponent - lowest) << self.mantissa_bits) + steps
        past = self.largest_code + (self.specials == "ieee")
        code = torch.where(infinite, past, code.clamp(max=past))
        code = torch.where(broken, 2 ** (self.bits - 1) - 1, code)
        return code + (torch.signbit(values).long() << (self.bits - 1))

    def round(self, values) -> torch.Tensor:
        """``values`` rounded to this format, float64."""
        return self.decode(self.encode(values))

    def levels(self, low: float, high: float, limit: int = 65536) -> torch.Tensor | None:
        """The finite values from ``low`` to ``high`` (float64, ascending); ``None`` for more than ``limit`` of them."""
        first, last = self._rank(low), self._rank(high)
        if last - first >= limit:
            return None
        ranks = torch.arange(first, last + 1)
        values = torch.where(ranks < 0, -1.0, 1.0) * self.decode(ranks.abs())
        return values[(values >= low) & (values <= high)]  # low and high were rounded, perhaps to values outside

    def _rank(self, value: float) -> int:
        """The position of ``value``'s code if all finite codes are sorted by value; zero has position 0."""
        code = int(self.encode(min(max(value, -self.largest), self.largest)))
        magnitude = code & (2 ** (self.bits - 1) - 1)
        return magnitude if code == magnitude else -magnitude

    def values(self) -> torch.Tensor:
        """All finite values, ascending, float64; zero once. Only for formats of up to 16 bits (32 bits: billions)."""
        if self.bits > 16:
            raise QtutorError(f"{self.name} has 2**{self.bits} codes; ask for a part of its values with levels().")
        return self.levels(-self.largest, self.largest)


@dataclass(frozen=True)
class IntFormat:
    """A signed integer in two's complement, times ``scale``: the highest bit has the value ``-2**(bits - 1)``.

    It has the methods of :class:`FloatFormat`. Raises :class:`QtutorError` for bits outside 2 ... 32 and for a scale
    that is not positive.
    """

    bits: int
    scale: float = 1.0

    def __post_init__(self):
        if self.bits not in range(2, 33) or not 0 < self.scale < float("inf"):
            raise QtutorError(f"int{self.bits}, scale {self.scale}: 2 to 32 bits and a positive scale are needed.")

    @property
    def name(self) -> str:
        return f"int{self.bits}"

    @property
    def layout(self) -> str:
        return "S" + "I" * (self.bits - 1)

    @property
    def largest(self) -> float:
        return (2 ** (self.bits - 1) - 1) * self.scale

    def decode(self, codes) -> torch.Tensor:
        """The values (float64) of ``codes`` (bits read as an unsigned number)."""
        codes = _check_codes(codes, self)
        return torch.where(codes >= 2 ** (self.bits - 1), codes - 2**self.bits, codes).double() * self.scale

    def encode(self, values) -> torch.Tensor:
        """The codes (int64) nearest to ``values``; values outside the range get its end, and NaN is refused."""
        values = torch.as_tensor(values, dtype=torch.float64)
        if torch.isnan(values).any():
            raise QtutorError(_no_nan(self.name, torch.isnan(values)))
        half = 2 ** (self.bits - 1)
        return torch.round(values / self.scale).clamp(-half, half - 1).long() & (2**self.bits - 1)

    def round(self, values) -> torch.Tensor:
        return self.decode(self.encode(values))

    def levels(self, low: float, high: float, limit: int = 65536) -> torch.Tensor | None:
        half = 2 ** (self.bits - 1)
        first, last = (round(min(max(end / self.scale, -half), half - 1)) for end in (low, high))
        if last - first >= limit:
            return None
        values = torch.arange(first, last + 1).double() * self.scale
        return values[(values >= low) & (values <= high)]

    def values(self) -> torch.Tensor:
        half = 2 ** (self.bits - 1)
        return self.levels(-half * self.scale, half * self.scale)


def _no_nan(name: str, broken: torch.Tensor) -> str:
    return f"{name} has no code for NaN; {int(broken.sum())} of {broken.numel()} values are NaN. Repair them first."


def _check_codes(codes, fmt) -> torch.Tensor:
    codes = torch.as_tensor(codes)
    if codes.is_floating_point() or codes.dtype == torch.bool:
        raise QtutorError(f"{fmt.name}: codes have dtype {codes.dtype}; whole numbers are needed.")
    codes = codes.long()
    if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= 2**fmt.bits):
        raise QtutorError(
            f"{fmt.name}: codes run from {int(codes.min())} to {int(codes.max())}; {fmt.bits} bits hold 0 to "
            f"{2**fmt.bits - 1}."
        )
    return codes


def _power_of_two(exponent: torch.Tensor) -> torch.Tensor:
    """``2.0**exponent`` for int64 from -1022 to 1023, exact: it writes the exponent field of a float64."""
    return ((exponent.long() + 1023) << 52).view(torch.float64)


def sqnr_db(signal: torch.Tensor, noisy: torch.Tensor) -> float:
    """Signal-to-quantization-noise ratio in decibels: ``10 * log10`` of the power of ``signal`` over that of the error.

    It is infinite if there is no error. Raises :class:`QtutorError` for shapes that differ.
    """
    signal, noisy = torch.as_tensor(signal).double(), torch.as_tensor(noisy).double()
    if signal.shape != noisy.shape:
        raise QtutorError(f"signal {list(signal.shape)} and its rounded version {list(noisy.shape)} differ in shape.")
    return float(10 * torch.log10(signal.square().sum() / (noisy - signal).square().sum()))


FP32 = FloatFormat("fp32", 8, 23)
BF16 = FloatFormat("bf16", 8, 7)
FP16 = FloatFormat("fp16", 5, 10)
E4M3 = FloatFormat("fp8 e4m3", 4, 3, "nan")  # torch.float8_e4m3fn
E5M2 = FloatFormat("fp8 e5m2", 5, 2)  # torch.float8_e5m2
E2M1 = FloatFormat("fp4 e2m1", 2, 1, "none")  # the elements of MXFP4
E3M0 = FloatFormat("fp4 e3m0", 3, 0, "none")  # powers of two

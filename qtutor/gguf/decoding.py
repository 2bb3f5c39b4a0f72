"""Decoders: the bytes of blocks to float32 weights, in plain numpy.

There is one function for each type, ``data [blocks, nbytes]`` -> ``[blocks, values]``. It is the formula of the format.
It multiplies in the same order as llama.cpp's ``dequantize_row_*``, so the floats are the same bit for bit.
"""

import numpy as np

from qtutor.gguf.layout import IQ4_VALUES, MXFP4_VALUES, NVFP4_SCALES, unfold

f4 = np.float32


def _half(data: np.ndarray, at: int) -> np.ndarray:
    """The float16 at byte ``at`` of every block, as float32 ``[blocks, 1]``."""
    return data[:, at : at + 2].copy().view("<f2").astype(f4)


def _spread(scales: np.ndarray, size: int) -> np.ndarray:
    """Repeat the scale of each sub-block, ``[blocks, n]``, for each of its weights: ``[blocks, n * size]``."""
    return np.repeat(scales, size, axis=1)


def f32(data):
    return data.copy().view("<f4")


def f16(data):
    return _half(data, 0)


def bf16(data):
    return (data.copy().view("<u2").astype(np.uint32) << 16).view(f4)


def q4_0(data):
    return (unfold(data[:, 2:], 4, 16).astype(f4) - f4(8)) * _half(data, 0)


def q4_1(data):
    return unfold(data[:, 4:], 4, 16).astype(f4) * _half(data, 0) + _half(data, 2)


def _five_bits(data):
    return unfold(data[:, 4:], 4, 16) | unfold(data[:, :4], 1, 1) << 4


def q5_0(data):
    return (_five_bits(data[:, 2:]).astype(f4) - f4(16)) * _half(data, 0)


def q5_1(data):
    return _five_bits(data[:, 4:]).astype(f4) * _half(data, 0) + _half(data, 2)


def q8_0(data):
    return data[:, 2:].view(np.int8).astype(f4) * _half(data, 0)


def q2_k(data):
    scales = unfold(data[:, :16], 4, 16).astype(f4)  # 16 scales, then 16 minima
    step, low = _half(data, 80) * scales[:, :16], _half(data, 82) * scales[:, 16:]
    return _spread(step, 16) * unfold(data[:, 16:80], 2, 32).astype(f4) - _spread(low, 16)


def q3_k(data):
    codes = unfold(data[:, 32:96], 2, 32) | unfold(data[:, :32], 1, 32) << 2
    scales = unfold(data[:, 96:104], 4, 8) | unfold(data[:, 104:108], 2, 4) << 4
    return _spread(_half(data, 108) * (scales.astype(f4) - f4(32)), 16) * (codes.astype(f4) - f4(4))


def _six_bits(data):
    """The scales and the minima, ``[blocks, 8]`` each, from the 12 bytes of Q4_K and Q5_K that hold them."""
    first, last = data[:, :8], unfold(data[:, 8:12], 4, 4)  # last: the low nibbles of 4 scales, then of 4 minima
    both = np.concatenate([first & 63, last | (first >> 6) << 4], axis=1).astype(f4)
    return both[:, [0, 1, 2, 3, 8, 9, 10, 11]], both[:, [4, 5, 6, 7, 12, 13, 14, 15]]


def q4_k(data):
    scales, mins = _six_bits(data[:, 4:16])
    codes = unfold(data[:, 16:], 4, 32)
    return _spread(_half(data, 0) * scales, 32) * codes.astype(f4) - _spread(_half(data, 2) * mins, 32)


def q5_k(data):
    scales, mins = _six_bits(data[:, 4:16])
    codes = unfold(data[:, 48:], 4, 32) | unfold(data[:, 16:48], 1, 32) << 4
    return _spread(_half(data, 0) * scales, 32) * codes.astype(f4) - _spread(_half(data, 2) * mins, 32)


def q6_k(data):
    codes = unfold(data[:, :128], 4, 64) | unfold(data[:, 128:192], 2, 32) << 4
    scales = data[:, 192:208].view(np.int8).astype(f4)
    return _spread(_half(data, 208) * scales, 16) * (codes.astype(f4) - f4(32))


def iq4_nl(data):
    return _half(data, 0) * IQ4_VALUES.astype(f4)[unfold(data[:, 2:], 4, 16)]


def iq4_xs(data):
    scales = unfold(data[:, 4:8], 4, 1) | unfold(data[:, 2:4], 2, 1) << 4
    values = IQ4_VALUES.astype(f4)[unfold(data[:, 8:], 4, 16)]
    return _spread(_half(data, 0) * (scales.astype(f4) - f4(32)), 32) * values


def _trits(data, count, stride):
    """The ``count`` trits of every byte: multiply it by 3, take the bits above the lowest 8, go on with the rest."""
    runs = data.reshape(len(data), -1, 1, stride)
    powers = (3 ** np.arange(count)).astype(np.uint8)[:, None]
    return ((runs * powers).astype(np.uint16) * 3 >> 8).reshape(len(data), -1)


def tq1_0(data):
    trits = [_trits(data[:, :32], 5, 32), _trits(data[:, 32:48], 5, 16), _trits(data[:, 48:52], 4, 4)]
    return (np.concatenate(trits, axis=1).astype(f4) - f4(1)) * _half(data, 52)


def tq2_0(data):
    return (unfold(data[:, :64], 2, 32).astype(f4) - f4(1)) * _half(data, 64)


def mxfp4(data):
    power = np.ldexp(f4(1), data[:, :1].astype(np.int32) - 128).astype(f4)
    return MXFP4_VALUES.astype(f4)[unfold(data[:, 1:], 4, 16)] * power


def nvfp4(data):
    scales = NVFP4_SCALES[data[:, :4]]
    return _spread(scales, 16) * MXFP4_VALUES.astype(f4)[unfold(data[:, 4:], 4, 8)]


def q1_0(data):
    d = _half(data, 0)
    return np.where(unfold(data[:, 2:], 1, 1) == 1, d, -d)


def q2_0(data):
    return (unfold(data[:, 2:], 2, 1).astype(f4) - f4(1)) * _half(data, 0)

"""Rounded keys and values, number by number. Knows nothing of qtutor."""

import numpy as np
import torch

from tests.reference.fp8_inputs import e4m3


def turned(x: torch.Tensor) -> torch.Tensor:
    """``x [..., width]`` times a Hadamard matrix of its width, a power of two, float64: signs are parities of bits."""
    width = x.shape[-1]
    signs = [[(-1.0) ** (i & j).bit_count() for j in range(width)] for i in range(width)]
    return x.double() @ torch.tensor(signs, dtype=torch.float64) / width**0.5


def rounded(group: list[float], bits: int | str) -> list[float]:
    """Numbers that share a scale, rounded and decoded: whole steps from the smallest (or 0) to the largest (or 0)."""
    numbers = np.array(group, dtype=np.float32)
    if bits == "fp8":
        scale = np.float32(np.abs(numbers).max()) / np.float32(448) or np.float32(1)
        return (e4m3(torch.from_numpy(numbers / scale)).float() * float(scale)).tolist()
    low, high = min(0.0, *group), max(0.0, *group)
    levels = 2**bits - 1
    step = np.float32(np.float16(np.float32(high) / np.float32(levels) - np.float32(low) / np.float32(levels)))
    step = step or np.float32(1)
    zero = min(levels, max(0, round(float(np.float32(-low) / step))))
    codes = [min(levels, max(0, round(float(number / step)) + zero)) for number in numbers]
    return [float(step * np.float32(code - zero)) for code in codes]


def cached(x: torch.Tensor, bits: int | str, group: int, channel: bool) -> torch.Tensor:
    """The contents of a cache after ``x [tokens, head]`` was stored: groups along the head, or along the tokens.

    The last group along the head may be shorter. Tokens of a window that is not full are not rounded.
    """
    out = x.clone().float()
    tokens, head = x.shape
    if channel:
        for start in range(0, tokens - group + 1, group):
            for column in range(head):
                numbers = x[start : start + group, column].tolist()
                out[start : start + group, column] = torch.tensor(rounded(numbers, bits))
        return out
    for token in range(tokens):
        for start in range(0, head, group):
            out[token, start : start + group] = torch.tensor(rounded(x[token, start : start + group].tolist(), bits))
    return out

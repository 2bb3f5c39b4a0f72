"""Shared by the exercises of chapter 08: rows of codes, and 32-bit words in any form in which they are returned."""

import numpy as np
import torch

from qtutor.course.checking.comparing import NotNumbers, to_array


def rows(*codes: list[int]) -> torch.Tensor:
    """Codes as in the package: uint8 ``[rows, count]``."""
    return torch.tensor(codes, dtype=torch.uint8)


def as_words(returned, given: tuple):
    """Words of 32 bits as signed numbers, whether they were returned as int32, uint32 or larger whole numbers."""
    try:
        words = to_array(returned, 10**5)
    except NotNumbers:
        return returned
    if words.dtype != np.int64 or not words.size or words.min() < -(2**31) or words.max() >= 2**32:
        return returned
    return (words + 2**31) % 2**32 - 2**31


# A property of exercises that return words.
WHOLE_WORDS = (
    "a word is a whole number of 32 bits.",
    lambda arguments, results: bool(((results[0] >= -(2**31)) & (results[0] < 2**31)).all()),
)

"""Shared by several exercises: converting a learner's results for the package, and properties of bytes and codes."""

import numpy as np
import torch

from qtutor.course.checking.comparing import to_array


def tensor(value, dtype: torch.dtype, like: torch.Tensor) -> torch.Tensor:
    """Convert a tensor, numpy array, list or number to a tensor of ``dtype`` on the device of ``like``."""
    if not isinstance(value, torch.Tensor):
        value = torch.from_numpy(to_array(value))
    return value.detach().to(like.device, dtype)


# A property of exercises that return bytes.
WHOLE_BYTES = (
    "a byte is a whole number from 0 to 255.",
    lambda arguments, results: bool(((results[0] >= 0) & (results[0] < 256)).all()),
)


def whole_codes(bits: int, returned: int = 0) -> tuple:
    """A property of exercises that return codes: the argument at index ``bits`` is the number of bits of each code."""
    return (
        "a code is a whole number from 0 to 2**bits - 1.",
        lambda arguments, results: bool(np.isin(results[returned], range(2 ** arguments[bits])).all()),
    )

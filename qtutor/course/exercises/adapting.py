"""What several exercises share: converting a learner's results for the package, and properties of bytes and codes."""

import numpy as np
import torch

from qtutor.course.checking.comparing import to_array


def tensor(value, dtype: torch.dtype, like: torch.Tensor) -> torch.Tensor:
    """A tensor, numpy array, lists or a number as a tensor of ``dtype``, on the device of ``like``."""
    if not isinstance(value, torch.Tensor):
        value = torch.from_numpy(to_array(value))
    return value.detach().to(like.device, dtype)


# A property of exercises that return bytes.
WHOLE_BYTES = (
    "a byte is a whole number from 0 to 255.",
    lambda arguments, results: bool(((results[0] >= 0) & (results[0] < 256)).all()),
)


def whole_codes(bits: int, returned: int = 0) -> tuple:
    """A property of exercises that return codes: argument number ``bits`` says how many bits each of them has."""
    return (
        "a code is a whole number from 0 to 2**bits - 1.",
        lambda arguments, results: bool(np.isin(results[returned], range(2 ** arguments[bits])).all()),
    )

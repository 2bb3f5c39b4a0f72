"""What several exercises share: converting a learner's results for the package, and a property of bytes."""

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

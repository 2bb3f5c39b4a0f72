"""What a learner's function returns, as the package wants it: tensors of one dtype on one device."""

import torch

from qtutor.course.values import to_array


def tensor(value, dtype: torch.dtype, like: torch.Tensor) -> torch.Tensor:
    """A tensor, numpy array, lists or a number as a tensor of ``dtype`` beside ``like``."""
    if not isinstance(value, torch.Tensor):
        value = torch.from_numpy(to_array(value))
    return value.detach().to(like.device, dtype)

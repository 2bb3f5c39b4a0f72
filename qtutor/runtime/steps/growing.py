"""A layer of transformers' cache that grows in place.

``DynamicLayer`` copies all of its keys and values for each new token. Here they lie in tensors with room behind them,
and what the layer holds is a view of their beginning: longer by one token after each step. So whoever looks at the
cache finds what is always there. Whoever has changed it in between (cropped, reordered, written by the model itself)
has put other tensors in, and these are copied to a new room.
"""

import numpy as np
import torch

LEAST = 64  # tokens for which there is room at least, besides those that are there


class Room:
    """Keys and values of one layer of the cache, ``[1, kv heads, room, dim]``, in its dtype."""

    def __init__(self, layer):
        self.held = layer.keys, layer.values
        count = layer.keys.shape[-2]
        self.room = count + max(LEAST, count // 2)
        self._tensors = [self._roomy(tensor, count) for tensor in self.held]
        self.keys, self.values = map(_array, self._tensors)

    def _roomy(self, tensor: torch.Tensor, count: int) -> torch.Tensor:
        made = tensor.new_empty((*tensor.shape[:-2], self.room, tensor.shape[-1]))
        made[..., :count, :] = tensor
        return made

    def fits(self, layer, count: int) -> bool:
        """Whether ``layer`` still holds what it was given, ``count`` tokens, and one more fits."""
        return layer.keys is self.held[0] and layer.values is self.held[1] and count < self.room

    def grow(self, layer, count: int) -> None:
        """``layer`` now holds ``count`` tokens: one more, which has been written to :attr:`keys` and :attr:`values`."""
        self.held = layer.keys, layer.values = [tensor.narrow(-2, 0, count) for tensor in self._tensors]
        if hasattr(layer, "cumulative_length"):
            layer.cumulative_length += 1


def _array(tensor: torch.Tensor) -> np.ndarray:
    """``[kv heads, room, dim]``: float32, or the bits of bfloat16 as uint16. It shares the tensor's memory."""
    tensor = tensor[0]
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()

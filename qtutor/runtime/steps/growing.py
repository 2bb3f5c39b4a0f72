"""A layer of transformers' cache that grows in place.

``DynamicLayer`` copies all of its keys and values for each new token. Here they are stored in larger tensors with room
at the end. The layer holds a view of their beginning, which is one token longer after each step. So other code finds
the usual tensors in the cache. If the cache was changed in between (cropped, reordered, written by the model itself),
it holds other tensors, and these are copied to a new room.
"""

import numpy as np
import torch

LEAST = 64  # new tokens for which there is room, at least


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
        """Whether ``layer`` still holds the tensors that it was given, of ``count`` tokens, and one more fits."""
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

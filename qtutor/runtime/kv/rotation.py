"""A Hadamard rotation along the head, which leaves attention as it is and spreads what is large over all channels.

A rotation turns queries and keys alike, so that their products stay: ``(q H) . (k H) = q H H^T k^T = q . k``. Values
that were turned make an output that is turned, and turning it back is all they need. But each turned number is a sum of
all channels with signs, so a channel that was large is now a little in every one, and a group of them has no outlier
that would widen its steps (QuaRot, arXiv 2404.00456, section 4; llama.cpp turns its cache in the same way).

Keys get their positions (rope) behind the layer that makes them, and rope mixes pairs of channels by other angles for
each token. So this rotation cannot be folded into weights, as rotations of the residual stream can.
"""

from functools import cache

import torch


@cache
def hadamard(width: int) -> torch.Tensor:
    """The matrix of the rotation, float32 ``[width, width]``: symmetric, and its own inverse.

    Sylvester's: ``H_2n = [[H_n, H_n], [H_n, -H_n]]``, over the root of its width. A width that is no power of two is
    cut into the largest powers of two, each turned alone: 80 is 64 and 16. (A last channel of its own stays as it is.)

    >>> hadamard(2)
    tensor([[ 0.7071,  0.7071],
            [ 0.7071, -0.7071]])
    """
    blocks, rest = [], width
    while rest:
        size = 1 << (rest.bit_length() - 1)
        block = torch.ones(1, 1)
        while len(block) < size:
            block = torch.cat([torch.cat([block, block], 1), torch.cat([block, -block], 1)])
        blocks.append(block / size**0.5)
        rest -= size
    return torch.block_diag(*blocks)


def rotate(x: torch.Tensor) -> torch.Tensor:
    """``x [..., width]`` turned along its last axis, in float32; turned twice it is ``x`` again."""
    return x.float() @ hadamard(x.shape[-1]).to(x.device)

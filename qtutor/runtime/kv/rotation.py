"""A Hadamard rotation along the head: it leaves attention unchanged, and spreads large numbers over all channels.

Queries and keys are rotated alike, so their products stay the same: ``(q H) . (k H) = q H H^T k^T = q . k``. Rotated
values give a rotated output, so it is enough to rotate the output back. But each rotated number is a sum of all
channels with signs. So a large channel is spread over all channels, and a group of them has no outlier that would widen
its steps (QuaRot, arXiv 2404.00456, section 4; llama.cpp rotates its cache in the same way).

Keys get their positions (rope) after the layer that computes them, and rope mixes pairs of channels by different angles
for each token. So this rotation cannot be folded into weights; rotations of the residual stream can.
"""

from functools import cache

import torch


@cache
def hadamard(width: int) -> torch.Tensor:
    """The matrix of the rotation, float32 ``[width, width]``: symmetric, and its own inverse.

    Sylvester's: ``H_2n = [[H_n, H_n], [H_n, -H_n]]``, divided by the square root of its width. A width that is not a
    power of two is cut into the largest powers of two, each rotated by itself: 80 is 64 and 16. (A single last channel
    stays as it is.)

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
    """``x [..., width]`` rotated along its last axis, in float32; rotating it twice gives ``x`` again."""
    return x.float() @ hadamard(x.shape[-1]).to(x.device)

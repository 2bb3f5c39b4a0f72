"""AWQ's scales in the float weights, so that formats with grids of their own round better, too.

    model, tokenizer = qtutor.load_decoder()
    fold_awq(model, token_ids)                     # computes what it did before
    qtutor.export(model, "out.gguf", format="gguf", type="Q4_K_M", tokenizer=tokenizer)

The scales are searched for a plain grid (:func:`qtutor.awq.scale_block`), which stands in for the format's own: Q4_K,
for instance, rounds groups of 32 asymmetrically to 4 bits. Left out: AWQ's clipping, since encoders find ranges
themselves.
"""

import torch
from torch import nn

from qtutor.calibration.walk import walk
from qtutor.core.grid import Grid, IntGrid
from qtutor.methods.awq import scale_block


@torch.no_grad()
def fold_awq(model: nn.Module, calibration: torch.Tensor, grid: Grid | None = None, group_size: int = 32) -> nn.Module:
    """Fold AWQ's scales into ``model``, in place and without rounding anything; returns it, in float32.

    calibration: token ids, int64 ``[samples, length]``. grid: what the weights will be rounded to, asymmetric 4 bits if
    not given, in groups of ``group_size``. Raises :class:`qtutor.QtutorError` as :func:`~.walk.walk` and
    :func:`qtutor.awq.scale_block` do; blocks before the one at fault are then folded, and compute what they did.
    """
    model.float()  # 16 bits would round the products of weights and scales
    for block in walk(model, calibration):
        scale_block(block, grid or IntGrid(bits=4, symmetric=False), group_size)
        model.get_submodule(block.name).load_state_dict(block.module.state_dict())
        block.advance()
    return model

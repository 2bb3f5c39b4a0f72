"""Layers that round their inputs pass gradients as if they did not round: rounding itself has no useful gradient."""

import pytest
import torch

from qtutor import rtn
from qtutor.core.codebooks import INT8
from qtutor.core.float_grid import FP8
from qtutor.runtime.kinds import linear_for
from tests.runtime.kernels.test_cpu import noise


@pytest.mark.parametrize("grid", [FP8, INT8], ids=["fp8", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_is_that_of_the_weights(grid, dtype):
    layer = linear_for(grid).from_quantized(rtn.quantize(noise(70, 64, seed=1), grid, -1))
    x = noise(3, 64).to(dtype)
    x[1, 5] = 9.0  # int8 keeps this channel in float
    with torch.no_grad():
        plain = layer(x)
    x.requires_grad_()
    y = layer(x)
    assert torch.equal(y, plain)  # the result is the same with and without a gradient
    (y * torch.arange(70)).sum().backward()
    expected = (layer.quantized().dequantize() * torch.arange(70)[:, None]).sum(0).expand(3, 64)
    step = 2**-7 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(x.grad.float(), expected, rtol=step, atol=step * expected.abs().max().item())

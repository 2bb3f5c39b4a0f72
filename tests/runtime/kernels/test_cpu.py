"""The CPU's kernel gives the reference's results, up to float32 rounding, on every grid, group, shape and batch."""

import itertools
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import linear

import qtutor
from qtutor import bnb, rtn, threads
from qtutor.core.codebooks import FP4
from qtutor.core.float_grid import FP8
from qtutor.core.grid import IntGrid
from qtutor.core.quantized import QuantizedTensor
from qtutor.runtime import explain
from qtutor.runtime.kernels import choosing, cpu, reference
from qtutor.runtime.linear import QuantLinear
from tests.models import some_ids, tiny
from tests.reference import products

pytest.importorskip("numba")
BATCHES = (1, 2, 3, 8, 31, 64, 65)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer_of(bits: int, group: int, symmetric: bool = False, rows: int = 70, columns: int = 64, seed: int = 0):
    return QuantLinear.from_quantized(rtn.quantize(noise(rows, columns, seed=seed), IntGrid(bits, symmetric), group))


def check(layer, x: torch.Tensor, y: torch.Tensor) -> None:
    """Compare y with the exact product. It may be off as far as float32 sums and rounding to x's dtype allow."""
    exact, size = products.exact(layer.quantized(), x)
    rounding = {torch.float32: 0.0, torch.float16: 2**-11, torch.bfloat16: 2**-8, torch.float64: 0.0}[x.dtype]
    # For many tokens torch multiplies in x's dtype. The weights are rounded to it, and all terms with them.
    rounded = size if x.numel() // layer.columns > cpu.MOST else exact.abs()
    # Sums of n terms in any order are off by less than n * 2**-24 of the sum of their magnitudes, and by far less in
    # practice. The zero point is applied outside the sum, to sums of codes; each code is up to 2**bits scales.
    assert y.dtype == x.dtype and y.shape == (*x.shape[:-1], layer.rows)
    off = (y.double() - exact).abs()
    assert (off <= 4e-6 * size + rounding * rounded + 1e-30).all(), (off / size).max()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [8, 32, 64, -1, 0])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_every_grid_dtype_and_batch(bits, group, symmetric):
    layer = layer_of(bits, group, symmetric)
    assert layer.kernel(noise(1, 64)) is cpu
    for batch, dtype in itertools.product(BATCHES, DTYPES):
        x = noise(batch, 64, seed=batch).to(dtype)
        y = layer(x)
        check(layer, x, y)
        assert torch.equal(layer(x), y)  # deterministic


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("batch", [1, 4])
def test_levels_and_every_dtype(dtype, batch):
    layer, x = QuantLinear.from_quantized(bnb.quantize(noise(70, 64))), noise(batch, 64).to(dtype)
    check(layer, x, layer(x))


@pytest.mark.parametrize("batch", BATCHES)
def test_levels_of_a_codebook(batch):
    made = [bnb.quantize(noise(70, 128), group_size=16, double=False), bnb.quantize(noise(70, 128), group_size=64)]
    made.append(bnb.quantize(noise(70, 128), FP4))
    for layer in map(QuantLinear.from_quantized, made):
        assert layer.kernel(noise(1, 128)) is cpu
        x = noise(batch, 128, seed=batch)
        check(layer, x, layer(x))


@settings(max_examples=60, deadline=None)
@given(
    bits=st.sampled_from([2, 3, 4, 8]),
    rows=st.integers(1, 200),
    groups=st.integers(1, 6),
    eights=st.integers(1, 9),
    batch=st.integers(1, 12) | st.integers(13, 64),
    dtype=st.sampled_from(DTYPES),
    symmetric=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_shapes_that_no_tile_divides(bits, rows, groups, eights, batch, dtype, symmetric, seed):
    layer = layer_of(bits, 8 * eights, symmetric, rows, 8 * eights * groups, seed)
    packed = layer.packed.clone()
    x = noise(batch, 8 * eights * groups, seed=seed + 1).to(dtype)
    check(layer, x, layer(x))
    assert torch.equal(layer.packed, packed)  # the bytes were reordered, and are back in order


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_slow_and_obvious_product(bits):
    """Code by code, in Python: no arithmetic is shared with the kernel."""
    layer = layer_of(bits, 16, rows=66, columns=32)
    x = noise(1, 32)
    assert np.allclose(layer(x).numpy(), products.slow(layer.quantized(), x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_many_tokens_give_the_weights_of_the_grid(bits):
    """Unit vectors as inputs give the decoded weights: exactly those of the grid."""
    layer = layer_of(bits, 32, rows=130)
    assert torch.equal(layer(torch.eye(64)).T, layer.quantized().dequantize())


def test_blocks_of_rows_join(monkeypatch):
    layer, x = layer_of(4, 32, rows=300), noise(20, 64)
    whole = layer(x)
    monkeypatch.setattr(cpu, "BLOCK_ROWS", 128)
    assert torch.allclose(layer(x), whole, atol=1e-5)  # different blocks may change the order of sums


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("batch", [1, 3])
def test_inputs_that_are_not_finite(bad, batch):
    """With the zero point outside the sum, infinity minus infinity would give NaN."""
    layer, x = layer_of(4, 32), noise(batch, 64)
    x[0, 5] = bad
    expected = linear(x, layer.quantized().dequantize())
    torch.testing.assert_close(layer(x), expected, equal_nan=True)


def test_scales_that_are_extreme():
    """Subnormal, negative and infinite float16: the loops decode float16 themselves."""
    codes = torch.randint(0, 16, (4, 32), dtype=torch.uint8)
    zeros = torch.full((4, 1), 3, dtype=torch.uint8)
    for numbers in ([2**-24, 2**-15, 6.1e-5, 65504.0], [-0.5, 0.0, 1.0, 3e-6]):
        scales = torch.tensor(numbers).half()[:, None]
        layer = QuantLinear.from_quantized(QuantizedTensor(codes, scales, zeros, IntGrid(4), 32))
        weight = layer.quantized().dequantize()
        torch.testing.assert_close(layer(torch.eye(32)).T, weight, rtol=0, atol=0)
        x = noise(1, 32)
        check(layer, x, layer(x))
    scales = torch.tensor([float("inf"), float("nan"), 1.0, 2.0]).half()[:, None]
    layer = QuantLinear.from_quantized(QuantizedTensor(codes, scales, zeros, IntGrid(4), 32))
    y = layer(noise(1, 32))
    assert not y[0, :2].isfinite().any() and y[0, 2:].isfinite().all()


def test_gradients_reach_the_input():
    layer, x = layer_of(4, 32), noise(2, 64).requires_grad_()
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.quantized().dequantize().sum(0).expand(2, 64), rtol=1e-5, atol=1e-4)


def test_gradients_through_several_blocks(monkeypatch):
    monkeypatch.setattr(cpu, "BLOCK_ROWS", 64)
    layer, x = layer_of(4, 32, rows=150), noise(2, 64).requires_grad_()
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.quantized().dequantize().sum(0).expand(2, 64), rtol=1e-5, atol=1e-4)


def test_a_wrong_width_is_refused_as_torch_does_it():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        layer_of(4, 32)(noise(1, 72))


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (lambda: layer_of(5, 32), "5 bits"),
        (lambda: layer_of(4, 4), "not a multiple of 8"),
        (lambda: layer_of(4, 32, rows=0), "empty"),
        (lambda: QuantLinear.from_quantized(bnb.quantize(noise(8, 64), bnb.INT8)), "256 levels"),
        (lambda: QuantLinear.from_quantized(rtn.quantize(noise(8, 64), FP8, -1)), "floating-point numbers (fp8)"),
    ],
)
def test_what_it_does_not_take_goes_to_the_reference(capsys, layer, why):
    layer = layer()
    x = noise(2, 64)
    assert layer.kernel(x) is reference and why in cpu.reason_against(layer)
    assert torch.equal(layer(x), linear(x, layer.quantized().dequantize()))
    explain(layer)
    assert why in capsys.readouterr().out


def test_explain_is_a_table(capsys):
    layer = layer_of(4, 32)
    for batch, manner in (
        (1, "decoded in registers"),
        (4, "decoded once and multiplied by 4"),
        (cpu.MOST + 1, "torch multiplies"),
    ):
        explain(layer, batch)
        out = capsys.readouterr().out
        assert manner in out and out.count("\n") == 1 + len(choosing.TABLE) and "70 x 64, 4 bits asymmetric" in out
    explain(layer, device="meta")
    assert "not both on the CPU" in capsys.readouterr().out
    with torch.inference_mode():
        made = layer_of(4, 32)
    explain(made)
    out = capsys.readouterr().out
    assert "inference mode" in out and "; 1 token of float32 on cpu\n" in out


def test_without_numba_the_reference_computes_and_one_warning_says_so():
    program = (
        "import sys, warnings; sys.modules['numba'] = None\n"
        "import torch; from qtutor import rtn, IntGrid; from qtutor.runtime.linear import QuantLinear\n"
        "layer = QuantLinear.from_quantized(rtn.quantize(torch.randn(8, 64), IntGrid(4), 32)); x = torch.randn(1, 64)\n"
        "with warnings.catch_warnings(record=True) as said:\n"
        "    warnings.simplefilter('always'); layer(x); layer(x); layer(x)\n"
        "assert len(said) == 1 and 'pip install' in str(said[0].message), said\n"
        "assert torch.equal(layer(x), x @ layer.quantized().dequantize().T)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_numba_is_imported_by_the_first_product_only():
    program = (
        "import sys, torch, qtutor; from qtutor import rtn; from qtutor.runtime.linear import QuantLinear\n"
        "layer = QuantLinear.from_quantized(rtn.quantize(torch.randn(8, 64), qtutor.IntGrid(4), 32))\n"
        "assert 'numba' not in sys.modules; layer(torch.randn(1, 64)); assert 'numba' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_older_cpus_compute_the_same(tmp_path):
    """Without AVX the sums are the same up to rounding, and levels are read from memory."""
    program = (
        "import torch; from qtutor import rtn, bnb, IntGrid; from qtutor.runtime.linear import QuantLinear\n"
        "from qtutor.runtime.kernels.instructions import has\n"
        "assert not has('avx512f'); w = torch.randn(70, 64); x = torch.randn(2, 64)\n"
        "for q in (rtn.quantize(w, IntGrid(3), 32), bnb.quantize(w)):\n"
        "    torch.testing.assert_close(QuantLinear.from_quantized(q)(x), x @ q.dequantize().T, rtol=1e-4, atol=1e-4)\n"
    )
    environment = os.environ | {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)


def test_threads_of_python_at_once():
    layer, others = layer_of(4, 32, rows=200), []
    inputs = [noise(1 + i % 10, 64, seed=i) for i in range(24)]
    expected = [linear(x, layer.quantized().dequantize()) for x in inputs]
    wrong = []

    def work(start: int) -> None:
        for _ in range(5):
            for x, y in list(zip(inputs, expected))[start:]:
                if not torch.allclose(layer(x), y, atol=1e-4):
                    wrong.append(start)
            if layer.state_dict()["packed"].shape != (200, 32):  # this takes the bytes back every time
                wrong.append("state")

    others = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for other in others:
        other.start()
    for other in others:
        other.join()
    assert not wrong


def test_shared_among_threads(monkeypatch):
    layer, x = layer_of(4, 32, rows=1000), noise(3, 64)
    alone = layer(x), layer(noise(12, 64))
    monkeypatch.setattr(cpu, "SHARE", 64 * 64)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        shared = layer(x), layer(noise(12, 64))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(shared[0], alone[0]) and torch.allclose(shared[1], alone[1], atol=1e-5)


def test_shares_cover_everything_once_and_raise(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    for count in (1, 2, 7, 100):
        seen = np.zeros(count, int)

        def work(first, last, seen=seen):
            seen[first:last] += 1

        threads.in_shares(work, count, 1)
        assert (seen == 1).all()

    def fail(first, last):
        if first <= 50 < last:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        threads.in_shares(fail, 100, 1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows does not fork")
def test_after_a_fork(monkeypatch):
    """A child process has no threads of its parent, so it starts its own."""
    program = (
        "import os, torch; from qtutor import rtn, IntGrid; from qtutor.runtime.linear import QuantLinear\n"
        "from qtutor.runtime.kernels import cpu; cpu.SHARE = 64; torch.set_num_threads(2)\n"
        "layer = QuantLinear.from_quantized(rtn.quantize(torch.randn(500, 64), IntGrid(4), 32))\n"
        "x = torch.randn(2, 64); y = layer(x); child = os.fork()\n"
        "if not child: os._exit(0 if torch.equal(layer(x), y) else 1)\n"
        "assert os.waitpid(child, 0)[1] == 0 and torch.equal(layer(x), y)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_in_a_worker_of_a_data_loader():
    layer = layer_of(4, 32)
    layer(noise(1, 64))
    loader = torch.utils.data.DataLoader(Rows(layer, 3), num_workers=1, batch_size=None)
    for i, y in enumerate(loader):
        assert torch.equal(y, layer(noise(1, 64, seed=i)))


class Rows(torch.utils.data.Dataset):
    def __init__(self, layer, count: int, device: str = "cpu"):
        self.layer, self.count, self.device = layer, count, device

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        return self.layer(noise(1, 64, seed=i).to(self.device)).cpu()


def test_in_a_compiled_model():
    model = tiny()
    qtutor.quantize(model, qtutor.Recipe(bits=4, group_size=32), progress=False)
    with torch.inference_mode():
        expected = model(some_ids()).logits
        got = torch.compile(model, backend="eager")(some_ids()).logits
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)

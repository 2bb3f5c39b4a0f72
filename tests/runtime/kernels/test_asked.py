"""Kernels that are used only on request: int8 inputs, and torch's product."""

import copy
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qtutor
from qtutor import evaluate, rtn, runtime
from qtutor.core.grid import IntGrid
from qtutor.core.quantized import QuantizedTensor
from qtutor.errors import QtutorError
from qtutor.runtime.kernels import choosing, cpu, reference, rounded, torch_int4
from qtutor.runtime.linear import QuantLinear
from tests.models import some_ids, tiny
from tests.reference import products
from tests.runtime.kernels.test_cpu import layer_of, noise

pytest.importorskip("numba")
from qtutor.runtime.kernels.instructions import has


def rounding(*arguments, **options) -> QuantLinear:
    layer = layer_of(*arguments, **options)
    assert runtime.use(layer, activations="int8") == 1
    return layer


def close(y: torch.Tensor, layer: QuantLinear, x: torch.Tensor) -> None:
    expected, _ = products.rounded_inputs(layer.quantized(), x)
    # Sums within a group are exact. Errors come only from rounding to float32 when groups are added.
    size = products.exact(layer.quantized(), x)[1].numpy()
    assert y.shape == expected.shape and (np.abs(y.numpy() - expected) <= 1e-6 * size + 1e-30).all()


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 150),
    groups=st.integers(1, 5),
    eights=st.integers(1, 11),
    batch=st.integers(1, 12),
    symmetric=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_the_slow_product_with_rounded_inputs(rows, groups, eights, batch, symmetric, seed):
    layer = rounding(4, 8 * eights, symmetric, rows, 8 * eights * groups, seed)
    packed, x = layer.packed.clone(), noise(batch, 8 * eights * groups, seed=seed + 1)
    assert layer.kernel(x) is rounded
    close(layer(x), layer, x)
    assert torch.equal(layer.packed, packed)


@pytest.mark.parametrize("eights", [1, 3, 4, 5, 16])
def test_sums_are_whole_numbers_even_where_they_are_largest(eights):
    """Steps and scales of 1, all codes 15 and all inputs 127 or -127: any overflow, or a code of -128, would show."""
    columns = 8 * eights
    grid, zeros = IntGrid(4), torch.zeros(70, 1, dtype=torch.uint8)
    codes = torch.full((70, columns), 15, dtype=torch.uint8)
    layer = QuantLinear.from_quantized(QuantizedTensor(codes, torch.ones(70, 1).half(), zeros, grid, columns))
    runtime.use(layer, activations="int8")
    x = torch.full((2, columns), 127.0)
    x[1] = -127
    assert layer.kernel(x) is rounded
    assert torch.equal(layer(x), 15 * x.sum(1, keepdim=True).expand(2, 70))
    zeros[:] = 15
    layer.fill(QuantizedTensor(codes * 0, torch.ones(70, 1).half(), zeros, grid, columns))
    assert torch.equal(layer(x), -15 * x.sum(1, keepdim=True).expand(2, 70))


def test_many_tokens_multiply_by_the_same_rounded_inputs():
    layer, x = rounding(4, 32), noise(20, 64)
    close(layer(x), layer, x)
    torch.testing.assert_close(layer(x)[:4], layer(x[:4]), rtol=1e-5, atol=1e-5)
    assert (layer(x) - layer_of(4, 32)(x)).abs().max() > 1e-3  # the inputs are rounded


@pytest.mark.parametrize(
    ("dtype", "rounding_of"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11), (torch.float64, 0.0)]
)
def test_every_dtype(dtype, rounding_of):
    """For few tokens only the result is rounded to x's dtype. For many, torch multiplies in it and rounds all terms."""
    layer = rounding(4, 32)
    for batch in (1, 12):
        x = noise(batch, 64).to(dtype)
        expected, _ = products.rounded_inputs(layer.quantized(), x.float())
        size = products.exact(layer.quantized(), x)[1].numpy()
        y = layer(x)
        off, terms = np.abs(y.double().numpy() - expected), size if batch > cpu.MOST else np.abs(expected)
        assert y.dtype == dtype and (off <= rounding_of * terms + 1e-6 * size).all()


def test_inputs_that_are_small_or_zero_or_not_finite():
    layer, plain = rounding(4, 32), layer_of(4, 32)
    x = noise(3, 64)
    x[0, :32], x[1, 32:] = 0, 1e-33
    close(layer(x), layer, x)
    for bad in (float("nan"), float("inf")):
        x[2, 3] = bad
        torch.testing.assert_close(layer(x), plain(x), equal_nan=True)
    assert torch.equal(layer(x[:0]), plain(x[:0]))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        layer(noise(1, 72))


def test_the_gradient_passes_the_rounding():
    layer, x = rounding(4, 32), noise(2, 64).requires_grad_()
    y = layer(x)
    close(y.detach(), layer, x.detach())
    y.sum().backward()
    torch.testing.assert_close(x.grad, layer.quantized().dequantize().sum(0).expand(2, 64), rtol=1e-5, atol=1e-4)


AVX2 = "+sse2,+avx,+avx2,+fma"
AVX512 = f"{AVX2},+avx512f,+avx512bw"


@pytest.mark.parametrize(
    ("features", "width"),
    [
        ("", "0"),
        (AVX2, "256"),
        (f"{AVX2},+avxvnni", "256"),
        (AVX512, "512"),
        (f"{AVX512},+avx512vnni", "512"),
    ],
)
def test_other_cpus_compute_the_same(features, width, tmp_path):
    """Plain loops, pairs or fours of products, in 256 or 512 bits: the same whole numbers, nearly the same result."""
    missing = [name for name in features.replace("+", "").split(",") if name and not has(name)]
    if missing:
        pytest.skip(f"this CPU has no {', '.join(missing)}")
    program = (
        "import sys, torch; from qtutor import rtn, runtime, IntGrid; from qtutor.runtime.linear import QuantLinear\n"
        "from qtutor.runtime.kernels.dots import width; w = int(sys.argv[1]); assert width() == w, width()\n"
        "torch.manual_seed(0); layer = QuantLinear.from_quantized(rtn.quantize(torch.randn(70, 120), IntGrid(4), 40))\n"
        "runtime.use(layer, activations='int8'); torch.save(layer(torch.randn(2, 120)), sys.argv[2])\n"
        "runtime.explain(layer)\n"
    )
    path = tmp_path / "y.pt"
    environment = os.environ | {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": features}
    command = [sys.executable, "-c", program, width, str(path)]
    said = subprocess.run(command, check=True, env=environment, capture_output=True, text=True).stdout
    assert (f"{width} bits" if features else "neither AVX2") in said
    got = torch.load(path)
    torch.manual_seed(0)
    layer = QuantLinear.from_quantized(rtn.quantize(torch.randn(70, 120), IntGrid(4), 40))
    runtime.use(layer, activations="int8")
    torch.testing.assert_close(layer(torch.randn(2, 120)), got, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("bits", "why"), [(3, "not whole numbers of 4 bits"), (8, "not whole numbers of 4 bits")])
def test_what_int8_inputs_do_not_fit_goes_on_as_before(capsys, bits, why):
    layer = rounding(bits, 32)
    assert layer.kernel(noise(1, 64)) is cpu
    runtime.explain(layer)
    assert why in capsys.readouterr().out


def test_explain_says_what_was_asked_for(capsys):
    layer = layer_of(4, 32)
    less_exact = "not used: it is less exact, so it is used only if it is requested"
    rows = {
        "cpu, int8 inputs": less_exact,
        "torch_int4": less_exact,
        "cpu": "used: codes are decoded in registers and multiplied, 64 rows at a time, in float32",
        "cuda": "not used: layer and input are not both on a GPU",
        "reference": "not needed: it works for every layer, but is slow",
    }
    head = "70 x 64, 4 bits asymmetric, group_size=32; 1 token of float32 on cpu"
    runtime.explain(layer)
    assert capsys.readouterr().out.splitlines() == [head, *(f"  {name:16}  {said}" for name, said in rows.items())]
    runtime.use(layer, activations="int8")
    runtime.explain(layer)
    rows |= dict.fromkeys(("cpu", "reference"), "not used: another kernel was requested")
    rows["cpu, int8 inputs"] = "used: inputs are rounded to int8, and codes are multiplied by codes"  # and with what
    found = capsys.readouterr().out.splitlines()
    assert found[1].startswith(f"  cpu, int8 inputs  {rows['cpu, int8 inputs']}: ")
    found[1] = found[1].rpartition(":")[0]
    assert found == [head, *(f"  {name:16}  {said}" for name, said in rows.items())]
    runtime.explain(layer, cpu.MOST + 1)
    assert "rounded to int8; then 1024 rows" in capsys.readouterr().out
    runtime.use(layer, kernel="reference")
    assert layer.kernel(noise(1, 64)) is reference
    runtime.use(layer)
    assert layer.kernel(noise(1, 64)) is cpu


def test_what_cannot_be_asked_for():
    layer = layer_of(4, 32)
    for options, why in (
        ({"activations": "int4"}, 'use "int8"'),
        ({"kernel": "fast"}, "torch_int4"),
        ({"kernel": "cpu", "activations": "int8"}, "one of them"),
    ):
        with pytest.raises(QtutorError, match=why):
            runtime.use(layer, **options)
    for model in (tiny(), torch.nn.Linear(8, 8)):
        with pytest.raises(QtutorError, match="no packed layer"):
            runtime.use(model, activations="int8")
    other = tiny()
    qtutor.quantize(other, qtutor.Recipe(method="int8"), progress=False)
    with pytest.raises(QtutorError, match="no packed layer"):  # LLM.int8 has its own product
        runtime.use(other, activations="int8")


def test_the_cost_of_int8_inputs():
    model = tiny()
    qtutor.quantize(model, qtutor.Recipe(bits=4, group_size=32), progress=False)
    state = copy.deepcopy(model.state_dict())
    found = evaluate.cost_of_int8_inputs(model, some_ids(3, 24))
    assert 0 < found.kl < 0.01 and found.tokens == 3 * 23
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert {layer.asked for layer in model.modules() if isinstance(layer, QuantLinear)} == {None}


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("batch", [1, 5, 40])
def test_torch_int4(batch, symmetric):
    layer = layer_of(4, 32, symmetric, rows=96, columns=128)
    x = noise(batch, 128).bfloat16()
    runtime.use(layer, kernel="torch_int4")
    assert layer.kernel(x) is torch_int4 and layer.kernel(x.float()) is cpu
    exact = products.exact(layer.quantized(), x)[0]
    assert layer(x).dtype == torch.bfloat16
    assert (layer(x).double() - exact).norm() < 4e-3 * exact.norm()  # its scales and zero points are bfloat16


def test_every_kernel_says_how_it_multiplies(capsys):
    """:func:`explain` prints one line for each kernel: of the one in use, how it multiplies."""
    ways = {}
    for name, dtype in (("torch_int4", torch.bfloat16), ("cpu", torch.float32), ("reference", torch.float32)):
        layer = layer_of(4, 32, rows=96, columns=128)  # torch's product needs such a size
        runtime.use(layer, kernel=name)
        runtime.explain(layer, dtype=dtype)
        lines = capsys.readouterr().out.splitlines()
        used = [line.split("  used: ")[1] for line in lines if "  used: " in line]
        assert len(used) == 1 and " " in used[0] and used[0] != "None", used
        ways[name] = used[0]
    assert len(set(ways.values())) == 3 and "bfloat16" in ways["torch_int4"], ways


def test_torch_int4_with_gradients_and_without_tokens():
    layer = layer_of(4, 32, rows=64)
    runtime.use(layer, kernel="torch_int4")
    x = noise(2, 64).bfloat16().requires_grad_()
    layer(x).sum().backward()
    assert torch.allclose(x.grad.float(), layer.quantized().dequantize().sum(0).expand(2, 64), rtol=2e-2, atol=5e-2)
    assert layer(x[:0]).shape == (0, 64)


@pytest.mark.parametrize(
    ("make", "why"),
    [(lambda: layer_of(3, 32), "4 bits"), (lambda: layer_of(4, 16), "groups of 32"), (lambda: layer_of(4, 32), "rows")],
)
def test_what_torch_int4_does_not_take(capsys, make, why):
    layer = make()
    runtime.use(layer, kernel="torch_int4")
    assert layer.kernel(noise(1, 64).bfloat16()) is cpu
    runtime.explain(layer, dtype=torch.bfloat16)
    assert why in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "called"),
    [
        (None, "None"),
        ("model.layers.0", "'model.layers.0'"),
        (torch.ones(3), r"tensor\(\[1., 1., 1.\]\)"),
        (torch.nn.Linear(4, 4), "Linear"),
        (torch.nn.Identity(), "Identity"),
    ],
)
def test_what_is_no_packed_layer_has_no_kernel(wrong, called):
    takes = r"explain\(\) takes a packed linear layer, like one of a quantized model; this is "
    with pytest.raises(qtutor.QtutorError, match=f"^{takes}{called}\\.$"):
        runtime.explain(wrong)
    with pytest.raises(qtutor.QtutorError, match=r"use\(\) takes a model|no packed layer"):
        runtime.use(wrong, activations="int8")


def test_of_a_model_explain_names_a_layer():
    model = torch.nn.Sequential(torch.nn.Identity(), layer_of(4, 32))
    with pytest.raises(qtutor.QtutorError, match=r"like model.get_submodule\('1'\); this is Sequential"):
        runtime.explain(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "batch = 0"),
        ({"batch": "x"}, "batch = 'x'"),
        ({"dtype": "float16"}, "dtype = 'float16'"),
        ({"dtype": torch.int8}, "dtype = torch.int8"),
        ({"device": "gpu"}, "device = 'gpu'"),
        ({"device": 1.5}, "device = 1.5"),
    ],
)
def test_what_no_tokens_can_be_is_refused(options, message):
    with pytest.raises(qtutor.QtutorError, match=message):
        runtime.explain(layer_of(4, 32), **options)


def test_what_keeps_a_layer_from_the_kernel_of_a_gpu(monkeypatch):
    """Stand-ins say where they are, so no GPU is needed to read the table."""
    held = SimpleNamespace(is_cuda=True, is_cpu=False, device=torch.device("cuda", 1), is_inference=lambda: False)
    layer = SimpleNamespace(asked=None, held=lambda: [held])
    (row,) = (choice for choice in choosing.TABLE if choice.what == "cuda")
    monkeypatch.setattr(choosing.cuda, "reason_against", lambda _: None)

    def against(device: str) -> str | None:
        return row.reason_against(layer, torch.device(device), torch.float32)

    assert against("cuda") is against("cuda:1") is None
    assert against("cuda:0") == "layer and input are not on the same GPU"
    assert against("cpu") == "layer and input are not both on a GPU"
    held.is_inference = lambda: True
    assert "made in inference mode" in against("cuda:1")
    held.is_inference = lambda: False
    monkeypatch.setattr(choosing.reference, "unpack", None)
    assert "your own functions are active" in against("cuda:1")
    held.is_cuda = False
    assert against("cuda:1") == "layer and input are not both on a GPU"

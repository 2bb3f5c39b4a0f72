"""The GPU's kernel gives the reference's results, up to float32 rounding; without a GPU, in Triton's interpreter.

The interpreter runs each step with numpy. So there, tests prove right sums, but neither speed nor right code for a GPU.
"""

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import types
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qtutor import bnb, rtn
from qtutor.core.codebooks import FP4, INT8, NF4
from qtutor.core.float_grid import FP8
from qtutor.core.grid import IntGrid
from qtutor.runtime import explain
from qtutor.runtime.kernels import choosing, cuda, reference
from qtutor.runtime.linear import QuantLinear
from tests.reference import products
from tests.runtime.kernels.test_cpu import Rows, layer_of, noise

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def missing() -> str:
    """A sentence about why the kernel cannot run here; empty if it can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed: pip install triton (286 MB, 1 GB on disk) runs the GPU's kernel on this CPU"
    version = importlib.metadata.version("triton")
    if DEVICE == "cpu" and tuple(map(int, version.split(".")[:2])) < (3, 7):
        return f"the interpreter of triton {version} fails with numpy 2.4: pip install 'triton>=3.7.1'"
    return ""


needs_triton = pytest.mark.skipif(bool(missing()), reason=missing())
BATCHES = (1, 3, 16)
# Half a step of the dtype. Triton's interpreter truncates to bfloat16, a GPU rounds. So there it is a whole step.
ROUNDING = {torch.float32: 0.0, torch.float64: 0.0, torch.float16: 2**-11, torch.bfloat16: 2**-8}
if DEVICE == "cpu":
    ROUNDING[torch.bfloat16] = 2**-7


def multiply(layer, x: torch.Tensor, launch: cuda.Launch | None = None) -> torch.Tensor:
    """The product of this kernel, moved to the CPU."""
    layer = layer.to(DEVICE)
    return cuda.run(x.to(DEVICE), cuda.prepare(layer), launch).cpu()


def check(layer, x: torch.Tensor, launch: cuda.Launch | None = None) -> torch.Tensor:
    """The product; it may differ from the exact one as far as float32 sums and rounding to x's dtype allow."""
    y = multiply(layer, x, launch)
    exact, size = products.exact(layer.to("cpu").quantized(), x)
    assert y.dtype == x.dtype and y.shape == (*x.shape[:-1], layer.rows)
    off = (y.double() - exact).abs()
    # For many tokens the reference rounds weights to x's dtype, and all terms with them.
    rounded = size if x.numel() // layer.columns > cuda.MOST else exact.abs()
    assert (off <= 4e-6 * size + ROUNDING[x.dtype] * rounded + 1e-30).all(), (off / size).max()
    return y


@needs_triton
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [8, 32, 64, -1, 0])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_every_grid_and_batch(bits, group, symmetric):
    layer = layer_of(bits, group, symmetric)
    assert cuda.reason_against(layer) is None
    for batch in BATCHES:
        x = noise(batch, 64, seed=batch)
        assert torch.equal(check(layer, x), multiply(layer, x))  # deterministic


@needs_triton
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("batch", [1, 4])
def test_every_dtype(dtype, batch):
    for layer in (layer_of(4, 32), layer_of(3, 16, True), QuantLinear.from_quantized(bnb.quantize(noise(70, 64)))):
        check(layer, noise(batch, 64).to(dtype))


CODEBOOKS = {
    "nf4": lambda w: bnb.quantize(w, NF4, group_size=16, double=False),
    "nf4, nested scales": lambda w: bnb.quantize(w, NF4, group_size=64),
    "fp4": lambda w: bnb.quantize(w, FP4),
    "256 levels": lambda w: bnb.quantize(w, INT8),
}


@needs_triton
@pytest.mark.parametrize("make", CODEBOOKS.values(), ids=CODEBOOKS)
def test_levels_of_a_codebook(make):
    layer = QuantLinear.from_quantized(make(noise(70, 128)))
    assert cuda.reason_against(layer) is None
    for batch in (1, 5):
        check(layer, noise(batch, 128, seed=batch))


@needs_triton
@settings(max_examples=25, deadline=None)
@given(
    bits=st.sampled_from([2, 3, 4, 8]),
    rows=st.integers(1, 140),
    groups=st.integers(1, 5),
    eights=st.integers(1, 9),
    batch=st.integers(1, 17) | st.just(64),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
    symmetric=st.booleans(),
    wanted=st.integers(1, 40),
    seed=st.integers(0, 2**31),
)
def test_shapes_that_no_tile_divides(bits, rows, groups, eights, batch, dtype, symmetric, wanted, seed):
    layer = layer_of(bits, 8 * eights, symmetric, rows, 8 * eights * groups, seed)
    x = noise(batch, 8 * eights * groups, seed=seed + 1).to(dtype)
    check(layer, x, cuda.Launch(32, 8, programs=wanted))


@needs_triton
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_slow_and_obvious_product(bits):
    """Code by code, in Python: no arithmetic is shared with the kernel."""
    layer = layer_of(bits, 16, rows=66, columns=32)
    x = noise(1, 32)
    assert np.allclose(multiply(layer, x).numpy(), products.slow(layer.to("cpu").quantized(), x), rtol=1e-5, atol=1e-5)


@needs_triton
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_unit_vectors_give_the_weights_of_the_grid(bits):
    """A unit vector selects one column, so each code has to be read from exactly the right place."""
    layer = layer_of(bits, 32, rows=80)
    weight, x = layer.quantized().dequantize(), torch.eye(64)
    for first in range(0, 64, 16):
        assert torch.equal(multiply(layer, x[first : first + 16]).T, weight[:, first : first + 16])
    assert torch.equal(multiply(layer, x[37:38])[0], weight[:, 37])


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch", [1, 3])
def test_columns_are_shared_out_where_rows_are_few(dtype, batch):
    layer, x = layer_of(4, 32, rows=20, columns=1056), noise(batch, 1056).to(dtype)  # 33 blocks
    shares = [-(-33 // cuda.share(33, 1, wanted)) for wanted in (1, 3, 5, 100)]
    assert shares == [1, 3, 5, 7]  # at most 7: a share has at least four blocks
    for wanted in (1, 3, 5, 100):
        launch = cuda.Launch(32, 8, programs=wanted)
        assert torch.equal(check(layer, x, launch), multiply(layer, x, launch))


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 3000))
def test_shares_hold_every_block_once(blocks, tiles, wanted):
    each = cuda.share(blocks, tiles, wanted)
    shares = -(-blocks // each)
    assert 1 <= each <= blocks and (shares - 1) * each < blocks <= shares * each
    assert each >= min(4, blocks) and (shares == 1 or shares * tiles <= wanted)


@needs_triton
@pytest.mark.parametrize("launch", [cuda.Launch(16, 1), cuda.Launch(128, 4, warps=1), cuda.Launch(64, 32, stages=1)])
def test_however_the_work_is_cut(launch):
    for bits in (3, 4):
        check(layer_of(bits, 64, columns=256), noise(2, 256), launch)


@needs_triton
@pytest.mark.filterwarnings("ignore:invalid value")  # from numpy, in the interpreter
def test_what_is_not_finite_stays_with_its_token():
    layer, x = layer_of(4, 32), noise(3, 64)
    whole = multiply(layer, x)
    x[1, 5] = float("nan")
    y = multiply(layer, x)
    assert torch.equal(y[[0, 2]], whole[[0, 2]]) and y[1].isnan().all()
    x[1, 5] = float("inf")
    assert not multiply(layer, x)[1].isfinite().any()


@needs_triton
def test_what_goes_to_the_reference():
    layer = layer_of(4, 32).to(DEVICE)
    state = cuda.prepare(layer)
    x = noise(2, 64).to(DEVICE).requires_grad_()
    cuda.run(x, state).sum().backward()
    assert torch.allclose(x.grad.cpu(), layer.quantized().dequantize().cpu().sum(0).expand(2, 64), atol=1e-5)
    for x in (noise(17, 64), noise(2, 64).double(), noise(0, 64)):
        x = x.to(DEVICE)
        assert torch.equal(cuda.run(x, state), reference.run(x, reference.prepare(layer)))
    with pytest.raises(RuntimeError, match="shape"):
        cuda.run(noise(2, 32).to(DEVICE), state)


@needs_triton
def test_shapes_of_x_and_views():
    layer = layer_of(4, 32)
    x = noise(64, 6).T
    flat = multiply(layer, x)
    assert torch.equal(multiply(layer, x.reshape(2, 3, 64)), flat.reshape(2, 3, 70))
    assert torch.equal(multiply(layer, x[0]), multiply(layer, x[:1])[0])
    wide = torch.zeros(70 * 32 + 1, dtype=torch.uint8)
    wide[1:] = layer.packed.cpu().flatten()
    layer = layer.to("cpu")
    layer.packed = wide[1:].reshape(70, 32)  # it does not begin at the start of a word
    assert torch.equal(multiply(layer, x), flat)


@needs_triton
def test_a_layer_computes_from_what_it_holds_now(monkeypatch):
    monkeypatch.setattr(QuantLinear, "kernel", lambda self, x: cuda)
    layer, other, x = layer_of(4, 32).to(DEVICE), layer_of(4, 32, seed=1).to(DEVICE), noise(1, 64).to(DEVICE)
    before = layer(x)
    layer.load_state_dict(other.state_dict())
    assert torch.equal(layer(x), other(x)) and not torch.equal(layer(x), before)
    assert layer.prepared(cuda).packed.data_ptr() == layer.packed.data_ptr()  # the bytes exist only once


@needs_triton
def test_in_a_compiled_model(monkeypatch):
    monkeypatch.setattr(QuantLinear, "kernel", lambda self, x: cuda)
    model, x = torch.nn.Sequential(layer_of(4, 32), torch.nn.ReLU()).to(DEVICE), noise(2, 64).to(DEVICE)
    with torch.inference_mode():
        assert torch.equal(torch.compile(model, backend="eager")(x), model(x))


@needs_triton
def test_in_a_worker_of_a_data_loader(monkeypatch):
    """On a GPU torch refuses to work in a forked process; in the interpreter it works."""
    monkeypatch.setattr(QuantLinear, "kernel", lambda self, x: cuda)
    layer = layer_of(4, 32).to(DEVICE)
    expected = [layer(noise(1, 64, seed=i).to(DEVICE)).cpu() for i in range(2)]
    loader = torch.utils.data.DataLoader(
        Rows(layer, 2, DEVICE), num_workers=1, batch_size=None, multiprocessing_context="fork"
    )
    if DEVICE == "cuda":
        with pytest.raises(RuntimeError, match="forked"):
            list(loader)
    else:
        assert all(map(torch.equal, loader, expected))


@pytest.mark.skipif(DEVICE == "cpu", reason="Triton's interpreter computes for one thread at a time; a GPU is needed")
def test_threads_of_python_at_once():
    layer = layer_of(4, 32).to(DEVICE)
    inputs = [noise(1 + i % 5, 64, seed=i).to(DEVICE) for i in range(20)]
    expected = [layer(x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            assert all(map(torch.equal, pool.map(layer, inputs), expected))


@needs_triton
def test_it_compiles_for_a_gpu_that_is_not_here(tmp_path):
    """For an H100, with NVIDIA's assembler, which is part of Triton. The interpreter accepts more than the compiler."""
    program = (
        "import triton; from triton.backends.compiler import GPUTarget; from triton.compiler import ASTSource\n"
        "from qtutor.runtime.kernels.triton_product import product\n"
        "types = dict(x='*bf16', scales='*fp16', zeros='*u8', levels='*fp32', y='*fp32')\n"
        "options = dict(num_warps=4, enable_fp_fusion=True)\n"
        "kinds = (4, '*i32', 0, 1), (2, '*i16', 0, 4), (3, '*u8', 0, 16), (8, '*i32', 0, 2), (4, '*i32', 1, 1)\n"
        "for bits, word, levels, tokens in kinds:\n"
        "    cut = dict(BITS=bits, EACH=1 - levels, LEVELS=levels, TOKENS=tokens, ROWS=32, WORDS=8, STAGES=3)\n"
        "    names = {n: types.get(n, 'constexpr' if n.isupper() else 'i32') for n in product.arg_names}\n"
        "    source = ASTSource(product, names | {'packed': word}, cut)\n"
        "    made = triton.compile(source, target=GPUTarget('cuda', 90, 32), options=options)\n"
        "    print(bits, 'fma.rn.f32' in made.asm['ptx'], len(made.asm['cubin']) > 1000)\n"
    )
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "".join(f"{bits} True True\n" for bits in (4, 2, 3, 8, 4))


@pytest.mark.parametrize("make", [lambda w: rtn.quantize(w, IntGrid(4), 64), bnb.quantize], ids=["4 bits", "nf4"])
def test_what_is_prepared_takes_little_memory(make):
    """Scales and zero points are copied into the kernel's order; codes are not copied."""
    layer = QuantLinear.from_quantized(make(noise(128, 1024)))
    state = cuda.prepare(layer)
    tensors = [state.packed, state.scales, state.zeros, state.plain.zeros, *state.plain.scales.tensors().values()]
    own = {buffer.untyped_storage().data_ptr() for buffer in layer.buffers()}
    new = [t.nbytes for t in tensors if t is not None and t.untyped_storage().data_ptr() not in own]
    assert sum(new) <= layer.nbytes / 8 and state.packed.data_ptr() == layer.packed.data_ptr()


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (lambda: layer_of(5, 32), "5 bits"),
        (lambda: layer_of(4, 4), "not a multiple of 8"),
        (lambda: layer_of(4, 32, rows=0), "empty"),
        (lambda: QuantLinear.from_quantized(rtn.quantize(noise(8, 64), FP8, -1)), "floating-point numbers (fp8)"),
    ],
)
def test_what_it_does_not_take(layer, why):
    assert why in cuda.reason_against(layer())


def test_it_is_chosen_on_a_gpu(monkeypatch):
    """The table of kernels chooses it, for a layer whose buffers pretend to be on a GPU."""
    monkeypatch.setattr(cuda, "available", lambda: True)
    layer = layer_of(4, 32)
    gpu = torch.device("cuda", 0)
    assert choosing.choose(layer, gpu, torch.float32) is reference  # the layer is on the CPU
    there = types.SimpleNamespace(is_cpu=False, is_cuda=True, device=gpu, is_inference=lambda: False)
    monkeypatch.setattr(QuantLinear, "held", lambda self: [there])
    for device, kernel in ((gpu, cuda), (torch.device("cuda"), cuda), (torch.device("cuda", 1), reference)):
        assert choosing.choose(layer, device, torch.bfloat16) is kernel
    assert choosing.choose(layer, torch.device("cpu"), torch.bfloat16) is reference
    monkeypatch.setattr(cuda, "available", lambda: False)
    assert choosing.choose(layer, gpu, torch.bfloat16) is reference


def test_explain_says_how(capsys, monkeypatch):
    monkeypatch.setattr(cuda, "available", lambda: True)
    layer = layer_of(4, 32)
    explain(layer)
    assert "layer and input are not both on a GPU" in capsys.readouterr().out
    there = types.SimpleNamespace(
        is_cpu=False, is_cuda=True, device=torch.device("cuda", 0), is_inference=lambda: False
    )
    monkeypatch.setattr(QuantLinear, "held", lambda self: [there])
    explain(layer, 16, torch.bfloat16, "cuda")
    assert "used: codes are decoded in registers" in capsys.readouterr().out
    explain(layer, 17, torch.bfloat16, "cuda")
    assert "used: 4096 rows at a time are decoded to bfloat16" in capsys.readouterr().out


def test_without_triton_one_warning_says_so(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    cuda.available.cache_clear()
    with pytest.warns(UserWarning, match="triton is not installed"):
        assert "triton is not installed" in cuda.reason_against(layer_of(4, 32))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not cuda.available()
    cuda.available.cache_clear()

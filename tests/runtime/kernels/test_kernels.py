"""Kernels prepare once, and never compute with a layer's old contents. The reference defines the right result."""

import copy
import pickle
import weakref

import pytest
import torch
from torch.nn.functional import linear

import qtutor
from qtutor import bnb, rtn
from qtutor.core.float_grid import FP8
from qtutor.core.grid import IntGrid
from qtutor.core.scales import NestedScales, PlainScales, Scales
from qtutor.runtime.fp8 import Fp8Linear
from qtutor.runtime.int8 import Int8Linear
from qtutor.runtime.kernels import fp8, int8, reference
from qtutor.runtime.linear import QuantLinear
from tests.models import some_ids, tiny


def weight_of(seed: int, rows: int = 24, columns: int = 256) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


MAKE = {
    "3 bits, groups of 16": lambda w: QuantLinear.from_quantized(rtn.quantize(w, IntGrid(3), 16)),
    "4 bits, groups of 64": lambda w: QuantLinear.from_quantized(rtn.quantize(w, IntGrid(4), 64)),
    "2 bits, symmetric": lambda w: QuantLinear.from_quantized(rtn.quantize(w, IntGrid(2, symmetric=True), -1)),
    "5 bits, one scale": lambda w: QuantLinear.from_quantized(rtn.quantize(w, IntGrid(5), 0)),
    "NF4": lambda w: QuantLinear.from_quantized(bnb.quantize(w, double=False)),
    "NF4, nested": lambda w: QuantLinear.from_quantized(bnb.quantize(w, group_size=16)),  # 384 scales, two blocks
    "NF4, nested, large groups": lambda w: QuantLinear.from_quantized(bnb.quantize(w, group_size=128)),
    "int8": lambda w: Int8Linear.from_quantized(bnb.quantize(w, bnb.INT8)),
    "fp8": lambda w: Fp8Linear.from_quantized(rtn.quantize(w, FP8, -1)),
}
ROUNDING = ("int8", "fp8")  # these also round their inputs, and have their own kernels
X = weight_of(9, 5)


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether results are equal, except for the order in which kernels add 256 products of about 1."""
    return torch.allclose(one, other, rtol=1e-5, atol=1e-4)


@pytest.fixture(params=MAKE)
def make(request):
    """A function from weights to a layer; all its layers have the same shape and kind."""
    return MAKE[request.param]


class Counting:
    """A kernel that passes its calls to another, and counts how often it prepares."""

    def __init__(self, kernel):
        self.kernel, self.prepared = kernel, 0

    def prepare(self, layer):
        self.prepared += 1
        return self.kernel.prepare(layer)

    def run(self, x, state):
        return self.kernel.run(x, state)


@pytest.fixture
def count(monkeypatch):
    """Replaces the kernels of layers by kernels that count; returns a function from a layer to the count."""
    kernels = {QuantLinear: Counting(reference), Int8Linear: Counting(int8), Fp8Linear: Counting(fp8)}
    for kind, kernel in kernels.items():
        monkeypatch.setattr(kind, "kernel", lambda self, x, kernel=kernel: kernel)
    return lambda layer: kernels[type(layer)].prepared


@pytest.mark.parametrize("rows", [1, 7, 12, 24, 4096])  # the weight has 24
@pytest.mark.parametrize("name", [name for name in MAKE if name not in ROUNDING])
def test_the_reference_is_the_product_with_dequantized_weights(monkeypatch, name, rows):
    monkeypatch.setattr(reference, "BLOCK_ROWS", rows)
    layer = MAKE[name](weight_of(0))
    weight = layer.quantized().dequantize()
    expected = torch.cat([linear(X, block) for block in weight.split(rows)], dim=-1)
    assert torch.equal(reference.run(X, reference.prepare(layer)), expected)


def test_int8_in_blocks_of_rows_is_the_same(monkeypatch):
    layer = MAKE["int8"](weight_of(0))
    whole = layer(X)
    monkeypatch.setattr(int8, "BLOCK_ROWS", 7)
    assert torch.equal(layer(X), whole)  # sums are exact in float64


def test_prepared_once(make, count):
    layer = make(weight_of(0))
    assert count(layer) == 0
    for x in (X, X[:1], X.bfloat16(), X.reshape(1, 5, 256)):
        layer(x)
    with torch.inference_mode():
        layer(X)
    assert count(layer) == 1
    layer.to("cpu")  # even if nothing moves
    layer(X)
    layer(X)
    assert count(layer) == 2


def test_prepared_state_is_small(make):
    """The state refers to the layer's buffers. Its own tensors are small compared with the codes."""
    layer = make(weight_of(0))
    buffers = {buffer.untyped_storage().data_ptr() for buffer in layer.buffers()}
    held = []
    kernel = int8 if isinstance(layer, Int8Linear) else reference
    for value in vars(kernel.prepare(layer)).values():
        held += value.tensors().values() if isinstance(value, Scales) else [value]
    tensors = [value for value in held if isinstance(value, torch.Tensor)]
    new = [tensor.nbytes for tensor in tensors if tensor.untyped_storage().data_ptr() not in buffers]
    assert len(tensors) >= 2 and sum(new) <= 2 * reference.SMALL * layer.packed.nbytes


def test_what_is_small_is_unpacked_beforehand_and_nothing_else():
    states = {name: reference.prepare(make(weight_of(0))) for name, make in MAKE.items() if name not in ROUNDING}
    small, large = states["4 bits, groups of 64"], states["3 bits, groups of 16"]
    assert small.unpacked and small.zeros.shape == (24, 4)  # a byte for 32 bytes of codes
    assert not large.unpacked and large.zeros.shape == (24, 6)  # 16 of 3 bits in 6 bytes; unpacked, a byte for 6
    assert isinstance(states["NF4, nested, large groups"].scales, PlainScales)  # 4 bytes for 64
    assert isinstance(states["NF4, nested"].scales, NestedScales)
    between = QuantLinear.from_quantized(bnb.quantize(weight_of(0), group_size=64))  # 16 bytes of scales for 128
    assert isinstance(reference.prepare(between).scales, NestedScales)


def exchange(layer, other):
    for name, buffer in other.named_buffers():
        setattr(layer, name, buffer)


def change_in_place(layer, other):
    for name, buffer in other.named_buffers():
        getattr(layer, name).copy_(buffer)


def in_inference_mode(layer, other):
    with torch.inference_mode():
        change_in_place(layer, other)


CHANGES = {
    "loaded": lambda layer, other: layer.load_state_dict(other.state_dict()),
    "assigned": lambda layer, other: layer.load_state_dict(other.state_dict(), assign=True),
    "filled": lambda layer, other: layer.fill(other.quantized()),
    "exchanged": exchange,
    "in place": change_in_place,
    "in place, in inference mode": in_inference_mode,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_layer_computes_from_what_it_holds_now(make, change):
    layer, other = make(weight_of(0)), make(weight_of(1))
    before = layer(X)
    change(layer, other)
    assert torch.equal(layer(X), other(X)) and not torch.equal(layer(X), before)


def test_one_changed_buffer_is_enough():
    """Only zero points change. They were unpacked beforehand, so the state does not refer to their buffer."""
    layer = MAKE["4 bits, groups of 64"](weight_of(0))
    layer(X)
    layer.zeros[0] ^= 1
    assert close(layer(X), linear(X, layer.quantized().dequantize()))
    for mask in (17, 34, 68):  # a new tensor often gets the address and the id of the last but one
        layer.zeros = layer.zeros ^ mask
        layer.zeros = layer.zeros ^ 1
        assert close(layer(X), linear(X, layer.quantized().dequantize()))


def test_tensors_whose_changes_are_not_counted():
    with torch.inference_mode():
        layer, other = (MAKE["4 bits, groups of 64"](weight_of(seed)) for seed in (0, 1))
        layer(X)
        layer.load_state_dict(other.state_dict())
        assert layer.packed.is_inference() and torch.equal(layer(X), other(X))


def test_thresholds_count_as_changes():
    layer = MAKE["int8"](weight_of(0))
    results = [layer(X)]
    for threshold in (0.5, None, 0.0):
        fresh = MAKE["int8"](weight_of(0))
        layer.threshold = fresh.threshold = threshold
        assert torch.equal(layer(X), fresh(X)) and not torch.equal(layer(X), results[-1])
        results.append(layer(X))


def test_casts_leave_the_product_as_it_is(make):
    layer = make(weight_of(0))
    before = layer(X)
    assert torch.equal(layer.to(torch.bfloat16).half().double()(X), before)


def test_moving_frees_what_was_held(make):
    layer = make(weight_of(0))
    layer(X)
    packed = weakref.ref(layer.packed)
    layer.to("meta")
    assert packed() is None
    assert layer.packed.is_meta and layer.prepared(layer.kernel(X)).packed.is_meta  # it prepares again, on that device


def test_copies_prepare_for_themselves(make):
    layer, other = make(weight_of(0)), make(weight_of(1))
    before = layer(X)
    twin = copy.deepcopy(layer)
    assert torch.equal(twin(X), before)
    twin.load_state_dict(other.state_dict())
    assert torch.equal(twin(X), other(X)) and torch.equal(layer(X), before)


def test_state_is_not_saved(make):
    layer = make(weight_of(0))
    unused, names = pickle.dumps(layer), list(layer.state_dict())
    layer(X)
    assert vars(pickle.loads(pickle.dumps(layer))).keys() == vars(pickle.loads(unused)).keys()
    assert len(pickle.dumps(layer)) == len(unused) and list(layer.state_dict()) == names  # it also contains addresses
    assert torch.equal(pickle.loads(unused)(X), layer(X))


@pytest.mark.parametrize("recipe", [{"group_size": 32}, {"method": "nf4", "group_size": 32}, {"method": "int8"}])
def test_a_model_that_was_used_is_exported_like_one_that_was_not(tmp_path, recipe):
    model = tiny()
    qtutor.quantize(model, qtutor.Recipe(**recipe), progress=False)
    size = qtutor.evaluate.model_bytes(model)
    qtutor.export(model, tmp_path / "unused")
    with torch.inference_mode():
        logits = model(some_ids()).logits
    qtutor.export(model, tmp_path / "used")
    for name in ("model.safetensors", "qtutor.json"):
        assert (tmp_path / "used" / name).read_bytes() == (tmp_path / "unused" / name).read_bytes()
    assert qtutor.evaluate.model_bytes(model) == size
    # Load into a model that has been used: all its buffers are replaced.
    other = tiny(seed=1)
    qtutor.quantize(other, qtutor.Recipe(**recipe), progress=False)
    other(some_ids())
    other.load_state_dict(qtutor.load_quantized(tmp_path / "used", device="cpu").state_dict(), assign=True)
    with torch.inference_mode():
        assert torch.equal(other(some_ids()).logits, logits)


class InFloat:
    """A kernel with its own layout: the transposed weights."""

    def prepare(self, layer):
        return layer.quantized().dequantize().T.contiguous()

    def run(self, x, state):
        return x @ state.to(x.dtype)


def test_a_layer_may_choose_its_kernel_by_the_batch(monkeypatch):
    many = InFloat()
    monkeypatch.setattr(QuantLinear, "kernel", lambda self, x: many if len(x) > 1 else reference)
    layer = MAKE["4 bits, groups of 64"](weight_of(0))
    weight = layer.quantized().dequantize()
    for _ in range(2):
        assert torch.equal(layer(X), X @ weight.T.contiguous())
        assert torch.equal(layer(X[:1]), linear(X[:1], weight))

"""The packed bytes exist only once, and code outside a layer never sees them in the kernel's order."""

import copy
import gc
import os
import threading
import weakref

import pytest
import torch
from torch import nn

import qtutor
from qtutor import rtn
from qtutor.core.grid import IntGrid
from qtutor.runtime import lending
from qtutor.runtime.kernels import cpu
from qtutor.runtime.linear import QuantEmbedding, QuantLinear
from tests.models import some_ids, tiny

pytest.importorskip("numba")


def quantized_of(rows: int = 70, seed: int = 0):
    weight = torch.randn(rows, 64, generator=torch.Generator().manual_seed(seed))
    return rtn.quantize(weight, IntGrid(4), 32)


@pytest.fixture
def layer():
    """A layer whose bytes are lent to a kernel."""
    layer = QuantLinear.from_quantized(quantized_of())
    layer(torch.ones(1, 64))
    assert is_lent(layer)
    return layer


def is_lent(layer) -> bool:
    return layer._loan is not None and layer.__dict__["_buffers"]["packed"] is None


EXPECTED = QuantLinear.from_quantized(quantized_of()).packed.clone()


def test_the_tensor_is_freed_when_it_is_lent():
    layer = QuantLinear.from_quantized(quantized_of())
    packed = weakref.ref(layer.packed)
    layer(torch.ones(1, 64))
    gc.collect()
    assert packed() is None and is_lent(layer)


READERS = {
    "attribute": lambda layer: layer.packed,
    "state_dict": lambda layer: layer.state_dict()["packed"],
    "state_dict of a parent": lambda layer: nn.Sequential(layer).state_dict()["0.packed"],
    "named_buffers": lambda layer: dict(layer.named_buffers())["packed"],
    "named_buffers of a parent": lambda layer: dict(nn.Sequential(layer).named_buffers())["0.packed"],
    "buffers of a parent": lambda layer: next(b for b in nn.Sequential(layer).buffers() if b.shape == EXPECTED.shape),
    "get_buffer": lambda layer: layer.get_buffer("packed"),
    "a copy": lambda layer: copy.deepcopy(layer).packed,
    "a shallow copy": lambda layer: copy.copy(layer).packed,
    "a cast": lambda layer: layer.to(torch.bfloat16).packed,
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_every_reader_gets_the_usual_order(layer, read):
    before = layer(torch.ones(1, 64))
    assert torch.equal(read(layer), EXPECTED)
    assert torch.equal(layer(torch.ones(1, 64)), before) and is_lent(layer)


def test_a_shallow_copy_keeps_its_bytes_while_the_original_lends():
    layer = QuantLinear.from_quantized(quantized_of())
    twin = copy.copy(layer)
    layer(torch.ones(1, 64))
    assert is_lent(layer) and torch.equal(twin.packed, EXPECTED)
    assert torch.equal(twin(torch.ones(1, 64)), layer(torch.ones(1, 64)))


def test_sizes_do_not_change(layer):
    assert layer.nbytes == quantized_of().nbytes
    layer(torch.ones(1, 64))
    assert "70 x 64" in repr(layer) and is_lent(layer)


def test_representations_and_modules_leave_it_lent(layer):
    nn.Sequential(layer).train().eval()
    list(nn.Sequential(layer).named_modules())
    list(layer.parameters())
    assert is_lent(layer)


@pytest.mark.parametrize("assign", [True, False])
def test_loading_while_lent(layer, assign):
    other = QuantLinear.from_quantized(quantized_of(seed=1))
    other(torch.ones(1, 64))
    nn.Sequential(layer).load_state_dict(nn.Sequential(other).state_dict(), assign=assign)
    assert torch.equal(layer.packed, other.packed)
    assert torch.equal(layer(torch.ones(1, 64)), other(torch.ones(1, 64)))


def test_exchanged_while_lent(layer):
    other = QuantLinear.from_quantized(quantized_of(seed=1))
    layer.packed = other.packed
    assert layer.packed is other.packed
    layer.scales, layer.zeros = other.scales, other.zeros
    assert torch.equal(layer(torch.ones(1, 64)), other(torch.ones(1, 64)))


def test_who_still_holds_the_tensor_may_change_it():
    layer, other = (QuantLinear.from_quantized(quantized_of(seed=seed)) for seed in (0, 1))
    x, kept = torch.ones(1, 64), layer.packed
    before = layer(x)
    assert is_lent(layer) and layer.packed is kept
    layer(x)
    kept.copy_(other.packed)
    layer.scales.copy_(other.scales)
    layer.zeros.copy_(other.zeros)
    assert torch.equal(layer(x), other(x)) and not torch.equal(layer(x), before)
    kept[0] ^= 1
    assert torch.allclose(layer(x), x @ layer.quantized().dequantize().T, atol=1e-4)


def test_a_table_that_shares_the_bytes():
    quantized = quantized_of()
    layer, table = QuantLinear.from_quantized(quantized), QuantEmbedding.from_quantized(quantized, torch.float32)
    table.packed = layer.packed
    layer(torch.ones(1, 64))
    assert torch.equal(table(torch.tensor([3])), quantized.dequantize()[[3]])
    assert layer.packed is table.packed


def test_an_error_while_preparing_leaves_the_layer_as_it_was(monkeypatch):
    layer = QuantLinear.from_quantized(quantized_of())
    with monkeypatch.context() as patch:
        patch.setattr(cpu, "tiles_of", lambda layer: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            layer(torch.ones(1, 64))
    assert torch.equal(layer.packed, EXPECTED)
    layer(torch.ones(1, 64))


def test_bytes_that_come_back_in_inference_mode_count_their_changes(layer):
    """Otherwise every later call would prepare again: torch counts no changes of tensors made in this mode."""
    with torch.inference_mode():
        packed = layer.packed
    assert torch.equal(packed, EXPECTED) and not packed.is_inference()


def settle(layer) -> None:
    with layer.settled():
        pass


# All that lends bytes or takes them back. Only the last finds bytes that are lent.
WAITING = {
    "settled": (settle, False),
    "attribute": (READERS["attribute"], False),
    "state_dict": (READERS["state_dict"], False),
    "take_back": (QuantLinear.take_back, True),
}


@pytest.mark.parametrize("what", WAITING)
def test_one_thread_waits_for_another(layer, what):
    act, lent = WAITING[what]
    if not lent:
        layer.take_back()
    thread = threading.Thread(target=act, args=(layer,), daemon=True)
    with lending._LOCK:
        thread.start()
        thread.join(0.3)  # enough for all of them, if they do not wait
        assert thread.is_alive() and is_lent(layer) == lent
    thread.join(30)
    assert not thread.is_alive() and torch.equal(layer.packed, EXPECTED)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_does_not_wait_for_a_thread_that_it_does_not_have():
    held, done = threading.Event(), threading.Event()

    def hold():
        with lending._LOCK:
            held.set()
            done.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(30)
    child = os.fork()
    if child == 0:
        os._exit(0 if lending._LOCK.acquire(timeout=5) else 1)
    status = os.waitpid(child, 0)[1]
    done.set()
    thread.join()
    assert os.waitstatus_to_exitcode(status) == 0


def test_generating_lends_once(monkeypatch):
    """For a new token, transformers does not read the buffers, so they stay lent."""
    prepared = []
    original = cpu.prepare
    monkeypatch.setattr(cpu, "prepare", lambda layer: prepared.append(layer) or original(layer))
    model = tiny()
    qtutor.quantize(model, qtutor.Recipe(bits=4, group_size=32), progress=False)
    layers = [layer for layer in model.modules() if isinstance(layer, QuantLinear)]
    model.generate(some_ids()[:1, :4], max_new_tokens=5, do_sample=False)
    assert len(prepared) == len(layers) and all(map(is_lent, layers))


def test_memory_of_a_large_layer():
    """Codes exist once. Scales and zero points exist twice: in the layer, and in the order of the loops."""
    layer = QuantLinear.from_quantized(rtn.quantize(torch.randn(1024, 1024), IntGrid(4), 64))
    layer(torch.ones(1, 1024))
    state = layer._prepared[-1]
    assert state.planes.nbytes == 1024 * 1024 // 2
    assert state.scales.nbytes + state.zeros.nbytes <= 0.09 * layer.nbytes

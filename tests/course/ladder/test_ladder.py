"""Chapter 09's ladder: the time is that of the product, and the moved bytes are those that torch reads and writes."""

import itertools
import time

import pytest
import torch
from torch.nn.functional import linear

import qtutor
from qtutor.course.ladder import decoders, matrices, roofline, rungs, timing, words
from qtutor.measure.against import compare
from qtutor.runtime.kernels import cpu, reference
from qtutor.runtime.linear import QuantLinear

SHAPE = 128, 256


def naive(packed, scales, zeros, x, y):
    codes = torch.from_numpy(packed).unsqueeze(-1) >> torch.tensor([0, 4], dtype=torch.uint8) & 15
    weights = (codes.flatten(1) - torch.from_numpy(zeros).float().repeat_interleave(64, 1)) * torch.from_numpy(
        scales
    ).repeat_interleave(64, 1)
    y[:] = (weights @ torch.from_numpy(x)).numpy()


# --- matrices ---


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_random_layers_are_layers_of_their_shape(bits):
    layer, x = matrices.random_layer(*SHAPE, bits), torch.randn(2, SHAPE[1])
    assert (layer.rows, layer.columns) == SHAPE and layer.grid.bits == bits
    assert torch.allclose(layer(x), x @ layer.quantized().dequantize().T, rtol=1e-4, atol=1e-4)
    assert layer.quantized().codes.unique().numel() == 2**bits


def test_matrices_take_turns_and_do_not_fit_into_a_cache():
    made = matrices.in_turn(object, 1e9)
    first, second, again = (next(made) for _ in range(3))
    assert first is again and first is not second
    small = matrices.in_turn(object, 1)
    assert len({id(next(small)) for _ in range(20)}) == 8


def test_a_decoder_of_tinyllamas_shapes_has_packed_layers_of_the_same_shapes():
    shapes = matrices.BLOCK
    with torch.device("meta"):
        model = matrices.tinyllama(blocks=1, vocabulary=8)
    block = model.model.layers[0]
    found = {
        n.rpartition(".")[2]: tuple(m.weight.shape) for n, m in block.named_modules() if isinstance(m, torch.nn.Linear)
    }
    assert found == shapes


def test_random_codes_replace_the_layers_of_the_blocks_alone():
    model, _ = qtutor.load_decoder()
    matrices.with_random_codes(model)
    packed = [name for name, module in model.named_modules() if isinstance(module, QuantLinear)]
    assert len(packed) == 14 and not isinstance(model.lm_head, QuantLinear)


# --- timing ---


def test_the_shortest_run_of_each_counts_and_long_works_run_twice(monkeypatch):
    ticks = {"now": 0.0}
    monkeypatch.setattr(timing, "clock", lambda: lambda: ticks["now"])
    runs = {"short": iter([9.0, 0.03, 0.01, 0.02]), "long": iter([2.0, 1.0])}

    def work(name):
        ticks["now"] += next(runs[name])

    took = timing.race({name: (lambda name=name: work(name)) for name in runs}, rounds=3)
    assert took == {"short": pytest.approx(0.01), "long": pytest.approx(1.0)}


def test_the_processors_time_counts_on_one_thread_alone():
    with timing.threads(1):
        assert timing.clock() is time.thread_time or time.get_clock_info("thread_time").resolution >= timing.COARSE
        assert timing.clock("cuda") is time.perf_counter
    before = torch.get_num_threads()
    with timing.threads(2):
        assert timing.clock() is time.perf_counter and torch.get_num_threads() == 2
    assert torch.get_num_threads() == before


# --- the roof ---


def test_the_limit_rises_to_the_corner_and_is_flat_behind_it():
    machine = roofline.Machine(bandwidth=10.0, peak=80.0)
    assert machine.corner == 8 and [machine.limit(i) for i in (1, 8, 9)] == [10, 80, 80]
    dot = roofline.Dot("x", operations=100, nbytes=50, seconds=4)
    assert (dot.intensity, dot.speed) == (2, 25)


def test_a_machine_is_measured(monkeypatch):
    monkeypatch.setattr(roofline, "READ", 1 << 16)
    monkeypatch.setattr(roofline, "SIZE", 64)
    machine = roofline.measured(threads=2)
    assert machine.bandwidth > 1e6 and machine.peak > 1e6 and machine.threads == 2


def test_traffic_is_what_torch_reads_and_writes_without_views():
    a = torch.ones(100)
    steps = roofline.traffic(lambda: (a.reshape(10, 10).T + 1).half())
    assert steps == [("add", 800), ("_to_copy", 600)]
    assert roofline.traffic(lambda: a.view(10, 10)[:5]) == []


def test_unpacking_first_moves_several_times_the_float_matrix():
    state = reference.prepare(matrices.random_layer(*SHAPE, 4))
    moved = sum(size for _, size in roofline.traffic(lambda: reference.run(torch.ones(1, SHAPE[1]), state)))
    assert moved > 4 * 4 * SHAPE[0] * SHAPE[1]


# --- the rungs ---


@pytest.fixture(scope="module")
def ladder():
    return rungs.climbed(rungs.rungs(naive, SHAPE), (1, 16), SHAPE)


def test_every_rung_has_a_dot_for_every_batch(ladder):
    fast = (rungs.LANES, rungs.INT8, rungs.TWO) if cpu.available() else ()
    assert ladder.names == (rungs.FLOAT, rungs.EAGER, rungs.NAIVE, *fast, rungs.LIMIT)
    assert set(ladder.dots) == set(itertools.product(ladder.names, (1, 16)))
    for (_, batch), dot in ladder.dots.items():
        assert dot.operations == 2 * batch * SHAPE[0] * SHAPE[1] and dot.seconds > 0


def test_bytes_grow_with_the_batch_only_where_weights_are_read_again(ladder):
    ratio = {n: ladder.dots[n, 16].nbytes / ladder.dots[n, 1].nbytes for n in ladder.names}
    assert ratio[rungs.FLOAT] == ratio[rungs.LIMIT] == 1
    assert ratio[rungs.NAIVE] == 16
    assert ladder.dots[rungs.FLOAT, 1].intensity == 0.5


def test_all_rungs_compute_the_same_product():
    made = {rung.name: rung for rung in rungs.rungs(naive, SHAPE)}
    x = torch.randn(3, SHAPE[1])
    expected = made[rungs.EAGER].work(x)
    assert torch.allclose(made[rungs.NAIVE].work(x), expected, rtol=1e-4, atol=1e-4)
    layer = matrices.random_layer(*SHAPE, 4)
    assert torch.allclose(rungs.on_two(layer, x), linear(x, layer.quantized().dequantize()), rtol=1e-4, atol=1e-4)


def test_rounded_inputs_are_those_of_the_int8_kernel():
    layer, x = matrices.random_layer(*SHAPE, 4), torch.randn(1, SHAPE[1])
    expected = reference.run(decoders.rounded(x, 64), reference.prepare(layer))
    assert torch.allclose(rungs.with_int8_inputs(layer)(x), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected, reference.run(x, reference.prepare(layer)), rtol=1e-4, atol=1e-4)


def test_without_numba_the_compiled_rungs_are_left_out(monkeypatch):
    monkeypatch.setattr(rungs.cpu, "available", lambda: False)
    assert [rung.name for rung in rungs.rungs(None, SHAPE)] == [rungs.FLOAT, rungs.EAGER, rungs.LIMIT]


# --- whole decoders ---


@pytest.fixture(scope="module")
def decoder():
    return qtutor.load_decoder()[0]


def test_paces_are_measured_in_turn(decoder):
    models = decoders.quantized(decoder, {"float": None, "4 bits": qtutor.Recipe("rtn", 4)})
    assert models["float"] is decoder and models["4 bits"] is not decoder
    found = decoders.paces(models, prompt=8, steps=2, rounds=1)
    assert list(found) == ["float", "4 bits"] and all(p.first > 0 and p.each > 0 for p in found.values())
    rows = decoders.pace_rows(models, found)
    assert rows[0][0] == "float" and float(rows[0][1]) > 2 * float(rows[1][1])
    assert float(rows[0][2]) == pytest.approx(found["float"].rate, abs=0.05)


def test_inputs_are_rounded_by_group_within_the_block_alone(decoder):
    packed = decoders.quantized(decoder, {"4 bits": qtutor.Recipe("rtn", 4)})["4 bits"]
    ids = torch.arange(64)
    plain = compare(packed, decoder, ids).kl
    with decoders.rounded_inputs(packed, 64):
        rounded = compare(packed, decoder, ids).kl
    assert rounded != plain and compare(packed, decoder, ids).kl == plain


def test_rounding_leaves_127_steps_to_each_side_of_every_group():
    x = torch.tensor([127.0, 0.4, -1.6, 0.0, 1270.0, 4.0, -16.0, 6.0])
    assert decoders.rounded(x, 4).tolist() == pytest.approx([127, 0, -2, 0, 1270, 0, -20, 10])
    assert decoders.rounded(x, None).tolist() == pytest.approx([130, 0, 0, 0, 1270, 0, -20, 10])
    assert decoders.rounded(torch.zeros(2, 8), 4).tolist() == torch.zeros(2, 8).tolist()


# --- words ---


@pytest.mark.parametrize(
    ("ratio", "said"),
    [
        (2.84, "about 2.8 times as fast"),
        (1.1, "about as fast"),
        (0.9, "about as fast"),
        (0.5, "about 2.0 times as slow"),
        (28.4, "about 28 times as fast"),
        (1 / 284, "about 280 times as slow"),
    ],
)
def test_ratios_in_words(ratio, said):
    assert words.times(ratio) == said

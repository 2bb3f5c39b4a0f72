"""The rungs: ways of multiplying a packed 4-bit matrix by one token or a few, from the obvious one to the limit."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch.nn.functional import linear

from qtutor.core.packing import unpack
from qtutor.course.ladder.matrices import SHAPE, in_turn, random_layer
from qtutor.course.ladder.roofline import Dot, traffic
from qtutor.course.ladder.timing import race, threads
from qtutor.runtime import use
from qtutor.runtime.kernels import cpu, reference, rounded

FLOAT, EAGER, NAIVE, LANES, INT8, TWO, LIMIT = (
    "float32 weights",
    "unpack, then multiply",
    "a naive loop",
    "rows as lanes",
    "int8 inputs",
    "two threads",
    "only reading the bytes",
)
BATCHES = (1, 4, 16)


@dataclass(frozen=True)
class Rung:
    """work: ``work(x)`` multiplies x ``[batch, columns]``. moved: ``moved(batch)`` is how many bytes this moves."""

    name: str
    work: Callable[[torch.Tensor], object]
    moved: Callable[[int], float]


@dataclass(frozen=True)
class Ladder:
    """The result of :func:`climbed`: a dot for every rung and batch, in their order."""

    names: tuple[str, ...]
    batches: tuple[int, ...]
    dots: dict[tuple[str, int], Dot]


def rungs(naive: Callable | None, shape: tuple[int, int] = SHAPE) -> list[Rung]:
    """All rungs for a matrix of this shape.

    naive: the compiled loop of the chapter, ``naive(packed, scales, zeros, x, y)`` for one token, in numpy arrays; with
    ``None`` it is left out. Without numba, there are only the first two rungs and the last one.
    """
    weights = shape[0] * shape[1]
    plain = torch.randn(shape)
    small = random_layer(*shape, 4)
    layers = in_turn(lambda: random_layer(*shape, 4), small.nbytes)
    state = reference.prepare(small)
    eager = {b: sum(size for _, size in traffic(lambda b=b: reference.run(ones(b, shape), state))) for b in BATCHES}
    found = [
        Rung(FLOAT, lambda x: linear(x, plain), lambda batch: plain.nbytes),
        Rung(EAGER, lambda x: reference.run(x, state), lambda batch: eager.get(batch, eager[BATCHES[-1]])),
    ]
    if naive is not None:
        arrays = of_layer(small)
        moved = sum(array.nbytes for array in arrays)  # every token reads everything again
        found.append(Rung(NAIVE, lambda x: by_token(naive, arrays, x), lambda batch: batch * moved))
    if cpu.available():

        def of_kernel(batch: int) -> float:
            decoded = 0 if batch <= cpu.MOST else 2 * 4 * weights  # float32, written and read again
            return small.nbytes + decoded

        found.append(Rung(LANES, lambda x: next(layers)(x), of_kernel))
        rounding = in_turn(lambda: with_int8_inputs(random_layer(*shape, 4)), small.nbytes)
        if rounded.reason_against(small) is None:
            found.append(Rung(INT8, lambda x: next(rounding)(x), of_kernel))
        found.append(Rung(TWO, lambda x: on_two(next(layers), x), of_kernel))
    raw = in_turn(lambda: torch.randint(0, 256, (small.nbytes // 8,)), small.nbytes)
    return [*found, Rung(LIMIT, lambda x: next(raw).sum(), lambda batch: small.nbytes)]


def ones(batch: int, shape: tuple[int, int]) -> torch.Tensor:
    """x ``[batch, columns]``."""
    return torch.ones(batch, shape[1])


def of_layer(layer) -> tuple:
    """Packed codes, float32 scales and uint8 zero points of a layer as numpy arrays, a row for each output."""
    zeros = unpack(layer.zeros, layer.grid.bits, layer.scales_shape[1])
    return layer.packed.numpy(), layer.scales.float().numpy(), zeros.numpy()


def by_token(naive: Callable, arrays: tuple, x: torch.Tensor) -> torch.Tensor:
    """The product by a loop that multiplies one token at a time."""
    y = torch.empty(len(x), len(arrays[0]))
    for token, out in zip(x.numpy(), y.numpy()):
        naive(*arrays, token, out)
    return y


def with_int8_inputs(layer):
    """The layer, set to round its inputs to eight bits."""
    use(layer, activations="int8")
    return layer


def on_two(layer, x: torch.Tensor) -> torch.Tensor:
    """The layer's product on two threads."""
    with threads(2):
        return layer(x)


@torch.inference_mode()
def climbed(ladder: Iterable[Rung], batches: tuple[int, ...] = BATCHES, shape: tuple[int, int] = SHAPE) -> Ladder:
    """Time every rung at every batch; the rungs take turns."""
    ladder, dots = list(ladder), {}
    for batch in batches:
        x = torch.randn(batch, shape[1])
        works = {rung.name: (lambda rung=rung, x=x: rung.work(x)) for rung in ladder}
        took = race(works, on_clock=(TWO,))
        for rung in ladder:
            operations = 2 * batch * shape[0] * shape[1]
            dots[rung.name, batch] = Dot(rung.name, operations, rung.moved(batch), took[rung.name])
    return Ladder(tuple(rung.name for rung in ladder), tuple(batches), dots)

"""The roofline (Williams, Waterman, Patterson 2009): a machine's two limits, and the place of a computation under them.

A computation does operations and moves bytes. Its *intensity* is the number of operations a byte. Memory delivers
``bandwidth`` bytes a second and the processor does ``peak`` operations a second. So no computation does more operations
a second than ``min(peak, intensity * bandwidth)``.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from qtutor.course.ladder import timing

READ = 16 << 20  # float32 numbers that are read to measure the bandwidth: 64 MB
SIZE = 1024  # of the square matrices whose product measures the peak


@dataclass(frozen=True)
class Machine:
    """bandwidth: bytes a second. peak: operations a second in float32. threads: the number of threads for both."""

    bandwidth: float
    peak: float
    threads: int = 1

    @property
    def corner(self) -> float:
        """The intensity, in operations a byte, at which both limits meet."""
        return self.peak / self.bandwidth

    def limit(self, intensity: float) -> float:
        """The most operations a second at this intensity."""
        return min(self.peak, intensity * self.bandwidth)


@dataclass(frozen=True)
class Dot:
    """A computation: its operations, the bytes that it moves, and the seconds that it took."""

    name: str
    operations: float
    nbytes: float
    seconds: float

    @property
    def intensity(self) -> float:
        """Operations a byte."""
        return self.operations / self.nbytes

    @property
    def speed(self) -> float:
        """Operations a second."""
        return self.operations / self.seconds


def measured(threads: int = 1) -> Machine:
    """The limits of this machine on ``threads`` threads: reading 64 MB, and a product of large matrices."""
    numbers = torch.ones(READ)
    left, right = torch.randn(SIZE, SIZE), torch.randn(SIZE, SIZE)
    with timing.threads(threads):
        took = timing.race({"read": numbers.sum, "compute": lambda: left @ right}, rounds=9)
    return Machine(numbers.nbytes / took["read"], 2 * SIZE**3 / took["compute"], threads)


class _Traffic(TorchDispatchMode):
    """Adds up the bytes that operations read and write; operations that only view memory differently move nothing."""

    def __init__(self):
        super().__init__()
        self.steps: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        read = _tensors((args, kwargs))
        written = _tensors(result)
        known = {tensor.untyped_storage().data_ptr() for tensor in read}
        if any(tensor.untyped_storage().data_ptr() not in known for tensor in written):
            self.steps.append((func.overloadpacket.__name__, sum(t.numel() * t.element_size() for t in read + written)))
        return result


def _tensors(value) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    return [t for part in value for t in _tensors(part)] if isinstance(value, list | tuple | type({}.values())) else []


def traffic(work: Callable[[], object]) -> list[tuple[str, int]]:
    """The steps that torch makes when ``work()`` runs, and the bytes that each reads and writes; views do not count.

    Small tensors may come from a cache and not from memory, so the sum is an upper bound.
    """
    with torch.no_grad(), _Traffic() as counting:
        work()
    return counting.steps

"""Which kernel multiplies: a table of what each takes, read from above; the first that fits is used."""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch

from qtutor.runtime.kernels import cpu, reference

# The functions of the package that the reference looks up at every run. In a tuple a learner's function does not
# replace them, so it can be seen that one has taken their place.
_PACKAGES = (reference.dequantize, reference.unpack)


def learners_run() -> bool:
    """Whether functions of a learner have replaced those that the reference computes with."""
    return (reference.dequantize, reference.unpack) != _PACKAGES


def _against_cpu(layer, device: torch.device) -> str | None:
    held = layer.held()
    if device.type != "cpu" or any(not tensor.is_cpu for tensor in held):
        return "layer and input are not both on the CPU"
    if learners_run():
        return "functions of your own are active, which only the reference calls"
    if any(tensor.is_inference() for tensor in held):
        return "its buffers were made in inference mode, where torch counts no changes"
    return cpu.reason_against(layer)


@dataclass(frozen=True)
class Choice:
    """A row of the table. against: why the kernel does not take a layer and a device, or ``None``."""

    kernel: ModuleType
    what: str
    against: Callable[..., str | None]


TABLE = (
    Choice(cpu, "cpu", _against_cpu),
    Choice(reference, "reference", lambda layer, device: None),
)


def choose(layer, device: torch.device) -> ModuleType:
    """The first kernel of :data:`TABLE` that takes ``layer`` for inputs on ``device``."""
    for choice in TABLE:
        if choice.against(layer, device) is None:
            return choice.kernel
    raise AssertionError("the reference takes everything")


def explain(layer, batch: int = 1, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> None:
    """Print which kernel multiplies ``batch`` tokens of ``dtype`` by ``layer``, how, and why the others do not."""
    device = torch.device(device)
    chosen = choose(layer, device)
    print(f"{layer.extra_repr()}; {batch} token{'s' if batch != 1 else ''} of {str(dtype)[6:]} on {device}")
    for choice in TABLE:
        against = choice.against(layer, device)
        if choice.kernel is chosen:
            said = f"used: {choice.kernel.manner(batch, dtype)}"
        else:
            said = f"not used: {against}" if against else "not needed: it takes everything, and is slow"
        print(f"  {choice.what:9}  {said}")

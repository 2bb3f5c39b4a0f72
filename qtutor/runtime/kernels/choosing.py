"""Which kernel multiplies: a table says what each kernel supports, and the first kernel that fits is used.

:func:`use` requests a kernel by name; it then comes before all others.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import nn

from qtutor.errors import QtutorError, shown
from qtutor.runtime.kernels import cpu, cuda, reference, rounded, torch_int4

# The package's own functions, which the reference looks up at every run. A learner's function does not replace them in
# this tuple, so a comparison shows whether one has taken their place.
_PACKAGES = (reference.dequantize, reference.unpack)


def learners_run() -> bool:
    """Whether a learner's functions have replaced those with which the reference computes."""
    return (reference.dequantize, reference.unpack) != _PACKAGES


def _against_cpu(layer, device: torch.device) -> str | None:
    """Why no kernel of the CPU supports a layer, for any grid, or ``None``."""
    if device.type != "cpu" or any(not tensor.is_cpu for tensor in layer.held()):
        return "layer and input are not both on the CPU"
    return _against_any(layer)


def _against_gpu(layer, device: torch.device) -> str | None:
    """Why no kernel of a GPU supports a layer, for any grid, or ``None``."""
    if device.type != "cuda" or any(not tensor.is_cuda for tensor in layer.held()):
        return "layer and input are not both on a GPU"
    if any(device.index not in (None, tensor.device.index) for tensor in layer.held()):
        return "layer and input are not on the same GPU"
    return _against_any(layer)


def _against_any(layer) -> str | None:
    """Why only the reference supports a layer, or ``None``."""
    if learners_run():
        return "your own functions are active, and only the reference calls them"
    if any(tensor.is_inference() for tensor in layer.held()):
        return "its buffers were made in inference mode, where torch does not count changes"
    return None


@dataclass(frozen=True)
class Choice:
    """A row of the table.

    what: the kernel's name. against: returns why the kernel does not support a layer, a device and a dtype of inputs,
    or ``None``. if_asked: the kernel is used only if it is requested by name, because its results are less exact.
    """

    kernel: ModuleType
    what: str
    against: Callable[..., str | None]
    if_asked: bool = False

    def reason_against(self, layer, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why this row is not used for ``layer``, or ``None``."""
        if self.if_asked and layer.asked != self.what:
            return "it is less exact, so it is used only if it is requested"
        return self.against(layer, device, dtype)


INT8 = "cpu, int8 inputs"
TABLE = (
    Choice(
        rounded, INT8, lambda layer, device, dtype: _against_cpu(layer, device) or rounded.reason_against(layer), True
    ),
    Choice(
        torch_int4,
        "torch_int4",
        lambda layer, device, dtype: _against_cpu(layer, device) or torch_int4.reason_against(layer, dtype),
        True,
    ),
    Choice(cpu, "cpu", lambda layer, device, dtype: _against_cpu(layer, device) or cpu.reason_against(layer)),
    Choice(cuda, "cuda", lambda layer, device, dtype: _against_gpu(layer, device) or cuda.reason_against(layer)),
    Choice(reference, "reference", lambda layer, device, dtype: None),
)


def choose(layer, device: torch.device, dtype: torch.dtype) -> ModuleType:
    """The kernel for ``layer`` and inputs of ``dtype`` on ``device``: the requested one, or the first that fits."""
    return _row(layer, device, dtype).kernel


def _row(layer, device: torch.device, dtype: torch.dtype) -> Choice:
    asked = [choice for choice in TABLE if choice.what == layer.asked] if layer.asked else []
    for choice in (*asked, *TABLE):
        if choice.reason_against(layer, device, dtype) is None:
            return choice
    raise AssertionError("the reference supports every layer")


def use(model, kernel: str | None = None, activations: str | None = None) -> int:
    """Request another kernel for all packed layers of ``model`` (or for one layer); return their number.

    kernel: a name of the table, such as ``"reference"`` or ``"torch_int4"``. activations: ``"int8"`` rounds inputs to 8
    bits, which is faster and less exact (:func:`qtutor.evaluate.cost_of_int8_inputs`). Neither: the usual kernel again.
    A layer that the kernel does not support keeps its usual one; :func:`explain` says why. The request is not saved
    with the model.

    Raises :class:`QtutorError` for unknown names, for both arguments at once, if ``model`` is not a model, and if no
    layer is packed.
    """
    if not isinstance(model, nn.Module):
        raise QtutorError(f"use() takes a model, or one of its packed layers; this is {shown(model)}.")
    names = [choice.what for choice in TABLE]
    if activations not in (None, "int8"):
        raise QtutorError(f'activations={activations!r} is unknown: use "int8", or None for float inputs.')
    if kernel not in (None, *names):
        raise QtutorError(f"there is no kernel {kernel!r}: use one of {', '.join(map(repr, names))}, or None.")
    if kernel and activations:
        raise QtutorError(f"kernel={kernel!r} and activations={activations!r} name two kernels: give one of them.")
    layers = [layer for layer in model.modules() if hasattr(layer, "asked") and layer.own is None]
    if not layers:
        raise QtutorError("the model has no packed layer, so there is no kernel to choose: quantize it first.")
    for layer in layers:
        layer.asked = INT8 if activations else kernel
    return len(layers)


def explain(layer, batch: int = 1, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> None:
    """Print which kernel multiplies ``batch`` tokens of ``dtype`` by ``layer``, how, and why the others do not.

    Raises :class:`QtutorError` if ``layer`` is not a packed layer, and if no tokens of this kind are possible.
    """
    _check_packed(layer)
    if type(batch) is not int or batch < 1:
        raise QtutorError(f"batch = {shown(batch)}: give the number of tokens multiplied at once, at least 1.")
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise QtutorError(f"dtype = {shown(dtype)}: give a floating-point dtype, like torch.float32.")
    try:
        device = torch.device(device)
    except (RuntimeError, TypeError):
        raise QtutorError(f"device = {shown(device)}: name one like cpu or cuda.") from None
    print(f"{layer.extra_repr()}; {batch} token{'s' if batch != 1 else ''} of {str(dtype)[6:]} on {device}")
    if layer.own is not None:
        print(f"  {layer.own.__name__.rpartition('.')[2]}  used: layers of this kind have no other kernel")
        return
    chosen = _row(layer, device, dtype)
    width = max(len(choice.what) for choice in TABLE)
    for choice in TABLE:
        against = choice.reason_against(layer, device, dtype)
        if choice is chosen:
            said = f"used: {choice.kernel.manner(batch, dtype)}"
        elif against:
            said = f"not used: {against}"
        elif chosen.what == layer.asked:
            said = "not used: another kernel was requested"
        else:
            said = "not needed: it works for every layer, but is slow"
        print(f"  {choice.what:{width}}  {said}")


def _check_packed(layer) -> None:
    """Raise :class:`QtutorError` unless ``layer`` is a packed linear layer; for a model, it names one of its layers."""
    if isinstance(layer, nn.Module) and hasattr(layer, "asked"):
        return
    what = type(layer).__name__ if isinstance(layer, nn.Module) else shown(layer)
    inside = layer.named_modules() if isinstance(layer, nn.Module) else ()
    first = next((name for name, module in inside if hasattr(module, "asked")), None)
    fits = f"model.get_submodule({first!r})" if first else "one of a quantized model"
    raise QtutorError(f"explain() takes a packed linear layer, like {fits}; this is {what}.")

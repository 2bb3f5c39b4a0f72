"""The format's own library, if it is installed, decodes each layer too; it has to find the same weights.

Left out: ModelOpt, whose library unpacks nothing on a CPU.
"""

import importlib
from collections.abc import Callable, Iterator

import numpy as np
import torch

from qtutor.doctor.finding import Finding
from qtutor.doctor.patient import Layer, Patient
from qtutor.formats import compressed_settings
from qtutor.formats.bitsandbytes import FOUR
from qtutor.formats.gptq import FIRST

TOLERANCE = 2.0**-9  # as a share of the largest weight: libraries decode to float16


class Decoded:
    """Compares layer by layer. A library that fails gives no finding: refusals are a matter of the engines' check."""

    def __init__(self, patient: Patient):
        self.patient, self.differing = patient, []
        self.decode = decoders().get(patient.form)

    def see(self, layer: Layer) -> None:
        if self.decode is None or layer.quantized is None or layer.problem:
            return
        try:
            theirs = self.decode(layer)
        except Exception:
            return
        ours = layer.quantized.dequantize()
        if theirs is not None and (theirs.float() - ours).abs().max() > TOLERANCE * ours.abs().max():
            self.differing.append(layer.name)

    def findings(self) -> Iterator[Finding]:
        if self.differing:
            name, more = self.differing[0], len(self.differing) - 1
            text = f"{name} (and {more} more layers): the library of {self.patient.form} decodes other weights than "
            yield Finding("library", name, f"{text}qtutor: please report this to us, with the versions of both.")


def decoders() -> dict[str, Callable[[Layer], torch.Tensor | None]]:
    """By format, the function of its library that decodes a layer to ``[out, in]``, or to ``None`` if it cannot."""
    return {
        "compressed-tensors": _compressed_tensors,
        "gptq": _gptq,
        "awq": _awq,
        "bitsandbytes": _bitsandbytes,
        "mlx": _mlx,
    }


def _compressed_tensors(layer: Layer) -> torch.Tensor | None:
    module, name = {
        compressed_settings.PACKED: ("pack_quantized", "PackedQuantizationCompressor"),
        compressed_settings.INTEGERS: ("naive_quantized", "IntQuantizationCompressor"),
        compressed_settings.FLOATS: ("naive_quantized", "FloatQuantizationCompressor"),
        compressed_settings.POWERS: ("mxfp4", "MXFP4PackedCompressor"),
        compressed_settings.PRODUCTS: ("nvfp4", "NVFP4PackedCompressor"),
    }.get(layer.layout.kind, (None, None))
    if module is None:
        return None
    base = importlib.import_module(f"compressed_tensors.compressors.{module}.base")
    scheme = importlib.import_module("compressed_tensors.quantization").QuantizationScheme
    scheme = scheme(targets=["Linear"], **compressed_settings.scheme(layer.layout))
    return getattr(base, name).decompress(dict(layer.tensors), scheme)["weight"]


def _gptq(layer: Layer) -> torch.Tensor:
    linear = importlib.import_module("gptqmodel.nn_modules.qlinear.torch").TorchLinear
    (rows, columns), grid, layout = layer.quantized.shape, layer.quantized.grid, layer.layout
    of_its_own = linear(
        grid.bits, layout.group_size, grid.symmetric, layout.ordered, columns, rows, False, register_buffers=True
    )
    of_its_own.load_state_dict(layer.tensors)
    if layout.kind == FIRST:
        model = importlib.import_module("gptqmodel.utils.model")
        model.convert_gptq_v1_to_v2_format_module(of_its_own, bits=grid.bits, pack_dtype=torch.int32)
    of_its_own.optimized = True  # otherwise it is compiled first, which takes seconds for each layer
    of_its_own.post_init()
    return of_its_own.dequantize_weight().T


def _awq(layer: Layer) -> torch.Tensor:
    packing = importlib.import_module("gptqmodel.quantization.awq.utils.packing_utils")
    tensors, columns = layer.tensors, layer.quantized.shape[1]
    size = columns // layer.quantized.scales.shape[1]
    return packing.dequantize_gemm(tensors["qweight"], tensors["qzeros"], tensors["scales"], 4, size).T


def _bitsandbytes(layer: Layer) -> torch.Tensor:
    functional = importlib.import_module("bitsandbytes.functional")
    tensors = layer.tensors
    if layer.layout.kind not in FOUR:
        return functional.int8_vectorwise_dequant(tensors["weight"], tensors["SCB"])
    state = {kind.removeprefix("weight."): tensor for kind, tensor in tensors.items() if kind != "weight"}
    state = functional.QuantState.from_dict(state, torch.device("cpu"))
    return functional.dequantize_4bit(tensors["weight"], state)


def _mlx(layer: Layer) -> torch.Tensor:
    core, quantized = importlib.import_module("mlx.core"), layer.quantized
    words = layer.tensors["weight"].view(torch.int32).numpy().view("uint32")
    numbers = [core.array(layer.tensors[kind].float().numpy()) for kind in ("scales", "biases")]
    weights = core.dequantize(core.array(words), *numbers, quantized.group_size, quantized.grid.bits)
    return torch.from_numpy(np.array(weights))

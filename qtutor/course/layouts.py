"""One block of a layer in the bytes of four formats: which half of which byte holds which weight.

No table lists the places. They are found by trials with each format's own writer. In trial k, the code of a weight is
15 if bit k of the weight's number (counted from 1) is set, else 0. The bits of a half byte over all trials then spell
the number of the weight in it. Scales and zero points are found in the same way.

The block has 8 outputs and 32 inputs, on a symmetric grid of 4 bits in groups of 32, which all four formats can hold.
GGUF's Q4_0 has the same grid and blocks of 32 inputs. But qtutor's exporter rounds anew for Q4_0, so its bytes are made
here.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from qtutor.core.grid import IntGrid
from qtutor.core.quantized import QuantizedTensor
from qtutor.errors import QtutorError
from qtutor.formats import awq, compressed_tensors, gptq
from qtutor.formats.foreign import Layout
from qtutor.gguf import decode

OUTPUTS, INPUTS = 8, 32
GRID = IntGrid(4, symmetric=True)
_CLEAR, _SET = 0x3C00, 0xC3FF  # two float16 numbers that differ in every bit


@dataclass(frozen=True)
class Part:
    """One tensor of a block. name, kind: as in the file. data: its bytes, uint8, in the order of the file.

    shape: of the tensor. holds: "codes", "scales" or "zeros". numbers: for every half byte, the low one of each byte
    first, the number of the weight in it (output * 32 + input), or of the output; -1 for none.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    data: np.ndarray
    holds: str
    numbers: np.ndarray


@dataclass(frozen=True)
class Laid:
    """A block in one format. unit: the piece that a reader reads at once. unit_bytes: the size of this piece."""

    format: str
    unit: str
    unit_bytes: int
    parts: tuple[Part, ...]

    def part(self, holds: str) -> Part | None:
        """The tensor that holds "codes", "scales" or "zeros"; in a Q4_0 block, one tensor holds scales and codes."""
        return next((part for part in self.parts if holds in part.holds), None)

    def places(self, holds: str = "codes") -> np.ndarray:
        """For each number, in order, the half bytes that hold it: int64 ``[numbers, half bytes of one]``."""
        part = self.part(holds)
        numbers = np.where(part.numbers >= 0, part.numbers, -1)
        if part.holds == "scales and codes":  # the first two bytes of 18 are the scale
            in_scale = np.arange(len(numbers)) % 36 < 4
            numbers = np.where(in_scale == (holds == "scales"), numbers, -1)
        count = numbers.max() + 1
        return np.stack([np.flatnonzero(numbers == number) for number in range(count)])


def block_of(layer: QuantizedTensor, outputs: int = 0, inputs: int = 0) -> QuantizedTensor:
    """The block of 8 outputs and 32 inputs of ``layer`` that begins at output 8 * outputs and input 32 * inputs.

    Raises :class:`QtutorError` for another grid or group size, and for a block that does not exist.
    """
    if layer.grid != GRID or layer.group_size != INPUTS:
        raise QtutorError(
            f"a layer of {layer.grid} in groups of {layer.group_size}: the four formats share symmetric 4 bits in "
            "groups of 32. Quantize with bits=4, symmetric=True, group_size=32."
        )
    rows, columns = layer.shape[0] // OUTPUTS, layer.shape[1] // INPUTS
    if not (0 <= outputs < rows and 0 <= inputs < columns):
        raise QtutorError(f"there is no block {outputs}, {inputs}: this layer has {rows} by {columns} of them.")
    down, across = slice(OUTPUTS * outputs, OUTPUTS * (outputs + 1)), slice(INPUTS * inputs, INPUTS * (inputs + 1))
    return QuantizedTensor(layer.codes[down, across], layer.scales[down, inputs : inputs + 1], None, GRID, INPUTS)


def side_by_side(block: QuantizedTensor) -> list[Laid]:
    """``block`` (:func:`block_of`) in the bytes of GGUF, GPTQ, AWQ and compressed-tensors."""
    return [
        Laid(name, unit, size, tuple(_parts(write, block)))
        for name, (unit, size, write) in {
            "GGUF Q4_0": ("block", 18, _q4_0),
            "GPTQ": ("word", 4, _writer(gptq.FORMAT, gptq.FIRST)),
            "AWQ": ("word", 4, _writer(awq.FORMAT, "gemm")),
            "compressed-tensors": ("word", 4, _writer(compressed_tensors.FORMAT, compressed_tensors.PACKED)),
        }.items()
    ]


HOLDS = {"codes": ("blocks", "qweight", "weight_packed"), "scales": ("blocks", "scales", "weight_scale")}
HOLDS |= {"zeros": ("qzeros",)}
Writer = Callable[[QuantizedTensor], dict[str, torch.Tensor]]


def _writer(form, kind: str) -> Writer:
    def write(block: QuantizedTensor) -> dict[str, torch.Tensor]:
        # Only trials have zero points. Version 1 of GPTQ cannot hold a zero point of 0, but version 2 can.
        layout = Layout(block.grid, INPUTS, gptq.SECOND if kind == gptq.FIRST and block.zeros is not None else kind)
        found = form.encode(block, layout)
        return {name: found[name].contiguous() for name in found if any(name in of for of in HOLDS.values())}

    return write


def _q4_0(block: QuantizedTensor) -> dict[str, torch.Tensor]:
    """Blocks of 18 bytes, one for each output: the scale, then inputs j and 16 + j in one byte."""
    halves = block.codes[:, :16] | block.codes[:, 16:] << 4
    return {"blocks": torch.cat([block.scales.half().view(torch.uint8), halves], dim=1)}


def _parts(write: Writer, block: QuantizedTensor) -> list[Part]:
    scales, zeros = torch.ones(OUTPUTS, 1, dtype=torch.float16), None

    def with_codes(bits):
        codes = 15 * bits.reshape(OUTPUTS, INPUTS).to(torch.uint8)
        return write(QuantizedTensor(codes, scales, zeros, GRID, INPUTS))

    def with_scales(bits):
        own = torch.where(bits, _SET - 2**16, _CLEAR).to(torch.int16).view(torch.float16).reshape(OUTPUTS, 1)
        return write(QuantizedTensor(torch.zeros_like(block.codes), own, zeros, GRID, INPUTS))

    def with_zeros(bits):
        own = 15 * bits.reshape(OUTPUTS, 1).to(torch.uint8)
        return write(QuantizedTensor(torch.zeros_like(block.codes), scales, own, IntGrid(4), INPUTS))

    tries = {"codes": (with_codes, OUTPUTS * INPUTS), "scales": (with_scales, OUTPUTS)}
    tries |= {"zeros": (with_zeros, OUTPUTS)}
    found = []
    for name, tensor in write(block).items():
        holds = [what for what, names in HOLDS.items() if name in names]
        numbers = np.max([_numbers(*tries[what])[name] for what in holds], axis=0)
        kind = str(tensor.dtype).removeprefix("torch.")
        found.append(Part(name, kind, tuple(tensor.shape), _bytes(tensor), " and ".join(holds[::-1]), numbers))
    return found


def _numbers(write_bits: Callable[[torch.Tensor], dict], count: int) -> dict[str, np.ndarray]:
    """For each tensor and half byte, which of ``count`` numbers it holds; -1 for none."""
    of = torch.arange(count) + 1  # so that the first has a bit, too
    base = {name: _halves(tensor) for name, tensor in write_bits(torch.zeros(count, dtype=torch.bool)).items()}
    numbers = {name: np.full(len(halves), -1) for name, halves in base.items()}
    for k in range(int(of.max()).bit_length()):
        for name, tensor in write_bits((of >> k & 1).bool()).items():
            numbers[name] += (_halves(tensor) != base[name]).astype(np.int64) << k
    return numbers


def _bytes(tensor: torch.Tensor) -> np.ndarray:
    return np.frombuffer(tensor.contiguous().numpy().tobytes(), np.uint8)


def _halves(tensor: torch.Tensor) -> np.ndarray:
    data = _bytes(tensor)
    return np.stack([data & 15, data >> 4], axis=1).reshape(-1)


def weights_of(laid: Laid) -> np.ndarray:
    """float32 ``[8, 32]``: the block decoded out of the bytes of ``laid``."""
    if laid.format == "GGUF Q4_0":
        return decode(laid.part("codes").data.reshape(OUTPUTS, 18), "Q4_0")
    form, kind = {
        "GPTQ": (gptq.FORMAT, gptq.FIRST),
        "AWQ": (awq.FORMAT, "gemm"),
        "compressed-tensors": (compressed_tensors.FORMAT, compressed_tensors.PACKED),
    }[laid.format]
    dtypes = {"int32": torch.int32, "float16": torch.float16}
    tensors = {
        part.name: torch.frombuffer(bytearray(part.data.tobytes()), dtype=dtypes[part.kind]).reshape(part.shape)
        for part in laid.parts
    } | {"weight_shape": torch.tensor([OUTPUTS, INPUTS])}
    grid = IntGrid(4) if laid.format == "AWQ" else GRID
    return form.decode(tensors, Layout(grid, INPUTS, kind), OUTPUTS, INPUTS).dequantize().numpy()

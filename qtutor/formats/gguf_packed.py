"""A GGUF file as packed layers: the codes and scales in the file, if our grid has the same levels.

Q4_0, Q5_0, Q8_0 and Q6_K are codes around a middle, times one scale for each group of 32 weights, or of 16 for Q6_K.
Their scales may be negative and ours are not, so a block with a negative scale is turned round:
``d (q - 8) = -d (7 - (15 - q))`` has the code ``15 - q`` and the zero point 7. Nothing is rounded.

Left out: types with a minimum of their own (Q4_1, Q5_1, Q2_K, Q4_K, Q5_K), since that may be anywhere between two
levels, while a zero point is one of the levels; types with levels of their own (IQ4_NL, MXFP4 ...); Q3_K, ternary
types. Embeddings, the head and layers in 16 or 32 bits become float32, which holds their values exactly.
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from qtutor.core.grid import IntGrid
from qtutor.core.quantized import QuantizedTensor
from qtutor.errors import QtutorError, naming
from qtutor.families import linear_layers
from qtutor.formats.comparing import check_finite
from qtutor.formats.foreign import stored_scales
from qtutor.formats.gguf_reading import Opened, decoded_one, opened, take_ends, tensors_in
from qtutor.formats.transformers_files import filled
from qtutor.gguf.architecture import from_file
from qtutor.gguf.coding import decode
from qtutor.runtime.linear import QuantLinear

HELD = {"Q4_0": (4, 32), "Q5_0": (5, 32), "Q8_0": (8, 32), "Q6_K": (6, 16)}  # bits, weights that share a scale
FLOATS = ("F32", "F16", "BF16")
ONE = np.array([0x00, 0x3C], np.uint8)  # 1.0 as float16
D = {"Q6_K": 208}  # the byte at which the float16 scale of a block begins, if not at 0


class _Part:
    """A file whose tensors are one part of their blocks, codes or scales, in place of the weights."""

    def __init__(self, file, part: int):
        self.tensors, self.metadata, self.path = file.tensors, file.metadata, file.path
        self._file, self._part = file, part

    def weight(self, name: str) -> np.ndarray:
        return codes_and_scales(self._file.data(name), self.tensors[name].type.name)[self._part]


def load(path: str | Path, device: str | None = None) -> nn.Module:
    """The decoder in a GGUF file with packed layers.

    Raises :class:`QtutorError` naming the layers whose type has levels that our grid does not have, and as
    :func:`qtutor.formats.gguf.load` does.
    """
    found = opened(path)
    model, where = found.model, str(found.file.path)
    layers = {name: found.wanted[f"{name}.weight"][0] for name in linear_layers(model)}
    _check(where, {name: _type(found, tensor) for name, tensor in layers.items()})
    codes, scales = (tensors_in(_Part(found.file, part), model.config) for part in (0, 1))
    model.config.dtype = torch.float32
    tensors = {}
    for name, tensor in layers.items():
        kind = _type(found, tensor)
        if kind in HELD:
            own = [from_file(tensor, part[tensor][1](), model.config) for part in (codes, scales)]
            bias = f"{name}.bias" if f"{name}.bias" in found.wanted else None
            with naming(f"{where}: {tensor}"):
                quantized = quantized_of(*map(torch.from_numpy, map(np.ascontiguousarray, own)), *HELD[kind])
            layer = QuantLinear.from_quantized(quantized, None if bias is None else decoded_one(found, bias))
            model.set_submodule(name, layer)
            tensors |= {f"{name}.{key}": value for key, value in layer.state_dict().items()}
    tensors |= {name: decoded_one(found, name) for name in found.wanted if name in model.state_dict()}
    check_finite(where, tensors)
    model = filled(model, tensors, where, device)
    take_ends(model, found.file)
    return model


def codes_and_scales(data: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """The codes minus the middle ``[rows, columns]`` and the scales ``[rows, groups]`` of blocks ``[rows, bytes]``.

    Both are float32. The codes are computed by decoding the same blocks with all scales set to 1.
    """
    at, nbytes = D.get(kind, 0), {"Q4_0": 18, "Q5_0": 22, "Q8_0": 34, "Q6_K": 210}[kind]
    blocks = np.array(data).reshape(len(data), -1, nbytes)
    scales = blocks[..., at : at + 2].copy().view("<f2").astype(np.float32)  # [rows, blocks, 1]
    blocks[..., at : at + 2] = ONE
    if kind == "Q6_K":
        scales = scales * blocks[..., 192:208].view(np.int8).astype(np.float32)
        blocks[..., 192:208] = 1
    return decode(blocks.reshape(data.shape), kind), scales.reshape(len(data), -1)


def quantized_of(values: torch.Tensor, scales: torch.Tensor, bits: int, group_size: int) -> QuantizedTensor:
    """A matrix of ours from codes minus the middle and scales of any sign: symmetric if no scale is negative."""
    middle = 2 ** (bits - 1)
    codes = (values + middle).to(torch.uint8)
    if not (scales < 0).any():
        return QuantizedTensor(codes, stored_scales(scales), None, IntGrid(bits, symmetric=True), group_size)
    turned = (scales < 0).repeat_interleave(group_size, dim=1)
    codes = torch.where(turned, 2 * middle - 1 - codes, codes)
    zeros = torch.where(scales < 0, middle - 1, middle).to(torch.uint8)
    return QuantizedTensor(codes, stored_scales(scales.abs()), zeros, IntGrid(bits), group_size)


def _type(found: Opened, tensor: str) -> str:
    """The block type of a tensor; if q, k and v are one tensor in the file, the type of that."""
    stored = found.file.tensors
    name = tensor if tensor in stored else ".".join([*tensor.split(".")[:2], "attn_qkv", "weight"])
    return stored[name].type.name


def _check(where: str, types: dict[str, str]) -> None:
    wrong = {name: kind for name, kind in types.items() if kind not in (*HELD, *FLOATS)}
    if wrong:
        kinds = sorted(set(wrong.values()))
        raise QtutorError(
            f"{where}: {len(wrong)} of {len(types)} layers ({', '.join(list(wrong)[:3])}{' ...' * (len(wrong) > 3)}) "
            f"are {', '.join(kinds)}, whose levels are no whole steps from a zero point, so no other format holds them "
            f"without rounding again. Types that can be held are {', '.join(HELD)}: take the model in one of these, or "
            "quantize the float checkpoint."
        )
    if not any(kind in HELD for kind in types.values()):
        raise QtutorError(f"{where}: no layer is quantized: use 'qtutor quantize'.")

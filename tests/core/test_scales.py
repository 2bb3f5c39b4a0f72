"""Ways to store scales: each one decodes, counts its bytes and names its tensors. A new way needs nothing else."""

from dataclasses import dataclass

import pytest
import torch
from torch.nn.functional import linear

from qtutor import bnb
from qtutor.core.grid import IntGrid
from qtutor.core.quantized import QuantizedTensor
from qtutor.core.scales import NestedScales, PlainScales, Scales
from qtutor.errors import QtutorError
from qtutor.runtime.linear import QuantEmbedding, QuantLinear

SHAPES = [(1, 1), (1, 7), (3, 100), (5, 256), (300, 3)]  # blocks of 256 end inside rows, or where a row ends


def some_scales(shape: tuple[int, int]) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) + 0.5


def stored(shape: tuple[int, int]) -> list[Scales]:
    return [PlainScales(some_scales(shape)), PlainScales(some_scales(shape).half()), bnb.nest(some_scales(shape))]


@pytest.mark.parametrize("shape", SHAPES)
def test_nested_scales_are_levels_times_the_largest_of_their_block_and_the_mean(shape):
    scales = bnb.nest(some_scales(shape))
    levels = NestedScales.GRID.values
    expected = [
        levels[code] * float(scales.absmax[i // 256]) + float(scales.offset)
        for i, code in enumerate(scales.codes.flatten().tolist())
    ]
    decoded = scales.decode()
    assert decoded.dtype == torch.float32 and decoded.shape == shape
    torch.testing.assert_close(decoded.flatten().double(), torch.tensor(expected).double(), rtol=1e-6, atol=1e-7)
    assert (decoded - some_scales(shape)).abs().max() < 0.02


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_are_those_of_the_whole(shape):
    for scales in stored(shape):
        whole = scales.decode()
        for index in (slice(None), slice(0, 2), torch.tensor([shape[0] - 1, 0, 0])):
            expected = whole if shape[0] == 1 else whole[index]  # a single row of scales belongs to all rows
            assert torch.equal(scales.rows(index), expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_tensors_come_back_and_are_as_large_as_said(shape):
    for scales, grid in zip(stored(shape), (bnb.NF4, IntGrid(4), bnb.NF4)):
        tensors = scales.tensors()
        assert tuple(tensors) == scales.NAMES
        again = type(scales).of({"packed": torch.zeros(3), **tensors})
        assert torch.equal(again.decode(), scales.decode())
        said = type(scales).shapes(shape, grid)
        assert {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()} == said and list(said) == list(tensors)
        assert scales.nbytes == sum(len(t.flatten()) * t.element_size() for t in tensors.values())


def test_names_are_those_in_the_files():
    assert list(PlainScales.NAMES) == ["scales"]
    assert list(NestedScales.NAMES) == ["scale_codes", "scale_absmax", "scale_offset"]


def test_only_scales_of_their_own_can_be_split():
    scales = some_scales((5, 3))
    parts = PlainScales(scales).split([2, 3])
    assert torch.equal(parts[0].decode(), scales[:2]) and torch.equal(parts[1].decode(), scales[2:])
    with pytest.raises(QtutorError, match="5 rows cannot be split: they share 1 row of scales"):
        PlainScales(scales[:1]).split([2, 3])
    with pytest.raises(QtutorError, match="4 rows cannot be split"):
        PlainScales(scales).split([2, 2])
    with pytest.raises(QtutorError, match="nested scales cannot be split"):
        bnb.nest(scales).split([2, 3])
    with pytest.raises(QtutorError, match="nested scales cannot be split"):
        bnb.quantize(torch.randn(4, 64)).split([2, 2])


@dataclass(frozen=True)
class PowersOfTwo(Scales):
    """Scales as in MXFP4: the exponent plus 127 is stored."""

    exponents: torch.Tensor

    NAMES = ("scales",)

    def decode(self):
        return 2.0 ** (self.exponents.float() - 127)

    def rows(self, index):
        return 2.0 ** (self.exponents[index].float() - 127)

    def split(self, rows):
        return [PowersOfTwo(part) for part in self.exponents.split(rows)]

    @classmethod
    def shapes(cls, shape, grid):
        return {"scales": (shape, torch.uint8)}


def test_another_way_to_store_them_runs_in_every_layer():
    codes = torch.randint(0, 16, (6, 64), dtype=torch.uint8)
    exponents = torch.randint(120, 130, (6, 2), dtype=torch.uint8)
    quantized = QuantizedTensor(codes, PowersOfTwo(exponents), None, IntGrid(4, symmetric=True), 32)
    weight = (codes.float() - 8) * (2.0 ** (exponents.float() - 127)).repeat_interleave(32, dim=1)
    assert torch.equal(quantized.dequantize(), weight) and quantized.nbytes == 6 * 32 + 12
    layer = QuantLinear.from_quantized(quantized)
    assert layer.nbytes == quantized.nbytes and layer.scales.dtype == torch.uint8
    empty = QuantLinear(6, 64, quantized.grid, 32, scales_as=PowersOfTwo)
    empty.load_state_dict(layer.state_dict())
    x, ids = torch.randn(3, 64), torch.tensor([5, 0, 5])
    assert torch.allclose(empty(x), linear(x, weight), rtol=1e-5, atol=1e-3)  # sums of 64 products of up to 60
    assert torch.equal(empty.quantized().scales, quantized.scales)
    assert torch.equal(QuantEmbedding.from_quantized(quantized, torch.float32)(ids), weight[ids])
    assert [len(part.codes) for part in quantized.split([2, 4])] == [2, 4]
    assert torch.equal(quantized.split([2, 4])[1].dequantize(), weight[2:])

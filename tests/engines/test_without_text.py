"""HQQ and SINQ compared with their own packages, which have a separate folder in the engines' environment."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

import qtutor
from qtutor.core.grid import IntGrid
from qtutor.methods import hqq, sinq
from tests.reference import hqq_package

ASIDE = Path(sys.prefix) / "aside"

pytestmark = pytest.mark.skipif(not (ASIDE / "hqq").is_dir(), reason="hqq and sinq are not installed here")


@pytest.fixture
def aside(monkeypatch):
    """A function that imports a module from the folder; after the test, the module is removed again."""
    monkeypatch.syspath_prepend(str(ASIDE))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("hqq", "sinq", "termcolor"):
            del sys.modules[name]


@pytest.fixture(scope="module")
def weights():
    model, _ = qtutor.load_decoder(device="cpu")
    layers = model.model.layers
    return [layer.weight.detach().float() for layer in (layers[0].self_attn.q_proj, layers[1].mlp.down_proj)]


@pytest.mark.parametrize(("bits", "most"), [(2, 0.9), (3, 1.02), (4, 1.06)])
@pytest.mark.parametrize("group_size", [32, 64])
def test_hqq(aside, weights, bits, most, group_size):
    """The package's zero points are floats of 16 bits, ours are codes.

    At 2 bits, our errors are still smaller; at 4 bits, our codes cost up to 5 %.
    """
    quantizer = aside("hqq.core.quantize").Quantizer
    options = {"axis": 1, "bitpack": False, "device": "cpu", "compute_dtype": torch.float32}
    for weight in weights:
        theirs = quantizer.dequantize(*quantizer.quantize(weight, nbits=bits, group_size=group_size, **options))
        ours = hqq.quantize(weight, IntGrid(bits), group_size).dequantize()
        error = (theirs - weight).abs().mean()
        assert (ours - weight).abs().mean() < most * error
        # Tests without the package use this page (tests/reference). A weight in the middle between two levels may go
        # either way, by the last bit of a scale.
        page = torch.from_numpy(hqq_package.quantize(weight.numpy(), bits, group_size, False))
        assert ((page - theirs).abs() > 1e-3 * weight.abs().mean()).float().mean() < 0.02
        assert (page - weight).abs().mean() == pytest.approx(error.item(), rel=1e-3)


def test_sinq(aside, weights):
    """The scales of rows and columns are the same if the package balances a matrix as a whole."""
    spec = importlib.util.spec_from_file_location("sinkhorn", ASIDE / "sinq" / "sinkhorn.py")  # not sinq/__init__.py
    sinkhorn = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sinkhorn)
    draws, uneven = torch.Generator().manual_seed(0), []
    for rows, columns in ((64, 96), (128, 64), (16, 200)):
        sizes = torch.rand(rows, 1, generator=draws) * torch.rand(columns, generator=draws)
        uneven.append(torch.randn(rows, columns, generator=draws) * sizes)
    # For uneven matrices, the imbalance hardly falls in the last turns, so a last bit decides which turn is the last.
    for weight, apart in [(weight, 1e-5) for weight in weights] + [(weight, 2e-2) for weight in uneven]:
        scaled, of_columns, of_rows = sinkhorn.sinkhorn_log(weight, sinq.TURNS)
        rows, columns = sinq.balance(weight)
        torch.testing.assert_close(rows, of_rows.flatten(), rtol=apart, atol=0)
        torch.testing.assert_close(columns, of_columns.flatten(), rtol=apart, atol=0)
        assert sinq.imbalance(weight / columns / rows[:, None]) == pytest.approx(sinq.imbalance(scaled), rel=1e-3)

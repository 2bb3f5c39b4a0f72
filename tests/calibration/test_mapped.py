"""Weights that are mapped from a file leave memory, and come back as they were."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qtutor.calibration.mapped import page_out


def resident(kind: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(kind))


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux how much is in memory")
def test_pages_of_a_file_are_handed_back_and_read_again(tmp_path):
    size = 2**23  # 32 MiB
    save_file({"weight": torch.arange(size, dtype=torch.float32).reshape(1, -1)}, tmp_path / "a.safetensors")
    layer = torch.nn.Linear(size, 1, bias=False)
    layer.weight.data = load_file(tmp_path / "a.safetensors")["weight"]
    layer.weight.data[0, 0] = -1.0  # changed in memory only: that must not be lost
    total = layer.weight.double().sum()
    before = resident("RssFile")
    page_out([layer.weight])
    assert before - resident("RssFile") > 3 * size
    assert layer.weight.double().sum() == total and layer.weight[0, 0] == -1 and layer.weight[0, -1] == size - 1


def test_other_weights_are_left_alone():
    model = torch.nn.Sequential(torch.nn.Linear(300, 200), torch.nn.Linear(200, 1))
    before = [parameter.clone() for parameter in model.parameters()]
    page_out(model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    page_out(torch.nn.Linear(3, 3, device="meta").parameters())

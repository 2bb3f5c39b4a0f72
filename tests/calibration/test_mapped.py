"""Weights that are mapped from a file leave memory, and come back as they were."""

import ctypes
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from qtutor.calibration import mapped
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
    layer.weight.data[0, 0] = -1.0  # changed only in memory: this change must not be lost
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


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux is told")
def test_only_whole_pages_of_files_are_handed_back(tmp_path, monkeypatch):
    page, told = 4096, []
    monkeypatch.setattr(mapped.mmap, "PAGESIZE", page)
    library = SimpleNamespace(madvise=lambda begin, size, advice: told.append((begin.value, size.value, advice)))
    monkeypatch.setattr(mapped.ctypes, "CDLL", lambda _: library)
    save_file({"weight": torch.ones(40 * page, dtype=torch.uint8)}, tmp_path / "a.safetensors")
    of_a_file, of_the_heap = load_file(tmp_path / "a.safetensors")["weight"], torch.ones(40 * page, dtype=torch.uint8)
    first = -of_a_file.data_ptr() % page  # the header comes before the tensor, so no page begins with it
    inside = of_a_file[first : first + page]
    page_out([of_the_heap, of_a_file[: first + page - 1], inside, of_a_file[first - 1 : first + 3 * page + 1]])
    assert told == [(inside.data_ptr(), page, 21), (inside.data_ptr(), 3 * page, 21)]
    (tmp_path / "pages").write_bytes(bytes(2 * page))
    whole = torch.from_file(str(tmp_path / "pages"), shared=True, size=2 * page, dtype=torch.uint8)
    page_out([whole, whole[:page], whole[page:]])
    assert told[2:] == [
        (whole.data_ptr(), 2 * page, 21),
        (whole.data_ptr(), page, 21),
        (whole.data_ptr() + page, page, 21),
    ]


@pytest.mark.skipif(sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="glibc's own")
def test_free_heap_is_handed_back_where_there_is_enough_of_it():
    kept = [torch.ones(16_000) for _ in range(4000)]  # 256 MB, each small enough for the heap
    kept = kept[::40]  # so that holes lie between tensors in use
    before = resident("RssAnon")
    mapped.trim_heap(above=10**12)
    assert resident("RssAnon") > before - 20_000_000
    mapped.trim_heap(above=50_000_000)
    assert resident("RssAnon") < before - 150_000_000
    assert all(torch.equal(tensor, torch.ones(16_000)) for tensor in kept)


def test_a_heap_that_cannot_tell_is_trimmed(monkeypatch):
    asked = []
    library = type("Library", (), {"malloc_trim": staticmethod(asked.append)})()
    monkeypatch.setattr(mapped.ctypes, "CDLL", lambda _: library)
    monkeypatch.setattr(mapped.sys, "platform", "linux")
    mapped.trim_heap(above=10**12)
    assert asked == [0]
    monkeypatch.setattr(mapped.sys, "platform", "darwin")
    mapped.trim_heap()
    assert asked == [0]

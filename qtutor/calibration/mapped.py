"""The weights of a decoder, one block at a time, wherever they are.

:class:`Weights` are those of a model in memory. Of one that is mapped from its files, as safetensors maps them, all
memory is handed back before the first block, and that behind a block once the block is copied.
:mod:`qtutor.formats.streamed` has weights that are in files alone, where the model itself has only shapes.
"""

import contextlib
import copy
import ctypes
import mmap
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import nn

from qtutor.families import decoder_blocks

MADV_PAGEOUT = 21  # of madvise(2), since Linux 5.4


class Weights:
    """The weights of ``model``, a transformers decoder, which is only read.

    files: what they were loaded from, for whoever wants to know later whether they are the same; maybe none. places:
    what must not be written to while they are read: the files, or the folder of a checkpoint.
    """

    def __init__(self, model: nn.Module, files: Iterable[Path] = ()):
        self.model, self.files = model, tuple(files)
        self.places = self.files

    def tensor(self, name: str) -> torch.Tensor:
        """The parameter ``name`` in the model's dtype, to be read and not to be changed."""
        return self.model.get_parameter(name).detach()

    def block(self, index: int) -> nn.Module:
        """A copy of a decoder block, float32, free to be changed."""
        own = decoder_blocks(self.model)[index]
        module = copy.deepcopy(own).eval().float().requires_grad_(False)
        page_out(own.parameters())
        return module

    @contextlib.contextmanager
    def around_blocks(self) -> Iterator[None]:
        """Inside, the model can be run as far as everything but its blocks is concerned."""
        yield
        page_out(self.model.parameters())  # whoever loaded the model has read all of it: blocks come back one by one

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """Inside, the model can be run."""
        yield

    def release(self, tensors: Iterable[torch.Tensor]) -> None:
        """Nobody needs these ``tensors`` soon; those of a model in memory stay there."""


class _Mallinfo(ctypes.Structure):
    """What glibc says of its heap, in bytes (mallinfo2(3)); ``fordblks`` is what is free."""

    _fields_ = [(f"before_{place}", ctypes.c_size_t) for place in range(8)] + [
        ("fordblks", ctypes.c_size_t),
        ("keepcost", ctypes.c_size_t),
    ]


def trim_heap(above: int = 0) -> None:
    """Hand back memory that is free in the heap: glibc keeps what lies between tensors that are in use.

    Without it, GPTQ on blocks of 44 million weights held 0.2 to 0.4 GB that nobody used. above: not for so few bytes.
    What is handed back has to be fetched again, page by page: with SmolLM2 that took a tenth of GPTQ's time.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    trim, info = getattr(library, "malloc_trim", None), getattr(library, "mallinfo2", None)
    if trim is None:
        return
    if above and info is not None:  # glibc tells since 2.33
        info.restype = _Mallinfo
        if info().fordblks <= above:
            return
    trim(0)


def page_out(tensors: Iterable[torch.Tensor]) -> None:
    """Hand back the memory behind those of ``tensors`` that are mapped from a file.

    They stay what they are: whoever reads them next has them read from the file again. A model that is read block by
    block then never is in memory as a whole. Does nothing to other tensors, and on systems other than Linux.
    """
    if sys.platform != "linux":
        return
    mapped = []
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        span, _, _, _, inode, *_ = line.split()
        if inode != "0":
            mapped.append([int(end, 16) for end in span.split("-")])
    advise, page = ctypes.CDLL(None).madvise, mmap.PAGESIZE
    for tensor in tensors:
        begin, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        if tensor.device.type == "cpu" and any(first <= begin and end <= last for first, last in mapped):
            begin, end = -(-begin // page) * page, end // page * page  # whole pages only
            if begin < end:
                advise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), MADV_PAGEOUT)

"""The weights of a decoder, one block at a time, from memory or from files.

:class:`Weights` are those of a model in memory. If the model is mapped from its files, as safetensors maps it, all of
its memory is handed back before the first block, and the memory of each block again once the block is copied.
:mod:`qtutor.formats.streamed` has weights that are only in files; its models have only shapes.
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

    files: the files from which the weights were loaded, to check later whether they are the same; may be empty. places:
    the files, or the folder of a checkpoint, that must not be written to while the weights are read.
    """

    def __init__(self, model: nn.Module, files: Iterable[Path] = ()):
        self.model, self.files = model, tuple(files)
        self.places = self.files

    def tensor(self, name: str) -> torch.Tensor:
        """The parameter ``name`` in the model's dtype; read it, but do not change it."""
        return self.model.get_parameter(name).detach()

    def block(self, index: int) -> nn.Module:
        """A copy of a decoder block, float32, which may be changed."""
        own = decoder_blocks(self.model)[index]
        module = copy.deepcopy(own).eval().float().requires_grad_(False)
        page_out(own.parameters())
        return module

    @contextlib.contextmanager
    def around_blocks(self, head: bool = False) -> Iterator[None]:
        """Inside, everything in the model except its blocks can be run, and the output matrix only with ``head``."""
        yield
        page_out(self.model.parameters())  # loading has read the whole model: blocks come back one by one

    def release(self, tensors: Iterable[torch.Tensor]) -> None:
        """Say that these ``tensors`` are not needed soon; tensors of a model in memory stay there."""


class _Mallinfo(ctypes.Structure):
    """What glibc says about its heap, in bytes (mallinfo2(3)); ``fordblks`` is the free part."""

    _fields_ = [(f"before_{place}", ctypes.c_size_t) for place in range(8)] + [
        ("fordblks", ctypes.c_size_t),
        ("keepcost", ctypes.c_size_t),
    ]


def trim_heap(above: int = 0) -> None:
    """Hand back free memory of the heap: glibc keeps free memory between tensors that are in use.

    Without this function, GPTQ on blocks of 44 million weights held 0.2 to 0.4 GB of unused memory. above: do nothing
    if this many bytes or fewer are free. Memory that was handed back has to be fetched again, page by page: with
    SmolLM2 this took a tenth of GPTQ's time.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    trim, info = getattr(library, "malloc_trim", None), getattr(library, "mallinfo2", None)
    if trim is None:
        return
    if above and info is not None:  # glibc has this since 2.33
        info.restype = _Mallinfo
        if info().fordblks <= above:
            return
    trim(0)


def page_out(tensors: Iterable[torch.Tensor]) -> None:
    """Hand back the memory of those ``tensors`` that are mapped from a file.

    Their values stay the same: the next access reads them from the file again. So a model that is read block by block
    is never in memory as a whole. Does nothing to other tensors, and nothing on systems other than Linux.
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

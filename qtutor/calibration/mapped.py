"""Models whose weights are mapped from a file, as safetensors maps them: in memory is only what was read lately."""

import ctypes
import mmap
import sys
from pathlib import Path

from torch import nn

MADV_PAGEOUT = 21  # of madvise(2), since Linux 5.4


def page_out(module: nn.Module) -> None:
    """Hand back the memory behind those parameters of ``module`` that are mapped from a file.

    They stay what they are: whoever reads them next has them read from the file again. A model that is read block by
    block then never is in memory as a whole. Does nothing to other parameters, and on systems other than Linux.
    """
    if sys.platform != "linux":
        return
    mapped = []
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        span, _, _, _, inode, *_ = line.split()
        if inode != "0":
            mapped.append([int(end, 16) for end in span.split("-")])
    advise, page = ctypes.CDLL(None).madvise, mmap.PAGESIZE
    for parameter in module.parameters():
        begin, end = parameter.data_ptr(), parameter.data_ptr() + parameter.nbytes
        if parameter.device.type == "cpu" and any(first <= begin and end <= last for first, last in mapped):
            begin, end = -(-begin // page) * page, end // page * page  # whole pages only
            if begin < end:
                advise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), MADV_PAGEOUT)

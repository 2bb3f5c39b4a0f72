"""No test may need the network: the hub is switched off, and a connection to any other machine fails at once.

No test may need files outside the clone either: matplotlib keeps its cache of fonts inside.
"""

import os
import socket
from pathlib import Path

from tests.capability import without_amx

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub
# Before anything imports matplotlib. A cache shared with another clone may name fonts that no longer exist.
os.environ["MPLCONFIGDIR"] = str(Path(__file__).parent.parent / "build" / "matplotlib")
without_amx()  # before anything imports torch
# Before anything imports triton: set later, half of triton is not interpreted (tests/runtime/kernels/test_cuda.py).
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"

_connect = socket.socket.connect


def _local_only(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
        raise OSError(f"a test tried to reach {address}: tests run without network (tests/conftest.py)")
    return _connect(self, address)


socket.socket.connect = _local_only

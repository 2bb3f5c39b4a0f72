"""Tests with the sums of older CPUs: ``ATEN_CPU_CAPABILITY=default`` or ``avx2`` makes torch compute like those CPUs.

This works on any newer CPU, with one exception. On a CPU with AMX, oneDNN still offers AMX, which has bfloat16
products. Torch's attention in bfloat16 then uses AMX, and raises "pack_vnni2 is only supported when avx512 is
supported". A CPU without AVX-512 has no AMX either, so oneDNN is also told not to use AMX.
"""

import os

FORCED = ("default", "avx2")  # the values with which torch uses no AVX-512


def without_amx(environment=os.environ) -> None:
    """If torch must not use AVX-512, limit oneDNN to AVX2 unless it has a limit. Call it before torch is imported."""
    if environment.get("ATEN_CPU_CAPABILITY") in FORCED:
        environment.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")

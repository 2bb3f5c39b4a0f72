"""How fast GGUF blocks are encoded: qtutor on its threads against llama.cpp's C encoder on one, and the gguf package.

    pip install 'qtutor[gguf]' xllamacpp gguf && python benchmarks/gguf_encode.py

MB/s of float32 read, the best of three runs each (of llama.cpp's slow searches one), all in one process and on the same
4096 x 4096 Gaussian weights; the bytes are compared, too. ``--importance`` measures with an importance vector,
``--rows`` shrinks the matrix. The last line says whether the claim holds: at least 3.0 times llama.cpp's one thread for
K and IQ4 types, at least 1.0 times it and the gguf package for the others.
"""

import argparse
import os
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from qtutor.gguf import TYPES, encode
from qtutor.gguf.pieces import thread_count
from tests.gguf import llama_cpp

SEARCHED = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")


def speed(function, rows: np.ndarray, runs: int = 3) -> tuple[float, np.ndarray]:
    """MB/s of the fastest run, and what the function returned."""
    best = float("inf")
    for _ in range(runs):
        start = time.perf_counter()
        result = function(rows)
        best = min(best, time.perf_counter() - start)
    return rows.nbytes / 1e6 / best, result


def gguf_encoder(name: str):
    """The gguf package's encoder of a type, or ``None`` where it has none."""
    try:
        from gguf import GGMLQuantizationType, quants
    except ModuleNotFoundError:
        return None
    kind = GGMLQuantizationType[name]
    try:
        quants.quantize(np.ones((1, 256), np.float32), kind)
    except NotImplementedError:
        return None
    return lambda rows: quants.quantize(rows, kind)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--importance", action="store_true")
    parser.add_argument("types", nargs="*", default=list(TYPES))
    options = parser.parse_args()
    if llama_cpp.library() is None:
        print("The comparison needs llama.cpp's encoder: pip install xllamacpp", file=sys.stderr)
        return 2
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((options.rows, 4096), dtype=np.float32) * np.float32(0.02)
    importance = generator.random(4096, dtype=np.float32) if options.importance else None
    kind = "with" if options.importance else "without"
    print(f"{options.rows} x 4096, {kind} importance; load of the machine before: {os.getloadavg()[0]:.1f}")
    print("type     qtutor, threads:", thread_count(), "  llama.cpp, 1 thread   ratio   gguf package   ratio")
    failed = []
    for name in options.types:
        encode(rows[:16], name, importance)  # compiles
        ours, data = speed(lambda x, name=name: encode(x, name, importance), rows)
        runs = 1 if name in SEARCHED else 3
        theirs, expected = speed(lambda x, name=name: llama_cpp.encode(x, name, importance), rows, runs)
        package = gguf_encoder(name) if importance is None else None
        other = speed(package, rows)[0] if package else None
        equal = np.array_equal(data, expected)
        wanted = 3.0 if name in SEARCHED else 1.0
        if not equal or ours / theirs < wanted or (other and ours < other):
            failed.append(name)
        peer = f"{other:14.0f} {ours / other:7.2f}" if other else f"{'-':>14} {'-':>7}"
        print(f"{name:8} {ours:18.0f} {theirs:21.0f} {ours / theirs:7.2f} {peer}{'' if equal else '  BYTES DIFFER'}")
    print("missed: " + ", ".join(failed) if failed else "All types: bytes equal, and as fast as claimed.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

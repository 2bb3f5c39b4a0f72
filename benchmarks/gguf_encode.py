"""How fast GGUF blocks are encoded: qtutor on its threads against llama.cpp's C encoder on one, and the gguf package.

    pip install 'qtutor[gguf]' xllamacpp gguf && python benchmarks/gguf_encode.py

The unit is MB/s of float32 that is read. All encoders take turns in one process, on the same 4096 x 4096 Gaussian
weights; the best of five runs counts (of two runs for the types with a search). Their bytes are compared, too.
``--importance`` measures with an importance vector, ``--rows`` shrinks the matrix. The last line says whether the claim
holds: at least 3.0 times the speed of llama.cpp's one thread for K and IQ4 types, and at least 1.0 times the speed of
llama.cpp and the gguf package for the others.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from qtutor.gguf import TYPES, encode
from qtutor.threads import thread_count
from tests.gguf import llama_cpp

SEARCHED = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")


def race(functions: dict[str, Callable], rows: np.ndarray, rounds: int) -> dict[str, tuple[float, np.ndarray]]:
    """MB/s of every function's fastest run, and its result; functions take turns, so that all meet the same load."""
    best, results = dict.fromkeys(functions, float("inf")), {}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            results[name] = function(rows)
            best[name] = min(best[name], time.perf_counter() - start)
    return {name: (rows.nbytes / 1e6 / best[name], results[name]) for name in functions}


def gguf_encoder(name: str):
    """The gguf package's encoder of a type, or ``None`` if it has none (for F32, the encoder returns its argument)."""
    if name == "F32":
        return None
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
    parser.add_argument("--rounds", type=int, default=5)
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
        racers = {"ours": lambda x, name=name: encode(x, name, importance)}
        racers["C"] = lambda x, name=name: llama_cpp.encode(x, name, importance)
        if importance is None and (package := gguf_encoder(name)):
            racers["package"] = package
        results = race(racers, rows, 2 if name in SEARCHED else options.rounds)
        (ours, data), (theirs, expected), (other, _) = (
            results.get(key, (None, None)) for key in ("ours", "C", "package")
        )
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

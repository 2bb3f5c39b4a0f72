"""How long quantizing takes, and how much memory: qtutor against llm-compressor and GPTQModel, on a CPU.

    python benchmarks/peers/setup.py                                   # once: an environment for each peer
    python benchmarks/quantize_time.py [--method gptq] [--rounds 2]    # on a machine that does nothing else

The model is a Llama with random weights (hidden 1024, intermediate 2816, 8 blocks, 103M weights to quantize). It is
quantized to 4 bits in groups of 128, with 32 samples of 256 tokens. The time is that of the whole process: imports,
loading the checkpoint, calibration, quantizing, and writing the result in the quantizer's own format. Memory is the
process's largest resident size. The quantizers take turns, so that a machine that grows busier or hotter does so for
all of them. Ratios are computed within each round; the table has their medians. All quantizers get the number of
threads that ``--threads`` says, one by default; ``--peer-threads`` gives the peers another number.

Two differences matter. On a CPU with AMX, qtutor multiplies blocks this wide in bfloat16
(``qtutor/calibration/precision.py``); peers multiply in float32, the checkpoint's dtype. ``--float32`` also times
qtutor in float32. And there are 8192 tokens, three for every input of the widest layer. These are too few for
propagation, so qtutor leaves it out; propagation would double its time.

The exit status says whether the bounds hold: GPTQ takes at most half the time of the faster peer and at most its
memory; AWQ takes at most half of llm-compressor's time.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

PEERS_FOLDER = Path(__file__).resolve().parent / "peers"
sys.path.insert(0, str(PEERS_FOLDER))

from launch import CACHE, PEERS, Run, launch  # noqa: E402

BOUND = 0.5
OURS = {"qtutor": "qtutor", "qtutor_float32": "qtutor, float32"}
NAMES = {**OURS, **PEERS}
# qtutor's AWQ is only compared with llm-compressor's: GPTQModel's computes in float16, which is slow on CPUs.
CONTENDERS = {"gptq": ("qtutor", "llmcompressor", "gptqmodel"), "awq": ("qtutor", "llmcompressor")}


def checkpoint(method: str) -> tuple[Path, Path]:
    """The large decoder and its calibration tokens, made in another process: this one must stay small (see launch)."""
    made = subprocess.check_output([sys.executable, str(PEERS_FOLDER / "decoders.py"), "large", method], text=True)
    folder, tokens = map(Path, made.split())
    return folder, tokens


def measure(method: str, who: str, threads: int) -> Run:
    folder, tokens = checkpoint(method)
    out = CACHE / "packed" / f"large-{method}-{who}"
    shutil.rmtree(out, ignore_errors=True)
    run = launch(who, folder, tokens, out, method, bits=4, group_size=128, threads=threads)
    if not list(out.glob("*.safetensors")):
        raise SystemExit(f"{out}: {who} ended well but wrote no checkpoint.")
    shutil.rmtree(out)
    return run


def report(method: str, runs: dict[str, list[Run]]) -> list[str]:
    """Print medians and ratios; returns the bounds that are missed."""
    print(f"\n{method.upper():16} {'seconds':>20} {'processor':>20} {'peak memory':>12}    qtutor / it: time, memory")
    time_ratios, memory_ratios = {}, {}
    for who, own in runs.items():
        ours = runs["qtutor"]
        time_ratios[who] = statistics.median(a.seconds / b.seconds for a, b in zip(ours, own))
        memory_ratios[who] = statistics.median(a.peak_bytes / b.peak_bytes for a, b in zip(ours, own))
        seconds = ", ".join(f"{run.seconds:.1f}" for run in own)
        processor = ", ".join(f"{run.cpu_seconds:.1f}" for run in own)
        peak = statistics.median(run.peak_bytes for run in own) / 1e9
        ratios = f"{time_ratios[who]:.2f}, {memory_ratios[who]:.2f}"
        print(f"{NAMES[who]:16} {seconds:>20} {processor:>20} {peak:9.2f} GB    {ratios:>25}")
    faster = max(set(runs) - set(OURS), key=time_ratios.get)
    missed = []
    if time_ratios[faster] > BOUND:
        missed.append(f"{method}: {time_ratios[faster]:.2f} of {NAMES[faster]}'s time, at most {BOUND} is claimed")
    if method == "gptq" and memory_ratios[faster] > 1:
        missed.append(f"{method}: {memory_ratios[faster]:.2f} of {NAMES[faster]}'s memory, at most 1 is claimed")
    return missed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", choices=CONTENDERS, action="append", help="only this one (may be given twice)")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of qtutor, and of the peers where not said otherwise")
    parser.add_argument("--peer-threads", type=int, help="of the peers")
    parser.add_argument(
        "--float32", action="store_true", help="time qtutor a second time, with all products in float32"
    )
    parser.add_argument("--without", choices=PEERS, action="append", default=[], help="leave a peer out")
    options = parser.parse_args()
    peer_threads = options.peer_threads or options.threads
    print(f"{os.cpu_count()} cores, load before {os.getloadavg()[0]:.1f}")
    print(f"threads: qtutor {options.threads}, peers {peer_threads}")
    missed = []
    for method in options.method or CONTENDERS:
        contenders = CONTENDERS[method] + ("qtutor_float32",) * options.float32
        runs = {who: [] for who in contenders if who not in options.without}
        for _ in range(options.rounds):
            for who in runs:
                runs[who].append(measure(method, who, options.threads if who in OURS else peer_threads))
                print(f"  {method} {NAMES[who]}: {runs[who][-1]}", file=sys.stderr, flush=True)
        missed += report(method, runs)
    print("\n" + ("missed: " + "; ".join(missed) if missed else "As fast and as small as claimed."))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

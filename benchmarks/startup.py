"""The time that importing qtutor adds to importing torch and transformers, and the time to round the whole decoder.

    python benchmarks/startup.py

The peer is an interpreter that imports torch and everything that any user of a transformers decoder imports. Each
import runs in a fresh process, the two take turns, and times are medians of five.
"""

import statistics
import subprocess
import sys
import time

PEER = "import torch; from transformers import AutoModelForCausalLM, AutoTokenizer; AutoModelForCausalLM.from_config"
# qtutor imports a name when it is first used, so all names are used here: nothing is left to be imported later.
OURS = PEER + "; import qtutor; [getattr(qtutor, name) for name in qtutor.__all__]"
ROUNDING = """
import time, torch, qtutor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
[getattr(qtutor, name) for name in qtutor.__all__]
start = time.perf_counter(); model, tokenizer = qtutor.load_decoder(device="cpu"); loaded = time.perf_counter() - start
start = time.perf_counter(); qtutor.quantize(model, qtutor.Recipe(bits=4, group_size=64), progress=False)
print(loaded, time.perf_counter() - start)
"""


def seconds(program: str) -> float:
    """Wall time of one fresh interpreter."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True)
    return time.perf_counter() - start


def main() -> None:
    seconds(OURS)  # warm the disk cache
    pairs = [(seconds(PEER), seconds(OURS)) for _ in range(5)]
    peer, ours = (statistics.median(column) for column in zip(*pairs, strict=True))
    added = statistics.median(b - a for a, b in pairs)
    print(f"import torch, transformers   {peer:6.2f} s")
    print(f"... and qtutor               {ours:6.2f} s   ratio {ours / peer:.2f}, adds {added:.2f} s")
    runs = [
        tuple(map(float, subprocess.check_output([sys.executable, "-c", ROUNDING], text=True).split()))
        for _ in range(3)
    ]
    loaded, rounded = (statistics.median(column) for column in zip(*runs, strict=True))
    print(f"load_decoder()               {loaded:6.2f} s")
    print(f"RTN, 4 bits, whole decoder   {rounded:6.2f} s")


if __name__ == "__main__":
    main()

"""How much memory does `qtutor quantize` take for a checkpoint of 2.2 GB? It reads and writes blocks one by one.

    python benchmarks/stream_memory.py                    # about ten minutes on one thread, and 3 GB of disk
    python benchmarks/stream_memory.py --methods rtn --folder /tmp/big    # keep the checkpoint for next time

A Llama of random bf16 weights in the shapes of TinyLlama-1.1B (hidden 2048, intermediate 5632, 22 blocks, vocabulary
32,000) is quantized to 4 bits in groups of 64 by the command line, in its own process. The memory is that process's
anonymous memory (RssAnon in /proc/PID/status, read every 20 ms; only Linux reports it). Memory that is mapped from a
file can be read again, and does not count. GPTQ reads 4 samples of 128 tokens. The exit status is 1 if a method takes
more than 1.5 GB.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BOUND = 1.5e9
EVERY = 0.02  # seconds
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}


def shapes() -> dict[str, tuple[int, ...]]:
    """All tensors of the decoder, by name."""
    hidden, wide = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    keys = hidden * CONFIG["num_key_value_heads"] // CONFIG["num_attention_heads"]
    found = {"model.embed_tokens.weight": (CONFIG["vocab_size"], hidden)}
    for index in range(CONFIG["num_hidden_layers"]):
        block = f"model.layers.{index}"
        found |= {
            f"{block}.self_attn.{n}_proj.weight": (rows, hidden)
            for n, rows in zip("qkvo", (hidden, keys, keys, hidden))
        }
        found |= {f"{block}.mlp.{n}_proj.weight": (wide, hidden) for n in ("gate", "up")}
        found[f"{block}.mlp.down_proj.weight"] = hidden, wide
        found |= {f"{block}.{n}_layernorm.weight": (hidden,) for n in ("input", "post_attention")}
    return found | {"model.norm.weight": (hidden,), "lm_head.weight": (CONFIG["vocab_size"], hidden)}


def make(folder: Path) -> None:
    """Make the checkpoint in another process, so that this one stays small."""
    import torch

    from qtutor.decoder import EMBEDDED
    from qtutor.formats.shards import Shards, laid_out

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    with Shards(folder, laid_out({name: (torch.bfloat16, shape) for name, shape in shapes().items()})) as files:
        for name, shape in shapes().items():
            files.write(name, (torch.ones(shape) if len(shape) == 1 else 0.02 * torch.randn(shape)).bfloat16())
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EMBEDDED / file, folder)
    (folder / "config.json").write_text(json.dumps(CONFIG))


def anonymous(pid: int) -> int:
    """Bytes of a process's anonymous memory; 0 after it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)


def measure(source: Path, out: Path, method: str) -> tuple[float, float]:
    """The largest anonymous memory in bytes, and the seconds."""
    text = ["--calibration", argparse.__file__, "--samples", "4", "--length", "128"] if method != "rtn" else []
    command = [sys.executable, "-m", "qtutor.cli", "quantize", str(source), str(out), "--method", method, *text]
    begin, peak = time.monotonic(), 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            peak = max(peak, anonymous(process.pid))
            time.sleep(EVERY)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with status {process.returncode}.")
    return peak, time.monotonic() - begin


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="*", default=["rtn", "gptq"])
    parser.add_argument("--folder", type=Path, help="where the checkpoint is, or is to be made and kept")
    parser.add_argument("--make", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        make(options.folder)
        return 0
    rows = []
    with tempfile.TemporaryDirectory(prefix="stream-memory-") as made:
        source = options.folder or Path(made) / "float"
        if not (source / "config.json").is_file():
            subprocess.run([sys.executable, __file__, "--make", "--folder", str(source)], check=True)
        size = sum(path.stat().st_size for path in source.glob("*.safetensors"))
        for method in options.methods:
            out = Path(made) / "out"
            peak, seconds = measure(source, out, method)
            written = sum(path.stat().st_size for path in out.rglob("*"))
            rows.append((method, peak, seconds, written))
            shutil.rmtree(out)
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    print(f"\n{size:,} bytes of weights, {threads} threads\n")
    print("| method | anonymous memory, at most | seconds | bytes written |\n|---|---|---|---|")
    for method, peak, seconds, written in rows:
        print(f"| {method} | {peak / 1e9:.2f} GB | {seconds:.0f} | {written:,} |")
    return int(any(peak > BOUND for _, peak, _, _ in rows))


if __name__ == "__main__":
    sys.exit(main())

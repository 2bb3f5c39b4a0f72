"""The cost of writing a checkpoint of 1.1 billion parameters as GGUF: seconds, and memory beyond the mapped file.

    python benchmarks/gguf_export.py                  # Q4_K_M; --type Q8_0 for another mix
    python benchmarks/gguf_export.py --layers 2       # a small one, to try

The checkpoint has TinyLlama's shape and random bf16 weights. It takes 2.2 GB in a temporary folder, and the file takes
0.7 GB. Memory is anonymous memory (RssAnon), which a process needs for itself; pages of the mapped checkpoint can be
dropped and read again. The last line says whether the claim holds: at most 2 GB more than before loading.
"""

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

LIMIT = 2e9


def anonymous() -> float:
    """Bytes of memory that belong to this process alone."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return 1024 * int(line.split()[1])


def make(folder: str, layers: int) -> None:
    """A checkpoint with random weights: one slice of numbers is repeated, because drawing all of them takes minutes."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.gguf.small_tokenizers import byte_level

    config = LlamaConfig(
        vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=layers, num_attention_heads=32,
        num_key_value_heads=4, max_position_embeddings=2048, tie_word_embeddings=False, dtype=torch.bfloat16,
    )  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    slice_ = 0.02 * torch.randn(1 << 20, generator=torch.Generator().manual_seed(0))
    state = {}
    for name, parameter in model.named_parameters():
        size = parameter.numel()
        repeated = slice_.to(torch.bfloat16).repeat(-(-size // len(slice_)))[:size].reshape(parameter.shape)
        state[name] = repeated.contiguous() if parameter.dim() == 2 else torch.ones_like(repeated)
    model.load_state_dict(state, assign=True)
    model.save_pretrained(folder)
    byte_level().save_pretrained(folder)


def measure(folder: str, mix: str) -> int:
    import qtutor

    start = anonymous()
    model, tokenizer = qtutor.load_decoder(folder, dtype="auto")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    highest, done = [start], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            highest.append(anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    path = qtutor.export(model, Path(folder) / "out.gguf", format="gguf", type=mix, tokenizer=tokenizer)
    seconds = time.perf_counter() - began
    done.set()
    watcher.join()
    more = max(highest) - start
    print(f"{parameters / 1e9:.2f} billion parameters to {mix}: {seconds:.1f} s, {path.stat().st_size:,} bytes")
    verdict = "yes" if more < LIMIT else "NO"
    print(f"memory beyond the mapped file: {more / 1e9:.2f} GB, at most {LIMIT / 1e9:.1f}: {verdict}")
    return int(more >= LIMIT)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--type", default="Q4_K_M")
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--folder", help=argparse.SUPPRESS)  # for the process that measures
    options = parser.parse_args()
    if options.folder:
        return measure(options.folder, options.type)
    with tempfile.TemporaryDirectory() as folder:
        make(folder, options.layers)
        return subprocess.call([sys.executable, __file__, "--folder", folder, "--type", options.type])


if __name__ == "__main__":
    sys.exit(main())

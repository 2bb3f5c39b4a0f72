"""How far a quantized checkpoint is from the float one, as JSON; runs in its own process, like the quantizers.

    python measure.py CHECKPOINT TOKENS QUANTIZED

TOKENS: a safetensors file with ``token_ids [samples, length]``. QUANTIZED: the folder that qtutor wrote, or a folder of
plain weights, as the peers' scripts write them (``--dequantized``).
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file

import qtutor
from qtutor.formats import checkpoint, load_quantized
from qtutor.formats.sources import FLOAT, find


def decoder_in(source: str) -> torch.nn.Module:
    """The decoder in float32, without its tokenizer: the peers' folders of plain weights have none."""
    found = find(source)
    if found.kind == FLOAT:
        return checkpoint.load(found.path, torch.float32, "cpu")
    return load_quantized(found.path, "cpu").float()


def main() -> None:
    reference, tokens, quantized = sys.argv[1:]
    ids = load_file(tokens)["token_ids"]
    found = asdict(qtutor.evaluate.compare(decoder_in(quantized), decoder_in(reference), ids))
    print(json.dumps(found | {"tokens": ids.numel(), "folder": Path(quantized).name}))


if __name__ == "__main__":
    main()

"""How far a quantized checkpoint is from the float one, as JSON; a process of its own, like the quantizers.

    python measure.py CHECKPOINT TOKENS QUANTIZED

TOKENS: a safetensors file with ``token_ids [samples, length]``. QUANTIZED: what qtutor wrote, or a folder of plain
weights, as the peers' scripts write them (``--dequantized``).
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import load_file

import qtutor


def main() -> None:
    checkpoint, tokens, quantized = sys.argv[1:]
    ids = load_file(tokens)["token_ids"]
    reference, _ = qtutor.load_decoder(checkpoint, device="cpu")
    # A float32 checkpoint stays float32, a packed one says itself in what it computes.
    model = qtutor.load_decoder(quantized, device="cpu")[0].float()
    found = asdict(qtutor.evaluate.compare(model, reference, ids))
    print(json.dumps(found | {"tokens": ids.numel(), "folder": Path(quantized).name}))


if __name__ == "__main__":
    main()

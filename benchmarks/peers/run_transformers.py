"""The least time and memory for reading the calibration text: load the float model, and let it read the text once.

It is started and measured like the quantizers, with the same arguments, but it quantizes and writes nothing.
"""

import argparse

import torch
from safetensors.torch import load_file
from transformers import AutoModel


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("tokens")
    options, _ = parser.parse_known_args()
    model = AutoModel.from_pretrained(options.checkpoint, dtype=torch.float32)  # without lm_head: no quantizer needs it
    for sample in load_file(options.tokens)["token_ids"]:
        model(sample[None], use_cache=False)


if __name__ == "__main__":
    main()
